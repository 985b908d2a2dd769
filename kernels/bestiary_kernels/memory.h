// Zeroed memory on page boundaries, in huge pages where the system has them.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bestiary {

class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t size) : size_(size) {
        if (!size) return;
#if defined(__linux__)
        constexpr size_t huge = size_t(2) << 20;
        mapped_ = size < huge ? size : size + huge;
        base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) base_ = nullptr;
        if (!base_) throw std::bad_alloc();
        data_ = static_cast<unsigned char *>(base_);
        if (size >= huge) {
            data_ += (huge - reinterpret_cast<size_t>(data_) % huge) % huge;
            madvise(data_, size, MADV_HUGEPAGE);
        }
#else
        base_ = std::calloc(1, size + 64);
        if (!base_) throw std::bad_alloc();
        data_ = static_cast<unsigned char *>(base_);
        data_ += (64 - reinterpret_cast<size_t>(data_) % 64) % 64;
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
#if defined(__linux__)
        if (base_) munmap(base_, mapped_);
#else
        std::free(base_);
#endif
    }
    unsigned char *data() const { return data_; }
    size_t size() const { return size_; }
    void grow(size_t size) { // what it held is lost
        if (size > size_) *this = Memory(size);
    }

  private:
    void swap(Memory &other) noexcept {
        std::swap(base_, other.base_), std::swap(data_, other.data_);
        std::swap(size_, other.size_), std::swap(mapped_, other.mapped_);
    }
    void *base_ = nullptr;
    unsigned char *data_ = nullptr;
    size_t size_ = 0, mapped_ = 0;
};

} // namespace bestiary
