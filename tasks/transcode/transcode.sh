#!/bin/sh
# A clip on standard input, a smaller one on standard output.  usage: transcode.sh HEIGHT QUALITY
set -eu
height=$1 quality=$2

# Into a file first: in many an MP4 the table of contents stands last, and a pipe cannot be read backwards.
cat >clip
if ! ffprobe -v error -select_streams v:0 -show_entries stream=codec_name -of csv=p=0 clip | grep -q .; then
    echo "this is no video that ffmpeg can read" >&2
    exit 2
fi
# trunc(.../2)*2: H.264 wants even sides. The sound is kept as it is, if there is any.
exec ffmpeg -nostdin -v error -i clip -map 0:v:0 -map '0:a?' \
    -vf "scale=w=-2:h='trunc(min($height,ih)/2)*2'" -pix_fmt yuv420p \
    -c:v libx264 -crf "$quality" -c:a copy -f matroska pipe:1
