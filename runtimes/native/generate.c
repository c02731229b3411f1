#include "generate.h"
#include "machine.h"

#include <stdlib.h>
#include <string.h>

struct run {
    struct model *model;
    const struct request *request;
    double accepted_s;
    atomic_bool *cancelled;
    struct answer *answer;
};

static const char *ended(const struct run *run) {
    if (atomic_load(run->cancelled))
        return "cancelled";
    if (run->request->has_deadline && machine_clock() - run->accepted_s >= run->request->deadline_s)
        return "deadline";
    return NULL;
}

static bool is_long(const struct model *model, size_t length) {
    return model->switch_tokens != 0 && length > model->switch_tokens;
}

bool model_init(struct model *model, const struct artifact *artifact) {
    size_t count = artifact->context_tokens;
    *model = (struct model){.context_tokens = count,
                            .vocab_size = artifact->vocab_size,
                            .switch_tokens = artifact->switch_tokens,
                            .window_tokens = artifact->window_tokens,
                            .kept_tokens = artifact->kept_tokens,
                            .cached = calloc(count, sizeof(int32_t)),
                            .sequence = calloc(count, sizeof(int32_t))};
    return model->cached != NULL && model->sequence != NULL && chooser_init(&model->chooser, model->vocab_size);
}

void model_forget(struct model *model) {
    model->cached_count = 0;
    model->session[0] = '\0';
}

/* Trim the cache to what this request may keep of it; how many tokens that is. */
static size_t reusable(struct model *model, const struct request *request) {
    bool same = request->session[0] != '\0' && strcmp(request->session, model->session) == 0;
    size_t keep = 0;
    if (!same || is_long(model, request->id_count) != model->cached_long)
        model->cached_count = 0;
    memcpy(model->session, request->session, sizeof model->session);
    /* The last prompt token is always computed: its logits are needed. */
    while (keep < model->cached_count && keep + 1 < request->id_count && model->cached[keep] == request->ids[keep])
        keep++;
    /* Of a cache that keeps only the last tokens, what lies further back is gone (as WindowEngine.can_resume). */
    if (model->kept_tokens != 0 && model->cached_count > model->kept_tokens &&
        model->cached_count - keep > engine_most_back(model->window_tokens, model->kept_tokens))
        keep = 0;
    return model->cached_count = keep;
}

/* The logits after `ids` at start...; NULL after an error. */
static const float *forward(struct run *run, const int32_t *ids, size_t count, size_t start) {
    struct model *model = run->model;
    model->cached_count = start; /* until the engine returns, what its cache contains beyond is unknown */
    const float *logits = engine_forward(model->engine, ids, count, start, model->cached_long,
                                         run->answer->error, sizeof run->answer->error);
    if (logits != NULL) {
        memcpy(model->cached + start, ids, count * sizeof *ids);
        model->cached_count = start + count;
    }
    return logits;
}

/* Compute ids[start...] in pieces, and return the last logits. NULL after an error, a cancel or the deadline. */
static const float *prefill(struct run *run, const int32_t *ids, size_t count, size_t start) {
    struct model *model = run->model;
    const float *logits = NULL;
    model->cached_count = start;
    model->cached_long = is_long(model, count);
    while (start < count) {
        if (logits != NULL && ended(run) != NULL)
            return NULL;
        size_t end = start + PREFILL_CHUNK_TOKENS;
        /* The graph chooses the factors by how far a call reaches, so the first one must reach past the switch. */
        if (model->cached_long && end < model->switch_tokens + 1)
            end = model->switch_tokens + 1;
        if (end > count)
            end = count;
        if ((logits = forward(run, ids + start, end - start, start)) == NULL)
            return NULL;
        start = end;
    }
    return logits;
}

static bool stops(const struct request *request, int32_t id) {
    for (size_t i = 0; i < request->stop_count; i++)
        if (request->stop_ids[i] == id)
            return true;
    return false;
}

/* Sample and forward until something ends it. `ids` has room for the whole context and begins with the prompt. */
static const char *decode(struct run *run, int32_t *ids, const float *logits, on_token *take, void *context) {
    const struct request *request = run->request;
    struct answer *answer = run->answer;
    struct model *model = run->model;
    size_t count = request->id_count, room = model->context_tokens - count;
    const char *finish, *error = NULL;
    struct choice choice;
    if (request->max_new_tokens < room)
        room = (size_t)request->max_new_tokens;
    for (;;) {
        bool chosen = choose(&model->chooser, request, logits, &choice, &error);
        double at_s = machine_clock() - run->accepted_s;
        if (!chosen) {
            strncpy(answer->error, error, sizeof answer->error - 1);
            return "error";
        }
        if (stops(request, choice.id)) {
            answer->stop_id = choice.id;
            return "stop";
        }
        answer->completion++;
        take(context, &choice, at_s);
        ids[count++] = choice.id;
        if ((finish = ended(run)) != NULL)
            return finish;
        if (answer->completion == room)
            return "length";
        if (is_long(model, count) != model->cached_long)
            logits = prefill(run, ids, count, 0);
        else
            logits = forward(run, ids + count - 1, 1, count - 1);
        if (logits == NULL)
            return answer->error[0] != '\0' ? "error" : ended(run);
    }
}

void generate(struct model *model, const struct request *request, double accepted_s, atomic_bool *cancelled,
              on_token *take, void *context, struct answer *answer) {
    struct run run = {model, request, accepted_s, cancelled, answer};
    int32_t *ids = model->sequence;
    *answer = (struct answer){.stop_id = -1, .prefill_s = -1, .reused = reusable(model, request)};
    memcpy(ids, request->ids, request->id_count * sizeof *ids);
    chooser_begin(&model->chooser, request);
    answer->finish = ended(&run);
    if (answer->finish == NULL) {
        double began_s = machine_clock();
        const float *logits = prefill(&run, ids, request->id_count, answer->reused);
        answer->prefilled = model->cached_count - answer->reused;
        if (logits != NULL) {
            answer->prefill_s = machine_clock() - began_s;
            answer->finish = decode(&run, ids, logits, take, context);
        } else {
            answer->finish = answer->error[0] != '\0' ? "error" : ended(&run);
        }
    }
    if (answer->error[0] != '\0') /* what the engine's cache contains is unknown */
        model_forget(model);
    answer->total_s = machine_clock() - accepted_s;
}
