/* A strict JSON reader for one line (RFC 8259): no recovery, a bounded depth, memory from one arena that the next
 * parse reuses. It writes nothing; json_write_string is for the other direction. */
#ifndef PHI_EDGE_JSON_H
#define PHI_EDGE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json_value {
    enum json_kind kind;
    bool boolean;
    bool integral;           /* the number was written without fraction and exponent, and fits `integer` */
    bool negative;           /* its sign, for an integral number; `integer` holds the magnitude */
    uint64_t integer;
    double number;
    const char *text;        /* UTF-8 with a terminating NUL; may hold NULs before `length` */
    size_t length;           /* bytes of text, items of an array, members of an object */
    struct json_value *items; /* of an array; of an object: name, value, name, value, ... */
};

struct json_document {
    struct json_value *root; /* NULL when the text is not JSON */
    const char *error;       /* why */
    size_t error_at;         /* byte */
    void *blocks;            /* the arena */
};

/* Parse `length` bytes. False, with `error`, for what is not one JSON value. Free the document either way. */
bool json_parse(struct json_document *document, const char *text, size_t length);
void json_free(struct json_document *document);

/* The member of this name, or NULL. Duplicate names are refused by the parser. */
const struct json_value *json_member(const struct json_value *object, const char *name);

/* A JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD. */
void json_write_string(FILE *out, const char *text, size_t length);

#endif
