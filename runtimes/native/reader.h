/* Lines from stdin, of limited length. Their meaning is in request.h. */
#ifndef PHI_EDGE_READER_H
#define PHI_EDGE_READER_H

#include <stdbool.h>
#include <stddef.h>

enum read_end { INPUT_ENDED, OUT_OF_MEMORY };

/* Called for each line, without its end; `line` is NULL where it was longer than MAX_LINE_BYTES, and skipped. */
typedef void on_line(const char *line, size_t length);

/* Read until the input ends. A last line without its end is dropped. */
enum read_end read_lines(on_line *take);

#endif
