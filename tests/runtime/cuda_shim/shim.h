// What g++ needs to compile our .cu files: CUDA's words for C++20, and a launch that runs a grid on the CPU.
//
// Kernels without a barrier run thread after thread, blocks and threads in an order drawn from a seed. Kernels with a
// barrier run block after block; the threads of a block are fibers that take turns at the barrier. Compiled with
// SHIM_THREADS, for ThreadSanitizer, they are threads of the operating system instead.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // one block at a time
#define __launch_bounds__(threads)

struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// Single operations that are never contracted; compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline int __float_as_int(float value) { return __builtin_bit_cast(int, value); }

inline float half_to_float(unsigned short bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }
inline unsigned short float_to_half(float value) { return __builtin_bit_cast(unsigned short, static_cast<_Float16>(value)); }

template <class T>
T atomicAdd(T* at, T value) { return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed); }
template <class T>
T atomicOr(T* at, T value) { return std::atomic_ref<T>(*at).fetch_or(value, std::memory_order_relaxed); }
template <class T>
T atomicCAS(T* at, T expected, T value) {
    std::atomic_ref<T>(*at).compare_exchange_strong(expected, value, std::memory_order_relaxed);
    return expected;
}

namespace shim {

constexpr size_t STACK = 64 << 10;  // [bytes] of a fiber
constexpr unsigned WORKERS = 4;

inline thread_local std::function<void()> wait = [] {
    std::fprintf(stderr, "a kernel that was launched as one without barriers met __syncthreads\n");
    std::abort();
};

inline std::vector<unsigned> shuffled(unsigned count, unsigned seed) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
}

inline void stand_at(unsigned block, unsigned thread, unsigned blocks, unsigned threads) {
    blockIdx.x = block, threadIdx.x = thread, gridDim.x = blocks, blockDim.x = threads;
}

template <class Body>
void run_freely(unsigned blocks, unsigned threads, unsigned seed, unsigned worker, unsigned workers, Body&& body) {
    const auto thread_order = shuffled(threads, seed + 1);
    for (unsigned block : shuffled(blocks, seed))
        for (unsigned thread : thread_order) {
            if ((block + thread) % workers != worker) continue;
            stand_at(block, thread, blocks, threads);
            body();
        }
}

#ifdef SHIM_THREADS

template <class Body>
void run(unsigned blocks, unsigned threads, bool barriers, unsigned seed, Body&& body) {
    std::vector<std::jthread> workers;
    if (!barriers) {
        for (unsigned n = 0; n < WORKERS; ++n)
            workers.emplace_back([&, n] { run_freely(blocks, threads, seed, n, WORKERS, body); });
        return;
    }
    const auto order = shuffled(blocks, seed);
    std::vector<std::unique_ptr<std::barrier<>>> inner;  // a thread that returns early leaves its block's for good
    for (unsigned n = 0; n < blocks; ++n) inner.push_back(std::make_unique<std::barrier<>>(threads));
    std::barrier between(threads);  // blocks share one memory for what is __shared__
    for (unsigned thread = 0; thread < threads; ++thread)
        workers.emplace_back([&, thread] {
            for (unsigned block : order) {
                stand_at(block, thread, blocks, threads);
                wait = [&] { inner[block]->arrive_and_wait(); };
                body();
                inner[block]->arrive_and_drop();
                between.arrive_and_wait();
            }
        });
    workers.clear();  // before what they use is gone
}

#else

struct Fibers {
    std::vector<ucontext_t> fibers;
    std::vector<std::unique_ptr<char[]>> stacks;
    std::vector<char> done;
    ucontext_t turn;
    unsigned current = 0;
    std::function<void()> body;
};
inline Fibers* running = nullptr;

inline void fiber_main() {
    running->body();
    running->done[running->current] = 1;
}

template <class Body>
void run(unsigned blocks, unsigned threads, bool barriers, unsigned seed, Body&& body) {
    if (!barriers) return run_freely(blocks, threads, seed, 0, 1, body);
    Fibers all;
    all.fibers.resize(threads), all.stacks.resize(threads);
    for (auto& stack : all.stacks) stack = std::make_unique_for_overwrite<char[]>(STACK);
    all.body = body;
    running = &all;
    const auto no_barrier = std::exchange(wait, [] { swapcontext(&running->fibers[running->current], &running->turn); });
    for (unsigned block : shuffled(blocks, seed)) {
        all.done.assign(threads, 0);
        for (unsigned thread = 0; thread < threads; ++thread) {
            getcontext(&all.fibers[thread]);
            all.fibers[thread].uc_stack.ss_sp = all.stacks[thread].get();
            all.fibers[thread].uc_stack.ss_size = STACK;
            all.fibers[thread].uc_link = &all.turn;
            makecontext(&all.fibers[thread], fiber_main, 0);
        }
        const auto order = shuffled(threads, seed + block);
        while (std::find(all.done.begin(), all.done.end(), 0) != all.done.end())
            for (unsigned thread : order) {  // each runs up to its next barrier or its end
                if (all.done[thread]) continue;
                stand_at(block, thread, blocks, threads);
                all.current = thread;
                swapcontext(&all.turn, &all.fibers[thread]);
            }
    }
    wait = no_barrier;
    running = nullptr;
}

#endif

template <class... Arguments, size_t... N>
void launch(void (*kernel)(Arguments...), int blocks, int threads, int barriers, unsigned seed, void** values,
            std::index_sequence<N...>) {
    run(blocks, threads, barriers, seed, [&] { kernel(*static_cast<Arguments*>(values[N])...); });
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), int blocks, int threads, int barriers, unsigned seed, void** values) {
    launch(kernel, blocks, threads, barriers, seed, values, std::index_sequence_for<Arguments...>{});
}

template <class... Arguments>
int count(void (*)(Arguments...)) { return sizeof...(Arguments); }

}  // namespace shim

inline void __syncthreads() { shim::wait(); }

#define SHIM_KERNEL(name)                                                                               \
    extern "C" void launch_##name(int blocks, int threads, int barriers, unsigned seed, void** values) { \
        shim::launch(name, blocks, threads, barriers, seed, values);                                    \
    }                                                                                                   \
    extern "C" int arguments_##name() { return shim::count(name); }
