/* engine.h over ExecuTorch's C++ runtime: forward(tokens int64 [1, S], start_pos int64 [1]) -> logits [1, vocab], as
 * runtimes/engines/executorch_engine.py. The KV cache lives inside the program. */
extern "C" {
#include "engine.h"
}

#include <executorch/extension/threadpool/threadpool.h>
#include <executorch/runtime/core/data_loader.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace {

using executorch::aten::DimOrderType;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::runtime::DataLoader;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::MemoryAllocator;
using executorch::runtime::MemoryManager;
using executorch::runtime::Method;
using executorch::runtime::Program;
using executorch::runtime::Result;
using executorch::runtime::Span;

/* The program file, mapped. */
class MappedFile final : public DataLoader {
  public:
    explicit MappedFile(const char *path) {
        struct stat facts;
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0 && fstat(file, &facts) == 0 && facts.st_size > 0) {
            void *start = mmap(nullptr, (size_t)facts.st_size, PROT_READ, MAP_SHARED, file, 0);
            if (start != MAP_FAILED) {
                data_ = static_cast<const char *>(start);
                size_ = (size_t)facts.st_size;
            }
        }
        if (file >= 0)
            close(file);
    }

    bool is_open() const { return data_ != nullptr; }

    /* A flatbuffer's offset and identifier, then the extended header: "eh00", its length, the sizes of the program, of
     * what is before the segments, and of the segments. ExecuTorch would abort the process on less. */
    bool is_whole() const {
        if (size_ < 40 || memcmp(data_ + 4, "ET12eh00", 8) != 0)
            return false;
        return number(16) <= size_ && number(24) <= size_ && number(32) <= size_ - number(24);
    }

    Result<FreeableBuffer> load(size_t offset, size_t size, const SegmentInfo &) const override {
        if (offset > size_ || size > size_ - offset)
            return Error::InvalidArgument;
        return FreeableBuffer(data_ + offset, size, nullptr);
    }

    Error load_into(size_t offset, size_t size, const SegmentInfo &, void *buffer) const override {
        if (offset > size_ || size > size_ - offset)
            return Error::InvalidArgument;
        memcpy(buffer, data_ + offset, size);
        return Error::Ok;
    }

    Result<size_t> size() const override { return size_; }

  private:
    uint64_t number(size_t at) const {
        uint64_t value;
        memcpy(&value, data_ + at, sizeof value);
        return value;
    }

    const char *data_ = nullptr;
    size_t size_ = 0;
};

/* Memory from malloc, freed together. */
class Heap final : public MemoryAllocator {
  public:
    Heap() : MemoryAllocator(0, nullptr) {}
    ~Heap() override { reset(); }

    void *allocate(size_t size, size_t alignment) override {
        void *block = nullptr;
        if (posix_memalign(&block, std::max(alignment, sizeof(void *)), std::max<size_t>(size, 1)) != 0)
            return nullptr;
        blocks_.push_back(block);
        return block;
    }

    void reset() override {
        for (void *block : blocks_)
            free(block);
        blocks_.clear();
    }

  private:
    std::vector<void *> blocks_;
};

/* Zeroes whose pages the system gives when they are first written: a KV cache is gigabytes for a long context. */
class Zeroes final {
  public:
    explicit Zeroes(size_t size) : size_(size), data_(static_cast<uint8_t *>(calloc(std::max<size_t>(size, 1), 1))) {
        if (data_ == nullptr)
            throw std::bad_alloc();
    }
    Span<uint8_t> span() const { return {data_.get(), size_}; }

  private:
    struct Free {
        void operator()(uint8_t *data) const { free(data); }
    };
    size_t size_;
    std::unique_ptr<uint8_t, Free> data_;
};

/* A method, and all memory that it needs. */
struct Loaded {
    Heap heap, temporary;
    std::vector<Zeroes> planned;
    std::vector<Span<uint8_t>> spans;
    std::unique_ptr<HierarchicalAllocator> hierarchy;
    std::unique_ptr<MemoryManager> memory;
    std::unique_ptr<Method> method;
};

bool fail(char *error, size_t error_size, const char *what, Error code) {
    snprintf(error, error_size, "ExecuTorch: %s (error 0x%x)", what, (unsigned)code);
    return false;
}

bool load_method(const Program &program, const char *name, Loaded &loaded, char *error, size_t error_size) {
    auto facts = program.method_meta(name);
    if (!facts.ok())
        return fail(error, error_size, name, facts.error());
    for (size_t i = 0; i < facts->num_memory_planned_buffers(); i++) {
        auto size = facts->memory_planned_buffer_size(i);
        if (!size.ok())
            return fail(error, error_size, name, size.error());
        loaded.planned.emplace_back((size_t)size.get());
        loaded.spans.push_back(loaded.planned.back().span());
    }
    loaded.hierarchy = std::make_unique<HierarchicalAllocator>(
        Span<Span<uint8_t>>(loaded.spans.data(), loaded.spans.size()));
    loaded.memory = std::make_unique<MemoryManager>(&loaded.heap, loaded.hierarchy.get(), &loaded.temporary);
    auto method = program.load_method(name, loaded.memory.get());
    if (!method.ok())
        return fail(error, error_size, name, method.error());
    loaded.method = std::make_unique<Method>(std::move(method.get()));
    return true;
}

/* The one .pte file of the folder; empty where there is another number of them. */
std::string find_program(const char *folder) {
    std::string found;
    std::error_code ignored;
    for (const auto &entry : std::filesystem::directory_iterator(folder, ignored))
        if (entry.path().extension() == ".pte") {
            if (!found.empty())
                return "";
            found = entry.path().string();
        }
    return found;
}

} // namespace

struct engine {
    std::unique_ptr<MappedFile> file;
    std::unique_ptr<Program> program;
    Loaded forward;
    size_t context_tokens, vocab_size, most_tokens;
    std::vector<int64_t> tokens;
};

extern "C" const char *engine_format(void) {
    return "executorch";
}

/* Kernels that the agent was not linked with: every library in the folder is loaded, and registers its own. */
static bool load_kernels(const char *libraries, char *error, size_t error_size) {
    std::vector<std::string> names;
    std::error_code failed;
    for (const auto &entry : std::filesystem::directory_iterator(libraries, failed))
        names.push_back(entry.path().string());
    std::sort(names.begin(), names.end());
    for (const auto &name : names)
        if (dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
            snprintf(error, error_size, "%s cannot be loaded (%s)", name.c_str(), dlerror());
            return false;
        }
    return true;
}

static bool open_program(struct engine *engine, const char *folder, int threads, char *error, size_t error_size) {
    std::string path = find_program(folder);
    if (path.empty()) {
        snprintf(error, error_size, "%s has not one .pte file; export it again", folder);
        return false;
    }
    engine->file = std::make_unique<MappedFile>(path.c_str());
    if (!engine->file->is_open() || !engine->file->is_whole()) {
        snprintf(error, error_size, "%s is no whole ExecuTorch program; export it again", path.c_str());
        return false;
    }
    executorch::runtime::runtime_init();
    auto *pool = executorch::extension::threadpool::get_threadpool();
    if (pool != nullptr && pool->get_thread_count() != (size_t)threads) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* nothing runs in the pool yet; there is no other way */
        pool->_unsafe_reset_threadpool((uint32_t)threads);
#pragma GCC diagnostic pop
    }
    auto program = Program::load(engine->file.get(), Program::Verification::InternalConsistency);
    if (!program.ok())
        return fail(error, error_size, "the program cannot be read", program.error());
    engine->program = std::make_unique<Program>(std::move(program.get()));
    Loaded limit;
    if (!load_method(*engine->program, "get_max_seq_len", limit, error, error_size))
        return false;
    Error code = limit.method->execute();
    if (code != Error::Ok || !limit.method->get_output(0).isInt())
        return fail(error, error_size, "get_max_seq_len", code);
    int64_t most_tokens = limit.method->get_output(0).toInt();
    if (most_tokens < 1) {
        snprintf(error, error_size, "%s takes %lld tokens at once; export it again", path.c_str(), (long long)most_tokens);
        return false;
    }
    engine->most_tokens = (size_t)most_tokens;
    return load_method(*engine->program, "forward", engine->forward, error, error_size);
}

extern "C" struct engine *engine_open(const char *folder, const char *libraries, int threads, size_t context_tokens,
                                      size_t vocab_size, char *error, size_t error_size) {
    try {
        auto engine = std::make_unique<struct engine>();
        engine->context_tokens = context_tokens;
        engine->vocab_size = vocab_size;
        if (libraries != nullptr && !load_kernels(libraries, error, error_size))
            return nullptr;
        return open_program(engine.get(), folder, threads, error, error_size) ? engine.release() : nullptr;
    } catch (const std::bad_alloc &) {
        snprintf(error, error_size,
                 "the system refused the program's memory, most of which is the KV cache for %zu tokens; export it "
                 "again with a smaller --context",
                 context_tokens);
        return nullptr;
    }
}

extern "C" const char *engine_version(const struct engine *, const char **library) {
    *library = "executorch";
    return nullptr;
}

/* One call of at most `most_tokens` ids. */
static const float *call(struct engine *engine, const int32_t *ids, size_t count, size_t position, char *error,
                         size_t error_size) {
    Method &method = *engine->forward.method;
    engine->tokens.assign(ids, ids + count);
    int64_t start = (int64_t)position;
    SizesType tokens_sizes[] = {1, (SizesType)count}, start_sizes[] = {1};
    DimOrderType order[] = {0, 1};
    TensorImpl tokens(ScalarType::Long, 2, tokens_sizes, engine->tokens.data(), order);
    TensorImpl start_pos(ScalarType::Long, 1, start_sizes, &start, order);
    Error code = method.set_input(EValue(Tensor(&tokens)), 0);
    if (code == Error::Ok)
        code = method.set_input(EValue(Tensor(&start_pos)), 1);
    if (code == Error::Ok)
        code = method.execute();
    if (code != Error::Ok) {
        char what[64];
        snprintf(what, sizeof what, "failed at position %zu", position);
        fail(error, error_size, what, code);
        return nullptr;
    }
    const EValue &output = method.get_output(0);
    if (!output.isTensor() || output.toTensor().scalar_type() != ScalarType::Float ||
        (size_t)output.toTensor().numel() != engine->vocab_size) {
        snprintf(error, error_size, "the logits are not float32 [1, %zu]; export it again", engine->vocab_size);
        return nullptr;
    }
    return output.toTensor().const_data_ptr<float>();
}

extern "C" const float *engine_forward(struct engine *engine, const int32_t *ids, size_t count, size_t start,
                                       bool long_rope, char *error, size_t error_size) {
    const float *logits = nullptr;
    /* A position that is larger by the context's length makes the program use the long factors. */
    size_t first = start + (long_rope ? engine->context_tokens : 0);
    for (size_t done = 0; done < count; done += engine->most_tokens) {
        size_t piece = std::min(engine->most_tokens, count - done);
        if ((logits = call(engine, ids + done, piece, first + done, error, error_size)) == nullptr)
            return nullptr;
    }
    return logits;
}

extern "C" size_t engine_most_back(size_t window, size_t kept) { return kept < window ? 0 : kept - window + 1; }
