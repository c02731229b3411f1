#include "sampling.h"

#include <math.h>
#include <stdlib.h>

/* top_p usually ends among the first few candidates: the whole vocabulary is sorted only where it does not. */
enum { FIRST_CANDIDATES = 256 };

/* Number `index` of the seed's stream, uniform in [0, 1): SplitMix64, upper 53 bits. */
static double draw(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

/* Is candidate a to be drawn from after b? */
static bool worse(const float *logits, int32_t a, int32_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

/* Restore the heap below `at`: the worst candidate is at the root. */
static void sift(const float *logits, int32_t *heap, size_t count, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            return;
        if (child + 1 < count && worse(logits, heap[child + 1], heap[child]))
            child++;
        if (!worse(logits, heap[child], heap[at]))
            return;
        int32_t kept = heap[at];
        heap[at] = heap[child];
        heap[child] = kept;
        at = child;
    }
}

void best_ids(const float *logits, size_t count, int32_t *ids, size_t wanted) {
    if (wanted == 0)
        return;
    for (size_t i = 0; i < wanted; i++)
        ids[i] = (int32_t)i;
    for (size_t i = wanted / 2; i-- > 0;)
        sift(logits, ids, wanted, i);
    for (size_t i = wanted; i < count; i++)
        if (worse(logits, ids[0], (int32_t)i)) {
            ids[0] = (int32_t)i;
            sift(logits, ids, wanted, 0);
        }
    for (size_t left = wanted; left > 1; left--) { /* the worst goes to the end */
        int32_t worst = ids[0];
        ids[0] = ids[left - 1];
        ids[left - 1] = worst;
        sift(logits, ids, left - 1, 0);
    }
}

static double weigh(float logit, double highest, double temperature) {
    return exp(((double)logit - highest) / temperature);
}

/* The weight of an id that may be drawn; 0 for one that min-p drops. The best one's is 1. */
static double kept_weight(float logit, double highest, const struct sampling *sampling) {
    double weight = weigh(logit, highest, sampling->temperature);
    return weight >= sampling->min_p ? weight : 0;
}

/* Draw from `ids` (NULL: all, in their order). */
static int32_t draw_one(const float *logits, const int32_t *ids, size_t count, double highest,
                        const struct sampling *sampling, double share) {
    double total = 0, sum = 0;
    int32_t last = 0; /* the best one is kept always */
    for (size_t i = 0; i < count; i++)
        total += kept_weight(logits[ids == NULL ? (int32_t)i : ids[i]], highest, sampling);
    for (size_t i = 0; i < count; i++) {
        int32_t id = ids == NULL ? (int32_t)i : ids[i];
        double weight = kept_weight(logits[id], highest, sampling);
        sum += weight;
        if (weight > 0 || sampling->min_p == 0)
            last = id;
        if (sum > share * total)
            return id;
    }
    return last;
}

/* How many of `ids`, best first, make up the share top_p; the one that crosses it is kept. */
static size_t nucleus(const float *logits, const int32_t *ids, size_t count, double highest,
                      const struct sampling *sampling, double total) {
    double before = 0;
    size_t kept = 0;
    while (kept < count && before < sampling->top_p * total)
        before += weigh(logits[ids[kept++]], highest, sampling->temperature);
    return kept == 0 ? 1 : kept;
}

static double sum_weights(const float *logits, const int32_t *ids, size_t count, double highest, double temperature) {
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += weigh(logits[ids == NULL ? (int32_t)i : ids[i]], highest, temperature);
    return sum;
}

int32_t sample_token(const float *logits, size_t count, const struct sampling *sampling, uint64_t index,
                     const char **error) {
    size_t first = 0;
    for (size_t i = 0; i < count; i++) {
        if (isnan(logits[i])) {
            *error = "the model's logits are nan: the artifact or the engine is broken";
            return -1;
        }
        if (logits[i] > logits[first])
            first = i;
    }
    if (!isfinite(logits[first])) {
        *error = "the model's logits are infinite: the artifact or the engine is broken";
        return -1;
    }
    if (sampling->temperature == 0)
        return (int32_t)first;
    double highest = logits[first], share = draw(sampling->seed, index), temperature = sampling->temperature;
    if (sampling->top_k == 0 && !sampling->has_top_p)
        return draw_one(logits, NULL, count, highest, sampling, share);
    size_t allowed = sampling->top_k == 0 || sampling->top_k > count ? count : sampling->top_k;
    size_t few = sampling->has_top_p && allowed > FIRST_CANDIDATES ? FIRST_CANDIDATES : allowed;
    int32_t *ids = malloc(allowed * sizeof *ids);
    if (ids == NULL) {
        *error = "out of memory while sampling";
        return -1;
    }
    best_ids(logits, count, ids, few);
    size_t kept = few;
    if (sampling->has_top_p) {
        /* Without top-k the nucleus is a share of all the weight, which is known before anything is sorted. */
        double total = sampling->top_k == 0 ? sum_weights(logits, NULL, count, highest, temperature) : -1;
        if (few < allowed &&
            (total < 0 || sum_weights(logits, ids, few, highest, temperature) < sampling->top_p * total))
            best_ids(logits, count, ids, few = allowed);
        if (total < 0)
            total = sum_weights(logits, ids, few, highest, temperature);
        kept = nucleus(logits, ids, few, highest, sampling, total);
    }
    int32_t chosen = draw_one(logits, ids, kept, highest, sampling, share);
    free(ids);
    return chosen;
}
