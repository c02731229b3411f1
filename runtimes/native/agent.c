/* The agent for Android: loads one artifact, of its engine's format, and speaks docs/agent-protocol.md on stdin and stdout.
 *
 *   agent ARTIFACT [--libraries DIR] [--threads N] [--lock FILE] [--silence-s S] [--cold]
 *
 * Two threads: this one loads and generates; the other reads lines and answers those that need no model. It knows no
 * text and no network, and serves one artifact. */
#define _GNU_SOURCE
#include "artifact.h"
#include "engine.h"
#include "events.h"
#include "generate.h"
#include "machine.h"
#include "memory.h"
#include "options.h"
#include "reader.h"
#include "request.h"
#include "score.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_FATAL = 2 };

/* The one generate or score that runs or waits. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    bool waiting;
    struct request request; /* while it waits */
    double accepted_s;
    int64_t number;         /* of the one that runs or waits; -1: none */
    atomic_bool cancelled;
} job = {.lock = PTHREAD_MUTEX_INITIALIZER, .arrived = PTHREAD_COND_INITIALIZER, .number = -1};

static double started_s;
static struct artifact artifact;
static struct model model;

static _Noreturn void die(const char *code, const char *message) {
    write_error(-1, code, message, true);
    _exit(EXIT_FATAL);
}

/* Hand a job to the other thread, unless one runs or waits. */
static void accept_job(struct request *request, double accepted_s) {
    char message[128];
    pthread_mutex_lock(&job.lock);
    bool busy = job.number >= 0;
    if (busy) {
        snprintf(message, sizeof message, "request %lld is running; cancel it or wait for its end", (long long)job.number);
    } else {
        job.number = request->number;
        job.request = *request;
        job.accepted_s = accepted_s;
        job.waiting = true;
        atomic_store(&job.cancelled, false);
        pthread_cond_signal(&job.arrived);
    }
    pthread_mutex_unlock(&job.lock);
    if (busy) {
        write_error(request->number, "busy", message, false);
        request_free(request);
    }
}

/* Nothing here waits: a ping or a cancel behind this line must not be late. */
static void obey(const char *line, size_t length) {
    double accepted_s = machine_clock();
    struct request request;
    watch_read();
    if (line == NULL) {
        write_error(-1, "malformed", "the line is longer than this agent's max_line_bytes; it was skipped", false);
        return;
    }
    request_read(&request, line, length, model.context_tokens, model.vocab_size);
    if (request.code != NULL) {
        write_error(request.number, request.code, request.message, false);
        request_free(&request);
    } else if (request.verb == DO_GENERATE || request.verb == DO_SCORE) {
        accept_job(&request, accepted_s);
    } else if (request.verb == DO_CANCEL) {
        pthread_mutex_lock(&job.lock);
        if (job.number == request.number)
            atomic_store(&job.cancelled, true);
        pthread_mutex_unlock(&job.lock);
    } else {
        write_pong(request.number, machine_clock() - started_s);
    }
}

/* The end of stdin is the command to stop. No line is cut in the middle. */
static void *read_and_obey(void *unused) {
    if (read_lines(obey) == OUT_OF_MEMORY)
        die("internal", "out of memory for a line");
    events_close();
    _exit(0);
    return unused;
}

/* Where the tokens of the running answer go: they are written at once, or held in `lines` until its end. */
struct output {
    int64_t number;
    bool hold;
    struct lines lines;
};

static void take_token(void *context, const struct choice *choice, double at_s) {
    struct output *output = context;
    add_token(&output->lines, output->number, choice, at_s);
    if (!output->hold)
        write_lines(&output->lines);
}

/* Before the last line is written: the host may send the next request as soon as it has read that line. */
static void end_job(void) {
    pthread_mutex_lock(&job.lock);
    job.number = -1;
    pthread_mutex_unlock(&job.lock);
}

static void serve_score(const struct request *request) {
    struct scores scores;
    score(&model, request, &job.cancelled, &scores);
    end_job();
    if (scores.error[0] != '\0')
        write_error(request->number, "request", scores.error, false);
    else
        write_scored(request->number, request, &scores);
    scores_free(&scores);
}

static void serve_generate(const struct request *request, double accepted_s) {
    struct answer answer;
    struct output output = {.number = request->number, .hold = request->hold};
    generate(&model, request, accepted_s, &job.cancelled, take_token, &output, &answer);
    add_done(&output.lines, request->number, request->id_count, &answer);
    end_job();
    write_lines(&output.lines);
}

static void serve(struct request *request, double accepted_s) {
    if (request->verb == DO_SCORE)
        serve_score(request);
    else
        serve_generate(request, accepted_s);
    request_free(request);
}

static _Noreturn void serve_forever(void) {
    for (;;) {
        pthread_mutex_lock(&job.lock);
        while (!job.waiting)
            pthread_cond_wait(&job.arrived, &job.lock);
        struct request request = job.request;
        double accepted_s = job.accepted_s;
        job.waiting = false;
        pthread_mutex_unlock(&job.lock);
        serve(&request, accepted_s);
    }
}

/* The lock is freed when the process ends, however it ends. */
static void take_lock(const char *path) {
    char text[256] = "", message[512], since[32];
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        snprintf(message, sizeof message, "%.200s: the device's lock cannot be opened (%s)", path, strerror(errno));
        die("engine", message);
    }
    if (flock(file, LOCK_EX | LOCK_NB) != 0) {
        ssize_t got = read(file, text, sizeof text - 1);
        text[got > 0 ? got : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        snprintf(message, sizeof message,
                 "the device is in use: another agent holds %.200s (%.200s); wait until it ends, or end it there", path,
                 text);
        die("busy", message);
    }
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(since, sizeof since, "%Y-%m-%dT%H:%M:%S+00:00", &utc);
    int length = snprintf(text, sizeof text, "{\"pid\": %ld, \"since\": \"%s\"}\n", (long)getpid(), since);
    if (ftruncate(file, 0) != 0 || write(file, text, (size_t)length) != length)
        fprintf(stderr, "the lock %s cannot be written (%s)\n", path, strerror(errno));
}

int main(int count, char **words) {
    static struct options options;
    char error[1024];
    pthread_t reader;
    started_s = machine_clock();
    signal(SIGPIPE, SIG_IGN);
    if (!events_open())
        return EXIT_FATAL;
    if (!options_read(&options, count, words, error, sizeof error))
        die("request", error);
    if (options.lock != NULL)
        take_lock(options.lock);
    memory_start();
    if (!artifact_open(&artifact, options.folder, engine_format(), error, sizeof error))
        die("artifact", error);
    if (!model_init(&model, &artifact) || pthread_create(&reader, NULL, read_and_obey, NULL) != 0 ||
        !watch_start(options.silence_s))
        die("internal", "out of memory");
    if (options.cold)
        artifact_drop_cache(&artifact);
    double cached_share = artifact_cached_share(&artifact), began_s = machine_clock();
    int threads = options.threads > 0 ? options.threads : machine_cores();
    model.engine = engine_open(options.folder, options.libraries, threads, model.context_tokens, model.vocab_size, error,
                               sizeof error);
    if (model.engine == NULL)
        die("engine", error);
    write_ready(&artifact, &model, threads, machine_clock() - began_s, cached_share);
    serve_forever();
}
