/* What the agent needs from manifest.json (export/artifact.py), and its files in the page cache. It verifies no hash:
 * the host did, after it pushed the files. */
#ifndef PHI_EDGE_ARTIFACT_H
#define PHI_EDGE_ARTIFACT_H

#include <stdbool.h>
#include <stddef.h>

struct artifact {
    const char *folder;
    char digest[65];      /* the folder's name, where that is 64 hexadecimal digits; else empty */
    size_t context_tokens, vocab_size;
    size_t switch_tokens; /* 0: no long rope */
    size_t window_tokens, kept_tokens; /* of a KV cache that keeps only the last tokens; else 0 */
    char **files;         /* paths of its large files */
    size_t file_count;
    const char *largest;  /* one of them */
};

/* False, with `error` filled, for a folder that is no artifact of `format`. Its memory is kept until the process ends. */
bool artifact_open(struct artifact *artifact, const char *folder, const char *format, char *error, size_t error_size);
/* Ask the kernel to drop its files from the page cache. */
void artifact_drop_cache(const struct artifact *artifact);
/* 0 to 1: the share of the files that is in the page cache; -1: unknown. */
double artifact_cached_share(const struct artifact *artifact);
/* "mmap" where the largest file is mapped into this process, else "read"; NULL: unknown. */
const char *artifact_load_mode(const struct artifact *artifact);

#endif
