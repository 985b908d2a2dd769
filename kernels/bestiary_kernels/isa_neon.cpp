// The kernels for 64-bit ARM with the dot product instructions.
#include "vec_neon.h"

#include "generic.h"

namespace {

struct Bytes { int8x16_t a, b, c, d; }; // a vector of codes: four columns of sixteen rows

inline Bytes load(const uint8_t *p) {
    const int8_t *q = (const int8_t *)p;
    return {vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)};
}
inline void store(uint8_t *p, Bytes x) {
    int8_t *q = (int8_t *)p;
    vst1q_s8(q, x.a), vst1q_s8(q + 16, x.b), vst1q_s8(q + 32, x.c), vst1q_s8(q + 48, x.d);
}
template <typename Function> BESTIARY_INLINE Bytes each(Bytes x, Function f) {
    return {f(x.a), f(x.b), f(x.c), f(x.d)};
}
inline int8x16_t low4(int8x16_t x) { return vandq_s8(x, vdupq_n_s8(15)); }
inline int8x16_t high4(int8x16_t x) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4)); }
inline int8x16_t less128(int8x16_t x) { return veorq_s8(x, vdupq_n_s8(-128)); }

// vdotq_s32 multiplies signed bytes: codes of 8 bits and levels of a codebook come without their 128.
constexpr bool bytes(int kind) { return kind == kByte || kind == kBook; }

// What `pair` needs beside: a block's fifth or third bits, or the codebook.
template <int Kind> BESTIARY_INLINE Bytes beside(const Matrix &m, const uint8_t *p) {
    if constexpr (Kind == kFive) return load(p + 256);
    if constexpr (Kind == kThree) return load(p + 128);
    const int8x16_t book = less128(vld1q_s8((const int8_t *)m.book));
    return {book, book, book, book};
}

// code | (bits moved to the left, or to the right, & mask)
template <int Left> BESTIARY_INLINE Bytes with_bits(Bytes code, Bytes bits, int mask) {
    const int8x16_t wanted = vdupq_n_s8((int8_t)mask), by = vdupq_n_s8(Left);
    const auto one = [wanted, by](int8x16_t x, int8x16_t y) {
        const uint8x16_t moved = vshlq_u8(vreinterpretq_u8_s8(y), by); // to the right where negative
        return vorrq_s8(x, vandq_s8(vreinterpretq_s8_u8(moved), wanted));
    };
    return {one(code.a, bits.a), one(code.b, bits.b), one(code.c, bits.c), one(code.d, bits.d)};
}

// Column quads J and J + 4 of a block's codes, at p. more: from `beside`; the fifth or third bits of these quads are
// bits J and J + 4 of its bytes.
template <int Kind, int J> BESTIARY_INLINE void pair(const uint8_t *p, Bytes more, Bytes &w0, Bytes &w1) {
    if constexpr (Kind == kTwo || Kind == kThree) {
        const int8x16_t zero = vdupq_n_s8(0);
        const Bytes none = {zero, zero, zero, zero}, two = load(p + J % 2 * 64);
        w0 = with_bits<-(J / 2 * 2)>(none, two, 3), w1 = with_bits<-(4 + J / 2 * 2)>(none, two, 3);
        if constexpr (Kind == kThree) w0 = with_bits<2 - J>(w0, more, 4), w1 = with_bits<-2 - J>(w1, more, 4);
        return;
    }
    const Bytes w = load(p + 64 * J);
    if constexpr (Kind == kByte) {
        w0 = each(w, less128), w1 = each(load(p + 256 + 64 * J), less128);
        return;
    }
    w0 = each(w, low4), w1 = each(w, high4);
    if constexpr (Kind == kFive) w0 = with_bits<4 - J>(w0, more, 16), w1 = with_bits<-J>(w1, more, 16);
    if constexpr (Kind == kSix) {
        const Bytes two = load(p + 256 + J % 2 * 64);
        w0 = with_bits<4 - J / 2 * 2>(w0, two, 48), w1 = with_bits<-(J / 2 * 2)>(w1, two, 48);
    }
    if constexpr (Kind == kBook) {
        const auto look_up = [more](int8x16_t x) { return vqtbl1q_s8(more.a, vreinterpretq_u8_s8(x)); };
        w0 = each(w0, look_up), w1 = each(w1, look_up);
    }
}

// s + the products of a vector of codes with activations 4 * Quad.. of sixteen.
template <int Quad> BESTIARY_INLINE I dot(I s, Bytes w, int8x16_t x) {
    return {vdotq_laneq_s32(s.a, w.a, x, Quad), vdotq_laneq_s32(s.b, w.b, x, Quad),
            vdotq_laneq_s32(s.c, w.c, x, Quad), vdotq_laneq_s32(s.d, w.d, x, Quad)};
}

// ---------------------------------------------------------------- one token

// s[0] + the products of column quads J..3, s[1] + those of the quads four further on.
template <int Kind, int J>
BESTIARY_INLINE void dots(const uint8_t *p, Bytes more, int8x16_t x0, int8x16_t x1, I *s) {
    Bytes w0, w1;
    pair<Kind, J>(p, more, w0, w1);
    s[0] = dot<J>(s[0], w0, x0), s[1] = dot<J>(s[1], w1, x1);
    if constexpr (J < 3) dots<Kind, J + 1>(p, more, x0, x1, s);
}

template <int Kind, bool Half, bool Minimum, bool Wide>
F matvec(const Matrix &m, const uint8_t *p, const Input &in, const int32_t *correction, const int32_t *sums) {
    constexpr int parts = Half ? 2 : 1;
    constexpr i64 step = Wide ? 64 : 32;
    F total = bc(0.0f);
    Values values(m);
    for (i64 b = 0, left = 0; b < m.blocks; ++b, --left, values.at += values.next) {
        if (!left) values.begin(m, p), p += m.header, left = m.span;
        const uint8_t *header = values.at;
        const int8_t *a = in.codes + b * kBlock;
        I s[2] = {bci(0), bci(0)};
        dots<Kind, 0>(p, beside<Kind>(m, p), vld1q_s8(a), vld1q_s8(a + 16), s);
        p += code_bytes_of(Kind);
        if (!Half) s[0] = addi(s[0], s[1]);
        const F scale = bc(in.scales[b]);
        for (int part = 0; part < parts; ++part) {
            const i64 at = b * parts + part;
            if (Minimum) total = fma_(bc(in.lows[at]), header_values(header + (parts + part) * step, Wide), total);
            const I x = addi(s[part], bci(bytes(Kind) ? correction[at] + 128 * sums[at] : correction[at]));
            total = fma_(to_f(x), mul(header_values(header + part * step, Wide), scale), total);
        }
    }
    return total;
}

// ---------------------------------------------------------------- many tokens: a panel, one micro-kernel

constexpr i64 kPanelBlocks = 128; // 64 KB of codes, up to 32 KB of scales and minimums
constexpr int kTile = 4;          // tokens
// A panel's block: signed codes [8 column quads][16 rows][4] = 512 bytes; scales [part][16].

struct Panel {
    uint8_t *codes;
    float *scales, *minimums;
};

template <int Kind, int J> BESTIARY_INLINE void unpack_pairs(const uint8_t *p, Bytes more, uint8_t *to) {
    Bytes w0, w1;
    pair<Kind, J>(p, more, w0, w1);
    store(to + 64 * J, w0), store(to + 256 + 64 * J, w1);
    if constexpr (J < 3) unpack_pairs<Kind, J + 1>(p, more, to);
}

template <int Kind> void unpack(const Matrix &m, const uint8_t *w, i64 b0, i64 b1, const Panel &panel) {
    const i64 parts = m.half ? 2 : 1;
    const bool wide = m.numbers != kHalves;
    Values values(m);
    for (i64 b = b0; b < b1; ++b, values.at += values.next) {
        if (b == b0 || b % m.span == 0) values.begin(m, w + m.header_at(b));
        const uint8_t *header = values.at, *p = w + m.codes_at(b);
        for (i64 part = 0; part < parts; ++part) {
            const i64 at = ((b - b0) * parts + part) * 16;
            st(panel.scales + at, header_values(header + part * values.step, wide));
            if (m.minimum) st(panel.minimums + at, header_values(header + (parts + part) * values.step, wide));
        }
        unpack_pairs<Kind, 0>(p, beside<Kind>(m, p), panel.codes + (b - b0) * 512);
    }
}

// s[token] + the dot products with column quads Quad..3 of sixteen columns, whose codes and activations these are.
template <int Tokens, int Quad> BESTIARY_INLINE void panel_dots(const uint8_t *codes, const int8x16_t *x, I *s) {
    const Bytes w = load(codes + 64 * Quad);
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) s[t] = dot<Quad>(s[t], w, x[t]);
    if constexpr (Quad < 3) panel_dots<Tokens, Quad + 1>(codes, x, s);
}

// acc: [token][16], the sums so far of tokens t0... moved: the codes came without their 128.
template <int Tokens, bool Half, bool Minimum>
inline void micro(const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums, bool moved,
                  i64 t0, i64 b0, i64 b1, float *acc) {
    constexpr int parts = Half ? 2 : 1;
    const i64 n = in.tokens;
    const int32_t more = moved ? 128 : 0;
    const uint8_t *w = panel.codes;
    const float *d = panel.scales, *low = panel.minimums;
    const int8_t *a = in.codes + (b0 * n + t0) * kBlock;
    const float *scales = in.scales + b0 * n + t0;
    correction += b0 * parts * n + t0, sums += b0 * parts * n + t0;
    const float *lows = Minimum ? in.lows + b0 * parts * n + t0 : nullptr;
    F f[Tokens];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) f[t] = ld(acc + t * 16);
    for (i64 b = b0; b < b1; ++b) {
        I s[Tokens];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) { // sixteen columns
            int8x16_t x[Tokens];
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) {
                x[t] = vld1q_s8(a + t * kBlock + 16 * half);
                if (Half || !half) s[t] = bci(correction[t] + more * sums[t]);
            }
            panel_dots<Tokens, 0>(w + 256 * half, x, s);
            if (!Half && !half) continue;
            const F scale = ld(d);
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) {
                const F of_token = bc(scales[t]);
                if (Minimum) f[t] = fma_(bc(lows[t]), ld(low), f[t]);
                f[t] = fma_(to_f(s[t]), mul(scale, of_token), f[t]);
            }
            d += 16, low += 16, correction += n, sums += n;
            if (Minimum) lows += n;
        }
        w += 512, a += n * kBlock, scales += n;
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) st(acc + t * 16, f[t]);
}

template <int Tokens, bool Half, bool Minimum>
inline void micro_rest(i64 rest, const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums,
                       bool moved, i64 t0, i64 b0, i64 b1, float *acc) {
    if (rest == Tokens) micro<Tokens, Half, Minimum>(panel, in, correction, sums, moved, t0, b0, b1, acc);
    else if constexpr (Tokens > 1)
        micro_rest<Tokens - 1, Half, Minimum>(rest, panel, in, correction, sums, moved, t0, b0, b1, acc);
}

template <int Kind, bool Half, bool Minimum>
void matmul(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    Panel panel = {scratch, (float *)(scratch + kPanelBlocks * 512), nullptr};
    panel.minimums = panel.scales + kPanelBlocks * 32;
    float *acc = panel.minimums + kPanelBlocks * 32; // [token][16]
    for (i64 g = g0; g < g1; ++g) {
        const uint8_t *w = m.data + g * m.group_bytes;
        std::memset(acc, 0, (size_t)in.tokens * 64);
        for (i64 b = 0; b < m.blocks; b += kPanelBlocks) {
            const i64 end = least(m.blocks, b + kPanelBlocks);
            unpack<Kind>(m, w, b, end, panel);
            for (i64 t = 0; t < in.tokens; t += kTile)
                micro_rest<kTile, Half, Minimum>(least(kTile, in.tokens - t), panel, in, correction, sums,
                                                 bytes(Kind), t, b, end, acc + t * 16);
        }
        for (i64 t = 0; t < in.tokens; ++t) put(out + t * stride, ld(acc + t * 16), bias, g * 16, m.rows);
    }
}

template <int Kind, bool Half, bool Minimum>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if (in.tokens > 1) return matmul<Kind, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    for (i64 g = g0; g < g1; ++g) {
        const uint8_t *w = m.data + g * m.group_bytes;
        const F total = m.numbers != kHalves ? matvec<Kind, Half, Minimum, true>(m, w, in, correction, sums)
                               : matvec<Kind, Half, Minimum, false>(m, w, in, correction, sums);
        put(out, total, bias, g * 16, m.rows);
    }
}

i64 quantized_scratch(const Matrix &, i64 tokens) { return kPanelBlocks * (512 + 256) + tokens * 64; }

} // namespace

#include "quantized_choice.h"

namespace bestiary {
const Table table_neon = BESTIARY_TABLE("neon", 16);
}
