// Zeroed memory on page boundaries, in huge pages where the system has them, and has them quickly.
// BESTIARY_GUARD_PAGES=after (or before), for tests: every piece ends (or begins) at a page that nobody may touch.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) // which watches what it allocates itself, to the byte
#define BESTIARY_MAPPED
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace bestiary {

class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t size) : size_(size) {
        if (!size) return;
#if defined(BESTIARY_MAPPED)
        if (const char *side = std::getenv("BESTIARY_GUARD_PAGES")) {
            guard(size, std::strcmp(side, "before") != 0);
            return;
        }
        const bool huge_pages = size >= huge && !slow_.load(std::memory_order_relaxed);
        mapped_ = huge_pages ? size + huge : size;
        base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) base_ = nullptr;
        if (!base_) throw std::bad_alloc();
        data_ = static_cast<unsigned char *>(base_);
        if (huge_pages) {
            data_ += (huge - reinterpret_cast<size_t>(data_) % huge) % huge;
            madvise(data_, size, MADV_HUGEPAGE);
        }
#else
        base_ = ::operator new(size, std::align_val_t{64}, std::nothrow);
        if (!base_) throw std::bad_alloc();
        data_ = static_cast<unsigned char *>(base_);
        std::memset(data_, 0, size);
#endif
    }
    Memory(Memory &&other) noexcept { swap(other); }
    Memory &operator=(Memory &&other) noexcept {
        swap(other);
        return *this;
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory() {
#if defined(BESTIARY_MAPPED)
        if (base_) munmap(base_, mapped_);
#else
        ::operator delete(base_, std::align_val_t{64});
#endif
    }
    unsigned char *data() const { return data_; }
    size_t size() const { return size_; }
    // Has the system find the pages of `count` bytes at once, which is quicker than at the first write to each. Where
    // huge pages take long (a virtual machine that gives free ones back to its host), the rest do without.
    void populate(const unsigned char *from, size_t count) const {
#if defined(BESTIARY_MAPPED)
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        const size_t first = (reinterpret_cast<size_t>(from) + page - 1) / page * page;
        const size_t last = (reinterpret_cast<size_t>(from) + count) / page * page;
        if (first >= last || guarded_) return;
        if (slow_.load(std::memory_order_relaxed)) madvise(base_, mapped_, MADV_NOHUGEPAGE);
        const auto begin = std::chrono::steady_clock::now();
        madvise(reinterpret_cast<void *>(first), last - first, 23); // MADV_POPULATE_WRITE
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
        if (last - first < huge || slow_.load(std::memory_order_relaxed)) return;
        const bool late = taken.count() * 1e9 > (double)(last - first); // less than 1 GB/s
        static std::atomic<int> in_a_row{0}; // one alone may have waited for a processor
        if (!late) in_a_row.store(0, std::memory_order_relaxed);
        else if (in_a_row.fetch_add(1, std::memory_order_relaxed) >= 1) slow_.store(true, std::memory_order_relaxed);
#else
        (void)from, (void)count;
#endif
    }
    void grow(size_t size) { // what it held is lost
        if (size > size_ || (size < size_ && guarded_)) *this = Memory(size);
    }

  private:
#if defined(BESTIARY_MAPPED)
    static constexpr size_t huge = size_t(2) << 20;
    inline static std::atomic<bool> slow_{false};

    void guard(size_t size, bool after) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
        mapped_ = whole + 2 * page;
        base_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) base_ = nullptr;
        unsigned char *first = static_cast<unsigned char *>(base_) + page;
        if (!base_ || mprotect(first, whole, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
        data_ = after ? first + (whole - (size + 63) / 64 * 64) : first;
        guarded_ = true;
    }
#endif
    void swap(Memory &other) noexcept {
        std::swap(base_, other.base_), std::swap(data_, other.data_);
        std::swap(size_, other.size_), std::swap(mapped_, other.mapped_), std::swap(guarded_, other.guarded_);
    }
    void *base_ = nullptr;
    unsigned char *data_ = nullptr;
    size_t size_ = 0, mapped_ = 0;
    bool guarded_ = false;
};

} // namespace bestiary
