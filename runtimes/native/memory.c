#include "memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct memory_use peak;
static uint64_t most_held, high_water;

static struct memory_sample read_status(void) {
    static const char *const names[] = {"VmHWM:", "VmRSS:", "RssAnon:", "RssFile:", "VmSwap:"};
    struct memory_sample seen = {0};
    uint64_t *const values[] = {&seen.high_water_bytes, &seen.resident_bytes, &seen.anonymous_bytes, &seen.file_bytes,
                                &seen.swap_bytes};
    unsigned found = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "re");
    if (status == NULL)
        return seen;
    while (fgets(line, sizeof line, status) != NULL)
        for (unsigned i = 0; i < 5; i++) {
            unsigned long long kib;
            if (strncmp(line, names[i], strlen(names[i])) != 0 || sscanf(line + strlen(names[i]), "%llu kB", &kib) != 1)
                continue;
            *values[i] = kib * 1024;
            found |= 1u << i;
        }
    fclose(status);
    seen.known = found == 31;
    return seen;
}

struct memory_sample memory_now(void) {
    struct memory_sample seen = read_status();
    if (!seen.known)
        return seen;
    uint64_t held = seen.resident_bytes + seen.swap_bytes;
    pthread_mutex_lock(&lock);
    if (seen.high_water_bytes > high_water)
        high_water = seen.high_water_bytes;
    if (held >= most_held) {
        most_held = held;
        peak.anonymous_bytes = seen.anonymous_bytes;
        peak.file_bytes = seen.file_bytes;
        peak.swap_bytes = seen.swap_bytes;
    }
    peak.peak_bytes = high_water > most_held ? high_water : most_held;
    peak.known = true;
    pthread_mutex_unlock(&lock);
    return seen;
}

struct memory_use memory_peak(void) {
    memory_now();
    pthread_mutex_lock(&lock);
    struct memory_use now = peak;
    pthread_mutex_unlock(&lock);
    return now;
}

static void *run(void *unused) {
    const struct timespec interval = {.tv_nsec = 10 * 1000 * 1000};
    for (;;) {
        memory_now();
        nanosleep(&interval, NULL);
    }
    return unused;
}

void memory_start(void) {
    pthread_t thread;
    memory_now();
    if (pthread_create(&thread, NULL, run, NULL) == 0)
        pthread_detach(thread);
}
