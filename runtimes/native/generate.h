/* The generation loop: prefill, sample, forward, again; as runtimes/loop/loop.py, which is the reference. */
#ifndef PHI_EDGE_GENERATE_H
#define PHI_EDGE_GENERATE_H

#include "engine.h"
#include "request.h"

#include <stdatomic.h>

struct model {
    struct engine *engine;
    size_t context_tokens, vocab_size;
    size_t switch_tokens; /* 0: no long rope */
    int32_t *cached;      /* ids whose keys and values are in the engine, by position; room for context_tokens */
    size_t cached_count;
    bool cached_long;     /* they were computed with the long factors */
    char session[MAX_SESSION + 1];
};

struct answer {
    const char *finish; /* as on the wire */
    int32_t stop_id;    /* -1: none */
    size_t reused, prefilled, completion;
    double prefill_s;   /* -1: it did not finish */
    double total_s;
    char error[512];
};

/* Called for each token, when it was sampled. */
typedef void on_token(void *context, int32_t id, double at_s);

/* `accepted_s` is on machine_clock; `cancelled` may be set from another thread. */
void generate(struct model *model, const struct request *request, double accepted_s, atomic_bool *cancelled,
              on_token *tell, void *context, struct answer *answer);
/* Drop what the sessions have cached. */
void forget(struct model *model);

#endif
