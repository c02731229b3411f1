#define _GNU_SOURCE
#include "artifact.h"
#include "yyjson/yyjson.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 1 << 22, MOST_TOKENS = 1 << 24 };

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

static bool positive(yyjson_val *value, size_t *out) {
    uint64_t number = yyjson_get_uint(value); /* 0 for what is no unsigned integer */
    if (number == 0 || number > MOST_TOKENS)
        return false;
    *out = (size_t)number;
    return true;
}

/* Keep the file's path where it is at least a twentieth of the largest; check that it has its size. */
static bool take_file(struct artifact *artifact, yyjson_val *key, uint64_t bytes, uint64_t largest, char *error,
                      size_t error_size) {
    const char *name = yyjson_get_str(key);
    struct stat seen;
    char *path;
    if (strlen(name) != yyjson_get_len(key) || name[0] == '/' || strstr(name, "..") != NULL)
        return wrong(error, error_size, artifact->folder, "a file's name leads out of the folder");
    if (asprintf(&path, "%s/%s", artifact->folder, name) < 0)
        return wrong(error, error_size, artifact->folder, "out of memory");
    bool good = stat(path, &seen) == 0 && (uint64_t)seen.st_size == bytes;
    if (!good)
        snprintf(error, error_size, "%s is missing or has another size than the manifest says; push it again", path);
    if (!good || bytes * 20 < largest) {
        free(path);
        return good;
    }
    artifact->files[artifact->file_count++] = path;
    if (bytes == largest)
        artifact->largest = path;
    return true;
}

static bool take_files(struct artifact *artifact, yyjson_val *files, char *error, size_t error_size) {
    uint64_t largest = 0;
    size_t index, count;
    yyjson_val *name, *file;
    if (yyjson_obj_size(files) == 0)
        return wrong(error, error_size, artifact->folder, "its manifest names no files");
    artifact->files = calloc(yyjson_obj_size(files), sizeof *artifact->files);
    if (artifact->files == NULL)
        return wrong(error, error_size, artifact->folder, "out of memory");
    yyjson_obj_foreach(files, index, count, name, file) {
        yyjson_val *bytes = yyjson_obj_get(file, "bytes");
        if (!yyjson_is_uint(bytes))
            return wrong(error, error_size, artifact->folder, "its manifest names a file without its size");
        if (yyjson_get_uint(bytes) > largest)
            largest = yyjson_get_uint(bytes);
    }
    yyjson_obj_foreach(files, index, count, name, file) {
        uint64_t bytes = yyjson_get_uint(yyjson_obj_get(file, "bytes"));
        if (!take_file(artifact, name, bytes, largest, error, error_size))
            return false;
    }
    return true;
}

/* ExecuTorch's engine takes the one .pte of the folder, which must not be a file that nobody exported. */
static bool names_program(yyjson_val *files) {
    size_t index, count;
    yyjson_val *name, *file;
    yyjson_obj_foreach(files, index, count, name, file) {
        size_t length = yyjson_get_len(name);
        if (length > 4 && strcmp(yyjson_get_str(name) + length - 4, ".pte") == 0)
            return true;
    }
    return false;
}

static bool take(struct artifact *artifact, yyjson_val *root, const char *format, char *error, size_t error_size) {
    yyjson_val *files = yyjson_obj_get(root, "files"), *window_tokens = yyjson_obj_get(root, "window_tokens");
    yyjson_val *kept_tokens = yyjson_obj_get(yyjson_obj_get(root, "memory"), "kept_tokens");
    yyjson_val *switch_tokens = yyjson_obj_get(yyjson_obj_get(root, "rope"), "switch_tokens");
    if (yyjson_get_uint(yyjson_obj_get(root, "schema")) != 2)
        return wrong(error, error_size, artifact->folder, "its manifest has another schema than 2");
    if (!yyjson_equals_str(yyjson_obj_get(root, "format"), format)) {
        char what[64];
        snprintf(what, sizeof what, "this agent runs the format %s", format);
        return wrong(error, error_size, artifact->folder, what);
    }
    if (strcmp(format, "onnx") == 0 && yyjson_obj_get(files, "genai_config.json") == NULL) /* genai reads it by its name */
        return wrong(error, error_size, artifact->folder, "its manifest names no genai_config.json");
    if (strcmp(format, "executorch") == 0 && !names_program(files))
        return wrong(error, error_size, artifact->folder, "its manifest names no .pte");
    if (!positive(yyjson_obj_get(root, "context_tokens"), &artifact->context_tokens) ||
        !positive(yyjson_obj_get(yyjson_obj_get(root, "model"), "vocab_size"), &artifact->vocab_size))
        return wrong(error, error_size, artifact->folder, "its manifest lacks context_tokens or vocab_size");
    if (switch_tokens != NULL && !yyjson_is_null(switch_tokens) && !positive(switch_tokens, &artifact->switch_tokens))
        return wrong(error, error_size, artifact->folder, "its manifest's switch_tokens is not a positive integer");
    if (positive(kept_tokens, &artifact->kept_tokens) && !positive(window_tokens, &artifact->window_tokens))
        return wrong(error, error_size, artifact->folder, "its manifest has kept_tokens and no window_tokens");
    return take_files(artifact, files, error, error_size);
}

bool artifact_open(struct artifact *artifact, const char *folder, const char *format, char *error, size_t error_size) {
    yyjson_read_err failure;
    char path[PATH_MAX], real[PATH_MAX];
    size_t length = 0;
    *artifact = (struct artifact){.folder = folder};
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    char *text = read_file(path, &length);
    if (text == NULL) {
        snprintf(error, error_size, "%s cannot be read; give the folder of an artifact", path);
        return false;
    }
    yyjson_doc *document = yyjson_read_opts(text, length, 0, NULL, &failure);
    if (document == NULL)
        snprintf(error, error_size, "%s is not JSON (%s, byte %zu); export it again", path, failure.msg, failure.pos);
    bool good = document != NULL && take(artifact, yyjson_doc_get_root(document), format, error, error_size);
    yyjson_doc_free(document);
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

/* Pages of one file that are cached, and all; false where the kernel does not report it. */
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
    bool known = resident != NULL && mincore(map, (size_t)seen.st_size, resident) == 0;
    for (size_t i = 0; known && i < pages; i++)
        *cached += resident[i] & 1;
    *all += pages;
    free(resident);
    munmap(map, (size_t)seen.st_size);
    return known;
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
