/* From logits to the next id, as runtimes/loop/sampling.py: the same draws from the same seed, so the same tokens. */
#ifndef PHI_EDGE_SAMPLING_H
#define PHI_EDGE_SAMPLING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sampling {
    double temperature; /* 0 is greedy */
    bool has_top_p;
    double top_p;
    size_t top_k; /* 0: none */
    double min_p; /* 0: none */
    uint64_t seed;
    double repetition_penalty; /* 1 changes nothing; chooser.h applies the penalties */
    double presence_penalty, frequency_penalty; /* 0 changes nothing */
};

/* The `wanted` best of `count` ids, best first, ties by id. */
void best_ids(const float *logits, size_t count, int32_t *ids, size_t wanted);

/* The id of token number `index`; -1 where the logits are not numbers (or memory is out), with `error` set. */
int32_t sample_token(const float *logits, size_t count, const struct sampling *sampling, uint64_t index,
                     const char **error);

#endif
