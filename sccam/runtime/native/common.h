// Shared by all kernels: threads that live for one call, a barrier between them, and the C boundary.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define SCCAM_EXPORT extern "C" __attribute__((visibility("default")))

namespace sccam {

// What a function at the C boundary returns; sccam/runtime/native/__init__.py gives each its error.
enum Status : int { OK = 0, OUT_OF_MEMORY = 1, FAILED = 2, KEY_OVERFLOW = 3 };

// Runs `body` and turns what it throws into a status: nothing may be thrown across the C boundary.
template <class Body>
int guarded(Body&& body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    } catch (const std::exception&) {
        return FAILED;
    }
}

// Calls body(0), ..., body(count - 1) at once, each on its own thread, the first on the caller's.
// Threads live for one call: they cost microseconds, and a process that forks has none to lose. None begins before all
// are there, since they may wait for each other.
template <class Body>
void on_threads(int count, Body&& body) {
    enum State { WAIT, RUN, STOP };
    std::atomic<State> state{WAIT};
    std::vector<std::thread> others;
    std::vector<std::exception_ptr> errors(count > 0 ? count : 1);
    struct Joined {
        std::atomic<State>& state;
        std::vector<std::thread>& threads;
        ~Joined() {
            State waiting = WAIT;
            state.compare_exchange_strong(waiting, STOP);
            for (auto& thread : threads) thread.join();
        }
    } joined{state, others};
    for (int n = 1; n < count; ++n)
        others.emplace_back([&, n] {
            while (state == WAIT) std::this_thread::yield();
            if (state == STOP) return;
            try {
                body(n);
            } catch (...) {
                errors[n] = std::current_exception();
            }
        });
    state = RUN;
    body(0);
    for (auto& thread : others) thread.join();
    others.clear();
    for (auto& error : errors)
        if (error) std::rethrow_exception(error);
}

// Thread `n` of `count` gets the rows [first, last) of `rows`.
struct Share {
    int64_t first, last;
    Share(int64_t rows, int n, int count) : first(rows * n / count), last(rows * (n + 1) / count) {}
};

// Where all threads of one call wait for each other; it spins, since the next phase is microseconds away.
class Barrier {
public:
    explicit Barrier(int count) : count_(count) {}

    void wait() {
        if (count_ == 1) return;
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins)
            if (spins > 4000) std::this_thread::yield();  // another process has the core
    }

private:
    const int count_;
    std::atomic<int> arrived_{0}, phase_{0};
};

// Memory that begins on a cache line, or on a huge page where there is enough of it for that to be faster.
struct Memory {
    static constexpr size_t LINE = 64, HUGE_PAGE = size_t{1} << 21;

    static std::align_val_t alignment(size_t bytes) { return std::align_val_t{bytes < 2 * HUGE_PAGE ? LINE : HUGE_PAGE}; }
    static void* get(size_t bytes) {
        void* const memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__)
        if (bytes >= 2 * HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish; nothing depends on it
#endif
        return memory;
    }
    static void free(void* memory, size_t bytes) { ::operator delete(memory, alignment(bytes)); }
};

// Memory for `count` values, not set to anything.
template <class T>
class Aligned {
public:
    explicit Aligned(size_t count = 0)
        : size_(count), data_(count ? static_cast<T*>(Memory::get(count * sizeof(T))) : nullptr) {}
    Aligned(size_t count, T value) : Aligned(count) { for (size_t n = 0; n < count; ++n) data_[n] = value; }
    ~Aligned() { if (data_) Memory::free(data_, size_ * sizeof(T)); }
    Aligned(Aligned&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; other.size_ = 0; }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    Aligned& operator=(Aligned&& other) noexcept {
        std::swap(size_, other.size_);
        std::swap(data_, other.data_);
        return *this;
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return size_; }
    T& operator[](size_t n) { return data_[n]; }
    const T& operator[](size_t n) const { return data_[n]; }

private:
    size_t size_;
    T* data_;
};

}  // namespace sccam
