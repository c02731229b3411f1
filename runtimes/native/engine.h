/* One model through onnxruntime-genai's C API, loaded at run time. It has no sampling and no sessions: ids at a
 * position in, the last one's logits out, as runtimes/engines/engine.py. */
#ifndef PHI_EDGE_ENGINE_H
#define PHI_EDGE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;

/* Load libonnxruntime.so and libonnxruntime-genai.so from `libraries` (NULL: by the linker's own search) and the model
 * from `folder`. NULL, with `error` filled, where something is missing. */
struct engine *engine_open(const char *folder, const char *libraries, int threads, size_t context_tokens,
                           size_t vocab_size, char *error, size_t error_size);
/* The version of ONNX Runtime that is really loaded. */
const char *engine_onnxruntime_version(const struct engine *engine);
/* Compute ids at positions start... and return the last one's logits, which stay until the next call. NULL with `error`
 * filled; the cache is empty then. */
const float *engine_forward(struct engine *engine, const int32_t *ids, size_t count, size_t start, char *error,
                            size_t error_size);

#endif
