// A stand-in for the header of ONNX Runtime, which the Python packages do not carry: the few calls of
// docs/segment.cpp, with the names and arguments of the real header, over the library that they do carry.
// The positions in the table of functions are those of the C interface, which only grows at its end.
// Nothing is released: the program under test ends at once.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

struct OrtApiBase {
    const void* const* (*GetApi)(uint32_t version);
    const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace Ort {

enum Position {
    kGetErrorMessage = 2, kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateSessionOptions = 10,
    kCreateTensorWithData = 49, kGetTensorMutableData = 51, kCreateCpuMemoryInfo = 69,
};

inline const void* function(Position position) { return OrtGetApiBase()->GetApi(17)[position]; }

template <typename... Arguments>
void call(Position position, Arguments... arguments) {
    auto status = reinterpret_cast<void* (*)(Arguments...)>(function(position))(arguments...);
    if (status)
        throw std::runtime_error(reinterpret_cast<const char* (*)(const void*)>(function(kGetErrorMessage))(status));
}

struct Holder {
    void* held = nullptr;
};

struct Env : Holder {
    Env(OrtLoggingLevel level, const char* name) { call(kCreateEnv, static_cast<int>(level), name, &held); }
};

struct SessionOptions : Holder {
    SessionOptions() { call(kCreateSessionOptions, &held); }
};

struct RunOptions : Holder {
    explicit RunOptions(std::nullptr_t) {}
};

struct MemoryInfo : Holder {
    static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type) {
        MemoryInfo info;
        call(kCreateCpuMemoryInfo, static_cast<int>(allocator), static_cast<int>(type), &info.held);
        return info;
    }
};

template <typename T>
struct TypeOf;
template <>
struct TypeOf<uint8_t> {
    static constexpr int number = 2;  // ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
};

struct Value : Holder {
    template <typename T>
    static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape, size_t rank) {
        Value value;
        call(kCreateTensorWithData, static_cast<const void*>(memory.held), static_cast<void*>(data), count * sizeof(T),
             shape, rank, TypeOf<T>::number, &value.held);
        return value;
    }
    template <typename T>
    const T* GetTensorData() const {
        void* data = nullptr;
        call(kGetTensorMutableData, held, &data);
        return static_cast<const T*>(data);
    }
};

struct Session : Holder {
    Session(const Env& env, const char* path, const SessionOptions& options) {
        call(kCreateSession, static_cast<const void*>(env.held), path, static_cast<const void*>(options.held), &held);
    }
    std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
                           size_t input_count, const char* const* output_names, size_t output_count) {
        std::vector<const void*> given;
        for (size_t n = 0; n < input_count; ++n) given.push_back(inputs[n].held);
        std::vector<void*> found(output_count, nullptr);
        call(kRun, held, static_cast<const void*>(options.held), input_names, given.data(), input_count, output_names,
             output_count, found.data());
        std::vector<Value> values(output_count);
        for (size_t n = 0; n < output_count; ++n) values[n].held = found[n];
        return values;
    }
};

}  // namespace Ort
