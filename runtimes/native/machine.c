#define _GNU_SOURCE
#include "machine.h"
#include "json.h"

#include <dirent.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define CPUFREQ "/sys/devices/system/cpu/cpu%d/cpufreq/%s"

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

static void write_text(FILE *out, const char *name, const char *text) {
    fprintf(out, ",\"%s\":", name);
    if (text == NULL)
        fputs("null", out);
    else
        json_write_string(out, text, strlen(text));
}

static void write_frequencies(FILE *out) {
    char path[128], line[64];
    int cores = (int)sysconf(_SC_NPROCESSORS_CONF), found = 0;
    fputs(",\"frequency_hz\":", out);
    for (int core = 0; core < cores; core++) {
        snprintf(path, sizeof path, CPUFREQ, core, "scaling_cur_freq");
        if (read_line(path, line, sizeof line))
            fprintf(out, "%s%lld", found++ == 0 ? "[" : ",", atoll(line) * 1000);
    }
    fputs(found == 0 ? "null" : "]", out);
}

static void write_temperatures(FILE *out) {
    char path[320], value[64], type[64], name[400];
    int found = 0;
    DIR *zones = opendir("/sys/class/thermal");
    fputs(",\"temperature_c\":", out);
    for (struct dirent *zone; zones != NULL && (zone = readdir(zones)) != NULL;) {
        if (strncmp(zone->d_name, "thermal_zone", 12) != 0)
            continue;
        snprintf(path, sizeof path, "/sys/class/thermal/%s/temp", zone->d_name);
        char *end = value;
        if (read_line(path, value, sizeof value))
            strtol(value, &end, 10);
        if (end == value) /* a zone that is switched off has no number */
            continue;
        snprintf(path, sizeof path, "/sys/class/thermal/%s/type", zone->d_name);
        snprintf(name, sizeof name, "%s %s", zone->d_name, read_line(path, type, sizeof type) ? type : "");
        fputs(found++ == 0 ? "{" : ",", out);
        json_write_string(out, name, strlen(name));
        fprintf(out, ":%.3f", (double)atol(value) / 1000);
    }
    if (zones != NULL)
        closedir(zones);
    fputs(found == 0 ? "null" : "}", out);
}

static void write_memory(FILE *out) {
    static const char *const names[] = {"MemTotal:", "MemAvailable:", "SwapTotal:", "SwapFree:"};
    unsigned long long values[4] = {0};
    unsigned found = 0;
    char line[256];
    FILE *meminfo = fopen("/proc/meminfo", "re");
    while (meminfo != NULL && fgets(line, sizeof line, meminfo) != NULL)
        for (unsigned i = 0; i < 4; i++)
            if (strncmp(line, names[i], strlen(names[i])) == 0 &&
                sscanf(line + strlen(names[i]), "%llu kB", &values[i]) == 1)
                found |= 1u << i;
    if (meminfo != NULL)
        fclose(meminfo);
    if ((found & 1) != 0)
        fprintf(out, ",\"memory_total_bytes\":%llu", values[0] * 1024);
    if ((found & 2) != 0)
        fprintf(out, ",\"memory_available_bytes\":%llu", values[1] * 1024);
    if ((found & 12) == 12)
        fprintf(out, ",\"swap_total_bytes\":%llu,\"swap_used_bytes\":%llu", values[2] * 1024,
                (values[2] - values[3]) * 1024);
}

void machine_write_conditions(FILE *out) {
    char text[256], path[128];
    struct utsname system;
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &utc);
    fprintf(out, "{\"at\":\"%s\"", text);
    if (uname(&system) == 0) {
        snprintf(text, sizeof text, "%.80s %.80s %.80s", system.sysname, system.release, system.machine);
        write_text(out, "system", text);
    }
    write_text(out, "boot_id", machine_boot_id(text, sizeof text) ? text : NULL);
    snprintf(path, sizeof path, CPUFREQ, 0, "scaling_governor");
    write_text(out, "governor", read_line(path, text, sizeof text) ? text : NULL);
    fprintf(out, ",\"logical_cores\":%ld,\"allowed_cores\":%d", sysconf(_SC_NPROCESSORS_CONF), machine_cores());
    if (read_line("/proc/loadavg", text, sizeof text))
        fprintf(out, ",\"load_average_1min\":%.2f", atof(text));
    write_frequencies(out);
    write_temperatures(out);
    write_memory(out);
    fputc('}', out);
}
