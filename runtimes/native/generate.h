/* The generation loop: prefill, sample, forward, again; as runtimes/loop/loop.py, which is the reference. */
#ifndef PHI_EDGE_GENERATE_H
#define PHI_EDGE_GENERATE_H

#include "artifact.h"
#include "chooser.h"
#include "engine.h"
#include "request.h"

#include <stdatomic.h>

struct model {
    struct engine *engine;
    size_t context_tokens, vocab_size;
    size_t switch_tokens; /* 0: no long rope */
    size_t window_tokens, kept_tokens; /* of a cache that keeps only the last tokens; else 0 */
    int32_t *cached;      /* ids whose keys and values are in the engine, by position */
    size_t cached_count;
    int32_t *sequence;    /* prompt and answer of the running request; both have room for context_tokens */
    bool cached_long;     /* they were computed with the long factors */
    char session[MAX_SESSION + 1];
    struct chooser chooser;
};

struct answer {
    const char *finish; /* as on the wire */
    int32_t stop_id;    /* -1: none */
    size_t reused, prefilled, completion;
    double prefill_s;   /* -1: it was not finished */
    double total_s;
    char error[512];
};

/* A prompt is prefilled in pieces of this length, so that a cancel or a deadline need not wait for all of it. */
enum { PREFILL_CHUNK_TOKENS = 512 };

/* The model's sizes and buffers, without its engine. False: out of memory. */
bool model_init(struct model *model, const struct artifact *artifact);
/* Whatever is cached is of no use to the next request. */
void model_forget(struct model *model);

/* Called for each token, when it was sampled. */
typedef void on_token(void *context, const struct choice *choice, double at_s);

/* `accepted_s` is on machine_clock; `cancelled` may be set from another thread. */
void generate(struct model *model, const struct request *request, double accepted_s, atomic_bool *cancelled,
              on_token *take, void *context, struct answer *answer);

#endif
