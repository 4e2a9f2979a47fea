/* work_queue_manager PORT WORKERS: the client of Work Queue, which is its manager too; answers the questions of
 * bench/peers/driver.py. A task's standard output is captured into its structure by the library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cctools/work_queue.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void add(struct work_queue *queue, int tasks) {
    while (tasks-- > 0) {
        struct work_queue_task *task = work_queue_task_create("/bin/true");
        work_queue_task_specify_cores(task, 1);
        work_queue_submit(queue, task);
    }
}

static void finish(struct work_queue *queue, int tasks) {
    add(queue, tasks);
    while (tasks > 0) {
        struct work_queue_task *task = work_queue_wait(queue, 5);
        if (task) {
            if (task->return_status) exit(1);
            work_queue_task_delete(task);
            tasks--;
        }
    }
}

int main(int argc, char **argv) {
    char what[32];
    int tasks, answers = dup(1);
    FILE *out = fdopen(answers, "w");
    struct work_queue_stats stats;
    if (argc != 3) return 2;
    dup2(2, 1);
    struct work_queue *queue = work_queue_create(atoi(argv[1]));
    if (!queue) return 1;
    do {
        if (atoi(argv[2])) work_queue_wait(queue, 1);
        work_queue_get_stats(queue, &stats);
    } while (stats.workers_connected < atoi(argv[2]));
    if (atoi(argv[2])) finish(queue, 10);
    fprintf(out, "\"ready\"\n");
    fflush(out);
    while (scanf("%31s %d", what, &tasks) == 2) {
        double start = now();
        if (!strcmp(what, "latency")) {
            fprintf(out, "[");
            for (int i = 0; i < tasks; i++) {
                start = now();
                finish(queue, 1);
                fprintf(out, "%s%.4f", i ? ", " : "", 1000 * (now() - start));
            }
            fprintf(out, "]\n");
        } else {
            if (!strcmp(what, "queue")) add(queue, tasks);
            else finish(queue, tasks);
            fprintf(out, "%.6f\n", now() - start);
        }
        fflush(out);
    }
    return 0;
}
