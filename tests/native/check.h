// What the kernels' tests share: numbers of a fixed seed, memory that ends where nobody may touch, comparison by bits.
#pragma once
#include "layout.h"
#include "table.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#if defined(__unix__) || defined(__APPLE__)
#define BESTIARY_FENCES
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace native {

using namespace bestiary;

// What is tried at the moment, for whoever has to say that it failed; and how often two results were compared.
extern char trying[400];
extern i64 comparisons;

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline void trying_now(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(trying, sizeof trying, format, arguments);
    va_end(arguments);
}

[[noreturn]] inline void fail(const char *why) {
    std::printf("FAILED: %s: %s\n", trying, why);
    std::fflush(stdout);
    std::_Exit(1);
}

// splitmix64: the same numbers everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint32_t bits() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return (uint32_t)(z >> 32);
    }
    i64 below(i64 n) { return (i64)(bits() % (uint64_t)n); }
    bool coin() { return bits() >> 31; }
    float number() { return (float)(bits() >> 8) / 8388608.0f - 1.0f; } // -1 to 1
    // Any bit pattern as a float; every fourth one special.
    float any() {
        static const uint32_t special[] = {0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC01234,
                                           0x7F812345, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF,
                                           0x42B20000, 0xC2D00000, 0x42B17218, 0xC2CE8ED0, 0x3F200000, 0xBF1FFFFF,
                                           0x477FEFFF, 0x477FF000, 0x38800000, 0x387FFFFF, 0x33000000, 0x33000001};
        const uint32_t pattern = bits() % 4 ? bits() : special[bits() % (sizeof special / 4)];
        float x;
        std::memcpy(&x, &pattern, 4);
        return x;
    }

  private:
    uint64_t state_;
};

// `count` numbers that end at a page which nobody may touch, where the system has such; all bits of them are set (NaN),
// and so are those before them in their page, which must stay so.
template <typename T> class Fenced {
  public:
    explicit Fenced(i64 count, size_t alignment = alignof(T)) : count_(count) {
        const size_t bytes = ((size_t)count * sizeof(T) + alignment - 1) / alignment * alignment;
#if defined(BESTIARY_FENCES)
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
        mapped_ = whole + 2 * page;
        void *base = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) throw std::bad_alloc();
        base_ = static_cast<unsigned char *>(base);
        begin_ = base_ + page;
        if (whole && mprotect(begin_, whole, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
        std::memset(begin_, 0xFF, whole);
        data_ = reinterpret_cast<T *>(begin_ + (whole - bytes));
#else
        begin_ = base_ = static_cast<unsigned char *>(::operator new(bytes + 64, std::align_val_t{64}));
        std::memset(base_, 0xFF, bytes + 64);
        data_ = reinterpret_cast<T *>(base_);
#endif
    }
    Fenced(const Fenced &) = delete;
    Fenced &operator=(const Fenced &) = delete;
    ~Fenced() {
        for (const unsigned char *p = begin_; p < reinterpret_cast<unsigned char *>(data_); ++p)
            if (*p != 0xFF) fail("memory before a result was written to");
#if defined(BESTIARY_FENCES)
        munmap(base_, mapped_);
#else
        ::operator delete(base_, std::align_val_t{64});
#endif
    }
    T *data() const { return data_; }
    i64 size() const { return count_; }
    T &operator[](i64 i) const { return data_[i]; }

  private:
    i64 count_;
    size_t mapped_ = 0;
    unsigned char *base_ = nullptr, *begin_ = nullptr;
    T *data_ = nullptr;
};

inline bool nan(float x) { return x != x; }
inline bool nan(uint16_t half) { return (half & 0x7FFF) > 0x7C00; }

// Equal to the bit; but one NaN is as good as another, whose bits not even two orders of operands share.
template <typename T> void same(const char *what, const Fenced<T> &expected, const Fenced<T> &got) {
    ++comparisons;
    for (i64 i = 0; i < expected.size(); ++i) {
        if (!std::memcmp(&expected[i], &got[i], sizeof(T))) continue;
        if constexpr (std::is_same_v<T, float> || std::is_same_v<T, uint16_t>)
            if (nan(expected[i]) && nan(got[i])) continue;
        char text[200];
        std::snprintf(text, sizeof text, "%s: number %lld is %.9g, in scalar %.9g", what, (long long)i, (double)got[i],
                      (double)expected[i]);
        fail(text);
    }
}

inline void fill(const Fenced<float> &x, Random &random) {
    for (i64 i = 0; i < x.size(); ++i) x[i] = 3.0f * random.number();
}
inline void fill_any(const Fenced<float> &x, Random &random) {
    for (i64 i = 0; i < x.size(); ++i) x[i] = random.any();
}
template <typename T> void copy(const Fenced<T> &from, const Fenced<T> &to) {
    std::memcpy(to.data(), from.data(), (size_t)from.size() * sizeof(T));
}

// Each compares the functions of a table with those of the reference.
void products(const Table &reference, const Table &table);
void plain_products(const Table &reference, const Table &table);
void activations(const Table &reference, const Table &table);
void rows(const Table &reference, const Table &table);
void attention(const Table &reference, const Table &table);
// The reference itself: a product of packed rows is nearly that of the numbers which they stand for.
void packing(const Table &reference, const Table &table);

} // namespace native
