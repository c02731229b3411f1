#include "reader.h"
#include "request.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct buffer {
    char *text;
    size_t used, room;
    bool skipping; /* the rest of a line that was too long */
};

/* Hand out the whole lines and keep what follows the last of them. `got` bytes are new. */
static void take_lines(struct buffer *buffer, size_t got, on_line *take) {
    char *start = buffer->text, *scan = start + buffer->used, *end = scan + got, *newline;
    while ((newline = memchr(scan, '\n', (size_t)(end - scan))) != NULL) {
        bool fits = newline - start <= MAX_LINE_BYTES;
        if (!buffer->skipping)
            take(fits ? start : NULL, fits ? (size_t)(newline - start) : 0);
        buffer->skipping = false;
        start = scan = newline + 1;
    }
    buffer->used = (size_t)(end - start);
    memmove(buffer->text, start, buffer->used);
    if (buffer->used > MAX_LINE_BYTES && !buffer->skipping) {
        take(NULL, 0);
        buffer->skipping = true;
    }
    if (buffer->skipping)
        buffer->used = 0;
}

enum read_end read_lines(on_line *take) {
    struct buffer buffer = {.text = malloc(1 << 16), .room = 1 << 16};
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (buffer.text != NULL) {
        ssize_t got = read(0, buffer.text + buffer.used, buffer.room - buffer.used);
        if (got < 0 && errno == EAGAIN)
            poll(&input, 1, -1);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0) {
            free(buffer.text);
            return INPUT_ENDED;
        }
        take_lines(&buffer, (size_t)got, take);
        if (buffer.used == buffer.room)
            buffer.text = realloc(buffer.text, buffer.room *= 2);
    }
    return OUT_OF_MEMORY;
}
