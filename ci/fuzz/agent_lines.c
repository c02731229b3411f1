/* A libFuzzer target over the native agent and the real engine: what comes in on stdin, line by line.
 *
 *   AGENT_ARTIFACT=FOLDER AGENT_LIBRARIES=FOLDER agent [FLAG...] [FILE or FOLDER...]
 *
 * One thread reads the lines and generates, so that an input always does the same. Whatever the lines are, each that the
 * agent writes is one JSON object. */
#define main agent_main
#include "agent.c"
#undef main

#include "yyjson/yyjson.h"

#include <sys/mman.h>

enum { MOST_NEW_TOKENS = 4 };

static int input, answers;

static void stop(const char *what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

static void run_what_waits(void) {
    if (!job.waiting)
        return;
    job.waiting = false;
    if (job.request.max_new_tokens > MOST_NEW_TOKENS)
        job.request.max_new_tokens = MOST_NEW_TOKENS;
    serve(&job.request, job.accepted_s);
}

/* After a line that begins with a blank the request waits for the next line, which may cancel it or find the agent busy. */
static void take(const char *line, size_t length) {
    obey(line, length);
    if (length == 0 || line[0] != ' ')
        run_what_waits();
}

static void check_answers(void) {
    static char text[1 << 20];
    lseek(answers, 0, SEEK_SET);
    ssize_t length = read(answers, text, sizeof text - 1);
    char *start = text, *newline;
    while (length > 0 && (newline = memchr(start, '\n', (size_t)(text + length - start))) != NULL) {
        yyjson_doc *document = yyjson_read(start, (size_t)(newline - start), 0);
        if (!yyjson_is_obj(yyjson_doc_get_root(document)))
            stop("the agent wrote a line that is no JSON object");
        yyjson_doc_free(document);
        start = newline + 1;
    }
    if (length > 0 && length < (ssize_t)sizeof text - 1 && start != text + length)
        stop("the agent wrote half a line");
    if (ftruncate(answers, 0) != 0 || lseek(answers, 0, SEEK_SET) != 0)
        stop("the answers cannot be emptied");
}

int LLVMFuzzerInitialize(int *count, char ***words) {
    char error[1024];
    (void)count, (void)words;
    started_s = machine_clock();
    input = memfd_create("input", MFD_CLOEXEC);
    answers = memfd_create("answers", MFD_CLOEXEC);
    int out = dup(1);
    if (input < 0 || answers < 0 || dup2(answers, 1) < 0 || !events_open() || dup2(out, 1) < 0)
        stop("no files for the input and the answers");
    memory_start();
    if (!artifact_open(&artifact, getenv("AGENT_ARTIFACT"), engine_format(), error, sizeof error) ||
        !model_init(&model, &artifact))
        stop(error);
    model.engine = engine_open(artifact.folder, getenv("AGENT_LIBRARIES"), 1, model.context_tokens, model.vocab_size,
                               error, sizeof error);
    if (model.engine == NULL)
        stop(error);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (ftruncate(input, 0) != 0 || pwrite(input, data, size, 0) != (ssize_t)size || lseek(input, 0, SEEK_SET) != 0 ||
        dup2(input, 0) != 0)
        stop("the input cannot be written");
    if (read_lines(take) != INPUT_ENDED)
        stop("out of memory for a line");
    run_what_waits();
    check_answers();
    return 0;
}
