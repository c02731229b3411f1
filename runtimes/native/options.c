#define _GNU_SOURCE
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static const char usage[] = "agent ARTIFACT [--libraries DIR] [--threads N] [--lock FILE] [--silence-s S] [--cold]";

static bool wrong(char *error, size_t error_size, const char *what) {
    snprintf(error, error_size, "%.100s; usage: %s", what, usage);
    return false;
}

static bool take(struct options *options, int option, char *error, size_t error_size) {
    char *end;
    long threads;
    switch (option) {
    case 'b':
        options->libraries = optarg;
        return true;
    case 'l':
        options->lock = optarg;
        return true;
    case 'c':
        options->cold = true;
        return true;
    case 't':
        threads = strtol(optarg, &end, 10);
        options->threads = threads > 0 && threads <= 1024 ? (int)threads : 0;
        return (*end == '\0' && options->threads > 0) ||
               wrong(error, error_size, "--threads is not an integer from 1 to 1024");
    default:
        options->silence_s = strtod(optarg, &end);
        return (*end == '\0' && options->silence_s > 0 && options->silence_s <= 1e6) ||
               wrong(error, error_size, "--silence-s is not a number of seconds above 0");
    }
}

bool options_read(struct options *options, int count, char **words, char *error, size_t error_size) {
    static const struct option known[] = {
        {"libraries", required_argument, NULL, 'b'}, {"threads", required_argument, NULL, 't'},
        {"lock", required_argument, NULL, 'l'},      {"silence-s", required_argument, NULL, 's'},
        {"cold", no_argument, NULL, 'c'},            {NULL, 0, NULL, 0},
    };
    char what[128];
    int option;
    *options = (struct options){0};
    opterr = 0; /* we report it ourselves, as an error line */
    while ((option = getopt_long(count, words, ":", known, NULL)) != -1) {
        if (option == '?' || option == ':') {
            snprintf(what, sizeof what, "%.60s %s", words[optind - 1],
                     option == '?' ? "is not an option" : "needs a value");
            return wrong(error, error_size, what);
        }
        if (!take(options, option, error, error_size))
            return false;
    }
    if (count - optind != 1)
        return wrong(error, error_size, optind == count ? "no ARTIFACT" : "more than one ARTIFACT");
    options->folder = words[optind];
    return true;
}
