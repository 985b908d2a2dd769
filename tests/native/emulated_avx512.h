// The AVX-512 instructions that the kernels use, in plain C++, so that a machine without them can run isa_avx512.cpp.
// Compiled in front of that file (-include, GCC, -mavx2 -mfma -mf16c). The kernels are in the unnamed namespace, and so
// are these: they hide the compiler's own of the same name. One that is missing here is an error of the compiler
// ("target specific option mismatch"): write it here after the vendor's description.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_permute_ps
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_srai_epi32
#undef _mm512_srli_epi16
#undef _mm512_ternarylogic_epi32

namespace {

template <typename To, typename From> inline To bits_as(const From &x) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
// A register as numbers of one type.
template <typename T> struct Parts {
    static constexpr int size = 64 / sizeof(T);
    T v[64 / sizeof(T)];
};
template <typename T, typename R> inline Parts<T> parts(R x) { return bits_as<Parts<T>>(x); }

// Each number by itself, from one register or from two.
template <typename R, typename T, typename Function> inline R each(R x, Function f) {
    Parts<T> p = parts<T>(x);
    for (T &v : p.v) v = f(v);
    return bits_as<R>(p);
}
template <typename R, typename T, typename Function> inline R each(R x, R y, Function f) {
    Parts<T> p = parts<T>(x);
    const Parts<T> q = parts<T>(y);
    for (int i = 0; i < p.size; ++i) p.v[i] = f(p.v[i], q.v[i]);
    return bits_as<R>(p);
}
template <typename R, typename T> inline R all(T x) {
    Parts<T> p;
    for (T &v : p.v) v = x;
    return bits_as<R>(p);
}

// ---------------------------------------------------------------- memory

inline void must_be_aligned(const void *p) {
    if ((uintptr_t)p % 64) __builtin_trap();
}
template <typename R> inline R read(const void *p) {
    R x;
    std::memcpy(&x, p, 64);
    return x;
}
inline __m512 _mm512_loadu_ps(const void *p) { return read<__m512>(p); }
inline __m512i _mm512_loadu_si512(const void *p) { return read<__m512i>(p); }
inline __m512i _mm512_load_si512(const void *p) { return must_be_aligned(p), read<__m512i>(p); }
inline void _mm512_storeu_ps(void *p, __m512 x) { std::memcpy(p, &x, 64); }
inline void _mm512_store_si512(void *p, __m512i x) { must_be_aligned(p), std::memcpy(p, &x, 64); }
// Nothing is touched where the mask has no bit.
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void *p) {
    Parts<float> r = {};
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) std::memcpy(r.v + i, (const char *)p + 4 * i, 4);
    return bits_as<__m512>(r);
}
inline void _mm512_mask_storeu_ps(void *p, __mmask16 mask, __m512 x) {
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) std::memcpy((char *)p + 4 * i, parts<float>(x).v + i, 4);
}

// ---------------------------------------------------------------- floats

inline __m512 _mm512_set1_ps(float x) { return all<__m512>(x); }
inline __m512 _mm512_add_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a + b; });
}
inline __m512 _mm512_sub_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a - b; });
}
inline __m512 _mm512_mul_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a * b; });
}
inline __m512 _mm512_div_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a / b; });
}
inline __m512 _mm512_max_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a > b ? a : b; });
}
inline __m512 _mm512_min_ps(__m512 x, __m512 y) {
    return each<__m512, float>(x, y, [](float a, float b) { return a < b ? a : b; });
}
inline __m512 _mm512_fmadd_ps(__m512 x, __m512 y, __m512 z) {
    Parts<float> r = parts<float>(z);
    for (int i = 0; i < 16; ++i) r.v[i] = std::fma(parts<float>(x).v[i], parts<float>(y).v[i], r.v[i]);
    return bits_as<__m512>(r);
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 x, __m512 y, int how) {
    if (how != _CMP_LT_OQ) __builtin_trap();
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) mask |= (unsigned)(parts<float>(x).v[i] < parts<float>(y).v[i]) << i;
    return (__mmask16)mask;
}
inline __m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 without, __m512 with) {
    Parts<float> r = parts<float>(without);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) r.v[i] = parts<float>(with).v[i];
    return bits_as<__m512>(r);
}
// Within each four: two bits for each of them say which.
inline __m512 _mm512_permute_ps(__m512 x, int which) {
    Parts<float> r;
    for (int i = 0; i < 16; ++i) r.v[i] = parts<float>(x).v[i / 4 * 4 + (which >> i % 4 * 2 & 3)];
    return bits_as<__m512>(r);
}
inline __m256 _mm512_castps512_ps256(__m512 x) { return _mm256_loadu_ps(parts<float>(x).v); }
inline __m256 _mm512_extractf32x8_ps(__m512 x, int half) { return _mm256_loadu_ps(parts<float>(x).v + 8 * half); }

// ---------------------------------------------------------------- conversions

inline __m512i _mm512_castps_si512(__m512 x) { return bits_as<__m512i>(x); }
inline __m512 _mm512_castsi512_ps(__m512i x) { return bits_as<__m512>(x); }
inline __m512 _mm512_cvtepi32_ps(__m512i x) {
    Parts<float> r;
    for (int i = 0; i < 16; ++i) r.v[i] = (float)parts<int32_t>(x).v[i];
    return bits_as<__m512>(r);
}
inline __m512i _mm512_cvtps_epi32(__m512 x) { // to even; what does not fit is the smallest integer
    Parts<int32_t> r;
    for (int i = 0; i < 16; ++i) r.v[i] = _mm_cvtss_si32(_mm_set_ss(parts<float>(x).v[i]));
    return bits_as<__m512i>(r);
}
inline __m128i _mm512_cvtepi32_epi8(__m512i x) {
    int8_t r[16];
    for (int i = 0; i < 16; ++i) r[i] = (int8_t)parts<int32_t>(x).v[i];
    return _mm_loadu_si128((const __m128i *)r);
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
    uint16_t from[16];
    std::memcpy(from, &x, 32);
    Parts<uint32_t> r;
    for (int i = 0; i < 16; ++i) r.v[i] = from[i];
    return bits_as<__m512i>(r);
}
inline __m512i _mm512_cvtepi8_epi32(__m128i x) {
    int8_t from[16];
    std::memcpy(from, &x, 16);
    Parts<int32_t> r;
    for (int i = 0; i < 16; ++i) r.v[i] = from[i];
    return bits_as<__m512i>(r);
}
inline __m512 _mm512_cvtph_ps(__m256i x) {
    float r[16];
    _mm256_storeu_ps(r, _mm256_cvtph_ps(_mm256_castsi256_si128(x)));
    _mm256_storeu_ps(r + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
    return read<__m512>(r);
}
inline __m256i _mm512_cvtps_ph(__m512 x, int how) {
    if (how) __builtin_trap(); // to even
    return _mm256_set_m128i(_mm256_cvtps_ph(_mm512_extractf32x8_ps(x, 1), 0),
                            _mm256_cvtps_ph(_mm512_castps512_ps256(x), 0));
}

// ---------------------------------------------------------------- integers

inline __m512i _mm512_setzero_si512() { return all<__m512i>(0); }
inline __m512i _mm512_set1_epi32(int x) { return all<__m512i>(x); }
inline __m512i _mm512_set1_epi8(char x) { return all<__m512i>(x); }
inline __m512i _mm512_broadcast_i32x4(__m128i x) {
    Parts<uint8_t> r;
    for (int i = 0; i < 64; i += 16) std::memcpy(r.v + i, &x, 16);
    return bits_as<__m512i>(r);
}
inline __m512i _mm512_add_epi32(__m512i x, __m512i y) {
    return each<__m512i, uint32_t>(x, y, [](uint32_t a, uint32_t b) { return a + b; });
}
inline __m512i _mm512_sub_epi32(__m512i x, __m512i y) {
    return each<__m512i, uint32_t>(x, y, [](uint32_t a, uint32_t b) { return a - b; });
}
inline __m512i _mm512_and_si512(__m512i x, __m512i y) {
    return each<__m512i, uint32_t>(x, y, [](uint32_t a, uint32_t b) { return a & b; });
}
inline __m512i _mm512_or_si512(__m512i x, __m512i y) {
    return each<__m512i, uint32_t>(x, y, [](uint32_t a, uint32_t b) { return a | b; });
}
inline __m512i _mm512_max_epi32(__m512i x, __m512i y) {
    return each<__m512i, int32_t>(x, y, [](int32_t a, int32_t b) { return a > b ? a : b; });
}
inline __m512i _mm512_srai_epi32(__m512i x, unsigned n) {
    return each<__m512i, int32_t>(x, [n](int32_t a) { return a >> (n > 31 ? 31 : n); });
}
inline __m512i _mm512_slli_epi32(__m512i x, unsigned n) {
    return each<__m512i, uint32_t>(x, [n](uint32_t a) { return n > 31 ? 0 : a << n; });
}
inline __m512i _mm512_slli_epi16(__m512i x, unsigned n) {
    return each<__m512i, uint16_t>(x, [n](uint16_t a) { return (uint16_t)(n > 15 ? 0 : a << n); });
}
inline __m512i _mm512_srli_epi16(__m512i x, unsigned n) {
    return each<__m512i, uint16_t>(x, [n](uint16_t a) { return (uint16_t)(n > 15 ? 0 : a >> n); });
}
// Bit by bit: the bits of x, y and z are a number from 7 to 0, whose bit in `table` is the result.
inline __m512i _mm512_ternarylogic_epi32(__m512i x, __m512i y, __m512i z, int table) {
    Parts<uint32_t> r = {};
    for (int i = 0; i < 16; ++i)
        for (int bit = 0; bit < 32; ++bit) {
            const uint32_t a = parts<uint32_t>(x).v[i] >> bit & 1, b = parts<uint32_t>(y).v[i] >> bit & 1;
            const uint32_t c = parts<uint32_t>(z).v[i] >> bit & 1;
            r.v[i] |= (uint32_t)(table >> (a << 2 | b << 1 | c) & 1) << bit;
        }
    return bits_as<__m512i>(r);
}
// Within each sixteen bytes; 0 where the place has its highest bit set.
inline __m512i _mm512_shuffle_epi8(__m512i x, __m512i places) {
    Parts<uint8_t> r;
    for (int i = 0; i < 64; ++i) {
        const uint8_t place = parts<uint8_t>(places).v[i];
        r.v[i] = place & 128 ? 0 : parts<uint8_t>(x).v[i / 16 * 16 + (place & 15)];
    }
    return bits_as<__m512i>(r);
}
// Four products of an unsigned and a signed byte, added to an int32 that wraps around.
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i x, __m512i y) {
    Parts<uint32_t> r = parts<uint32_t>(sum);
    for (int i = 0; i < 64; ++i) r.v[i / 4] += (uint32_t)(parts<uint8_t>(x).v[i] * parts<int8_t>(y).v[i]);
    return bits_as<__m512i>(r);
}
inline int _mm512_reduce_add_epi32(__m512i x) {
    uint32_t sum = 0;
    for (uint32_t v : parts<uint32_t>(x).v) sum += v;
    return (int)sum;
}
inline int _mm512_reduce_max_epi32(__m512i x) {
    int32_t most = parts<int32_t>(x).v[0];
    for (int32_t v : parts<int32_t>(x).v) most = v > most ? v : most;
    return most;
}

} // namespace
