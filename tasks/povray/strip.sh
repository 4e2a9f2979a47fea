#!/bin/sh
# One strip of scene.pov as raw RGB rows on standard output.  usage: strip.sh STRIP STRIPS WIDTH HEIGHT
set -eu
strip=$1 strips=$2 width=$3 height=$4

case $strip in '' | *[!0-9]*) echo "$strip is not the number of a strip" >&2 && exit 2 ;; esac
if [ "$strip" -ge "$strips" ] || [ $((height % strips)) -ne 0 ]; then
    echo "there is no strip $strip of $strips in a picture $height high (STRIPS must divide HEIGHT)" >&2
    exit 2
fi
rows=$((height / strips))
first=$((strip * rows))
# One thread: the worker's slots share the processors out already. -D: no window, +FP: PPM, rows counted from 1.
povray +Iscene.pov +W"$width" +H"$height" +SR$((first + 1)) +ER$((first + rows)) \
    +A0.3 +WT1 -D -GA +FP +Oframe.ppm >log 2>&1 || { status=$?; cat log >&2; exit $status; }
# The file has the whole picture's rows, black where they were not asked for; the pixels are its end.
row_bytes=$((width * 3))
tail -c $((height * row_bytes)) frame.ppm | tail -c +$((first * row_bytes + 1)) | head -c $((rows * row_bytes))
