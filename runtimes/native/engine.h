/* One model: ids at a position in, the last one's logits out, as runtimes/engines/engine.py. It has no sampling and no
 * sessions. The agent is built with one of two: onnxruntime-genai (engine.c) or ExecuTorch (engine_executorch.cpp). */
#ifndef PHI_EDGE_ENGINE_H
#define PHI_EDGE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;

/* The format of artifacts that it runs. */
const char *engine_format(void);
/* Load its libraries from the folder `libraries` (NULL: by the linker's own search) and the model from `folder`. NULL,
 * with `error` filled, where something is missing. */
struct engine *engine_open(const char *folder, const char *libraries, int threads, size_t context_tokens,
                           size_t vocab_size, char *error, size_t error_size);
/* The version of the library, of this name, that is really loaded; NULL: it does not say. */
const char *engine_version(const struct engine *engine, const char **library);
/* Compute ids at positions start... and return the last one's logits, which stay until the next call. NULL with `error`
 * filled; the cache is empty then. `long_rope`: the sequence that they are a piece of is longer than its switch. (To
 * onnxruntime-genai a first piece must show that itself, by reaching beyond the switch.) */
const float *engine_forward(struct engine *engine, const int32_t *ids, size_t count, size_t start, bool long_rope,
                            char *error, size_t error_size);
/* By how many tokens a sequence can go back once a cache of `kept` tokens is full. `window`: how many of them a token
 * sees. */
size_t engine_most_back(size_t window, size_t kept);

#endif
