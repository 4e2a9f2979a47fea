/* Loops over tasks: a line in is a task's data, a line out is its result, in the same order. No library is needed. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

/* The work: replace this. `data` has `size` bytes, which may be any but a newline. */
static long work(const char *data, size_t size, long least)
{
    long count = 0, letters = 0;
    for (size_t i = 0; i <= size; i++) {
        if (i < size && !isspace((unsigned char)data[i])) {
            letters++;
        } else {
            count += letters > 0 && letters >= least;
            letters = 0;
        }
    }
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: main LEAST, then a task a line\n");
        return 2;
    }
    long least = strtol(argv[1], NULL, 10);
    char *line = NULL;
    size_t room = 0;
    ssize_t size;
    while ((size = getline(&line, &room, stdin)) >= 0) {
        if (size > 0 && line[size - 1] == '\n')
            size--;
        /* Without the flush the worker would wait for an answer that is still in a buffer here. */
        if (printf("%ld\n", work(line, (size_t)size, least)) < 0 || fflush(stdout) == EOF)
            return 1;
    }
    free(line);
    return ferror(stdin) ? 1 : 0;
}
