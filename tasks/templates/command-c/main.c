/* One task: the data comes in on standard input, the result goes out on standard output. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: main LEAST < DATA\n");
        return 2;
    }
    long least = strtol(argv[1], NULL, 10);
    long count = 0, letters = 0;
    int c;
    do {
        c = getchar();
        if (c != EOF && !isspace(c)) {
            letters++;
        } else {
            count += letters > 0 && letters >= least;
            letters = 0;
        }
    } while (c != EOF);
    printf("%ld\n", count);
    /* A result that could not be written is no result. */
    return ferror(stdin) || fflush(stdout) == EOF ? 1 : 0;
}
