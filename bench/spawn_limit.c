/* spawn_limit COUNT PROGRAM: vfork, exec and wait, COUNT times. What a machine can do at most for one caller: no pipe, no
 * folder, no time limit, nobody told. Run two side by side for a machine of two processors. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    char *program[] = {argv[2], NULL};
    for (int left = atoi(argv[1]); left > 0; left--) {
        int status;
        pid_t pid = vfork();
        if (pid == 0) {
            execve(program[0], program, environ);
            _exit(127);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) return 1;
    }
    return 0;
}
