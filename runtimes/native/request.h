/* One line from the host as a struct, checked (docs/agent-protocol.md). It writes no answer. */
#ifndef PHI_EDGE_REQUEST_H
#define PHI_EDGE_REQUEST_H

#include "sampling.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_LINE_BYTES = 4 << 20, MAX_SESSION = 64, MAX_LOGPROBS = 20 };

enum verb { DO_NOTHING, DO_GENERATE, DO_SCORE, DO_CANCEL, DO_PING };

struct request {
    enum verb verb;
    int64_t number; /* -1 if the line has no valid one */
    int32_t *ids;
    size_t id_count;
    int32_t *stop_ids;
    size_t stop_count;
    uint64_t max_new_tokens;
    struct sampling sampling;
    bool has_logprobs;
    size_t logprobs; /* how many of the likeliest ids to report with each token */
    bool has_deadline, hold;
    double deadline_s;
    char session[MAX_SESSION + 1]; /* empty: none */
    /* Of a score: so many ids are read at once; for each position, how many ids are wanted, and these ids. */
    size_t first;
    size_t *wanted_counts;
    int32_t *wanted;
    size_t wanted_count; /* of all positions together */
    /* For a refused line: code and message of the error line. */
    const char *code;
    char message[256];
};

/* Read a line. `code` is NULL for a good one. */
void request_read(struct request *request, const char *line, size_t length, size_t context_tokens, size_t vocab_size);
void request_free(struct request *request);

#endif
