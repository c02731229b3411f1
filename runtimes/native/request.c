#include "request.h"
#include "yyjson/yyjson.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MAX_NUMBER = (uint64_t)1 << 53;

#define REFUSE(request, why, ...) \
    ((request)->code = (why), snprintf((request)->message, sizeof(request)->message, __VA_ARGS__), false)

/* A member that is there and not null. */
static yyjson_val *given(yyjson_val *root, const char *name) {
    yyjson_val *value = yyjson_obj_get(root, name);
    return yyjson_is_null(value) ? NULL : value;
}

static bool find_name(yyjson_val *key, const char *const *names, size_t count, size_t *place) {
    for (*place = 0; *place < count; ++*place)
        if (yyjson_equals_str(key, names[*place]))
            return true;
    return false;
}

static const char *const keys[] = {
    "do", "request", "ids", "max_new_tokens", "stop_ids", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "logprobs", "deadline_s", "session", "hold"};
static const char *const score_keys[] = {"do", "request", "ids", "first", "wanted"};
enum { KEYS = sizeof keys / sizeof *keys, SCORE_KEYS = sizeof score_keys / sizeof *score_keys, COMMON_KEYS = 2, MOST_KEYS = 256, MOST_NESTING = 64 };

/* A key that is given twice is refused, known or not: it is unclear which value is meant. */
static bool check_duplicates(struct request *request, yyjson_val *root) {
    yyjson_obj_iter outer, inner;
    yyjson_val *key, *other;
    if (yyjson_obj_size(root) > MOST_KEYS)
        return REFUSE(request, "malformed", "a line of %zu keys; known are %d", yyjson_obj_size(root), (int)KEYS);
    yyjson_obj_iter_init(root, &outer);
    while ((key = yyjson_obj_iter_next(&outer)) != NULL) {
        inner = outer;
        while ((other = yyjson_obj_iter_next(&inner)) != NULL)
            if (yyjson_equals(key, other))
                return REFUSE(request, "malformed", "%.40s is given twice; give it once", yyjson_get_str(key));
    }
    return true;
}

/* Lists and objects in one another, as the Python agent counts them. */
static bool check_nesting(struct request *request, const char *line, size_t length) {
    size_t depth = 0;
    bool in_text = false;
    for (size_t i = 0; i < length; i++) {
        if (in_text) {
            if (line[i] == '\\')
                i++;
            else
                in_text = line[i] != '"';
        } else if (line[i] == '"') {
            in_text = true;
        } else if (line[i] == '[' || line[i] == '{') {
            if (++depth > MOST_NESTING)
                return REFUSE(request, "malformed", "lists and objects are nested deeper than %d", (int)MOST_NESTING);
        } else if (line[i] == ']' || line[i] == '}') {
            depth--;
        }
    }
    return true;
}

static bool read_verb(struct request *request, yyjson_val *root) {
    static const char *const verbs[] = {"generate", "score", "cancel", "ping"};
    yyjson_val *number = yyjson_obj_get(root, "request"), *verb = yyjson_obj_get(root, "do");
    size_t place;
    if (!yyjson_is_uint(number) || yyjson_get_uint(number) >= MAX_NUMBER)
        return REFUSE(request, "malformed", "the line has no valid request; give an integer from 0 to 2^53 - 1");
    request->number = (int64_t)yyjson_get_uint(number);
    if (!find_name(verb, verbs, sizeof verbs / sizeof *verbs, &place))
        return REFUSE(request, "malformed", "the line has no known do; known: generate, score, cancel, ping");
    request->verb = (enum verb)(DO_GENERATE + place);
    return true;
}

static bool check_names(struct request *request, yyjson_val *root) {
    size_t index, count, place;
    yyjson_val *key, *value;
    yyjson_obj_foreach(root, index, count, key, value) {
        bool known = request->verb == DO_SCORE
                         ? find_name(key, score_keys, SCORE_KEYS, &place)
                         : find_name(key, keys, request->verb == DO_GENERATE ? KEYS : COMMON_KEYS, &place);
        if (!known)
            return REFUSE(request, "request", "unknown key \"%.40s\"; leave it out", yyjson_get_str(key));
    }
    return true;
}

static bool read_ids(struct request *request, yyjson_val *list, const char *what, size_t vocab_size, int32_t **ids,
                     size_t *count) {
    size_t index, length;
    yyjson_val *id;
    if (!yyjson_is_arr(list))
        return REFUSE(request, "request", "the %ss are not a list of integers", what);
    if ((*ids = malloc((yyjson_arr_size(list) + 1) * sizeof **ids)) == NULL)
        return REFUSE(request, "request", "out of memory for %zu %ss", yyjson_arr_size(list), what);
    *count = yyjson_arr_size(list);
    yyjson_arr_foreach(list, index, length, id) {
        if (!yyjson_is_int(id) && !yyjson_is_raw(id))
            return REFUSE(request, "request", "the %ss are not a list of integers", what);
        if (yyjson_is_raw(id))
            return REFUSE(request, "request", "%s %.40s is not in the model's vocabulary; allowed: 0 to %zu", what,
                          yyjson_get_raw(id), vocab_size - 1);
        bool negative = yyjson_is_sint(id) && yyjson_get_sint(id) < 0;
        if (negative || yyjson_get_uint(id) >= vocab_size)
            return REFUSE(request, "request", "%s %lld is not in the model's vocabulary; allowed: 0 to %zu", what,
                          (long long)yyjson_get_sint(id), vocab_size - 1);
        (*ids)[index] = (int32_t)yyjson_get_uint(id);
    }
    return true;
}

static bool read_prompt(struct request *request, yyjson_val *root, size_t context_tokens,
                        size_t vocab_size) {
    yyjson_val *ids = given(root, "ids"), *stop_ids = given(root, "stop_ids");
    yyjson_val *max_new_tokens = given(root, "max_new_tokens");
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
    if (yyjson_get_uint(max_new_tokens) == 0) /* so it is for what is no unsigned integer */
        return REFUSE(request, "request", "max_new_tokens is not an integer of 1 or more");
    request->max_new_tokens = yyjson_get_uint(max_new_tokens);
    return true;
}

/* The ids that are wanted at each position: a list for each. */
static bool read_wanted(struct request *request, yyjson_val *lists, size_t vocab_size) {
    size_t positions = request->id_count - request->first + 1, index, length;
    yyjson_val *list;
    if (!yyjson_is_arr(lists))
        return REFUSE(request, "request", "wanted is not a list of lists of integers");
    if (yyjson_arr_size(lists) != positions)
        return REFUSE(request, "request",
                      "wanted has %zu lists; after the first %zu of %zu ids there are %zu positions; give one list for each",
                      yyjson_arr_size(lists), request->first, request->id_count, positions);
    request->wanted_counts = calloc(positions, sizeof *request->wanted_counts);
    if (request->wanted_counts == NULL)
        return REFUSE(request, "request", "out of memory for %zu positions", positions);
    yyjson_arr_foreach(lists, index, length, list) {
        int32_t *ids = NULL, *more;
        size_t count = 0;
        bool good = read_ids(request, list, "wanted id", vocab_size, &ids, &count);
        more = good ? realloc(request->wanted, (request->wanted_count + count + 1) * sizeof *more) : NULL;
        if (more != NULL) {
            request->wanted = more;
            memcpy(more + request->wanted_count, ids, count * sizeof *ids);
            request->wanted_count += count;
            request->wanted_counts[index] = count;
        }
        free(ids);
        if (more == NULL)
            return good ? REFUSE(request, "request", "out of memory for %zu wanted ids", count) : false;
    }
    return true;
}

static bool read_score(struct request *request, yyjson_val *root, size_t context_tokens, size_t vocab_size) {
    yyjson_val *ids = given(root, "ids"), *first = given(root, "first"), *wanted = given(root, "wanted");
    if (ids == NULL || first == NULL || wanted == NULL)
        return REFUSE(request, "request", "the request lacks %s",
                      ids == NULL ? "ids" : first == NULL ? "first" : "wanted");
    if (!read_ids(request, ids, "token id", vocab_size, &request->ids, &request->id_count))
        return false;
    if (!yyjson_is_uint(first))
        return REFUSE(request, "request", "first is not an integer of 1 or more");
    if (yyjson_get_uint(first) == 0 || yyjson_get_uint(first) > request->id_count || request->id_count > context_tokens)
        return REFUSE(request, "request",
                      "%zu tokens, of which the first %llu are read at once, do not fit a context of %zu; shorten the text",
                      request->id_count, (unsigned long long)yyjson_get_uint(first), context_tokens);
    request->first = (size_t)yyjson_get_uint(first);
    return read_wanted(request, wanted, vocab_size);
}

/* A number that may be left out. */
static bool read_between(struct request *request, yyjson_val *root, const char *name, double least, double most,
                         double *number) {
    yyjson_val *value = given(root, name);
    if (value == NULL)
        return true;
    if (!yyjson_is_num(value) || !(yyjson_get_num(value) >= least && yyjson_get_num(value) <= most))
        return REFUSE(request, "request", "%s is not a number from %g to %g", name, least, most);
    *number = yyjson_get_num(value);
    return true;
}

static bool read_sampling(struct request *request, yyjson_val *root) {
    yyjson_val *temperature = given(root, "temperature"), *top_k = given(root, "top_k");
    yyjson_val *top_p = given(root, "top_p"), *seed = given(root, "seed");
    if (temperature != NULL) {
        double value = yyjson_get_num(temperature);
        if (!yyjson_is_num(temperature) || !isfinite(value) || value < 0)
            return REFUSE(request, "request", "temperature is not a number of 0 (greedy) or more");
        request->sampling.temperature = value;
    }
    if (top_k != NULL) {
        if (yyjson_get_uint(top_k) == 0)
            return REFUSE(request, "request", "top_k is not an integer of 1 or more; leave it out for none");
        request->sampling.top_k = yyjson_get_uint(top_k) > SIZE_MAX ? SIZE_MAX : (size_t)yyjson_get_uint(top_k);
    }
    if (top_p != NULL) {
        double value = yyjson_get_num(top_p); /* 0 for what is no number */
        if (!(value > 0) || value > 1)
            return REFUSE(request, "request", "top_p is not a number above 0, at most 1; leave it out for none");
        request->sampling.has_top_p = true;
        request->sampling.top_p = value;
    }
    if (seed != NULL) {
        if (!yyjson_is_uint(seed))
            return REFUSE(request, "request", "seed is not an integer from 0 to 2^64 - 1");
        request->sampling.seed = yyjson_get_uint(seed);
    }
    return read_between(request, root, "min_p", 0, 1, &request->sampling.min_p);
}

static bool read_penalties(struct request *request, yyjson_val *root) {
    struct sampling *sampling = &request->sampling;
    return read_between(request, root, "repetition_penalty", 0.01, 100, &sampling->repetition_penalty) &&
           read_between(request, root, "presence_penalty", -2, 2, &sampling->presence_penalty) &&
           read_between(request, root, "frequency_penalty", -2, 2, &sampling->frequency_penalty);
}

static bool read_logprobs(struct request *request, yyjson_val *root) {
    yyjson_val *logprobs = given(root, "logprobs");
    if (logprobs == NULL)
        return true;
    if (!yyjson_is_uint(logprobs) || yyjson_get_uint(logprobs) > MAX_LOGPROBS)
        return REFUSE(request, "request", "logprobs is not an integer from 0 to %d", (int)MAX_LOGPROBS);
    request->has_logprobs = true;
    request->logprobs = (size_t)yyjson_get_uint(logprobs);
    return true;
}

static bool read_rest(struct request *request, yyjson_val *root) {
    yyjson_val *deadline = given(root, "deadline_s"), *session = given(root, "session");
    yyjson_val *hold = given(root, "hold");
    if (deadline != NULL) {
        if (!yyjson_is_num(deadline) || !isfinite(yyjson_get_num(deadline)))
            return REFUSE(request, "request", "deadline_s is not a number of seconds");
        request->has_deadline = true;
        request->deadline_s = yyjson_get_num(deadline);
    }
    if (session != NULL) {
        static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
        const char *text = yyjson_get_str(session); /* NULL for what is no text */
        size_t length = yyjson_get_len(session);
        if (text == NULL || length == 0 || length > MAX_SESSION || strspn(text, allowed) != length)
            return REFUSE(request, "request", "session is not 1 to 64 characters of A-Z a-z 0-9 . _ -");
        memcpy(request->session, text, length + 1);
    }
    if (hold != NULL) {
        if (!yyjson_is_bool(hold))
            return REFUSE(request, "request", "hold is neither true nor false");
        request->hold = yyjson_get_bool(hold);
    }
    return true;
}

static bool read_generate(struct request *request, yyjson_val *root, size_t context_tokens, size_t vocab_size) {
    return read_prompt(request, root, context_tokens, vocab_size) && read_sampling(request, root) &&
           read_penalties(request, root) && read_logprobs(request, root) && read_rest(request, root);
}

void request_read(struct request *request, const char *line, size_t length, size_t context_tokens,
                  size_t vocab_size) {
    /* Strict JSON. A number that fits no type stays text, so that it is refused where it is used. */
    yyjson_read_err failure;
    yyjson_doc *document = yyjson_read_opts((char *)line, length, YYJSON_READ_BIGNUM_AS_RAW, NULL, &failure);
    yyjson_val *root = yyjson_doc_get_root(document);
    *request = (struct request){.number = -1, .sampling = {.repetition_penalty = 1}};
    if (document == NULL)
        (void)REFUSE(request, "malformed", "not a line of JSON: %s at byte %zu", failure.msg, failure.pos);
    else if (!yyjson_is_obj(root))
        (void)REFUSE(request, "malformed", "a line is one JSON object");
    else if (check_nesting(request, line, length) && check_duplicates(request, root) && read_verb(request, root) &&
             check_names(request, root)) {
        if (request->verb == DO_SCORE)
            (void)read_score(request, root, context_tokens, vocab_size);
        else if (request->verb == DO_GENERATE)
            (void)read_generate(request, root, context_tokens, vocab_size);
    }
    yyjson_doc_free(document);
}

void request_free(struct request *request) {
    free(request->ids);
    free(request->stop_ids);
    free(request->wanted);
    free(request->wanted_counts);
    request->ids = request->stop_ids = request->wanted = NULL;
    request->wanted_counts = NULL;
}
