#!/bin/sh
# Loops over tasks: a line in is a task's data, a line out is its result. The shell itself does all of it.
set -eu
# A word of the data such as * must not become a list of files.
set -f

least=$1
while IFS= read -r line; do
    count=0
    for word in $line; do
        if [ "${#word}" -ge "$least" ]; then
            count=$((count + 1))
        fi
    done
    echo "$count"
done
