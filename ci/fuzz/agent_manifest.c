/* A libFuzzer target over what the native agent reads of an artifact: manifest.json, of an artifact whose other files are
 * there. MANIFEST_FOLDER is a folder to write it to. */
#include "artifact.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *folder = getenv("MANIFEST_FOLDER");
    char path[4096], error[1024];
    struct artifact artifact;
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0 || write(file, data, size) != (ssize_t)size || close(file) != 0)
        abort();
    if (artifact_open(&artifact, folder, "onnx", error, sizeof error)) {
        (void)artifact_cached_share(&artifact);
        (void)artifact_load_mode(&artifact);
    }
    for (size_t i = 0; i < artifact.file_count; i++)
        free(artifact.files[i]);
    free(artifact.files);
    return 0;
}
