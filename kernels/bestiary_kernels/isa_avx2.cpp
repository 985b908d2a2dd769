// The kernels for AVX2 and FMA, without VNNI.
#include "vec_avx2.h"

#include "generic.h"

namespace {

inline __m256i load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
inline __m256i four(const int8_t *p) { // four activations, in every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}

// Two dot products of 16 columns each for 16 rows, added to s[part]. Codes of 4 bits: int16 holds four maddubs of
// 2 * 15 * 127, also of 2 * 31 * 127. Codes of 8 bits would overflow it as unsigned ones (2 * 255 * 127), so 128 is taken off first (the
// caller's correction knows), and |code| * (activation with the code's sign) stays below 2 * 128 * 127 < 32768. So it is
// with a codebook, whose levels are looked up without the 128.
template <int Kind, bool Half, int Tokens>
inline void dot(const uint8_t *codes, __m256i book, const int8_t *const *a, __m256i (*s)[2][2]) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(-128);
    const __m256i sixteen = _mm256_set1_epi8(16);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) { // rows 0-7, 8-15
        if (Kind == kBook) {
            __m256i sum[Tokens][2]; // [1]: of the second half, where it has a scale of its own
#pragma GCC unroll 4
            for (int t = 0; t < Tokens; ++t) sum[t][0] = s[t][0][h], sum[t][1] = s[t][Half][h];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const __m256i w = load256(codes + j * 64 + h * 32);
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) { // column quads j and j + 4
                    const __m256i u = _mm256_and_si256(i ? _mm256_srli_epi16(w, 4) : w, low);
                    const __m256i level = _mm256_shuffle_epi8(book, u), size = _mm256_abs_epi8(level);
#pragma GCC unroll 4
                    for (int t = 0; t < Tokens; ++t) {
                        __m256i d = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four(a[t] + 16 * i + 4 * j), level));
                        sum[t][Half && i] = _mm256_add_epi32(sum[t][Half && i], _mm256_madd_epi16(d, ones));
                    }
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < Tokens; ++t) {
                s[t][0][h] = sum[t][0];
                if (Half) s[t][1][h] = sum[t][1];
            }
        } else if (Kind != kByte) {
            __m256i s0[Tokens], s1[Tokens], fifth = Kind == kFive ? load256(codes + 256 + h * 32) : low;
            for (int j = 0; j < 4; ++j) {
                __m256i w = load256(codes + j * 64 + h * 32);
                __m256i w0 = _mm256_and_si256(w, low), w1 = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
                if (Kind == kFive) { // of column quads j and j + 4: bits 0 and 4 of every byte
                    w0 = _mm256_or_si256(w0, _mm256_and_si256(_mm256_slli_epi16(fifth, 4), sixteen));
                    w1 = _mm256_or_si256(w1, _mm256_and_si256(fifth, sixteen));
                    fifth = _mm256_srli_epi16(fifth, 1);
                }
                for (int t = 0; t < Tokens; ++t) {
                    __m256i d0 = _mm256_maddubs_epi16(w0, four(a[t] + 4 * j));
                    __m256i d1 = _mm256_maddubs_epi16(w1, four(a[t] + 16 + 4 * j));
                    s0[t] = j ? _mm256_add_epi16(s0[t], d0) : d0;
                    s1[t] = j ? _mm256_add_epi16(s1[t], d1) : d1;
                }
            }
            for (int t = 0; t < Tokens; ++t) {
                if (Half) {
                    s[t][0][h] = _mm256_add_epi32(s[t][0][h], _mm256_madd_epi16(s0[t], ones));
                    s[t][1][h] = _mm256_add_epi32(s[t][1][h], _mm256_madd_epi16(s1[t], ones));
                } else if (Kind == kFive) {
                    __m256i d = _mm256_add_epi32(_mm256_madd_epi16(s0[t], ones), _mm256_madd_epi16(s1[t], ones));
                    s[t][0][h] = _mm256_add_epi32(s[t][0][h], d);
                } else { // sixteen products of 15 * 127 fit int16
                    s[t][0][h] = _mm256_add_epi32(s[t][0][h], _mm256_madd_epi16(_mm256_add_epi16(s0[t], s1[t]), ones));
                }
            }
        } else {
            for (int j = 0; j < 8; ++j) {
                __m256i w = _mm256_xor_si256(load256(codes + j * 64 + h * 32), flip), size = _mm256_abs_epi8(w);
                for (int t = 0; t < Tokens; ++t) {
                    __m256i d = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four(a[t] + 4 * j), w));
                    __m256i &into = s[t][Half && j >= 4][h];
                    into = _mm256_add_epi32(into, _mm256_madd_epi16(d, ones));
                }
            }
        }
    }
}

template <int Kind, bool Half, int Tokens>
void tile(const Matrix &m, const uint8_t *w, const Input &in, const int32_t *correction, const int32_t *sums, i64 t0,
          F *total) {
    constexpr int parts = Half ? 2 : 1;
    const i64 step = header_step(m), n = in.tokens;
    const __m256i book = _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)m.book)),
                                          _mm256_set1_epi8(-128));
    for (int t = 0; t < Tokens; ++t) total[t] = bc(0.0f);
    const uint8_t *p = w, *header = w;
    for (i64 b = 0, left = 0; b < m.blocks; ++b, p += m.code_bytes, --left) {
        if (!left) header = p, p += m.header, left = m.span;
        const int8_t *a[Tokens];
        __m256i s[Tokens][2][2];
        for (int t = 0; t < Tokens; ++t) {
            a[t] = in.codes + (b * n + t0 + t) * kBlock;
            for (int part = 0; part < parts; ++part)
                s[t][part][0] = s[t][part][1] = _mm256_set1_epi32(correction[(b * parts + part) * n + t0 + t]);
        }
        if (Kind == kByte || Kind == kBook) // codes are taken as code - 128
            for (int t = 0; t < Tokens; ++t)
                for (int part = 0; part < parts; ++part) {
                    __m256i more = _mm256_set1_epi32(sums[(b * parts + part) * n + t0 + t] * 128);
                    s[t][part][0] = s[t][part][1] = _mm256_add_epi32(s[t][part][0], more);
                }
        dot<Kind, Half, Tokens>(p, book, a, s);
        for (int part = 0; part < parts; ++part) {
            F d = header_values(header + part * step, m.wide);
            F low = m.minimum ? header_values(header + (parts + part) * step, m.wide) : d;
            for (int t = 0; t < Tokens; ++t) {
                F scale = bc(in.scales[b * n + t0 + t]);
                if (m.minimum)
                    total[t] = fma_(bc((float)sums[(b * parts + part) * n + t0 + t]), mul(low, scale), total[t]);
                F x = {_mm256_cvtepi32_ps(s[t][part][0]), _mm256_cvtepi32_ps(s[t][part][1])};
                total[t] = fma_(x, mul(d, scale), total[t]);
            }
        }
    }
}

template <int Kind, bool Half>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride) {
    for (i64 g = g0; g < g1; ++g) {
        const uint8_t *w = m.data + g * m.group_bytes;
        F total[4];
        for (i64 t = 0, n; t < in.tokens; t += n) {
            n = in.tokens - t >= 4 ? 4 : in.tokens - t >= 2 ? 2 : 1;
            if (n == 4) tile<Kind, Half, 4>(m, w, in, correction, sums, t, total);
            else if (n == 2) tile<Kind, Half, 2>(m, w, in, correction, sums, t, total);
            else tile<Kind, Half, 1>(m, w, in, correction, sums, t, total);
            for (i64 i = 0; i < n; ++i) put(out + (t + i) * stride, total[i], bias, g * 16, m.rows);
        }
    }
}

template <int Kind>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride) {
    if (m.half) groups<Kind, true>(m, in, correction, sums, g0, g1, bias, out, stride);
    else groups<Kind, false>(m, in, correction, sums, g0, g1, bias, out, stride);
}

void linear_quantized(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
                      const float *bias, float *out, i64 stride, uint8_t *) {
    if (m.kind == kNibble) groups<kNibble>(m, in, correction, sums, g0, g1, bias, out, stride);
    else if (m.kind == kFive) groups<kFive>(m, in, correction, sums, g0, g1, bias, out, stride);
    else if (m.kind == kBook) groups<kBook>(m, in, correction, sums, g0, g1, bias, out, stride);
    else groups<kByte>(m, in, correction, sums, g0, g1, bias, out, stride);
}
i64 quantized_scratch(const Matrix &, i64) { return 0; }

} // namespace

namespace bestiary {
const Table table_avx2 = BESTIARY_TABLE("avx2", 24);
}
