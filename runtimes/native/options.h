/* The command line (docs/agent-protocol.md). */
#ifndef PHI_EDGE_OPTIONS_H
#define PHI_EDGE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct options {
    const char *folder, *libraries, *lock;
    int threads;      /* 0: all cores */
    double silence_s; /* 0: wait forever */
    bool cold;
};

/* False, with `error` filled, for a command line that is wrong. */
bool options_read(struct options *options, int count, char **words, char *error, size_t error_size);

#endif
