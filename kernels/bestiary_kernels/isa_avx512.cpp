// The kernels for AVX-512 with VNNI.
#include "vec_avx512.h"

#include "generic.h"

namespace {

inline I load512(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }
inline I four(const int8_t *p) { // four activations, in every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

// What a block's codes need beside them: fifth or third bits, or the codebook four times.
template <int Kind> inline I beside(const Matrix &m, const uint8_t *codes) {
    if (Kind == kFive) return load512(codes + 256);
    if (Kind == kThree) return load512(codes + 128);
    if (Kind == kBook) return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)m.book));
    return _mm512_setzero_si512();
}

// Column quads j and j + 4 of a block's codes, at p. more: from `beside`; the fifth or third bits of these quads are
// bits 0 and 4 of its bytes, and are moved on to the next pair.
template <int Kind> BESTIARY_INLINE void pair(const uint8_t *p, int j, I &more, I &w0, I &w1) {
    if (Kind == kByte) {
        w0 = load512(p + 64 * j), w1 = load512(p + 256 + 64 * j);
        return;
    }
    const I low = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi8(16), three = _mm512_set1_epi8(3);
    if (Kind == kTwo || Kind == kThree) {
        const I w = load512(p + j % 2 * 64);
        w0 = _mm512_and_si512(j < 2 ? w : _mm512_srli_epi16(w, 2), three);
        w1 = _mm512_and_si512(j < 2 ? _mm512_srli_epi16(w, 4) : _mm512_srli_epi16(w, 6), three);
        if (Kind == kThree) {
            const I four_ = _mm512_set1_epi8(4);
            w0 = _mm512_ternarylogic_epi32(_mm512_slli_epi16(more, 2), four_, w0, 0xEA);
            w1 = _mm512_ternarylogic_epi32(_mm512_srli_epi16(more, 2), four_, w1, 0xEA);
            more = _mm512_srli_epi16(more, 1);
        }
        return;
    }
    const I w = load512(p + 64 * j);
    w0 = _mm512_and_si512(w, low), w1 = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
    if (Kind == kFive) {
        w0 = _mm512_ternarylogic_epi32(_mm512_slli_epi16(more, 4), sixteen, w0, 0xEA); // (x & 16) | nibble
        w1 = _mm512_ternarylogic_epi32(more, sixteen, w1, 0xEA);
        more = _mm512_srli_epi16(more, 1);
    }
    if (Kind == kSix) {
        const I top = _mm512_set1_epi8(48), two = load512(p + 256 + j % 2 * 64);
        w0 = _mm512_ternarylogic_epi32(j < 2 ? _mm512_slli_epi16(two, 4) : _mm512_slli_epi16(two, 2), top, w0, 0xEA);
        w1 = _mm512_ternarylogic_epi32(j < 2 ? two : _mm512_srli_epi16(two, 2), top, w1, 0xEA);
    }
    if (Kind == kBook) w0 = _mm512_shuffle_epi8(more, w0), w1 = _mm512_shuffle_epi8(more, w1);
}

// ---------------------------------------------------------------- one token

template <int Kind, bool Half, bool Minimum, bool Wide>
F matvec(const Matrix &m, const uint8_t *p, const Input &in, const int32_t *correction) {
    constexpr int parts = Half ? 2 : 1;
    constexpr i64 step = Wide ? 64 : 32;
    F total = bc(0.0f);
    Values values(m);
    for (i64 b = 0, left = 0; b < m.blocks; ++b, --left, values.at += values.next) {
        if (!left) values.begin(m, p), p += m.header, left = m.span;
        const uint8_t *header = values.at;
        const int8_t *a = in.codes + b * kBlock;
        I s[2] = {_mm512_set1_epi32(correction[b * parts]), Half ? _mm512_set1_epi32(correction[b * parts + parts - 1])
                                                                 : _mm512_setzero_si512()};
        I w0, w1, more = beside<Kind>(m, p);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            pair<Kind>(p, j, more, w0, w1);
            s[0] = _mm512_dpbusd_epi32(s[0], w0, four(a + 4 * j));
            s[1] = _mm512_dpbusd_epi32(s[1], w1, four(a + 16 + 4 * j));
        }
        p += code_bytes_of(Kind);
        if (!Half) s[0] = addi(s[0], s[1]);
        F scale = bc(in.scales[b]);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            if (Minimum)
                total = fma_(bc(in.lows[b * parts + part]), header_values(header + (parts + part) * step, Wide), total);
            total = fma_(to_f(s[part]), mul(header_values(header + part * step, Wide), scale), total);
        }
    }
    return total;
}

// ---------------------------------------------------------------- many tokens: a panel, one micro-kernel

constexpr i64 kPanelBlocks = 128; // 128 blocks of 32 rows: 128 KB of codes, 32 KB of scales and minimums
// A panel's block: codes [16 quads of 4 columns in pairs of row groups][64] = 1024 bytes; scales [part][group][16].

struct Panel {
    uint8_t *codes;
    float *scales, *minimums;
};

template <int Kind> void unpack(const Matrix &m, i64 g, i64 count, i64 b0, i64 b1, const Panel &panel) {
    const i64 parts = m.half ? 2 : 1;
    const bool wide = m.numbers != kHalves;
    Values values(m);
    for (i64 i = 0; i < count; ++i) {
        const uint8_t *w = m.data + (g + i) * m.group_bytes;
        for (i64 b = b0; b < b1; ++b, values.at += values.next) {
            if (b == b0 || b % m.span == 0) values.begin(m, w + m.header_at(b));
            const uint8_t *header = values.at, *p = w + m.codes_at(b);
            uint8_t *to = panel.codes + (b - b0) * 1024 + i * 64;
            for (i64 part = 0; part < parts; ++part) {
                const i64 at = (((b - b0) * parts + part) * 2 + i) * 16;
                st(panel.scales + at, header_values(header + part * values.step, wide));
                if (m.minimum) st(panel.minimums + at, header_values(header + (parts + part) * values.step, wide));
            }
            I w0, w1, more = beside<Kind>(m, p);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                pair<Kind>(p, j, more, w0, w1);
                _mm512_store_si512((void *)(to + j * 128), w0);
                _mm512_store_si512((void *)(to + (j + 4) * 128), w1);
            }
        }
    }
}

// acc: [token][2][16], the sums so far of tokens t0.. and two row groups.
template <int Tokens, bool Half, bool Minimum>
inline void micro(const Panel &panel, const Input &in, const int32_t *correction, i64 t0, i64 b0, i64 b1, float *acc) {
    constexpr int parts = Half ? 2 : 1;
    const i64 n = in.tokens;
    F f[Tokens][2];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) f[t][0] = ld(acc + t * 32), f[t][1] = ld(acc + t * 32 + 16);
    const uint8_t *w = panel.codes;
    const float *d = panel.scales, *low = panel.minimums;
    const int8_t *a = in.codes + (b0 * n + t0) * kBlock;
    const float *scales = in.scales + b0 * n + t0;
    correction += b0 * parts * n + t0;
    const float *lows = Minimum ? in.lows + b0 * parts * n + t0 : nullptr;
    for (i64 b = b0; b < b1; ++b) {
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            I s[Tokens][2];
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) s[t][0] = s[t][1] = _mm512_set1_epi32(correction[t]);
#pragma GCC unroll 8
            for (int j = part * (8 / parts); j < (part + 1) * (8 / parts); ++j) {
                I w0 = _mm512_load_si512((const void *)(w + j * 128));
                I w1 = _mm512_load_si512((const void *)(w + j * 128 + 64));
#pragma GCC unroll 8
                for (int t = 0; t < Tokens; ++t) {
                    I x = four(a + t * kBlock + 4 * j);
                    s[t][0] = _mm512_dpbusd_epi32(s[t][0], w0, x);
                    s[t][1] = _mm512_dpbusd_epi32(s[t][1], w1, x);
                }
            }
            F d0 = ld(d), d1 = ld(d + 16);
            if (Minimum) {
                F m0 = ld(low), m1 = ld(low + 16);
#pragma GCC unroll 8
                for (int t = 0; t < Tokens; ++t) {
                    const F sum = bc(lows[t]);
                    f[t][0] = fma_(sum, m0, f[t][0]);
                    f[t][1] = fma_(sum, m1, f[t][1]);
                }
                low += 32, lows += n;
            }
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) {
                F scale = bc(scales[t]);
                f[t][0] = fma_(to_f(s[t][0]), mul(d0, scale), f[t][0]);
                f[t][1] = fma_(to_f(s[t][1]), mul(d1, scale), f[t][1]);
            }
            d += 32, correction += n;
        }
        w += 1024, a += n * kBlock, scales += n;
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) st(acc + t * 32, f[t][0]), st(acc + t * 32 + 16, f[t][1]);
}

template <int Tokens, bool Half, bool Minimum>
inline void micro_rest(i64 rest, const Panel &panel, const Input &in, const int32_t *correction, i64 t0, i64 b0, i64 b1,
                       float *acc) {
    if (rest == Tokens) micro<Tokens, Half, Minimum>(panel, in, correction, t0, b0, b1, acc);
    else if constexpr (Tokens > 1)
        micro_rest<Tokens - 1, Half, Minimum>(rest, panel, in, correction, t0, b0, b1, acc);
}

template <int Kind, bool Half, bool Minimum>
void matmul(const Matrix &m, const Input &in, const int32_t *correction, i64 g0, i64 g1, const float *bias,
            float *out, i64 stride, uint8_t *scratch) {
    Panel panel = {scratch, (float *)(scratch + kPanelBlocks * 1024), nullptr};
    panel.minimums = panel.scales + kPanelBlocks * 64;
    float *acc = panel.minimums + kPanelBlocks * 64; // [token][2][16]
    for (i64 g = g0; g < g1; g += 2) {
        const i64 count = least(2, g1 - g);
        std::memset(acc, 0, (size_t)in.tokens * 128);
        for (i64 b = 0; b < m.blocks; b += kPanelBlocks) {
            const i64 end = least(m.blocks, b + kPanelBlocks);
            unpack<Kind>(m, g, count, b, end, panel);
            i64 t = 0;
            for (; t + kTileTokens <= in.tokens; t += kTileTokens)
                micro<kTileTokens, Half, Minimum>(panel, in, correction, t, b, end, acc + t * 32);
            if (t < in.tokens)
                micro_rest<kTileTokens, Half, Minimum>(in.tokens - t, panel, in, correction, t, b, end,
                                                       acc + t * 32);
        }
        for (i64 t = 0; t < in.tokens; ++t)
            for (i64 i = 0; i < count; ++i) put(out + t * stride, ld(acc + t * 32 + i * 16), bias, (g + i) * 16, m.rows);
    }
}

template <int Kind, bool Half, bool Minimum>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if (in.tokens > 1) return matmul<Kind, Half, Minimum>(m, in, correction, g0, g1, bias, out, stride, scratch);
    for (i64 g = g0; g < g1; ++g) {
        const uint8_t *w = m.data + g * m.group_bytes;
        const F total = m.numbers != kHalves ? matvec<Kind, Half, Minimum, true>(m, w, in, correction)
                               : matvec<Kind, Half, Minimum, false>(m, w, in, correction);
        put(out, total, bias, g * 16, m.rows);
    }
}

i64 quantized_scratch(const Matrix &, i64 tokens) { return kPanelBlocks * (1024 + 512) + tokens * 128; }

} // namespace

#include "quantized_choice.h"

namespace bestiary {
const Table table_avx512 = BESTIARY_TABLE("avx512", 48);
}
