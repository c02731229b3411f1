#define _GNU_SOURCE
#include "events.h"
#include "machine.h"
#include "memory.h"
#include "request.h"
#include "watch.h"
#include "yyjson/yyjson.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define AGENT_NAME "phi-edge " PHI_EDGE_VERSION " native"

static pthread_mutex_t output_lock = PTHREAD_MUTEX_INITIALIZER;
static int output = 1;

bool events_open(void) {
    output = fcntl(1, F_DUPFD_CLOEXEC, 3);
    return output >= 0 && dup2(2, 1) >= 0;
}

void events_close(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1; /* unless nobody reads it */
    pthread_mutex_timedlock(&output_lock, &until);
}

void write_lines(struct lines *lines) {
    const char *text = lines->text;
    size_t length = lines->length;
    pthread_mutex_lock(&output_lock);
    while (length > 0) {
        ssize_t written = write(output, text, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            _exit(0); /* the host is gone */
        text += written;
        length -= (size_t)written;
    }
    watch_wrote();
    pthread_mutex_unlock(&output_lock);
    free(lines->text);
    *lines = (struct lines){0};
}

struct event {
    yyjson_mut_doc *doc;
    yyjson_mut_val *root;
};

static struct event begin(const char *name, int64_t number) {
    struct event event = {.doc = yyjson_mut_doc_new(NULL)};
    event.root = yyjson_mut_obj(event.doc);
    if (event.root == NULL)
        abort(); /* out of memory */
    yyjson_mut_doc_set_root(event.doc, event.root);
    yyjson_mut_obj_add_str(event.doc, event.root, "event", name);
    if (number >= 0)
        yyjson_mut_obj_add_int(event.doc, event.root, "request", number);
    else
        yyjson_mut_obj_add_null(event.doc, event.root, "request");
    return event;
}

/* Add the event's line and free it. ASCII, so that no locale on the way can break it. */
static void end(struct event event, struct lines *lines) {
    size_t length = 0;
    char *text = yyjson_mut_write(event.doc, YYJSON_WRITE_ESCAPE_UNICODE | YYJSON_WRITE_ALLOW_INVALID_UNICODE, &length);
    size_t needed = lines->length + length + 1;
    if (needed > lines->room) {
        lines->room = needed > 2 * lines->room ? needed : 2 * lines->room;
        lines->text = realloc(lines->text, lines->room);
    }
    if (text == NULL || lines->text == NULL)
        abort(); /* out of memory */
    memcpy(lines->text + lines->length, text, length);
    lines->text[needed - 1] = '\n';
    lines->length = needed;
    free(text);
    yyjson_mut_doc_free(event.doc);
}

static void end_and_write(struct event event) {
    struct lines lines = {0};
    end(event, &lines);
    write_lines(&lines);
}

/* null where it is NULL or empty. The text must live until the event ends. */
static void add_text(struct event event, const char *name, const char *text) {
    if (text == NULL || text[0] == '\0')
        yyjson_mut_obj_add_null(event.doc, event.root, name);
    else
        yyjson_mut_obj_add_str(event.doc, event.root, name, text);
}

/* null where it is below 0. */
static void add_seconds(struct event event, const char *name, double seconds) {
    if (seconds < 0)
        yyjson_mut_obj_add_null(event.doc, event.root, name);
    else
        yyjson_mut_obj_add_real(event.doc, event.root, name, seconds);
}

/* The message is put on one line: it may quote a key, a path or a library. */
void write_error(int64_t number, const char *code, const char *message, bool fatal) {
    char line[1024];
    struct event event = begin("error", number);
    snprintf(line, sizeof line, "%s", message);
    for (char *at = line; *at != '\0'; at++)
        if ((unsigned char)*at < ' ')
            *at = ' ';
    yyjson_mut_obj_add_str(event.doc, event.root, "code", code);
    yyjson_mut_obj_add_str(event.doc, event.root, "message", line);
    yyjson_mut_obj_add_bool(event.doc, event.root, "fatal", fatal);
    end_and_write(event);
}

void write_scored(int64_t number, const struct request *request, const struct scores *scores) {
    struct event event = begin("scored", number);
    yyjson_mut_val *lists = yyjson_mut_obj_add_arr(event.doc, event.root, "log_probabilities");
    const double *logprobs = scores->logprobs;
    for (size_t position = 0; position < scores->positions; position++) {
        size_t count = request->wanted_counts[position];
        yyjson_mut_arr_add_val(lists, yyjson_mut_arr_with_double(event.doc, logprobs, count));
        logprobs += count;
    }
    yyjson_mut_val *top = yyjson_mut_arr_with_sint32(event.doc, scores->top, scores->positions);
    yyjson_mut_obj_add_val(event.doc, event.root, "top", top);
    end_and_write(event);
}

void write_pong(int64_t number, double uptime_s) {
    struct event event = begin("pong", number);
    yyjson_mut_obj_add_real(event.doc, event.root, "uptime_s", uptime_s);
    end_and_write(event);
}

void write_ready(const struct artifact *artifact, const struct model *model, int threads, double open_s,
                 double cached_share) {
    static const char *const capabilities[] = {
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "logprobs", "session", "deadline_s", "hold", "cancel", "score"};
    const char *library, *version = engine_version(model->engine, &library);
    char boot_id[64];
    struct event event = begin("ready", -1);
    yyjson_mut_doc *doc = event.doc;
    yyjson_mut_val *root = event.root;
    yyjson_mut_obj_remove_key(root, "request");
    yyjson_mut_obj_add_int(doc, root, "protocol", 1);
    yyjson_mut_obj_add_str(doc, root, "agent", AGENT_NAME);
    yyjson_mut_obj_add_int(doc, root, "pid", getpid());
    add_text(event, "artifact", artifact->digest);
    yyjson_mut_obj_add_str(doc, root, "format", engine_format());
    yyjson_mut_obj_add_uint(doc, root, "context_tokens", model->context_tokens);
    yyjson_mut_obj_add_uint(doc, root, "vocab_size", model->vocab_size);
    yyjson_mut_obj_add_int(doc, root, "threads", threads);
    yyjson_mut_val *names = yyjson_mut_arr_with_str(doc, (const char **)capabilities,
                                                    sizeof capabilities / sizeof *capabilities);
    yyjson_mut_obj_add_val(doc, root, "capabilities", names);
    yyjson_mut_val *versions = yyjson_mut_obj_add_obj(doc, root, "versions");
    if (version != NULL)
        yyjson_mut_obj_add_str(doc, versions, library, version);
    yyjson_mut_obj_add_int(doc, root, "max_line_bytes", MAX_LINE_BYTES);
    add_text(event, "boot_id", machine_boot_id(boot_id, sizeof boot_id) ? boot_id : NULL);
    add_seconds(event, "load_s", machine_process_age());
    add_seconds(event, "open_s", open_s);
    add_seconds(event, "cached_share", cached_share);
    add_text(event, "load_mode", artifact_load_mode(artifact));
    end_and_write(event);
}

void add_token(struct lines *lines, int64_t number, const struct choice *choice, double at_s) {
    struct event event = begin("token", number);
    yyjson_mut_obj_add_int(event.doc, event.root, "id", choice->id);
    yyjson_mut_obj_add_real(event.doc, event.root, "at_s", at_s);
    if (choice->judged) {
        yyjson_mut_obj_add_real(event.doc, event.root, "logprob", choice->logprob);
        yyjson_mut_val *top = yyjson_mut_obj_add_arr(event.doc, event.root, "top");
        for (size_t i = 0; i < choice->top_count; i++) {
            yyjson_mut_val *pair = yyjson_mut_arr_add_arr(event.doc, top);
            yyjson_mut_arr_add_int(event.doc, pair, choice->top[i].id);
            yyjson_mut_arr_add_real(event.doc, pair, choice->top[i].logprob);
        }
    }
    end(event, lines);
}

void add_done(struct lines *lines, int64_t number, size_t prompt, const struct answer *answer) {
    struct event event = begin("done", number);
    yyjson_mut_obj_add_str(event.doc, event.root, "finish", answer->finish);
    if (answer->stop_id >= 0)
        yyjson_mut_obj_add_int(event.doc, event.root, "stop_id", answer->stop_id);
    else
        yyjson_mut_obj_add_null(event.doc, event.root, "stop_id");
    yyjson_mut_val *usage = yyjson_mut_obj_add_obj(event.doc, event.root, "usage");
    yyjson_mut_obj_add_uint(event.doc, usage, "prompt", prompt);
    yyjson_mut_obj_add_uint(event.doc, usage, "reused", answer->reused);
    yyjson_mut_obj_add_uint(event.doc, usage, "prefilled", answer->prefilled);
    yyjson_mut_obj_add_uint(event.doc, usage, "completion", answer->completion);
    add_seconds(event, "prefill_s", answer->prefill_s);
    add_seconds(event, "total_s", answer->total_s);
    memory_add(event.doc, event.root);
    add_text(event, "error", answer->error);
    end(event, lines);
}
