#include "score.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Read one position's figures from its logits. False where they are not numbers. */
static bool judge_position(const struct model *model, const struct request *request, const float *logits,
                           size_t position, size_t first_wanted, struct scores *scores) {
    double total = log_total(logits, model->vocab_size);
    best_ids(logits, model->vocab_size, &scores->top[position], 1);
    for (size_t i = 0; i < request->wanted_counts[position]; i++) {
        double logprob = rounded_logprob(logits[request->wanted[first_wanted + i]], total);
        if (!isfinite(logprob))
            return false;
        scores->logprobs[first_wanted + i] = logprob;
    }
    return isfinite(total);
}

void score(struct model *model, const struct request *request, atomic_bool *cancelled, struct scores *scores) {
    size_t positions = request->id_count - request->first + 1, read = 0, judged = 0;
    *scores = (struct scores){.positions = positions,
                              .top = calloc(positions, sizeof *scores->top),
                              .logprobs = calloc(request->wanted_count + 1, sizeof *scores->logprobs)};
    if (scores->top == NULL || scores->logprobs == NULL) {
        snprintf(scores->error, sizeof scores->error, "out of memory for %zu positions", positions);
        return;
    }
    if (model->switch_tokens != 0 && request->id_count > model->switch_tokens) {
        /* The graph chooses long rope's factors by how far a call reaches, and here the first calls reach less far. */
        snprintf(scores->error, sizeof scores->error, "%zu ids are beyond long rope's switch at %zu; score shorter texts",
                 request->id_count, model->switch_tokens);
        return;
    }
    model_forget(model);
    for (size_t position = 0; position < positions; position++) {
        const float *logits = NULL;
        size_t upto = request->first + position;
        while (read < upto) {
            if (atomic_load(cancelled)) {
                snprintf(scores->error, sizeof scores->error, "the score was cancelled after %zu of %zu positions",
                         position, positions);
                return;
            }
            size_t count = upto - read < PREFILL_CHUNK_TOKENS ? upto - read : PREFILL_CHUNK_TOKENS;
            logits = engine_forward(model->engine, request->ids + read, count, read, false, scores->error,
                                    sizeof scores->error);
            if (logits == NULL)
                return;
            read += count;
        }
        if (!judge_position(model, request, logits, position, judged, scores)) {
            snprintf(scores->error, sizeof scores->error,
                     "the logits after %zu ids are not finite; export it again", upto);
            return;
        }
        judged += request->wanted_counts[position];
    }
}

void scores_free(struct scores *scores) {
    free(scores->top);
    free(scores->logprobs);
}
