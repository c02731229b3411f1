#define _GNU_SOURCE
#include "watch.h"
#include "machine.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_SILENCE = 3 };
static const double STUCK_S = 5; /* after the end of stdin, without a line read or written */
static const double LOOK_S = 1;

static atomic_ullong moved; /* lines read and written */
static _Atomic double last_line_s;
static double limit_s;

void watch_read(void) {
    atomic_store(&last_line_s, machine_clock());
    atomic_fetch_add(&moved, 1);
}

void watch_wrote(void) {
    atomic_fetch_add(&moved, 1);
}

/* Is the other end of stdin closed, even where lines of it are still unread? */
static bool hung_up(void) {
    struct pollfd input = {.fd = 0, .events = POLLRDHUP};
    return poll(&input, 1, 0) > 0 && (input.revents & (POLLHUP | POLLRDHUP)) != 0;
}

static _Noreturn void end_silent(void) {
    char text[80];
    int length = snprintf(text, sizeof text, "no line came in for %.1f s: the host is gone\n", limit_s);
    fcntl(2, F_SETFL, fcntl(2, F_GETFL) | O_NONBLOCK); /* nobody may read it */
    if (write(2, text, (size_t)length) < 0)
        _exit(EXIT_SILENCE);
    _exit(EXIT_SILENCE);
}

static void *watch(void *unused) {
    unsigned long long before = 0;
    double since_s = machine_clock();
    for (;;) {
        double now_s = machine_clock(), left_s = LOOK_S;
        if (limit_s > 0 && (left_s = atomic_load(&last_line_s) + limit_s - now_s) <= 0)
            end_silent();
        if (!hung_up() || atomic_load(&moved) != before) {
            before = atomic_load(&moved);
            since_s = now_s;
        } else if (now_s - since_s > STUCK_S) {
            _exit(0);
        }
        if (left_s > LOOK_S)
            left_s = LOOK_S;
        struct timespec wait = {(time_t)left_s, (long)((left_s - (double)(time_t)left_s) * 1e9)};
        nanosleep(&wait, NULL);
    }
    return unused;
}

bool watch_start(double silence_s) {
    pthread_t thread;
    limit_s = silence_s;
    watch_read();
    return pthread_create(&thread, NULL, watch, NULL) == 0 && pthread_detach(thread) == 0;
}
