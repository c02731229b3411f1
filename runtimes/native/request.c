#include "request.h"
#include "json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MAX_NUMBER = (uint64_t)1 << 53;

#define REFUSE(request, why, ...) \
    ((request)->code = (why), snprintf((request)->message, sizeof(request)->message, __VA_ARGS__), false)

static bool is_text(const struct json_value *value, const char *text) {
    return value->kind == JSON_STRING && value->length == strlen(text) && strcmp(value->text, text) == 0;
}

static bool is_count(const struct json_value *value) {
    return value->kind == JSON_NUMBER && value->integral && !value->negative;
}

/* A member that is there and not null. */
static const struct json_value *given(const struct json_value *root, const char *name) {
    const struct json_value *value = json_member(root, name);
    return value == NULL || value->kind == JSON_NULL ? NULL : value;
}

static bool read_verb(struct request *request, const struct json_value *root) {
    static const struct {
        const char *name;
        enum verb verb;
    } verbs[] = {{"generate", DO_GENERATE}, {"cancel", DO_CANCEL}, {"forget", DO_FORGET}, {"sample", DO_SAMPLE},
                 {"ping", DO_PING}};
    const struct json_value *number = given(root, "request"), *verb = given(root, "do");
    if (number == NULL || !is_count(number) || number->integer >= MAX_NUMBER)
        return REFUSE(request, "malformed", "the line has no proper request; give an integer, 0 to 2^53 - 1");
    request->number = (int64_t)number->integer;
    for (size_t i = 0; verb != NULL && i < sizeof verbs / sizeof *verbs; i++)
        if (is_text(verb, verbs[i].name))
            request->verb = verbs[i].verb;
    if (request->verb == DO_NOTHING)
        return REFUSE(request, "malformed", "the line has no known do; known: generate, cancel, forget, sample, ping");
    return true;
}

static bool check_names(struct request *request, const struct json_value *root) {
    static const char *const known[] = {"do",   "request",    "ids",  "max_new_tokens", "stop_ids", "temperature", "top_k",
                                        "top_p", "seed", "deadline_s", "session", "hold"};
    size_t count = request->verb == DO_GENERATE ? sizeof known / sizeof *known : 2;
    for (size_t i = 0; i < root->length; i++) {
        bool found = false;
        for (size_t j = 0; j < count; j++)
            found = found || is_text(&root->items[2 * i], known[j]);
        if (!found)
            return REFUSE(request, "request", "unknown key \"%.40s\"; leave it out", root->items[2 * i].text);
    }
    return true;
}

static bool read_ids(struct request *request, const struct json_value *value, const char *what, size_t vocab_size,
                     int32_t **ids, size_t *count) {
    if (value->kind != JSON_ARRAY)
        return REFUSE(request, "request", "%ss are not a list of integers", what);
    if ((*ids = malloc((value->length + 1) * sizeof **ids)) == NULL)
        return REFUSE(request, "request", "out of memory for %zu %ss", value->length, what);
    *count = value->length;
    for (size_t i = 0; i < value->length; i++) {
        const struct json_value *id = &value->items[i];
        if (id->kind != JSON_NUMBER || !id->integral)
            return REFUSE(request, "request", "%ss are not a list of integers", what);
        if ((id->negative && id->integer != 0) || id->integer >= vocab_size)
            return REFUSE(request, "request", "%s %s%llu is not in the model's vocabulary; allowed: 0 to %zu", what,
                          id->negative ? "-" : "", (unsigned long long)id->integer, vocab_size - 1);
        (*ids)[i] = (int32_t)id->integer;
    }
    return true;
}

static bool read_prompt(struct request *request, const struct json_value *root, size_t context_tokens,
                        size_t vocab_size) {
    const struct json_value *ids = given(root, "ids"), *stop_ids = given(root, "stop_ids");
    const struct json_value *max_new_tokens = given(root, "max_new_tokens");
    if (ids == NULL || max_new_tokens == NULL)
        return REFUSE(request, "request", "the request lacks %s", ids == NULL ? "ids" : "max_new_tokens");
    if (!read_ids(request, ids, "token id", vocab_size, &request->ids, &request->id_count))
        return false;
    if (stop_ids != NULL &&
        !read_ids(request, stop_ids, "stop id", vocab_size, &request->stop_ids, &request->stop_count))
        return false;
    if (request->id_count == 0)
        return REFUSE(request, "request", "the prompt has no tokens; give at least one");
    if (request->id_count >= context_tokens)
        return REFUSE(request, "request",
                      "the prompt has %zu tokens; a context of %zu takes at most %zu and one new one; shorten the prompt",
                      request->id_count, context_tokens, context_tokens - 1);
    if (!is_count(max_new_tokens) || max_new_tokens->integer == 0)
        return REFUSE(request, "request", "max_new_tokens is not an integer of 1 or more");
    request->max_new_tokens = max_new_tokens->integer;
    return true;
}

static bool read_sampling(struct request *request, const struct json_value *root) {
    const struct json_value *temperature = given(root, "temperature"), *top_k = given(root, "top_k");
    const struct json_value *top_p = given(root, "top_p"), *seed = given(root, "seed");
    if (temperature != NULL) {
        double value = temperature->number;
        if (temperature->kind != JSON_NUMBER || !isfinite(value) || value < 0)
            return REFUSE(request, "request", "temperature is not a number of 0 (greedy) or more");
        request->sampling.temperature = value;
    }
    if (top_k != NULL) {
        if (!is_count(top_k) || top_k->integer == 0)
            return REFUSE(request, "request", "top_k is not an integer of 1 or more; leave it out for none");
        request->sampling.top_k = top_k->integer > SIZE_MAX ? SIZE_MAX : (size_t)top_k->integer;
    }
    if (top_p != NULL) {
        if (top_p->kind != JSON_NUMBER || !(top_p->number > 0) || top_p->number > 1)
            return REFUSE(request, "request", "top_p is not a number above 0, at most 1; leave it out for none");
        request->sampling.has_top_p = true;
        request->sampling.top_p = top_p->number;
    }
    if (seed != NULL) {
        if (!is_count(seed))
            return REFUSE(request, "request", "seed is not an integer from 0 to 2^64 - 1");
        request->sampling.seed = seed->integer;
    }
    return true;
}

static bool read_rest(struct request *request, const struct json_value *root) {
    const struct json_value *deadline = given(root, "deadline_s"), *session = given(root, "session");
    const struct json_value *hold = given(root, "hold");
    if (deadline != NULL) {
        if (deadline->kind != JSON_NUMBER || !isfinite(deadline->number))
            return REFUSE(request, "request", "deadline_s is not a number of seconds");
        request->has_deadline = true;
        request->deadline_s = deadline->number;
    }
    if (session != NULL) {
        static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
        if (session->kind != JSON_STRING || session->length == 0 || session->length > MAX_SESSION ||
            strspn(session->text, allowed) != session->length)
            return REFUSE(request, "request", "session is not 1 to 64 characters of A-Z a-z 0-9 . _ -");
        memcpy(request->session, session->text, session->length + 1);
    }
    if (hold != NULL) {
        if (hold->kind != JSON_BOOL)
            return REFUSE(request, "request", "hold is neither true nor false");
        request->hold = hold->boolean;
    }
    return true;
}

void request_read(struct request *request, const char *line, size_t length, size_t context_tokens,
                  size_t vocab_size) {
    struct json_document document;
    *request = (struct request){.number = -1};
    if (!json_parse(&document, line, length))
        (void)REFUSE(request, "malformed", "the line is not JSON: %s at byte %zu", document.error, document.error_at);
    else if (document.root->kind != JSON_OBJECT)
        (void)REFUSE(request, "malformed", "the line is not a JSON object");
    else if (read_verb(request, document.root) && check_names(request, document.root) && request->verb == DO_GENERATE)
        (void)(read_prompt(request, document.root, context_tokens, vocab_size) &&
               read_sampling(request, document.root) && read_rest(request, document.root));
    json_free(&document);
}

void request_free(struct request *request) {
    free(request->ids);
    free(request->stop_ids);
    request->ids = request->stop_ids = NULL;
}
