// Sixteen floats as one AVX-512 register.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace {

using F = __m512;
using I = __m512i;
// Unquantized weights: tokens of a tile of two row groups, and of one; more tokens than kPanelTokens take two, and
// have the weights converted beforehand.
constexpr int kTileTokens = 6, kAloneTokens = 6, kPanelTokens = 6;
constexpr int kTileVectors = 4, kTileRows = 6;

inline __mmask16 tail(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline F ld(const float *p) { return _mm512_loadu_ps(p); }
inline F ld_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(tail(n), p); }
inline void st(float *p, F x) { _mm512_storeu_ps(p, x); }
inline void st_n(float *p, F x, int64_t n) { _mm512_mask_storeu_ps(p, tail(n), x); }
inline F bc(float x) { return _mm512_set1_ps(x); }
inline I bci(int32_t x) { return _mm512_set1_epi32(x); }
inline F add(F x, F y) { return _mm512_add_ps(x, y); }
inline F sub(F x, F y) { return _mm512_sub_ps(x, y); }
inline F mul(F x, F y) { return _mm512_mul_ps(x, y); }
inline F div(F x, F y) { return _mm512_div_ps(x, y); }
inline F fma_(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
inline F max_(F x, F y) { return _mm512_max_ps(x, y); }
inline F min_(F x, F y) { return _mm512_min_ps(x, y); }
inline F sel_lt(F x, F y, F p, F q) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), q, p); }
inline F swap2(F x) { return _mm512_permute_ps(x, 0xB1); }
inline I as_i(F x) { return _mm512_castps_si512(x); }
inline F as_f(I x) { return _mm512_castsi512_ps(x); }
inline I addi(I x, I y) { return _mm512_add_epi32(x, y); }
inline I subi(I x, I y) { return _mm512_sub_epi32(x, y); }
inline I andi(I x, I y) { return _mm512_and_si512(x, y); }
inline I ori(I x, I y) { return _mm512_or_si512(x, y); }
inline I maxi(I x, I y) { return _mm512_max_epi32(x, y); }
inline I half_i(I x) { return _mm512_srai_epi32(x, 1); }
inline I shl23(I x) { return _mm512_slli_epi32(x, 23); }
inline F to_f(I x) { return _mm512_cvtepi32_ps(x); }
inline float hsum(F x) {
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline float hmax(F x) {
    __m256 s = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline int32_t hmaxi(I x) { return _mm512_reduce_max_epi32(x); }
inline int32_t hsumi(I x) { return _mm512_reduce_add_epi32(x); }
inline F ld_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
inline F bc_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p)); }
inline F ld_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
inline void st_f16(uint16_t *p, F x) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, 0)); }
inline F ld_bf16(const uint16_t *p) {
    return as_f(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
inline void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
inline float sqrt1(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline void st_i8(int8_t *p, F x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))); }

} // namespace
