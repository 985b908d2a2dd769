// The kernels for AVX2 and FMA, without VNNI.
#include "vec_avx2.h"

#include "generic.h"

namespace {

inline __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
inline __m256i four(const int8_t *p) { // four activations, in every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
// Else GCC puts all products before the first sum, and has no registers for them.
inline void here(I &x) {
#if defined(__GNUC__)
    asm("" : "+x"(x.a), "+x"(x.b));
#endif
}

// maddubs adds two products of an unsigned and a signed byte, and saturates at 16 bits. An int16 holds 16 products of
// codes of 4 bits and int8 activations (16 * 15 * 127), 8 of codes of 5 bits. Of signed bytes (codes without their 128,
// levels of a codebook), whose size is multiplied with the activation that has their sign, it holds 2 (2 * 128 * 127):
// they become int32 at once.
constexpr bool bytes(int kind) { return kind == kByte || kind == kBook; }
template <bool Bytes> inline __m256i product(__m256i w, __m256i x) {
    if (!Bytes) return _mm256_maddubs_epi16(w, x);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
}
template <bool Bytes> inline I products(I w, __m256i x) { return {product<Bytes>(w.a, x), product<Bytes>(w.b, x)}; }
template <bool Bytes> inline I plus(I x, I y) {
    if (Bytes) return addi(x, y);
    return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)};
}
inline I times(I x, int16_t factor) { // pairs of int16, added
    const __m256i f = _mm256_set1_epi16(factor);
    return {_mm256_madd_epi16(x.a, f), _mm256_madd_epi16(x.b, f)};
}
template <bool Bytes> inline I whole(I x) { return Bytes ? x : times(x, 1); }

inline void store(uint8_t *p, I x) {
    _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)(p + 32), x.b);
}
inline I load(const uint8_t *p) { return {load256(p), load256(p + 32)}; }
inline I both(I x, __m256i mask) { return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)}; }
inline I low4(I x) { return both(x, _mm256_set1_epi8(15)); }
inline I high4(I x) { return low4({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
inline I bit4(I x) { return both(x, _mm256_set1_epi8(16)); }
inline I look_up(I book, I x) { return {_mm256_shuffle_epi8(book.a, x.a), _mm256_shuffle_epi8(book.b, x.b)}; }
inline I less128(I x) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
}
inline I book_of(const Matrix &m) { // the levels moved up by 128
    const __m256i book = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)m.book));
    return {book, book};
}

// What `pair` needs beside the nibbles: a block's fifth bits, or the codebook.
template <int Kind> inline I beside(const uint8_t *p, I book) {
    if constexpr (Kind == kFive) return load(p + 256);
    return book;
}

// Column quads j and j + 4 of a block's codes, at p. more: from `beside`; the fifth bits of these quads are bits 0 and 4
// of its bytes, and are moved on to the next pair.
template <int Kind> BESTIARY_INLINE void pair(const uint8_t *p, int j, I &more, I &w0, I &w1) {
    const I w = load(p + 64 * j);
    if (Kind == kByte) {
        w0 = less128(w), w1 = less128(load(p + 256 + 64 * j));
        return;
    }
    w0 = low4(w), w1 = high4(w);
    if (Kind == kFive) {
        w0 = ori(w0, bit4({_mm256_slli_epi16(more.a, 4), _mm256_slli_epi16(more.b, 4)})), w1 = ori(w1, bit4(more));
        more = {_mm256_srli_epi16(more.a, 1), _mm256_srli_epi16(more.b, 1)};
    }
    if (Kind == kBook) w0 = look_up(more, w0), w1 = look_up(more, w1);
}

// ---------------------------------------------------------------- one token

template <int Kind, bool Half> BESTIARY_INLINE void dot(const uint8_t *p, I book, const int8_t *a, I *s) {
    constexpr bool split = Half || Kind == kFive; // column quads 4-7 have a sum of their own
    I more = beside<Kind>(p, less128(book));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        I w0, w1;
        pair<Kind>(p, j, more, w0, w1);
        const I d0 = products<bytes(Kind)>(w0, four(a + 4 * j)), d1 = products<bytes(Kind)>(w1, four(a + 16 + 4 * j));
        s[0] = j ? plus<bytes(Kind)>(s[0], d0) : d0;
        here(s[0]);
        s[split] = j || !split ? plus<bytes(Kind)>(s[split], d1) : d1;
        here(s[split]);
    }
    s[0] = whole<bytes(Kind)>(s[0]);
    if (split) s[1] = whole<bytes(Kind)>(s[1]);
    if (split && !Half) s[0] = addi(s[0], s[1]);
}

// Levels of a codebook stay unsigned, and activations are cut into 16 * high + low with both in -8..8: an int16 holds
// 16 products (16 * 255 * 8), which is fewer steps than the signs of `product` take.
void cut(const int8_t *codes, i64 blocks, int8_t *to) {
    const __m256i eight = _mm256_set1_epi8(8), low = _mm256_set1_epi8(15);
    for (i64 b = 0; b < blocks; ++b, codes += kBlock, to += 2 * kBlock) {
        const __m256i a = load256(codes), up = _mm256_add_epi8(_mm256_abs_epi8(a), eight); // at most 135, unsigned
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(up, 4), low);
        const __m256i rest = _mm256_sub_epi8(_mm256_and_si256(up, low), eight);
        _mm256_storeu_si256((__m256i *)to, _mm256_sign_epi8(high, a));
        _mm256_storeu_si256((__m256i *)(to + kBlock), _mm256_sign_epi8(rest, a));
    }
}

template <bool Half> BESTIARY_INLINE void dot_cut(const uint8_t *p, I book, const int8_t *a, I *s) {
    I high, low;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const int quad = Half ? i : i / 2 + i % 2 * 4; // by halves, or as they are stored
        const I w = load(p + quad % 4 * 64);
        I level;
        if (quad < 4) level = look_up(book, low4(w));
        else level = look_up(book, high4(w));
        const I h = products<false>(level, four(a + 4 * quad)), l = products<false>(level, four(a + kBlock + 4 * quad));
        const bool first = !i || (Half && i == 4);
        high = first ? h : plus<false>(high, h), low = first ? l : plus<false>(low, l);
        here(high), here(low);
        if (i == 7 || (Half && i == 3)) s[Half && i == 7] = addi(times(low, 1), times(high, 16));
    }
}

// cut_codes: from `cut`, for a codebook.
template <int Kind, bool Half, bool Minimum, bool Wide>
F matvec(const Matrix &m, const uint8_t *p, const Input &in, const int8_t *cut_codes, const int32_t *correction,
         const int32_t *sums) {
    constexpr int parts = Half ? 2 : 1, size = Kind == kFive ? 320 : Kind == kByte ? 512 : 256;
    constexpr i64 step = Wide ? 64 : 32;
    const I book = book_of(m);
    F total = bc(0.0f);
    const uint8_t *header = p;
    for (i64 b = 0, left = 0; b < m.blocks; ++b, --left) {
        if (!left) header = p, p += m.header, left = m.span;
#pragma GCC unroll 8
        for (int i = 0; i < size; i += 64) _mm_prefetch((const char *)p + kAhead + i, _MM_HINT_T0);
        I s[2];
        if constexpr (Kind == kBook) dot_cut<Half>(p, book, cut_codes + b * 2 * kBlock, s);
        else dot<Kind, Half>(p, book, in.codes + b * kBlock, s);
        p += size;
        const F scale = bc(in.scales[b]);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            const i64 at = b * parts + part;
            if (Minimum)
                total = fma_(bc((float)sums[at]), mul(header_values(header + (parts + part) * step, Wide), scale),
                             total);
            const I x = addi(s[part], bci(Kind == kByte ? correction[at] + 128 * sums[at] : correction[at]));
            total = fma_(to_f(x), mul(header_values(header + part * step, Wide), scale), total);
        }
    }
    return total;
}

// ---------------------------------------------------------------- many tokens: a panel, one micro-kernel

constexpr i64 kPanelBlocks = 128; // 64 KB of codes, up to 32 KB of scales and minimums
constexpr int kTile = 4;          // tokens
// A panel's block: codes [8 column quads][16 rows][4] = 512 bytes, signed if they are bytes; scales [part][16].

struct Panel {
    uint8_t *codes;
    float *scales, *minimums;
};

template <int Kind> void unpack(const Matrix &m, const uint8_t *w, i64 b0, i64 b1, const Panel &panel) {
    const i64 parts = m.half ? 2 : 1, step = header_step(m);
    const I book = less128(book_of(m));
    for (i64 b = b0; b < b1; ++b) {
        const uint8_t *header = w + m.header_at(b), *p = w + m.codes_at(b);
        uint8_t *to = panel.codes + (b - b0) * 512;
        for (i64 part = 0; part < parts; ++part) {
            const i64 at = ((b - b0) * parts + part) * 16;
            st(panel.scales + at, header_values(header + part * step, m.wide));
            if (m.minimum) st(panel.minimums + at, header_values(header + (parts + part) * step, m.wide));
        }
        I w0, w1, more = beside<Kind>(p, book);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            pair<Kind>(p, j, more, w0, w1);
            store(to + 64 * j, w0), store(to + 256 + 64 * j, w1);
        }
    }
}

// s[token]: the dot products with column quads j0..j1-1, as many as int16 holds.
template <int Tokens, bool Bytes>
BESTIARY_INLINE void dots(const uint8_t *codes, const int8_t *a, int j0, int j1, I *s) {
#pragma GCC unroll 8
    for (int j = j0; j < j1; ++j) {
        const I w = load(codes + j * 64);
#pragma GCC unroll 8
        for (int t = 0; t < Tokens; ++t) {
            const I d = products<Bytes>(w, four(a + t * kBlock + 4 * j));
            s[t] = j > j0 ? plus<Bytes>(s[t], d) : d;
            here(s[t]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) s[t] = whole<Bytes>(s[t]);
}

// acc: [token][16], the sums so far of tokens t0...
template <int Tokens, int Kind, bool Half, bool Minimum>
inline void micro(const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums, i64 t0, i64 b0,
                  i64 b1, float *acc) {
    constexpr int parts = Half ? 2 : 1;
    const i64 n = in.tokens;
    F f[Tokens];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) f[t] = ld(acc + t * 16);
    const uint8_t *w = panel.codes;
    const float *d = panel.scales, *low = panel.minimums;
    const int8_t *a = in.codes + (b0 * n + t0) * kBlock;
    const float *scales = in.scales + b0 * n + t0;
    correction += b0 * parts * n + t0, sums += b0 * parts * n + t0;
    for (i64 b = b0; b < b1; ++b) {
        _mm_prefetch((const char *)(a + n * kBlock), _MM_HINT_T0); // the next block's: no processor foresees it
        if (Tokens > 2) _mm_prefetch((const char *)(a + n * kBlock + 64), _MM_HINT_T0);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            I s[Tokens];
            if (Kind == kFive && !Half) {
                I more[Tokens];
                dots<Tokens, false>(w, a, 0, 4, more);
                dots<Tokens, false>(w, a, 4, 8, s);
#pragma GCC unroll 8
                for (int t = 0; t < Tokens; ++t) s[t] = addi(s[t], more[t]);
            } else {
                dots<Tokens, bytes(Kind)>(w, a, part * (8 / parts), (part + 1) * (8 / parts), s);
            }
            const F scale = ld(d), minimum = Minimum ? ld(low) : scale;
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) {
                const F of_token = bc(scales[t]);
                if (Minimum) f[t] = fma_(bc((float)sums[t]), mul(minimum, of_token), f[t]);
                const I x = addi(s[t], bci(bytes(Kind) ? correction[t] + 128 * sums[t] : correction[t]));
                f[t] = fma_(to_f(x), mul(scale, of_token), f[t]);
            }
            d += 16, low += 16, correction += n, sums += n;
        }
        w += 512, a += n * kBlock, scales += n;
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) st(acc + t * 16, f[t]);
}

template <int Tokens, int Kind, bool Half, bool Minimum>
inline void micro_rest(i64 rest, const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums,
                       i64 t0, i64 b0, i64 b1, float *acc) {
    if (rest == Tokens) micro<Tokens, Kind, Half, Minimum>(panel, in, correction, sums, t0, b0, b1, acc);
    else if constexpr (Tokens > 1)
        micro_rest<Tokens - 1, Kind, Half, Minimum>(rest, panel, in, correction, sums, t0, b0, b1, acc);
}

template <int Kind, bool Half, bool Minimum>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if (in.tokens == 1) {
        int8_t *cut_codes = (int8_t *)scratch;
        if (Kind == kBook) cut(in.codes, m.blocks, cut_codes);
        for (i64 g = g0; g < g1; ++g) {
            const uint8_t *w = m.data + g * m.group_bytes;
            put(out, m.wide ? matvec<Kind, Half, Minimum, true>(m, w, in, cut_codes, correction, sums)
                            : matvec<Kind, Half, Minimum, false>(m, w, in, cut_codes, correction, sums),
                bias, g * 16, m.rows);
        }
        return;
    }
    Panel panel = {scratch, (float *)(scratch + kPanelBlocks * 512), nullptr};
    panel.minimums = panel.scales + kPanelBlocks * 32;
    float *acc = panel.minimums + kPanelBlocks * 32; // [token][16]
    for (i64 g = g0; g < g1; ++g) {
        std::memset(acc, 0, (size_t)in.tokens * 64);
        for (i64 b = 0; b < m.blocks; b += kPanelBlocks) {
            const i64 end = least(m.blocks, b + kPanelBlocks);
            unpack<Kind>(m, m.data + g * m.group_bytes, b, end, panel);
            i64 t = 0;
            for (; t + kTile <= in.tokens; t += kTile)
                micro<kTile, Kind, Half, Minimum>(panel, in, correction, sums, t, b, end, acc + t * 16);
            if (t < in.tokens)
                micro_rest<kTile - 1, Kind, Half, Minimum>(in.tokens - t, panel, in, correction, sums, t, b, end,
                                                           acc + t * 16);
        }
        for (i64 t = 0; t < in.tokens; ++t) put(out + t * stride, ld(acc + t * 16), bias, g * 16, m.rows);
    }
}

template <bool Half, bool Minimum>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    switch (m.kind) {
    case kNibble: return groups<kNibble, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kFive: return groups<kFive, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kBook: return groups<kBook, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    default: return groups<kByte, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    }
}

void linear_quantized(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
                      const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if (m.half && m.minimum) groups<true, true>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else if (m.half) groups<true, false>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else if (m.minimum) groups<false, true>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else groups<false, false>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
}
i64 quantized_scratch(const Matrix &m, i64 tokens) {
    return most(kPanelBlocks * (512 + 256) + tokens * 64, m.blocks * 2 * kBlock);
}

} // namespace

namespace bestiary {
const Table table_avx2 = BESTIARY_TABLE("avx2", 24);
}
