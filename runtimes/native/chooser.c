#include "chooser.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double DECIMALS = 1e6; /* of a log-probability */

bool chooser_init(struct chooser *chooser, size_t vocab_size) {
    *chooser = (struct chooser){.vocab_size = vocab_size,
                                .seen = calloc(vocab_size, sizeof *chooser->seen),
                                .times = calloc(vocab_size, sizeof *chooser->times),
                                .changed = calloc(vocab_size, sizeof *chooser->changed)};
    return chooser->seen != NULL && chooser->times != NULL && chooser->changed != NULL;
}

void chooser_begin(struct chooser *chooser, const struct request *request) {
    memset(chooser->seen, 0, chooser->vocab_size * sizeof *chooser->seen);
    memset(chooser->times, 0, chooser->vocab_size * sizeof *chooser->times);
    for (size_t i = 0; i < request->id_count; i++)
        chooser->seen[request->ids[i]] = 1;
    chooser->chosen = 0;
}

/* As runtimes/loop/penalties.py, in its numbers: float32, one operation after the other. */
static const float *penalise(struct chooser *chooser, const struct sampling *sampling, const float *logits) {
    float repetition = (float)sampling->repetition_penalty;
    float presence = (float)sampling->presence_penalty, frequency = (float)sampling->frequency_penalty;
    if (repetition == 1 && presence == 0 && frequency == 0)
        return logits;
    for (size_t id = 0; id < chooser->vocab_size; id++) {
        float logit = logits[id];
        if (chooser->seen[id] && repetition != 1)
            logit = logit > 0 ? logit / repetition : logit * repetition;
        if (chooser->times[id] > 0 && (presence != 0 || frequency != 0))
            logit -= presence + frequency * (float)chooser->times[id];
        chooser->changed[id] = logit;
    }
    return chooser->changed;
}

double rounded_logprob(float logit, double total) {
    return rint((logit - total) * DECIMALS) / DECIMALS;
}

double log_total(const float *logits, size_t count) {
    double highest = logits[0], sum = 0;
    for (size_t id = 1; id < count; id++)
        highest = logits[id] > highest ? logits[id] : highest;
    for (size_t id = 0; id < count; id++)
        sum += exp(logits[id] - highest);
    return highest + log(sum);
}

/* `logits` are numbers: one of them was chosen. */
static void judge(const struct chooser *chooser, const float *logits, size_t count, struct choice *choice) {
    int32_t ids[MAX_LOGPROBS];
    double total = log_total(logits, chooser->vocab_size);
    choice->judged = true;
    choice->logprob = rounded_logprob(logits[choice->id], total);
    choice->top_count = count < chooser->vocab_size ? count : chooser->vocab_size;
    best_ids(logits, chooser->vocab_size, ids, choice->top_count);
    for (size_t i = 0; i < choice->top_count; i++)
        choice->top[i] = (struct likely){ids[i], rounded_logprob(logits[ids[i]], total)};
}

bool choose(struct chooser *chooser, const struct request *request, const float *logits, struct choice *choice,
            const char **error) {
    const float *allowed = penalise(chooser, &request->sampling, logits);
    *choice = (struct choice){
        .id = sample_token(allowed, chooser->vocab_size, &request->sampling, chooser->chosen, error)};
    if (choice->id < 0)
        return false;
    chooser->seen[choice->id] = 1;
    chooser->times[choice->id]++;
    chooser->chosen++;
    if (request->has_logprobs)
        judge(chooser, logits, request->logprobs, choice);
    return true;
}
