/* How one request chooses its tokens, as runtimes/loop/chooser.py: penalties, the draw, and what the model itself thought
 * of each token. */
#ifndef PHI_EDGE_CHOOSER_H
#define PHI_EDGE_CHOOSER_H

#include "request.h"

struct likely {
    int32_t id;
    double logprob; /* of the model's own distribution, before penalties, temperature and cuts */
};

/* An id, and the likeliest ones as far as the request wants to know. */
struct choice {
    int32_t id;
    bool judged; /* whether it has log-probabilities */
    double logprob;
    size_t top_count;
    struct likely top[MAX_LOGPROBS];
};

/* Buffers of vocab_size: which ids are in prompt or answer, how often in the answer, and the changed logits. */
struct chooser {
    size_t vocab_size;
    uint8_t *seen;
    uint32_t *times;
    float *changed;
    uint64_t chosen; /* how many ids of the answer so far */
};

/* The logarithm of the sum of exp(logit): a logit less this is its log-probability. */
double log_total(const float *logits, size_t count);
/* A log-probability, with the decimals of the wire. */
double rounded_logprob(float logit, double total);

/* False: out of memory. */
bool chooser_init(struct chooser *chooser, size_t vocab_size);

/* For a new request. */
void chooser_begin(struct chooser *chooser, const struct request *request);

/* The next id, from logits[vocab_size], which stay as they are; it counts as part of the answer. False where the logits
 * are not numbers, with `error` set. */
bool choose(struct chooser *chooser, const struct request *request, const float *logits, struct choice *choice,
            const char **error);

#endif
