#include "json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 16, BLOCK_BYTES = 1 << 16 };

struct block {
    struct block *next;
    size_t used, size;
    max_align_t data[];
};

struct reader {
    struct json_document *document;
    const char *start, *at, *end;
    int depth;
};

static bool read_value(struct reader *reader, struct json_value *value);

static bool fail(struct reader *reader, const char *error) {
    if (reader->document->error == NULL) {
        reader->document->error = error;
        reader->document->error_at = (size_t)(reader->at - reader->start);
    }
    return false;
}

static void *take(struct reader *reader, size_t size) {
    struct block *block = reader->document->blocks;
    size = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (block == NULL || block->size - block->used < size) {
        size_t bytes = size > BLOCK_BYTES ? size : BLOCK_BYTES;
        struct block *fresh = malloc(sizeof *fresh + bytes);
        if (fresh == NULL) {
            fail(reader, "out of memory");
            return NULL;
        }
        *fresh = (struct block){.next = block, .size = bytes};
        reader->document->blocks = block = fresh;
    }
    void *taken = (char *)block->data + block->used;
    block->used += size;
    return taken;
}

static void skip_space(struct reader *reader) {
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) != NULL && *reader->at != '\0')
        reader->at++;
}

static bool literal(struct reader *reader, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return fail(reader, "unknown word");
    reader->at += length;
    return true;
}

static bool is_digit(const struct reader *reader) {
    return reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9';
}

static bool read_number(struct reader *reader, struct json_value *value) {
    const char *start = reader->at;
    bool overflow = false;
    value->kind = JSON_NUMBER;
    value->integral = true;
    if (*reader->at == '-') {
        value->negative = true;
        reader->at++;
    }
    if (!is_digit(reader))
        return fail(reader, "a number without digits");
    if (*reader->at == '0' && reader->end - reader->at > 1 && reader->at[1] >= '0' && reader->at[1] <= '9')
        return fail(reader, "a number that begins with 0");
    for (; is_digit(reader); reader->at++) {
        uint64_t digit = (uint64_t)(*reader->at - '0');
        if (value->integer > (UINT64_MAX - digit) / 10)
            overflow = true;
        else
            value->integer = value->integer * 10 + digit;
    }
    if (reader->at < reader->end && *reader->at == '.') {
        value->integral = false;
        reader->at++;
        if (!is_digit(reader))
            return fail(reader, "a number that ends with its point");
        while (is_digit(reader))
            reader->at++;
    }
    if (reader->at < reader->end && (*reader->at == 'e' || *reader->at == 'E')) {
        value->integral = false;
        reader->at++;
        if (reader->at < reader->end && (*reader->at == '+' || *reader->at == '-'))
            reader->at++;
        if (!is_digit(reader))
            return fail(reader, "a number without its exponent");
        while (is_digit(reader))
            reader->at++;
    }
    value->integral = value->integral && !overflow;
    if (value->integral) { /* nearly all numbers that come are ids */
        value->number = value->negative ? -(double)value->integer : (double)value->integer;
        return true;
    }
    /* strtod needs a terminated copy; the C locale's point is what JSON has. */
    size_t length = (size_t)(reader->at - start);
    char *copy = take(reader, length + 1);
    if (copy == NULL)
        return false;
    memcpy(copy, start, length);
    copy[length] = '\0';
    value->number = strtod(copy, NULL);
    return true;
}

static bool read_hex(struct reader *reader, uint32_t *unit) {
    *unit = 0;
    if (reader->end - reader->at < 4)
        return fail(reader, "an unfinished \\u");
    for (int i = 0; i < 4; i++) {
        char c = *reader->at++;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return fail(reader, "a \\u without four hexadecimal digits");
        *unit = *unit << 4 | digit;
    }
    return true;
}

static char *put_utf8(char *out, uint32_t point) {
    if (point < 0x80) {
        *out++ = (char)point;
    } else if (point < 0x800) {
        *out++ = (char)(0xC0 | point >> 6);
        *out++ = (char)(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        *out++ = (char)(0xE0 | point >> 12);
        *out++ = (char)(0x80 | (point >> 6 & 0x3F));
        *out++ = (char)(0x80 | (point & 0x3F));
    } else {
        *out++ = (char)(0xF0 | point >> 18);
        *out++ = (char)(0x80 | (point >> 12 & 0x3F));
        *out++ = (char)(0x80 | (point >> 6 & 0x3F));
        *out++ = (char)(0x80 | (point & 0x3F));
    }
    return out;
}

/* How many bytes the character at `at` takes; 0 where it is not UTF-8. */
static size_t utf8_length(const char *at, const char *end) {
    const unsigned char *byte = (const unsigned char *)at;
    size_t left = (size_t)(end - at), length;
    uint32_t point, least;
    if (byte[0] < 0x80)
        return 1;
    if ((byte[0] & 0xE0) == 0xC0)
        length = 2, point = byte[0] & 0x1F, least = 0x80;
    else if ((byte[0] & 0xF0) == 0xE0)
        length = 3, point = byte[0] & 0x0F, least = 0x800;
    else if ((byte[0] & 0xF8) == 0xF0)
        length = 4, point = byte[0] & 0x07, least = 0x10000;
    else
        return 0;
    if (left < length)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((byte[i] & 0xC0) != 0x80)
            return 0;
        point = point << 6 | (byte[i] & 0x3F);
    }
    return point < least || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF) ? 0 : length;
}

static bool read_escape(struct reader *reader, char **out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (reader->at == reader->end)
        return fail(reader, "an unfinished string");
    char c = *reader->at++;
    if (c == 'u') {
        uint32_t point, low;
        if (!read_hex(reader, &point))
            return false;
        if (point >= 0xD800 && point <= 0xDBFF) {
            if (reader->end - reader->at < 2 || reader->at[0] != '\\' || reader->at[1] != 'u')
                return fail(reader, "half a surrogate pair");
            reader->at += 2;
            if (!read_hex(reader, &low))
                return false;
            if (low < 0xDC00 || low > 0xDFFF)
                return fail(reader, "half a surrogate pair");
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        } else if (point >= 0xDC00 && point <= 0xDFFF) {
            return fail(reader, "half a surrogate pair");
        }
        *out = put_utf8(*out, point);
        return true;
    }
    const char *found = c == '\0' ? NULL : strchr(from, c);
    if (found == NULL)
        return fail(reader, "an unknown escape");
    *(*out)++ = to[found - from];
    return true;
}

static bool read_string(struct reader *reader, struct json_value *value) {
    value->kind = JSON_STRING;
    const char *scan = ++reader->at;
    while (scan < reader->end && *scan != '"')
        scan += *scan == '\\' && reader->end - scan > 1 ? 2 : 1;
    /* An escape is never longer in UTF-8 than as written. */
    char *out = take(reader, (size_t)(scan - reader->at) + 1);
    if (out == NULL)
        return false;
    value->text = out;
    for (;;) {
        if (reader->at >= reader->end)
            return fail(reader, "an unfinished string");
        unsigned char c = (unsigned char)*reader->at;
        if (c == '"')
            break;
        if (c < 0x20)
            return fail(reader, "a control character in a string");
        if (c == '\\') {
            reader->at++;
            if (!read_escape(reader, &out))
                return false;
            continue;
        }
        size_t length = utf8_length(reader->at, reader->end);
        if (length == 0)
            return fail(reader, "a byte that is not UTF-8");
        memcpy(out, reader->at, length);
        out += length;
        reader->at += length;
    }
    reader->at++;
    *out = '\0';
    value->length = (size_t)(out - value->text);
    return true;
}

/* A growing list, copied into the arena when it is whole. */
struct list {
    struct json_value *items;
    size_t count, room;
};

static struct json_value *add(struct reader *reader, struct list *list) {
    if (list->count == list->room) {
        size_t room = list->room == 0 ? 16 : list->room * 2;
        struct json_value *grown = realloc(list->items, room * sizeof *grown);
        if (grown == NULL) {
            fail(reader, "out of memory");
            return NULL;
        }
        list->items = grown;
        list->room = room;
    }
    struct json_value *item = &list->items[list->count++];
    *item = (struct json_value){0};
    return item;
}

static bool read_list(struct reader *reader, char close, struct list *list) {
    struct json_value *item;
    reader->at++;
    skip_space(reader);
    if (reader->at < reader->end && *reader->at == close) {
        reader->at++;
        return true;
    }
    for (;;) {
        if (close == '}') {
            skip_space(reader);
            if (reader->at == reader->end || *reader->at != '"')
                return fail(reader, "a member without its name");
            if ((item = add(reader, list)) == NULL || !read_string(reader, item))
                return false;
            skip_space(reader);
            if (reader->at == reader->end || *reader->at != ':')
                return fail(reader, "a name without its colon");
            reader->at++;
        }
        if ((item = add(reader, list)) == NULL || !read_value(reader, item))
            return false;
        skip_space(reader);
        if (reader->at == reader->end)
            return fail(reader, "an unfinished list");
        char c = *reader->at;
        if (c != ',' && c != close)
            return fail(reader, "no comma between two values");
        reader->at++;
        if (c == close)
            return true;
    }
}

static bool unique_names(struct reader *reader, const struct list *list) {
    for (size_t i = 0; i < list->count; i += 2)
        for (size_t j = 0; j < i; j += 2)
            if (list->items[i].length == list->items[j].length &&
                memcmp(list->items[i].text, list->items[j].text, list->items[i].length) == 0)
                return fail(reader, "a name that comes twice");
    return true;
}

static bool read_container(struct reader *reader, struct json_value *value) {
    bool object = *reader->at == '{';
    struct list list = {0};
    if (++reader->depth > MAX_DEPTH)
        return fail(reader, "too many lists within lists");
    bool good = read_list(reader, object ? '}' : ']', &list);
    if (good && object)
        /* Quadratic, so bounded: no message has a tenth of it. */
        good = list.count > 256 ? fail(reader, "an object with too many members") : unique_names(reader, &list);
    if (good) {
        value->kind = object ? JSON_OBJECT : JSON_ARRAY;
        value->length = object ? list.count / 2 : list.count;
        value->items = take(reader, (list.count + 1) * sizeof *list.items);
        good = value->items != NULL;
        if (good && list.count > 0)
            memcpy(value->items, list.items, list.count * sizeof *list.items);
    }
    free(list.items);
    reader->depth--;
    return good;
}

static bool read_value(struct reader *reader, struct json_value *value) {
    skip_space(reader);
    if (reader->at == reader->end)
        return fail(reader, "no value");
    switch (*reader->at) {
    case '{':
    case '[':
        return read_container(reader, value);
    case '"':
        return read_string(reader, value);
    case 'n':
        value->kind = JSON_NULL;
        return literal(reader, "null");
    case 't':
    case 'f':
        value->kind = JSON_BOOL;
        value->boolean = *reader->at == 't';
        return literal(reader, value->boolean ? "true" : "false");
    default:
        if (*reader->at == '-' || is_digit(reader))
            return read_number(reader, value);
        return fail(reader, "no value");
    }
}

bool json_parse(struct json_document *document, const char *text, size_t length) {
    struct reader reader = {.document = document, .start = text, .at = text, .end = text + length};
    *document = (struct json_document){0};
    struct json_value *root = take(&reader, sizeof *root);
    if (root == NULL)
        return false;
    *root = (struct json_value){0};
    if (!read_value(&reader, root))
        return false;
    skip_space(&reader);
    if (reader.at != reader.end)
        return fail(&reader, "more than one value");
    document->root = root;
    return true;
}

void json_free(struct json_document *document) {
    for (struct block *block = document->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    *document = (struct json_document){0};
}

const struct json_value *json_member(const struct json_value *object, const char *name) {
    if (object == NULL || object->kind != JSON_OBJECT)
        return NULL;
    for (size_t i = 0; i < object->length; i++) {
        const struct json_value *key = &object->items[2 * i];
        if (key->length == strlen(name) && memcmp(key->text, name, key->length) == 0)
            return &object->items[2 * i + 1];
    }
    return NULL;
}

void json_write_string(FILE *out, const char *text, size_t length) {
    const char *end = text + length;
    putc('"', out);
    while (text < end) {
        unsigned char c = (unsigned char)*text;
        size_t size = utf8_length(text, end);
        if (size == 0) {
            fputs("\\ufffd", out);
            text++;
        } else if (c == '"' || c == '\\') {
            putc('\\', out);
            putc(*text++, out);
        } else if (c < 0x20) {
            fprintf(out, "\\u%04x", c);
            text++;
        } else {
            fwrite(text, 1, size, out);
            text += size;
        }
    }
    putc('"', out);
}
