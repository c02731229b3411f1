#define _GNU_SOURCE
#include "artifact.h"
#include "json.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 1 << 22 };

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "re");
    char *text = file == NULL ? NULL : malloc(MAX_MANIFEST_BYTES);
    if (text != NULL)
        *length = fread(text, 1, MAX_MANIFEST_BYTES, file);
    if (file != NULL)
        fclose(file);
    return text;
}

static bool wrong(char *error, size_t error_size, const char *folder, const char *what) {
    snprintf(error, error_size, "%s: %s; export it again", folder, what);
    return false;
}

static bool positive(const struct json_value *value, size_t *out) {
    if (value == NULL || value->kind != JSON_NUMBER || !value->integral || value->negative || value->integer == 0 ||
        value->integer > INT_MAX)
        return false;
    *out = (size_t)value->integer;
    return true;
}

/* Keep the path of every file that is at least a twentieth of the largest; check that all have their size. */
static bool take_files(struct artifact *artifact, const struct json_value *files, char *error, size_t error_size) {
    uint64_t largest = 0;
    if (files == NULL || files->kind != JSON_OBJECT || files->length == 0)
        return wrong(error, error_size, artifact->folder, "its manifest names no files");
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < files->length; i++) {
            const struct json_value *name = &files->items[2 * i], *bytes = json_member(name + 1, "bytes");
            struct stat seen;
            char *path;
            if (bytes == NULL || !bytes->integral || bytes->negative)
                return wrong(error, error_size, artifact->folder, "its manifest names a file without its size");
            if (pass == 0) {
                largest = bytes->integer > largest ? bytes->integer : largest;
                continue;
            }
            if (strlen(name->text) != name->length || name->text[0] == '/' || strstr(name->text, "..") != NULL)
                return wrong(error, error_size, artifact->folder, "a file's name climbs out of the folder");
            if (asprintf(&path, "%s/%s", artifact->folder, name->text) < 0)
                return wrong(error, error_size, artifact->folder, "out of memory");
            if (stat(path, &seen) != 0 || (uint64_t)seen.st_size != bytes->integer) {
                snprintf(error, error_size, "%s is missing or has another size than the manifest says; push it again",
                         path);
                free(path);
                return false;
            }
            if (bytes->integer * 20 < largest) {
                free(path);
                continue;
            }
            artifact->files[artifact->file_count++] = path;
            if (bytes->integer == largest)
                artifact->largest = path;
        }
    return true;
}

static bool take(struct artifact *artifact, const struct json_value *root, char *error, size_t error_size) {
    const struct json_value *format = json_member(root, "format"), *schema = json_member(root, "schema");
    const struct json_value *files = json_member(root, "files"), *rope = json_member(root, "rope");
    const struct json_value *switch_tokens = json_member(rope, "switch_tokens");
    if (schema == NULL || !schema->integral || schema->integer != 2)
        return wrong(error, error_size, artifact->folder, "its manifest has another schema than 2; export it again");
    if (format == NULL || format->kind != JSON_STRING || strcmp(format->text, "onnx") != 0)
        return wrong(error, error_size, artifact->folder, "this agent runs the format onnx");
    if (!positive(json_member(root, "context_tokens"), &artifact->context_tokens) ||
        !positive(json_member(json_member(root, "model"), "vocab_size"), &artifact->vocab_size))
        return wrong(error, error_size, artifact->folder, "its manifest lacks context_tokens or vocab_size");
    if (switch_tokens != NULL && switch_tokens->kind != JSON_NULL &&
        !positive(switch_tokens, &artifact->switch_tokens))
        return wrong(error, error_size, artifact->folder, "its manifest's switch_tokens is no number");
    if (files != NULL)
        artifact->files = calloc(files->length + 1, sizeof *artifact->files);
    return take_files(artifact, files, error, error_size);
}

bool artifact_open(struct artifact *artifact, const char *folder, char *error, size_t error_size) {
    struct json_document document;
    char path[PATH_MAX], real[PATH_MAX];
    size_t length = 0;
    *artifact = (struct artifact){.folder = folder};
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    char *text = read_file(path, &length);
    if (text == NULL) {
        snprintf(error, error_size, "%s cannot be read; give the folder of an artifact", path);
        return false;
    }
    bool good = json_parse(&document, text, length);
    if (!good)
        snprintf(error, error_size, "%s is not JSON (%s, byte %zu); export it again", path, document.error,
                 document.error_at);
    good = good && take(artifact, document.root, error, error_size);
    json_free(&document);
    free(text);
    if (good && realpath(folder, real) != NULL) {
        const char *name = strrchr(real, '/') + 1;
        if (strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64)
            memcpy(artifact->digest, name, 65);
    }
    return good;
}

void artifact_drop_cache(const struct artifact *artifact) {
    for (size_t i = 0; i < artifact->file_count; i++) {
        int file = open(artifact->files[i], O_RDONLY | O_CLOEXEC);
        if (file < 0)
            continue;
        fdatasync(file); /* pages that are not on the disk yet cannot be dropped */
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
}

/* Pages of one file that are cached, and all; false where the kernel does not tell. */
static bool count_pages(const char *path, size_t *cached, size_t *all) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct stat seen;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    void *map = MAP_FAILED;
    if (fstat(file, &seen) == 0 && seen.st_size > 0)
        map = mmap(NULL, (size_t)seen.st_size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED)
        return false;
    size_t pages = ((size_t)seen.st_size + page - 1) / page;
    unsigned char *resident = calloc(pages, 1);
    bool told = resident != NULL && mincore(map, (size_t)seen.st_size, resident) == 0;
    for (size_t i = 0; told && i < pages; i++)
        *cached += resident[i] & 1;
    *all += pages;
    free(resident);
    munmap(map, (size_t)seen.st_size);
    return told;
}

double artifact_cached_share(const struct artifact *artifact) {
    size_t cached = 0, all = 0;
    for (size_t i = 0; i < artifact->file_count; i++)
        if (!count_pages(artifact->files[i], &cached, &all))
            return -1;
    return all == 0 ? -1 : (double)cached / (double)all;
}

const char *artifact_load_mode(const struct artifact *artifact) {
    char path[PATH_MAX], line[PATH_MAX + 128];
    const char *mode = "read";
    FILE *maps = fopen("/proc/self/maps", "re");
    if (maps == NULL || artifact->largest == NULL || realpath(artifact->largest, path) == NULL) {
        if (maps != NULL)
            fclose(maps);
        return NULL;
    }
    while (fgets(line, sizeof line, maps) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        const char *name = strchr(line, '/');
        if (name != NULL && strcmp(name, path) == 0)
            mode = "mmap";
    }
    fclose(maps);
    return mode;
}
