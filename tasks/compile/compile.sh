#!/bin/sh
# C on standard input, an object file on standard output.  usage: compile.sh NAME [FLAG...]
set -eu
name=$1
shift

# The line that tells the compiler what the source is called; what would end the name early is left out.
{ printf '# 1 "%s"\n' "$(printf %s "$name" | tr -d '"\\\n')" && cat; } >unit.c
gcc "$@" -Iinclude -c unit.c -o unit.o
cat unit.o
