#include "memory.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct sample {
    bool known;
    uint64_t high_water_bytes, resident_bytes, anonymous_bytes, file_bytes, swap_bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sample most; /* the sample with the most memory */
static uint64_t high_water;

static struct sample read_status(void) {
    static const char *const names[] = {"VmHWM:", "VmRSS:", "RssAnon:", "RssFile:", "VmSwap:"};
    uint64_t bytes[5] = {0};
    unsigned found = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "re");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        for (unsigned i = 0; i < 5; i++) {
            unsigned long long kib;
            if (strncmp(line, names[i], strlen(names[i])) != 0 || sscanf(line + strlen(names[i]), "%llu kB", &kib) != 1)
                continue;
            bytes[i] = kib * 1024;
            found |= 1u << i;
        }
    if (status != NULL)
        fclose(status);
    return (struct sample){found == 31, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]};
}

static uint64_t held(const struct sample *sample) {
    return sample->resident_bytes + sample->swap_bytes;
}

static void take_sample(void) {
    struct sample now = read_status();
    pthread_mutex_lock(&lock);
    if (now.high_water_bytes > high_water)
        high_water = now.high_water_bytes;
    if (now.known && held(&now) >= held(&most))
        most = now;
    pthread_mutex_unlock(&lock);
}

void memory_add(yyjson_mut_doc *doc, yyjson_mut_val *object) {
    take_sample();
    pthread_mutex_lock(&lock);
    struct sample peak = most;
    uint64_t peak_bytes = high_water > held(&most) ? high_water : held(&most);
    pthread_mutex_unlock(&lock);
    if (!peak.known) {
        yyjson_mut_obj_add_null(doc, object, "memory");
        return;
    }
    yyjson_mut_val *memory = yyjson_mut_obj_add_obj(doc, object, "memory");
    yyjson_mut_obj_add_uint(doc, memory, "peak_bytes", peak_bytes);
    yyjson_mut_obj_add_uint(doc, memory, "anonymous_bytes", peak.anonymous_bytes);
    yyjson_mut_obj_add_uint(doc, memory, "file_bytes", peak.file_bytes);
    yyjson_mut_obj_add_uint(doc, memory, "swap_bytes", peak.swap_bytes);
}

static void *run(void *unused) {
    const struct timespec interval = {.tv_nsec = 10 * 1000 * 1000};
    for (;;) {
        take_sample();
        nanosleep(&interval, NULL);
    }
    return unused;
}

void memory_start(void) {
    pthread_t thread;
    take_sample();
    if (pthread_create(&thread, NULL, run, NULL) == 0)
        pthread_detach(thread);
}
