// Threads that share out the chunks of a step: own range first, then the others'; a step is over when its chunks are.
#pragma once
#include "memory.h"
#include "table.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace bestiary {

class Pool {
  public:
    using Function = void (*)(void *argument, i64 first, i64 last, int worker);
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return count_; } // may be fewer than asked for: see the constructor
    // Runs function(argument, first, last, worker) over ranges of at most `most` chunks that cover all of them, on at
    // most `active` threads, and returns when all are done.
    void run(i64 chunks, i64 most, Function function, void *argument, int active);
    // Scratch memory of a worker; `reserve` before `run`.
    uint8_t *scratch(int worker) const { return scratch_[(size_t)worker].data(); }
    void reserve(size_t bytes);
    // False in a child process: its parent's threads do not exist here.
    bool alive() const;

  private:
    struct alignas(64) Cursor {
        std::atomic<uint64_t> value{0}; // step (32 bits), next chunk (16), end (16): a late thread cannot take a later
                                        // step's chunk, because its compare-and-swap carries the step
        std::atomic<uint32_t> asleep{0}; // its worker is, or is about to be
        uint32_t step() const { return (uint32_t)(value.load() >> 32); }
    };
    void loop(int worker);
    void work(int worker, uint32_t step);
    void publish(i64 chunks, Function function, void *argument, int active);
    void rouse(int worker);

    int count_;
    i64 process_;
    std::vector<std::thread> threads_;
    std::unique_ptr<Cursor[]> cursors_;
    std::vector<Memory> scratch_;
    Function function_ = nullptr;
    void *argument_ = nullptr;
    i64 base_ = 0;
    std::atomic<i64> most_{1};
    std::atomic<int> active_{1};
    uint32_t step_ = 0; // the last that was published
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<uint32_t> remaining_{0};
    std::atomic<int> waiting_{0};
};

i64 process_id();

// Processors that the affinity mask allows; at least 1.
int allowed_cpus();
// The least of the affinity mask, the control group's quota (rounded down) and the physical cores; at least 1.
int usable_threads();

} // namespace bestiary
