#include "engine.h" /* over onnxruntime-genai's C API, loaded at run time */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The prototypes of src/ort_genai_c.h (onnxruntime-genai 0.8 to 0.18) that are used here. */
typedef struct OgaResult OgaResult;
typedef struct OgaConfig OgaConfig;
typedef struct OgaModel OgaModel;
typedef struct OgaGeneratorParams OgaGeneratorParams;
typedef struct OgaGenerator OgaGenerator;
typedef struct OgaTensor OgaTensor;
enum { OGA_FLOAT32 = 1, MAX_RANK = 4 };

/* The stable part of onnxruntime_c_api.h: its first struct. */
struct ort_api_base {
    const void *(*get_api)(uint32_t version);
    const char *(*version)(void);
};

struct oga {
    const char *(*ResultGetError)(const OgaResult *);
    void (*DestroyResult)(OgaResult *);
    OgaResult *(*CreateConfig)(const char *, OgaConfig **);
    OgaResult *(*ConfigOverlay)(OgaConfig *, const char *);
    void (*DestroyConfig)(OgaConfig *);
    OgaResult *(*CreateModelFromConfig)(const OgaConfig *, OgaModel **);
    OgaResult *(*CreateGeneratorParams)(const OgaModel *, OgaGeneratorParams **);
    OgaResult *(*GeneratorParamsSetSearchNumber)(OgaGeneratorParams *, const char *, double);
    OgaResult *(*CreateGenerator)(const OgaModel *, const OgaGeneratorParams *, OgaGenerator **);
    void (*DestroyGenerator)(OgaGenerator *);
    OgaResult *(*Generator_AppendTokens)(OgaGenerator *, const int32_t *, size_t);
    OgaResult *(*Generator_RewindTo)(OgaGenerator *, size_t);
    OgaResult *(*Generator_GetLogits)(OgaGenerator *, OgaTensor **);
    OgaResult *(*TensorGetType)(OgaTensor *, int *);
    OgaResult *(*TensorGetShapeRank)(OgaTensor *, size_t *);
    OgaResult *(*TensorGetShape)(OgaTensor *, int64_t *, size_t);
    OgaResult *(*TensorGetData)(OgaTensor *, void **);
    void (*DestroyTensor)(OgaTensor *);
};

struct engine {
    struct oga oga;
    const char *onnxruntime_version;
    OgaModel *model;
    OgaGeneratorParams *params;
    OgaGenerator *generator; /* NULL after a failure, when its contents are unknown */
    OgaTensor *logits;
    size_t length, vocab_size; /* tokens in the generator */
    size_t context_tokens;
};

static void *load(const char *folder, const char *name, char *error, size_t error_size) {
    char path[4096];
    void *library;
    if (folder == NULL)
        snprintf(path, sizeof path, "%s", name);
    else
        snprintf(path, sizeof path, "%s/%s", folder, name);
    library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL)
        snprintf(error, error_size, "%s cannot be loaded (%s); give --libraries the folder that contains it", name,
                 dlerror());
    return library;
}

static bool find(struct oga *oga, void *library, char *error, size_t error_size) {
    /* A function pointer and what dlsym returns have the same size on every system with dlsym (POSIX). */
    struct {
        const char *name;
        void *place;
    } const wanted[] = {
        {"OgaResultGetError", &oga->ResultGetError},
        {"OgaDestroyResult", &oga->DestroyResult},
        {"OgaCreateConfig", &oga->CreateConfig},
        {"OgaConfigOverlay", &oga->ConfigOverlay},
        {"OgaDestroyConfig", &oga->DestroyConfig},
        {"OgaCreateModelFromConfig", &oga->CreateModelFromConfig},
        {"OgaCreateGeneratorParams", &oga->CreateGeneratorParams},
        {"OgaGeneratorParamsSetSearchNumber", &oga->GeneratorParamsSetSearchNumber},
        {"OgaCreateGenerator", &oga->CreateGenerator},
        {"OgaDestroyGenerator", &oga->DestroyGenerator},
        {"OgaGenerator_AppendTokens", &oga->Generator_AppendTokens},
        {"OgaGenerator_RewindTo", &oga->Generator_RewindTo},
        {"OgaGenerator_GetLogits", &oga->Generator_GetLogits},
        {"OgaTensorGetType", &oga->TensorGetType},
        {"OgaTensorGetShapeRank", &oga->TensorGetShapeRank},
        {"OgaTensorGetShape", &oga->TensorGetShape},
        {"OgaTensorGetData", &oga->TensorGetData},
        {"OgaDestroyTensor", &oga->DestroyTensor},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *symbol = dlsym(library, wanted[i].name);
        if (symbol == NULL) {
            snprintf(error, error_size, "libonnxruntime-genai.so has no %s; use version 0.8 or later", wanted[i].name);
            return false;
        }
        memcpy(wanted[i].place, &symbol, sizeof symbol);
    }
    return true;
}

/* True where the call went well; its message otherwise. */
static bool went_well(const struct engine *engine, OgaResult *result, char *error, size_t error_size) {
    if (result == NULL)
        return true;
    snprintf(error, error_size, "onnxruntime-genai: %s", engine->oga.ResultGetError(result));
    engine->oga.DestroyResult(result);
    return false;
}

static bool open_model(struct engine *engine, const char *folder, int threads, size_t context_tokens, char *error,
                       size_t error_size) {
    char overlay[160];
    OgaConfig *config = NULL;
    /* genai's default is one thread. */
    snprintf(overlay, sizeof overlay,
             "{\"model\":{\"decoder\":{\"session_options\":{\"intra_op_num_threads\":%d,\"log_severity_level\":3}}}}",
             threads);
    bool good = went_well(engine, engine->oga.CreateConfig(folder, &config), error, error_size) &&
                went_well(engine, engine->oga.ConfigOverlay(config, overlay), error, error_size) &&
                went_well(engine, engine->oga.CreateModelFromConfig(config, &engine->model), error, error_size) &&
                went_well(engine, engine->oga.CreateGeneratorParams(engine->model, &engine->params), error, error_size) &&
                went_well(engine,
                          engine->oga.GeneratorParamsSetSearchNumber(engine->params, "max_length",
                                                                     (double)context_tokens),
                          error, error_size);
    if (config != NULL)
        engine->oga.DestroyConfig(config);
    return good;
}

struct engine *engine_open(const char *folder, const char *libraries, int threads, size_t context_tokens,
                           size_t vocab_size, char *error, size_t error_size) {
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    engine->vocab_size = vocab_size;
    engine->context_tokens = context_tokens;
    /* The official builds report usage to their maker unless this is set (docs/Privacy.md). */
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    /* genai looks its symbols up in what is loaded already, so ONNX Runtime comes first and visible to all. */
    void *onnxruntime = load(libraries, "libonnxruntime.so", error, error_size);
    void *genai = onnxruntime == NULL ? NULL : load(libraries, "libonnxruntime-genai.so", error, error_size);
    if (genai == NULL || !find(&engine->oga, genai, error, error_size) ||
        !open_model(engine, folder, threads, context_tokens, error, error_size)) {
        free(engine);
        return NULL;
    }
    const struct ort_api_base *(*get_base)(void);
    void *symbol = dlsym(onnxruntime, "OrtGetApiBase");
    if (symbol != NULL) {
        memcpy(&get_base, &symbol, sizeof symbol);
        engine->onnxruntime_version = get_base()->version();
    }
    return engine;
}

const char *engine_format(void) {
    return "onnx";
}

const char *engine_version(const struct engine *engine, const char **library) {
    *library = "onnxruntime";
    return engine->onnxruntime_version;
}

static void drop_logits(struct engine *engine) {
    if (engine->logits != NULL)
        engine->oga.DestroyTensor(engine->logits);
    engine->logits = NULL;
}

static const float *last_logits(struct engine *engine, char *error, size_t error_size) {
    int type = 0;
    size_t rank = 0;
    int64_t shape[MAX_RANK] = {0};
    void *data = NULL;
    if (!went_well(engine, engine->oga.Generator_GetLogits(engine->generator, &engine->logits), error, error_size) ||
        !went_well(engine, engine->oga.TensorGetType(engine->logits, &type), error, error_size) ||
        !went_well(engine, engine->oga.TensorGetShapeRank(engine->logits, &rank), error, error_size))
        return NULL;
    if (type != OGA_FLOAT32 || rank != 3) {
        snprintf(error, error_size, "the logits have type %d and rank %zu; expected float32 and 3; export it again", type,
                 rank);
        return NULL;
    }
    if (!went_well(engine, engine->oga.TensorGetShape(engine->logits, shape, rank), error, error_size) ||
        !went_well(engine, engine->oga.TensorGetData(engine->logits, &data), error, error_size))
        return NULL;
    if (shape[0] != 1 || shape[1] < 1 || shape[2] != (int64_t)engine->vocab_size) {
        snprintf(error, error_size, "the logits have shape [%lld, %lld, %lld]; expected [1, 1, %zu]; export it again",
                 (long long)shape[0], (long long)shape[1], (long long)shape[2], engine->vocab_size);
        return NULL;
    }
    return (const float *)data + (size_t)(shape[1] - 1) * engine->vocab_size;
}

static void drop_generator(struct engine *engine) {
    drop_logits(engine);
    engine->oga.DestroyGenerator(engine->generator);
    engine->generator = NULL;
}

/* Rewind to position 0. Genai does not rewind a cache that keeps only a window and is full: then it is dropped, and this
 * forward makes a new one. */
static void begin_again(struct engine *engine) {
    char said[256];
    if (!went_well(engine, engine->oga.Generator_RewindTo(engine->generator, 0), said, sizeof said))
        drop_generator(engine);
    engine->length = 0;
}

const float *engine_forward(struct engine *engine, const int32_t *ids, size_t count, size_t start, bool long_rope,
                            char *error, size_t error_size) {
    const float *logits = NULL;
    (void)long_rope;
    drop_logits(engine);
    if (start == 0 && engine->generator != NULL && engine->length != 0)
        begin_again(engine);
    if (engine->generator == NULL) {
        engine->length = 0;
        if (!went_well(engine, engine->oga.CreateGenerator(engine->model, engine->params, &engine->generator), error,
                       error_size)) {
            size_t used = strlen(error); /* it makes the whole KV cache: memory is the usual reason */
            snprintf(error + used, error_size - used,
                     " (the KV cache of a context of %zu tokens; export with a smaller --context?)",
                     engine->context_tokens);
            return NULL;
        }
    }
    if (engine->length < start)
        snprintf(error, error_size, "position %zu was asked for and %zu are filled: a bug of the agent", start,
                 engine->length);
    else if ((engine->length == start ||
              went_well(engine, engine->oga.Generator_RewindTo(engine->generator, start), error, error_size)) &&
             went_well(engine, engine->oga.Generator_AppendTokens(engine->generator, ids, count), error, error_size))
        logits = last_logits(engine, error, error_size);
    engine->length = start + count;
    if (logits == NULL)
        drop_generator(engine);
    return logits;
}

/* Genai refuses to rewind a cache that keeps only a window, once that is full. */
size_t engine_most_back(size_t window, size_t kept) {
    (void)window, (void)kept;
    return 0;
}
