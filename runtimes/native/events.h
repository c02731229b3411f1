/* The lines that the agent writes (docs/agent-protocol.md), whole and from any thread. */
#ifndef PHI_EDGE_EVENTS_H
#define PHI_EDGE_EVENTS_H

#include "artifact.h"
#include "generate.h"
#include "score.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whole lines that are written together. */
struct lines {
    char *text;
    size_t length, room;
};

/* Keep stdout for the events: what a library prints there goes to stderr from now on. */
bool events_open(void);
/* Let a line that is being written end, then keep all others back: for the end of the process. */
void events_close(void);

/* `number` is the request's; -1: none. */
void write_error(int64_t number, const char *code, const char *message, bool fatal);
void write_scored(int64_t number, const struct request *request, const struct scores *scores);
void write_pong(int64_t number, double uptime_s);
/* Seconds and shares below 0 are unknown. */
void write_ready(const struct artifact *artifact, const struct model *model, int threads, double open_s,
                 double cached_share);

/* Add a line, and write all lines that were added. */
void add_token(struct lines *lines, int64_t number, const struct choice *choice, double at_s);
void add_done(struct lines *lines, int64_t number, size_t prompt, const struct answer *answer);
void write_lines(struct lines *lines);

#endif
