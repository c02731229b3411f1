#define _GNU_SOURCE
#include "machine.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double machine_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The first line of a file, without its end. */
static bool read_line(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "re");
    bool good = file != NULL && fgets(text, (int)size, file) != NULL;
    if (file != NULL)
        fclose(file);
    if (good)
        text[strcspn(text, "\n")] = '\0';
    return good && text[0] != '\0';
}

double machine_process_age(void) {
    char line[1024];
    unsigned long long started = 0;
    struct timespec now;
    if (!read_line("/proc/self/stat", line, sizeof line))
        return -1;
    const char *at = strrchr(line, ')'); /* the name before it may hold anything */
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at == NULL || sscanf(at, " %llu", &started) != 1 || started == 0)
        return -1;
    clock_gettime(CLOCK_BOOTTIME, &now);
    double age = (double)now.tv_sec + (double)now.tv_nsec * 1e-9 - (double)started / (double)sysconf(_SC_CLK_TCK);
    return age >= 0 ? age : -1;
}

int machine_cores(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) > 0)
        return CPU_COUNT(&allowed);
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

bool machine_boot_id(char *text, size_t size) {
    return read_line("/proc/sys/kernel/random/boot_id", text, size);
}
