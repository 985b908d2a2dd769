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
    if (!alive()) { // a joinable thread object must not be destroyed, and one of another process cannot be detached
        new std::vector<std::thread>(std::move(threads_));
        return;
    }
    stop_.store(true);
    for (int i = 1; i < count_; ++i) {
        cursors_[(size_t)i].value.store((uint64_t)(step_ + 1) << 32);
        rouse(i);
    }
    for (std::thread &thread : threads_) thread.join();
}

bool Pool::alive() const { return process_ == process_id(); }

void Pool::reserve(size_t bytes) {
    for (Memory &memory : scratch_) memory.grow(bytes);
}

// A worker waits for a step of its own: those that a step has no use for sleep on.
void Pool::loop(int worker) {
    Cursor &own = cursors_[(size_t)worker];
    for (uint32_t seen = 0;;) {
        if (!spin([&] { return own.step() != seen; })) {
            own.asleep.store(1);
            while (own.step() == seen) sleep_while(own.asleep, 1);
            own.asleep.store(0);
        }
        seen = own.step();
        if (stop_.load()) return;
        work(worker, seen);
    }
}

// After its cursor was set: either it sees that before it sleeps, or it is seen to sleep here.
void Pool::rouse(int worker) {
    Cursor &cursor = cursors_[(size_t)worker];
    if (cursor.asleep.load() && cursor.asleep.exchange(0)) wake(cursor.asleep);
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
            // Half of what is left at most: near the end the pieces are small, and nobody waits long for another.
            const i64 half = (end - chunk + 1) / 2, most = most_.load(std::memory_order_relaxed);
            const i64 count = half < most ? half : most;
            if (!cursor.compare_exchange_weak(c, c + ((uint64_t)count << 16), std::memory_order_acq_rel,
                                              std::memory_order_acquire))
                continue;
            function_(argument_, base_ + chunk, base_ + chunk + count, worker); // the step cannot end before
            if (remaining_.fetch_sub((uint32_t)count) == (uint32_t)count && waiting_.load()) wake(remaining_);
            c = cursor.load(std::memory_order_acquire);
        }
    }
}

void Pool::publish(i64 chunks, Function function, void *argument, int active) {
    const uint32_t step = ++step_;
    function_ = function, argument_ = argument;
    active_.store(active, std::memory_order_relaxed);
    remaining_.store((uint32_t)chunks);
    for (int i = 0; i < active; ++i) {
        const uint64_t begin = (uint64_t)(chunks * i / active), end = (uint64_t)(chunks * (i + 1) / active);
        cursors_[(size_t)i].value.store((uint64_t)step << 32 | begin << 16 | end);
    }
    for (int i = 1; i < active; ++i) rouse(i);
    work(0, step);
    if (spin([&] { return remaining_.load(std::memory_order_acquire) == 0; })) return;
    waiting_.store(1);
    for (uint32_t left; (left = remaining_.load()) != 0;) sleep_while(remaining_, left);
    waiting_.store(0);
}

void Pool::run(i64 chunks, i64 most, Function function, void *argument, int active) {
    if (active > count_) active = count_;
    if (chunks <= 1 || active <= 1) {
        if (chunks > 0) function(argument, 0, chunks, 0);
        return;
    }
    most_.store(most, std::memory_order_relaxed);
    for (i64 first = 0; first < chunks; first += kMostChunks) {
        base_ = first;
        publish(chunks - first < kMostChunks ? chunks - first : kMostChunks, function, argument, active);
    }
}

} // namespace bestiary
