#!/bin/sh
# One task: the data comes in on standard input, the result goes out on standard output.
# What fails must not look like success:
set -eu

least=$1
awk -v least="$least" '
    { for (i = 1; i <= NF; i++) if (length($i) >= least) count++ }
    END { print count + 0 }
'
