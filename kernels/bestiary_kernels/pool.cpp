// The thread pool: publishing steps, taking chunks, waiting.
#include "pool.h"

#include <chrono>
#include <exception>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif
#if !defined(__linux__)
#include <condition_variable>
#include <mutex>
#endif
#if defined(BESTIARY_X86)
#include <immintrin.h>
#endif

namespace bestiary {

i64 process_id() {
#if defined(_WIN32)
    return _getpid();
#else
    return getpid();
#endif
}

namespace {

#if defined(__linux__)
void sleep_while(std::atomic<uint32_t> &word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake(std::atomic<uint32_t> &word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
}
#else
std::mutex &mutex = *new std::mutex; // never destroyed: threads may wait when the process ends
std::condition_variable &condition = *new std::condition_variable;
void sleep_while(std::atomic<uint32_t> &word, uint32_t value) {
    std::unique_lock<std::mutex> lock(mutex);
    if (word.load() == value) condition.wait(lock);
}
void wake(std::atomic<uint32_t> &) {
    std::lock_guard<std::mutex> lock(mutex);
    condition.notify_all();
}
#endif

void pause() {
#if defined(BESTIARY_X86)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#else
    std::this_thread::yield();
#endif
}

// True as soon as done() is; false after 20 microseconds.
template <typename Done> bool spin(Done done) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

constexpr i64 kMostChunks = 60000; // a cursor has 16 bits for them

} // namespace

Pool::Pool(int threads) : count_(1), process_(process_id()), cursors_(new Cursor[(size_t)threads]) {
    scratch_.resize((size_t)threads);
    threads_.reserve((size_t)threads);
    // A system that gives no more threads is no reason to end: results do not depend on their number.
    try {
        for (; count_ < threads; ++count_) threads_.emplace_back([this, i = count_] { loop(i); });
    } catch (const std::exception &) {
    }
    scratch_.resize((size_t)count_);
}

Pool::~Pool() {
    if (!alive()) { // nothing to wait for; a joinable thread object must not be destroyed
        for (std::thread &thread : threads_) thread.detach();
        return;
    }
    stop_.store(true);
    step_.fetch_add(1);
    wake(step_);
    for (std::thread &thread : threads_) thread.join();
}

bool Pool::alive() const { return process_ == process_id(); }

void Pool::reserve(size_t bytes) {
    for (Memory &memory : scratch_) memory.grow(bytes);
}

void Pool::loop(int worker) {
    uint32_t seen = 0;
    for (;;) {
        if (!spin([&] { return step_.load(std::memory_order_acquire) != seen; })) {
            sleepers_.fetch_add(1);
            while (step_.load() == seen) sleep_while(step_, seen);
            sleepers_.fetch_sub(1);
        }
        seen = step_.load(std::memory_order_acquire);
        if (stop_.load()) return;
        if (worker < active_.load(std::memory_order_relaxed)) work(worker, seen);
    }
}

void Pool::work(int worker, uint32_t step) {
    const int active = active_.load(std::memory_order_relaxed);
    for (int i = 0; i < active; ++i) {
        std::atomic<uint64_t> &cursor = cursors_[(size_t)((worker + i) % active)].value;
        uint64_t c = cursor.load(std::memory_order_acquire);
        for (;;) {
            if ((uint32_t)(c >> 32) != step) return;
            const i64 chunk = (i64)(c >> 16 & 0xFFFF), end = (i64)(c & 0xFFFF);
            if (chunk >= end) break;
            if (!cursor.compare_exchange_weak(c, c + 0x10000, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            function_(argument_, base_ + chunk, worker); // the step cannot end before this chunk does
            if (remaining_.fetch_sub(1) == 1 && waiting_.load()) wake(remaining_);
            c = cursor.load(std::memory_order_acquire);
        }
    }
}

void Pool::publish(i64 chunks, Function function, void *argument, int active) {
    const uint32_t step = step_.load(std::memory_order_relaxed) + 1;
    function_ = function, argument_ = argument;
    active_.store(active, std::memory_order_relaxed);
    remaining_.store((uint32_t)chunks);
    for (int i = 0; i < active; ++i) {
        const uint64_t begin = (uint64_t)(chunks * i / active), end = (uint64_t)(chunks * (i + 1) / active);
        cursors_[(size_t)i].value.store((uint64_t)step << 32 | begin << 16 | end, std::memory_order_release);
    }
    step_.store(step);
    if (sleepers_.load() > 0) wake(step_);
    work(0, step);
    if (spin([&] { return remaining_.load(std::memory_order_acquire) == 0; })) return;
    waiting_.store(1);
    for (uint32_t left; (left = remaining_.load()) != 0;) sleep_while(remaining_, left);
    waiting_.store(0);
}

void Pool::run(i64 chunks, Function function, void *argument, int active) {
    if (active > count_) active = count_;
    if (chunks <= 1 || active <= 1) {
        for (i64 i = 0; i < chunks; ++i) function(argument, i, 0);
        return;
    }
    for (i64 first = 0; first < chunks; first += kMostChunks) {
        base_ = first;
        publish(chunks - first < kMostChunks ? chunks - first : kMostChunks, function, argument, active);
    }
}

} // namespace bestiary
