/* The agent for Android: holds one ONNX artifact and speaks docs/agent-protocol.md on stdin and stdout.
 *
 *   agent ARTIFACT [--libraries DIR] [--threads N] [--lock FILE] [--silence-s S] [--cold]
 *   agent --sample
 *
 * Two threads: this one loads and generates; the other reads lines, and answers at once what needs no model. It does no
 * text, no several artifacts, no network. */
#define _GNU_SOURCE
#include "artifact.h"
#include "engine.h"
#include "generate.h"
#include "json.h"
#include "machine.h"
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define AGENT_NAME "phi-edge 0.1.0 native"
enum { EXIT_FATAL = 2, EXIT_SILENCE = 3, MAX_JOBS = 64 };

struct options {
    const char *folder, *libraries, *lock;
    int threads;      /* 0: all cores */
    double silence_s; /* 0: never */
    bool cold, sample;
};

struct job {
    struct request request;
    double accepted_s;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job jobs[MAX_JOBS]; /* a ring; at most one of them is a generate */
    size_t first, count;
    int64_t generating;        /* number of the generate that runs or waits; -1: none */
    atomic_bool cancelled;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .generating = -1};

static pthread_mutex_t output_lock = PTHREAD_MUTEX_INITIALIZER;
static int output = 1;
static double started_s;
static struct artifact artifact;
static struct model model;

/* Write whole lines. When the host is gone there is nobody to tell. */
static void write_out(const char *text, size_t length) {
    pthread_mutex_lock(&output_lock);
    while (length > 0) {
        ssize_t written = write(output, text, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            _exit(0);
        text += written;
        length -= (size_t)written;
    }
    pthread_mutex_unlock(&output_lock);
}

struct line {
    FILE *file;
    char *text;
    size_t length;
};

static void end_line(struct line *line) {
    fclose(line->file);
    write_out(line->text, line->length);
    free(line->text);
}

/* A macro, because open_memstream keeps the addresses of what it is given. */
#define BEGIN_LINE(name) \
    struct line name = {0}; \
    name.file = open_memstream(&name.text, &name.length); \
    if (name.file == NULL) \
        abort()

static void write_number(FILE *out, int64_t number) {
    if (number < 0)
        fputs("null", out);
    else
        fprintf(out, "%lld", (long long)number);
}

static void write_seconds(FILE *out, const char *name, double seconds) {
    if (seconds < 0)
        fprintf(out, ",\"%s\":null", name);
    else
        fprintf(out, ",\"%s\":%.9f", name, seconds);
}

static void say_error(int64_t number, const char *code, const char *message, bool fatal) {
    BEGIN_LINE(line);
    fputs("{\"event\":\"error\",\"request\":", line.file);
    write_number(line.file, number);
    fprintf(line.file, ",\"code\":\"%s\",\"message\":", code);
    json_write_string(line.file, message, strlen(message));
    fprintf(line.file, ",\"fatal\":%s}\n", fatal ? "true" : "false");
    end_line(&line);
}

static _Noreturn void die(const char *code, const char *message) {
    say_error(-1, code, message, true);
    _exit(EXIT_FATAL);
}

static void say_ready(int threads, double open_s, double cached_share) {
    char boot_id[64];
    const char *load_mode = artifact_load_mode(&artifact), *version = engine_onnxruntime_version(model.engine);
    BEGIN_LINE(line);
    FILE *out = line.file;
    fprintf(out, "{\"event\":\"ready\",\"protocol\":1,\"agent\":\"%s\",\"pid\":%ld,\"artifact\":", AGENT_NAME,
            (long)getpid());
    if (artifact.digest[0] == '\0')
        fputs("null", out);
    else
        fprintf(out, "\"%s\"", artifact.digest);
    fprintf(out, ",\"format\":\"onnx\",\"context_tokens\":%zu,\"vocab_size\":%zu,\"threads\":%d", model.context_tokens,
            model.vocab_size, threads);
    fputs(",\"capabilities\":[\"temperature\",\"top_k\",\"top_p\",\"session\",\"deadline_s\",\"hold\",\"cancel\"]", out);
    fputs(",\"versions\":{", out);
    if (version != NULL) {
        fputs("\"onnxruntime\":", out);
        json_write_string(out, version, strlen(version));
    }
    fprintf(out, "},\"max_line_bytes\":%d,\"boot_id\":", MAX_LINE_BYTES);
    if (machine_boot_id(boot_id, sizeof boot_id))
        json_write_string(out, boot_id, strlen(boot_id));
    else
        fputs("null", out);
    write_seconds(out, "load_s", machine_process_age());
    write_seconds(out, "open_s", open_s);
    write_seconds(out, "cached_share", cached_share);
    fputs(",\"load_mode\":", out);
    if (load_mode == NULL)
        fputs("null}\n", out);
    else
        fprintf(out, "\"%s\"}\n", load_mode);
    end_line(&line);
}

static void say_sample(int64_t number, bool with_memory) {
    struct memory_sample seen = memory_now();
    BEGIN_LINE(line);
    fputs("{\"event\":\"sample\",\"request\":", line.file);
    write_number(line.file, number);
    write_seconds(line.file, "uptime_s", machine_clock() - started_s);
    fputs(",\"memory\":", line.file);
    if (with_memory && seen.known)
        fprintf(line.file,
                "{\"high_water_bytes\":%llu,\"resident_bytes\":%llu,\"anonymous_bytes\":%llu,\"file_bytes\":%llu,"
                "\"swap_bytes\":%llu}",
                (unsigned long long)seen.high_water_bytes, (unsigned long long)seen.resident_bytes,
                (unsigned long long)seen.anonymous_bytes, (unsigned long long)seen.file_bytes,
                (unsigned long long)seen.swap_bytes);
    else
        fputs("null", line.file);
    fputs(",\"conditions\":", line.file);
    machine_write_conditions(line.file);
    fputs("}\n", line.file);
    end_line(&line);
}

static void say_pong(int64_t number) {
    BEGIN_LINE(line);
    fputs("{\"event\":\"pong\",\"request\":", line.file);
    write_number(line.file, number);
    write_seconds(line.file, "uptime_s", machine_clock() - started_s);
    fputs("}\n", line.file);
    end_line(&line);
}

static void write_token(FILE *out, int64_t number, int32_t id, double at_s) {
    fprintf(out, "{\"event\":\"token\",\"request\":%lld,\"id\":%d,\"at_s\":%.9f}\n", (long long)number, id, at_s);
}

/* Where the tokens of the running answer go: out at once, or into `held`. */
struct telling {
    int64_t number;
    FILE *held;
};

static void tell_token(void *context, int32_t id, double at_s) {
    struct telling *telling = context;
    if (telling->held != NULL) {
        write_token(telling->held, telling->number, id, at_s);
        return;
    }
    BEGIN_LINE(line);
    write_token(line.file, telling->number, id, at_s);
    end_line(&line);
}

static void write_done(FILE *out, int64_t number, size_t prompt, const struct answer *answer) {
    struct memory_use memory = memory_peak();
    fprintf(out, "{\"event\":\"done\",\"request\":%lld,\"finish\":\"%s\",\"stop_id\":", (long long)number, answer->finish);
    write_number(out, answer->stop_id);
    fprintf(out, ",\"usage\":{\"prompt\":%zu,\"reused\":%zu,\"prefilled\":%zu,\"completion\":%zu}", prompt,
            answer->reused, answer->prefilled, answer->completion);
    write_seconds(out, "prefill_s", answer->prefill_s);
    write_seconds(out, "total_s", answer->total_s);
    fputs(",\"memory\":", out);
    if (memory.known)
        fprintf(out, "{\"peak_bytes\":%llu,\"anonymous_bytes\":%llu,\"file_bytes\":%llu,\"swap_bytes\":%llu}",
                (unsigned long long)memory.peak_bytes, (unsigned long long)memory.anonymous_bytes,
                (unsigned long long)memory.file_bytes, (unsigned long long)memory.swap_bytes);
    else
        fputs("null", out);
    fputs(",\"error\":", out);
    if (answer->error[0] == '\0')
        fputs("null", out);
    else
        json_write_string(out, answer->error, strlen(answer->error));
    fputs("}\n", out);
}

static void serve_generate(struct job *job) {
    struct request *request = &job->request;
    struct answer answer;
    BEGIN_LINE(lines);
    struct telling telling = {.number = request->number, .held = request->hold ? lines.file : NULL};
    generate(&model, request, job->accepted_s, &queue.cancelled, tell_token, &telling, &answer);
    write_done(lines.file, request->number, request->id_count, &answer);
    pthread_mutex_lock(&queue.lock);
    queue.generating = -1; /* before the done line: the host may answer it faster than this thread goes on */
    pthread_mutex_unlock(&queue.lock);
    end_line(&lines);
}

static void serve(struct job *job) {
    if (job->request.verb == DO_GENERATE) {
        serve_generate(job);
    } else {
        BEGIN_LINE(line);
        forget(&model);
        fprintf(line.file, "{\"event\":\"forgotten\",\"request\":%lld}\n", (long long)job->request.number);
        end_line(&line);
    }
    request_free(&job->request);
}

static _Noreturn void serve_forever(void) {
    for (;;) {
        pthread_mutex_lock(&queue.lock);
        while (queue.count == 0)
            pthread_cond_wait(&queue.more, &queue.lock);
        struct job job = queue.jobs[queue.first];
        queue.first = (queue.first + 1) % MAX_JOBS;
        queue.count--;
        pthread_mutex_unlock(&queue.lock);
        serve(&job);
    }
}

/* Hand a generate or a forget to the other thread, unless a generate runs or waits. */
static void enqueue(struct request *request, double accepted_s) {
    char message[128];
    pthread_mutex_lock(&queue.lock);
    bool busy = queue.generating >= 0 || queue.count == MAX_JOBS;
    if (busy && queue.generating >= 0)
        snprintf(message, sizeof message, "request %lld is running; cancel it or wait for its end",
                 (long long)queue.generating);
    else if (busy)
        snprintf(message, sizeof message, "%d requests wait already; wait for their end", MAX_JOBS);
    else {
        if (request->verb == DO_GENERATE) {
            queue.generating = request->number;
            atomic_store(&queue.cancelled, false);
        }
        queue.jobs[(queue.first + queue.count++) % MAX_JOBS] = (struct job){*request, accepted_s};
        pthread_cond_signal(&queue.more);
    }
    pthread_mutex_unlock(&queue.lock);
    if (busy) {
        say_error(request->number, "busy", message, false);
        request_free(request);
    }
}

static void obey(const char *text, size_t length) {
    double accepted_s = machine_clock();
    struct request request;
    request_read(&request, text, length, model.context_tokens, model.vocab_size);
    if (request.code != NULL) {
        say_error(request.number, request.code, request.message, false);
        request_free(&request);
        return;
    }
    switch (request.verb) {
    case DO_GENERATE:
    case DO_FORGET:
        enqueue(&request, accepted_s);
        return;
    case DO_CANCEL:
        pthread_mutex_lock(&queue.lock);
        if (queue.generating == request.number)
            atomic_store(&queue.cancelled, true);
        pthread_mutex_unlock(&queue.lock);
        return;
    case DO_SAMPLE:
        say_sample(request.number, true);
        return;
    default:
        say_pong(request.number);
    }
}

/* The end of stdin is the order to stop. Nothing is cut in the middle of a line, unless nobody reads it. */
static _Noreturn void stop(int code) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    pthread_mutex_timedlock(&output_lock, &until);
    _exit(code);
}

static void *read_lines(void *context) {
    const struct options *options = context;
    size_t used = 0, room = 1 << 16;
    bool skipping = false;
    char *buffer = malloc(room);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (buffer != NULL) {
        int wait_ms = options->silence_s > 0 ? (int)(options->silence_s * 1000) : -1;
        int ready = poll(&input, 1, wait_ms);
        if (ready == 0) {
            fprintf(stderr, "no line for %.1f s: the host is gone\n", options->silence_s);
            stop(EXIT_SILENCE);
        }
        ssize_t got = ready < 0 ? -1 : read(0, buffer + used, room - used);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0)
            stop(0); /* a last line without its end is dropped */
        char *start = buffer, *scan = buffer + used, *end = buffer + used + got, *newline;
        while ((newline = memchr(scan, '\n', (size_t)(end - scan))) != NULL) {
            if (!skipping && newline - start <= MAX_LINE_BYTES)
                obey(start, (size_t)(newline - start));
            else if (!skipping)
                say_error(-1, "malformed", "the line is longer than this agent's max_line_bytes; split it", false);
            skipping = false;
            start = scan = newline + 1;
        }
        used = (size_t)(end - start);
        memmove(buffer, start, used);
        if (skipping || used > MAX_LINE_BYTES) {
            if (!skipping)
                say_error(-1, "malformed", "the line is longer than this agent's max_line_bytes; split it", false);
            skipping = true;
            used = 0;
        }
        if (used == room) {
            char *grown = realloc(buffer, room *= 2);
            if (grown == NULL)
                break;
            buffer = grown;
        }
    }
    die("internal", "out of memory for a line");
}

/* Held until the process ends, however it ends. */
static void take_lock(const char *path) {
    char text[256] = "", message[512], since[32];
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        snprintf(message, sizeof message, "the lock %.200s cannot be opened (%s)", path, strerror(errno));
        die("internal", message);
    }
    if (flock(file, LOCK_EX | LOCK_NB) != 0) {
        ssize_t got = read(file, text, sizeof text - 1);
        text[got > 0 ? got : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        snprintf(message, sizeof message, "another process holds this device (%.200s: %.200s); wait for its end", path,
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

static _Noreturn void usage(const char *wrong) {
    char message[256];
    snprintf(message, sizeof message,
             "%.100s; usage: agent ARTIFACT [--libraries DIR] [--threads N] [--lock FILE] [--silence-s S] [--cold]", wrong);
    die("request", message);
}

static struct options read_options(int count, char **words) {
    struct options options = {0};
    for (int i = 1; i < count; i++) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : NULL;
        char *end;
        if (strcmp(word, "--cold") == 0) {
            options.cold = true;
        } else if (strcmp(word, "--sample") == 0) {
            options.sample = true;
        } else if (word[0] != '-' && options.folder == NULL) {
            options.folder = word;
        } else if (value == NULL) {
            usage(word);
        } else if (strcmp(word, "--libraries") == 0) {
            options.libraries = words[++i];
        } else if (strcmp(word, "--lock") == 0) {
            options.lock = words[++i];
        } else if (strcmp(word, "--threads") == 0) {
            long threads = strtol(words[++i], &end, 10);
            if (*end != '\0' || threads < 1 || threads > 4096)
                usage("--threads is not an integer of 1 or more");
            options.threads = (int)threads;
        } else if (strcmp(word, "--silence-s") == 0) {
            options.silence_s = strtod(words[++i], &end);
            if (*end != '\0' || !(options.silence_s > 0) || options.silence_s > 1e6)
                usage("--silence-s is not a number of seconds");
        } else {
            usage(word);
        }
    }
    if (options.folder == NULL && !options.sample)
        usage("no ARTIFACT");
    return options;
}

int main(int count, char **words) {
    char error[1024];
    pthread_t reader;
    started_s = machine_clock();
    signal(SIGPIPE, SIG_IGN);
    /* stdout is the protocol's alone: what a library prints goes to the log. */
    output = fcntl(1, F_DUPFD_CLOEXEC, 3);
    if (output < 0 || dup2(2, 1) < 0)
        return EXIT_FATAL;
    struct options options = read_options(count, words);
    if (options.sample) {
        say_sample(-1, false);
        return 0;
    }
    if (options.lock != NULL)
        take_lock(options.lock);
    memory_start();
    if (!artifact_open(&artifact, options.folder, error, sizeof error))
        die("artifact", error);
    model = (struct model){.context_tokens = artifact.context_tokens,
                           .vocab_size = artifact.vocab_size,
                           .switch_tokens = artifact.switch_tokens,
                           .cached = calloc(2 * artifact.context_tokens + 1, sizeof(int32_t))};
    if (model.cached == NULL || pthread_create(&reader, NULL, read_lines, &options) != 0)
        die("internal", "out of memory");
    if (options.cold)
        artifact_drop_cache(&artifact);
    double cached_share = artifact_cached_share(&artifact), began_s = machine_clock();
    int threads = options.threads > 0 ? options.threads : machine_cores();
    model.engine = engine_open(options.folder, options.libraries, threads, model.context_tokens, model.vocab_size, error,
                               sizeof error);
    if (model.engine == NULL)
        die("engine", error);
    say_ready(threads, machine_clock() - began_s, cached_share);
    serve_forever();
}
