// Quantized products with registers of 32 bytes, for isa_avx2.cpp, and with VNNI for isa_avxvnni.cpp.
#pragma once

namespace {

#if defined(BESTIARY_VNNI)
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

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

// sum + the products of four unsigned and four signed bytes, in every lane.
inline __m256i dpbusd(__m256i sum, __m256i w, __m256i x) {
#if defined(BESTIARY_VNNI) && !defined(BESTIARY_EMULATE_VNNI)
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else // the same with AVX2 alone, so that tests can run the kernels with VNNI anywhere
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
}

// Without VNNI: maddubs adds two products of an unsigned and a signed byte, and saturates at 16 bits. An int16 holds 16
// products of codes of 4 bits and int8 activations (16 * 15 * 127), 8 of codes of 5 bits, 4 of codes of 6. Of signed
// bytes (codes less 128, levels of a codebook), whose size is multiplied, it holds 2 (2 * 128 * 128): they become int32
// at once. The sign goes to the other factor: w * x is |w| * x, or |w| * ~x + |w| where w < 0. What is added depends on
// one factor alone, so it is summed beforehand. An xor runs on any pipe, the instruction for signs on one of the
// multipliers'.
constexpr bool bytes(int kind) { return !kVnni && (kind == kByte || kind == kBook); }
// Column quads whose products fit into one sum.
constexpr int quads(int kind) { return kVnni ? 8 : kind == kFive ? 4 : kind == kSix ? 2 : 8; }

inline I xors(I x, __m256i y) { return {_mm256_xor_si256(x.a, y), _mm256_xor_si256(x.b, y)}; }
inline I sizes(I x) { return {_mm256_abs_epi8(x.a), _mm256_abs_epi8(x.b)}; }
inline I negative(I x) { // all bits of bytes below zero
    const __m256i zero = _mm256_setzero_si256();
    return {_mm256_cmpgt_epi8(zero, x.a), _mm256_cmpgt_epi8(zero, x.b)};
}
inline I plus16(I x, I y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
inline I times(I x, int16_t factor) { // pairs of int16, added
    const __m256i f = _mm256_set1_epi16(factor);
    return {_mm256_madd_epi16(x.a, f), _mm256_madd_epi16(x.b, f)};
}
// s + w * x with unsigned w; the first of them has no s. Products stay 16 bits wide (`whole`) without VNNI.
BESTIARY_INLINE void add_products(I &s, I w, __m256i x, bool first) {
    if (kVnni) {
        const __m256i zero = _mm256_setzero_si256();
        s = {dpbusd(first ? zero : s.a, w.a, x), dpbusd(first ? zero : s.b, w.b, x)};
        return;
    }
    const I d = {_mm256_maddubs_epi16(w.a, x), _mm256_maddubs_epi16(w.b, x)};
    s = first ? d : plus16(s, d);
    here(s);
}
inline I signed_products(I w, __m256i x) { // as int32
    return times({_mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a)),
                  _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b))}, 1);
}
inline I whole(I x) { return kVnni ? x : times(x, 1); }

inline void store(uint8_t *p, I x) {
    _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)(p + 32), x.b);
}
inline I load(const void *p) { return {load256(p), load256((const uint8_t *)p + 32)}; }
inline I both(I x, __m256i mask) { return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)}; }
inline I low4(I x) { return both(x, _mm256_set1_epi8(15)); }
inline I high4(I x) { return low4({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
inline I bit4(I x) { return both(x, _mm256_set1_epi8(16)); }
inline I look_up(I book, I x) { return {_mm256_shuffle_epi8(book.a, x.a), _mm256_shuffle_epi8(book.b, x.b)}; }
inline I less128(I x) { return xors(x, _mm256_set1_epi8(-128)); }
inline I book_of(const Matrix &m) { // the levels moved up by 128
    const __m256i book = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)m.book));
    return {book, book};
}
inline I left(I x, int by) { return {_mm256_slli_epi16(x.a, by), _mm256_slli_epi16(x.b, by)}; }
inline I right(I x, int by) { return {_mm256_srli_epi16(x.a, by), _mm256_srli_epi16(x.b, by)}; }

// What `pair` needs beside: a block's fifth or third bits, or the codebook.
template <int Kind> inline I beside(const uint8_t *p, I book) {
    if constexpr (Kind == kFive) return load(p + 256);
    if constexpr (Kind == kThree) return load(p + 128);
    return book;
}

// Column quads j and j + 4 of a block's codes, at p, unsigned. more: from `beside`; the fifth or third bits of these
// quads are bits 0 and 4 of its bytes, and are moved on to the next pair.
template <int Kind> BESTIARY_INLINE void pair(const uint8_t *p, int j, I &more, I &w0, I &w1) {
    if (Kind == kTwo || Kind == kThree) {
        const __m256i three = _mm256_set1_epi8(3), third = _mm256_set1_epi8(4);
        const I w = load(p + j % 2 * 64);
        w0 = both(j < 2 ? w : right(w, 2), three), w1 = both(right(w, j < 2 ? 4 : 6), three);
        if (Kind == kThree) {
            w0 = ori(w0, both(left(more, 2), third)), w1 = ori(w1, both(right(more, 2), third));
            more = right(more, 1);
        }
        return;
    }
    const I w = load(p + 64 * j);
    if (Kind == kByte) {
        w0 = w, w1 = load(p + 256 + 64 * j);
        return;
    }
    w0 = low4(w), w1 = high4(w);
    if (Kind == kFive) {
        w0 = ori(w0, bit4(left(more, 4))), w1 = ori(w1, bit4(more));
        more = right(more, 1);
    }
    if (Kind == kSix) {
        const __m256i top = _mm256_set1_epi8(48);
        const I two = load(p + 256 + j % 2 * 64);
        w0 = ori(w0, both(left(two, j < 2 ? 4 : 2), top)), w1 = ori(w1, both(j < 2 ? two : right(two, 2), top));
    }
    if (Kind == kBook) w0 = look_up(more, w0), w1 = look_up(more, w1);
}

template <int Kind> BESTIARY_INLINE void fetch(const uint8_t *p) {
    for (int i = 0; i < code_bytes_of(Kind); i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

// acc + weights * activations of a block or a half: s, its dot products; at header, its scales and, `parts` further
// on, its minimums.
template <bool Minimum, bool Wide>
BESTIARY_INLINE F scaled(F acc, I s, const float *low, const uint8_t *header, int parts, float of_token) {
    if (Minimum) acc = fma_(bc(*low), header_values(header + parts * (Wide ? 64 : 32), Wide), acc);
    return fma_(to_f(s), mul(header_values(header, Wide), bc(of_token)), acc);
}

// ---------------------------------------------------------------- one token

template <int Kind, bool Half> BESTIARY_INLINE void dot(const uint8_t *p, I book, const int8_t *a, I *s) {
    constexpr bool split = Half || kVnni || quads(Kind) < 8; // column quads 4-7 have a sum of their own
    constexpr int each = quads(Kind) < 4 ? quads(Kind) : 4;
    I more = beside<Kind>(p, book), part[2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        I w0, w1;
        pair<Kind>(p, j, more, w0, w1);
        if constexpr (bytes(Kind)) { // one token is too few to prepare signs for
            const I d0 = signed_products(less128(w0), four(a + 4 * j));
            const I d1 = signed_products(less128(w1), four(a + 16 + 4 * j));
            s[0] = j ? addi(s[0], d0) : d0;
            here(s[0]);
            s[split] = j || !split ? addi(s[split], d1) : d1;
            here(s[split]);
        } else {
            add_products(part[0], w0, four(a + 4 * j), j % each == 0);
            add_products(part[split], w1, four(a + 16 + 4 * j), split && j % each == 0);
            if (j % each == each - 1) {
                s[0] = j >= each ? addi(s[0], whole(part[0])) : whole(part[0]);
                if (split) s[1] = j >= each ? addi(s[1], whole(part[1])) : whole(part[1]);
            }
        }
    }
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
        const bool first = !i || (Half && i == 4);
        add_products(high, level, four(a + 4 * quad), first);
        add_products(low, level, four(a + kBlock + 4 * quad), first);
        if (i == 7 || (Half && i == 3)) s[Half && i == 7] = addi(times(low, 1), times(high, 16));
    }
}

constexpr i64 kAheadOfStream = 1024; // beyond, four streams ask for more than a core keeps track of

// The products of `Groups` row groups. Each is a stream of weights of its own: a core alone reads memory a fifth faster
// as four streams than as one; from its caches one is as fast, and takes fewer instructions. cut_codes: from `cut`, for
// a codebook.
template <int Groups, int Kind, bool Half, bool Minimum, bool Wide>
BESTIARY_INLINE void matvec(const Matrix &m, const uint8_t *p, const Input &in, const int8_t *cut_codes,
                            const int32_t *correction, const int32_t *sums, F *total) {
    constexpr int parts = Half ? 2 : 1;
    constexpr i64 step = Wide ? 64 : 32;
    const I book = book_of(m);
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) total[g] = bc(0.0f);
    const uint8_t *header = p;
    alignas(64) float room[Wide ? Groups * kSpread : 1];
    const bool nested = Wide && m.nested();
    const i64 between = nested ? kSpread * 4 : m.group_bytes, next = nested ? parts * (Minimum ? 128 : 64) : 0;
    for (i64 b = 0, left = 0; b < m.blocks; ++b, --left, header += next) {
        if (!left) {
            header = p, p += m.header, left = m.span;
            if (nested) {
                for (int g = 0; g < Groups; ++g)
                    spread_as<Half, Minimum>(m, header + g * m.group_bytes, room + g * kSpread);
                header = (const uint8_t *)room;
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < Groups; ++g) {
            const i64 apart = g * m.group_bytes;
            fetch<Kind>(p + apart + (Groups > 1 ? kAheadOfStream : kAhead));
            I s[2];
            if constexpr (bytes(Kind) && Kind == kBook) dot_cut<Half>(p + apart, book, cut_codes + b * 2 * kBlock, s);
            else dot<Kind, Half>(p + apart, book, in.codes + b * kBlock, s);
#pragma GCC unroll 2
            for (int part = 0; part < parts; ++part) {
                const i64 at = b * parts + part;
                const int32_t moved = bytes(Kind) && Kind == kByte ? 128 * sums[at] : 0;
                total[g] = scaled<Minimum, Wide>(total[g], addi(s[part], bci(correction[at] + moved)),
                                                 Minimum ? in.lows + at : nullptr,
                                                 header + g * between + part * step, parts, in.scales[b]);
            }
        }
        p += code_bytes_of(Kind);
    }
}

template <int Groups, int Kind, bool Half, bool Minimum>
void one_token(const Matrix &m, i64 g, const Input &in, const int8_t *cut_codes, const int32_t *correction,
               const int32_t *sums, const float *bias, float *out) {
    F total[Groups];
    const uint8_t *w = m.data + g * m.group_bytes;
    if (m.numbers != kHalves) matvec<Groups, Kind, Half, Minimum, true>(m, w, in, cut_codes, correction, sums, total);
    else matvec<Groups, Kind, Half, Minimum, false>(m, w, in, cut_codes, correction, sums, total);
    for (int i = 0; i < Groups; ++i) put(out, total[i], bias, (g + i) * 16, m.rows);
}

// ---------------------------------------------------------------- 2 to 8 tokens and signed bytes, without VNNI

// Here it is the activations whose sign goes to the other factor, so that bytes are multiplied as they stand, and
// levels as they are looked up. The mask that turns a byte round flips its 128 too.
struct Signed {
    int8_t *codes;    // [block][token][|x|: 32, masks: 32]
    int32_t *offsets; // [part of a block][token]: added to the dot product
};
constexpr i64 kFew = 8;

template <bool Half>
void give_signs(const Input &in, const int32_t *correction, const int32_t *sums, const Signed &to) {
    constexpr int parts = Half ? 2 : 1;
    const __m256i flip = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    const int8_t *from = in.codes;
    int8_t *codes = to.codes;
    for (i64 b = 0; b < in.blocks; ++b)
        for (i64 t = 0; t < in.tokens; ++t, from += kBlock, codes += 2 * kBlock) {
            const __m256i a = load256(from), size = _mm256_abs_epi8(a), below = _mm256_cmpgt_epi8(zero, a);
            _mm256_storeu_si256((__m256i *)codes, size);
            _mm256_storeu_si256((__m256i *)(codes + kBlock), _mm256_xor_si256(below, flip));
            const __m256i lost = _mm256_sad_epu8(_mm256_and_si256(size, below), zero); // four sums of 8 bytes
            __m128i s[2] = {_mm256_castsi256_si128(lost), _mm256_extracti128_si256(lost, 1)};
            if (!Half) s[0] = _mm_add_epi32(s[0], s[1]);
#pragma GCC unroll 2
            for (int part = 0; part < parts; ++part) {
                const i64 at = (b * parts + part) * in.tokens + t;
                const __m128i sum = _mm_add_epi32(s[part], _mm_unpackhi_epi64(s[part], s[part]));
                to.offsets[at] = correction[at] + 128 * sums[at] + _mm_cvtsi128_si32(sum);
            }
        }
}

// Sixteen rows and tokens t0...
template <int Tokens, int Kind, bool Half, bool Minimum, bool Wide>
void few(const Matrix &m, const uint8_t *p, const Input &in, const Signed &x, const int32_t *sums, i64 t0, F *f) {
    constexpr int parts = Half ? 2 : 1;
    constexpr i64 step = Wide ? 64 : 32;
    const i64 n = in.tokens;
    const I book = book_of(m);
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t) f[t] = bc(0.0f);
    Values values(m);
    const int8_t *a = x.codes + t0 * 2 * kBlock;
    for (i64 b = 0, left = 0; b < m.blocks; ++b, --left, a += n * 2 * kBlock, values.at += values.next) {
        if (!left) values.begin(m, p), p += m.header, left = m.span;
        if (!t0) fetch<Kind>(p + kAhead);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            I s[Tokens];
#pragma GCC unroll 8
            for (int i = 0; i < 8 / parts; ++i) {
                const int quad = Half ? part * 4 + i : i / 2 + i % 2 * 4; // by halves, or as nibbles are stored
                I w = load(p + (Kind == kByte ? quad : quad % 4) * 64);
                if (Kind == kBook) w = look_up(book, quad < 4 ? low4(w) : high4(w));
#pragma GCC unroll 4
                for (int t = 0; t < Tokens; ++t) {
                    const int8_t *of = a + t * 2 * kBlock + 4 * quad;
                    const __m256i size = four(of);
                    const I y = xors(w, four(of + kBlock));
                    const I d = times({_mm256_maddubs_epi16(size, y.a), _mm256_maddubs_epi16(size, y.b)}, 1);
                    s[t] = i ? addi(s[t], d) : d;
                    here(s[t]);
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < Tokens; ++t) {
                const i64 at = (b * parts + part) * n + t0 + t;
                f[t] = scaled<Minimum, Wide>(f[t], addi(s[t], bci(x.offsets[at])), Minimum ? in.lows + at : nullptr,
                                             values.at + part * step, parts, in.scales[b * n + t0 + t]);
            }
        }
        p += code_bytes_of(Kind);
    }
}

template <int Tokens, int Kind, bool Half, bool Minimum>
void few(const Matrix &m, const Input &in, const Signed &x, const int32_t *sums, i64 t0, i64 g, const float *bias,
         float *out, i64 stride) {
    if constexpr (Tokens > 0) {
        if (in.tokens - t0 < Tokens)
            return few<Tokens - 1, Kind, Half, Minimum>(m, in, x, sums, t0, g, bias, out, stride);
        const uint8_t *w = m.data + g * m.group_bytes;
        F f[Tokens];
        if (m.numbers != kHalves) few<Tokens, Kind, Half, Minimum, true>(m, w, in, x, sums, t0, f);
        else few<Tokens, Kind, Half, Minimum, false>(m, w, in, x, sums, t0, f);
#pragma GCC unroll 4
        for (int t = 0; t < Tokens; ++t) put(out + (t0 + t) * stride, f[t], bias, g * 16, m.rows);
    }
}

// ---------------------------------------------------------------- many tokens: a panel, one micro-kernel

constexpr i64 kPanelBlocks = 24; // 12 KB of codes (24 where signs stand apart), up to 9 KB of scales: L1 holds it
constexpr i64 kPanelCodes = kVnni ? 512 : 1024;
constexpr int kTile = 4; // tokens
// A panel's block: codes [8 column quads][16 rows][4] = 512 bytes; for signed bytes their sizes, and 512 bytes that are
// -1 below zero. Then scales [part][16].

struct Panel {
    uint8_t *codes;
    float *scales, *minimums;
    int32_t *negatives; // sums of the sizes of bytes below zero
    bool zero;          // whether the matrix has one
};

template <int Kind> void unpack(const Matrix &m, const uint8_t *w, i64 b0, i64 b1, const Panel &panel) {
    const i64 parts = m.half ? 2 : 1;
    const bool wide = m.numbers != kHalves;
    const I book = book_of(m);
    Values values(m);
    for (i64 b = b0; b < b1; ++b, values.at += values.next) {
        if (b == b0 || b % m.span == 0) values.begin(m, w + m.header_at(b));
        const uint8_t *header = values.at, *p = w + m.codes_at(b);
        uint8_t *to = panel.codes + (b - b0) * (bytes(Kind) ? 1024 : 512);
        for (i64 part = 0; part < parts; ++part) {
            const i64 at = ((b - b0) * parts + part) * 16;
            st(panel.scales + at, header_values(header + part * values.step, wide));
            if (m.minimum) st(panel.minimums + at, header_values(header + (parts + part) * values.step, wide));
        }
        I w0, w1, more = beside<Kind>(p, book), sums[2];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            pair<Kind>(p, j, more, w0, w1);
            if (bytes(Kind)) {
                w0 = less128(w0), w1 = less128(w1);
                const I m0 = negative(w0), m1 = negative(w1);
                store(to + 512 + 64 * j, m0), store(to + 768 + 64 * j, m1);
                w0 = sizes(w0), w1 = sizes(w1);
                add_products(sums[0], andi(w0, m0), _mm256_set1_epi8(1), !j);
                add_products(sums[1], andi(w1, m1), _mm256_set1_epi8(1), !j);
            }
            store(to + 64 * j, w0), store(to + 256 + 64 * j, w1);
        }
        if (bytes(Kind)) {
            uint8_t *at = (uint8_t *)(panel.negatives + (b - b0) * parts * 16);
            if (parts == 2) store(at, whole(sums[0])), store(at + 64, whole(sums[1]));
            else store(at, addi(whole(sums[0]), whole(sums[1])));
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
            const __m256i x = four(a + t * kBlock + 4 * j);
            if (Bytes) {
                const I y = xors(load(codes + 512 + j * 64), x);
                const I d = times({_mm256_maddubs_epi16(w.a, y.a), _mm256_maddubs_epi16(w.b, y.b)}, 1);
                s[t] = j > j0 ? addi(s[t], d) : d;
                here(s[t]);
            } else {
                add_products(s[t], w, x, j == j0);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t)
        if (!Bytes) s[t] = whole(s[t]);
}

// acc: [token][16], the sums so far of tokens t0... next: the codes that the next panel begins with.
template <int Tokens, int Kind, bool Half, bool Minimum>
inline void micro(const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums, i64 t0, i64 b0,
                  i64 b1, float *acc, const uint8_t *next) {
    constexpr int parts = Half ? 2 : 1;
    const i64 n = in.tokens;
    F f[Tokens];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) f[t] = ld(acc + t * 16);
    const uint8_t *w = panel.codes;
    const float *d = panel.scales, *low = panel.minimums;
    const int32_t *negatives = panel.negatives;
    const int8_t *a = in.codes + (b0 * n + t0) * kBlock;
    const float *scales = in.scales + b0 * n + t0;
    correction += b0 * parts * n + t0, sums += b0 * parts * n + t0;
    const float *lows = Minimum ? in.lows + b0 * parts * n + t0 : nullptr;
    for (i64 b = b0; b < b1; ++b) {
        _mm_prefetch((const char *)(a + n * kBlock), _MM_HINT_T0); // the next block's: no processor foresees it
        if (Tokens > 2) _mm_prefetch((const char *)(a + n * kBlock + 64), _MM_HINT_T0);
        if (!t0) fetch<Kind>(next), next += code_bytes_of(Kind) + (Minimum ? 64 : 32);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part) {
            I s[Tokens];
            constexpr int all = 8 / parts, each = bytes(Kind) || quads(Kind) > all ? all : quads(Kind);
            const int j0 = part * all;
            dots<Tokens, bytes(Kind)>(w, a, j0, j0 + each, s);
#pragma GCC unroll 4
            for (int j = j0 + each; j < j0 + all; j += each) {
                I more[Tokens];
                dots<Tokens, bytes(Kind)>(w, a, j, j + each, more);
#pragma GCC unroll 8
                for (int t = 0; t < Tokens; ++t) s[t] = addi(s[t], more[t]);
            }
            const F scale = ld(d), minimum = Minimum ? ld(low) : scale;
#pragma GCC unroll 8
            for (int t = 0; t < Tokens; ++t) {
                const F of_token = bc(scales[t]);
                if (Minimum) f[t] = fma_(bc(lows[t]), minimum, f[t]);
                if (bytes(Kind)) s[t] = addi(s[t], load(negatives));
                if (!Minimum || bytes(Kind) || panel.zero)
                    s[t] = addi(s[t], bci(bytes(Kind) ? correction[t] + 128 * sums[t] : correction[t]));
                f[t] = fma_(to_f(s[t]), mul(scale, of_token), f[t]);
            }
            d += 16, low += 16, negatives += 16, correction += n, sums += n;
            if (Minimum) lows += n;
        }
        w += bytes(Kind) ? 1024 : 512, a += n * kBlock, scales += n;
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) st(acc + t * 16, f[t]);
}

template <int Tokens, int Kind, bool Half, bool Minimum>
inline void micro_rest(i64 rest, const Panel &panel, const Input &in, const int32_t *correction, const int32_t *sums,
                       i64 t0, i64 b0, i64 b1, float *acc, const uint8_t *next) {
    if (rest == Tokens) micro<Tokens, Kind, Half, Minimum>(panel, in, correction, sums, t0, b0, b1, acc, next);
    else if constexpr (Tokens > 1)
        micro_rest<Tokens - 1, Kind, Half, Minimum>(rest, panel, in, correction, sums, t0, b0, b1, acc, next);
}

template <int Kind, bool Half, bool Minimum>
void groups(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
            const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if constexpr (bytes(Kind)) {
        if (in.tokens > 1 && in.tokens <= kFew) {
            const Signed x = {(int8_t *)scratch, (int32_t *)(scratch + in.blocks * in.tokens * 2 * kBlock)};
            give_signs<Half>(in, correction, sums, x);
            for (i64 g = g0; g < g1; ++g)
                for (i64 t = 0; t < in.tokens; t += kTile)
                    few<kTile, Kind, Half, Minimum>(m, in, x, sums, t, g, bias, out, stride);
            return;
        }
    }
    if (in.tokens == 1) {
        int8_t *cut_codes = (int8_t *)scratch;
        if (bytes(Kind) && Kind == kBook) cut(in.codes, m.blocks, cut_codes);
        i64 g = g0;
        for (; in.far && g + 4 <= g1; g += 4)
            one_token<4, Kind, Half, Minimum>(m, g, in, cut_codes, correction, sums, bias, out);
        for (; in.far && g + 2 <= g1; g += 2)
            one_token<2, Kind, Half, Minimum>(m, g, in, cut_codes, correction, sums, bias, out);
        for (; g < g1; ++g) one_token<1, Kind, Half, Minimum>(m, g, in, cut_codes, correction, sums, bias, out);
        return;
    }
    Panel panel = {scratch, (float *)(scratch + kPanelBlocks * kPanelCodes), nullptr, nullptr, m.zero != 0};
    panel.minimums = panel.scales + kPanelBlocks * 32;
    panel.negatives = (int32_t *)(panel.minimums + kPanelBlocks * 32);
    float *acc = panel.minimums + kPanelBlocks * 64; // [token][16]
    for (i64 g = g0; g < g1; ++g) {
        const uint8_t *w = m.data + g * m.group_bytes;
        std::memset(acc, 0, (size_t)in.tokens * 64);
        for (i64 b = 0; b < m.blocks; b += kPanelBlocks) {
            const i64 end = least(m.blocks, b + kPanelBlocks);
            const uint8_t *next = end < m.blocks ? w + m.header_at(end) : w + m.group_bytes;
            unpack<Kind>(m, w, b, end, panel);
            i64 t = 0;
            for (; t + kTile <= in.tokens; t += kTile)
                micro<kTile, Kind, Half, Minimum>(panel, in, correction, sums, t, b, end, acc + t * 16, next);
            if (t < in.tokens)
                micro_rest<kTile - 1, Kind, Half, Minimum>(in.tokens - t, panel, in, correction, sums, t, b, end,
                                                           acc + t * 16, next);
        }
        for (i64 t = 0; t < in.tokens; ++t) put(out + t * stride, ld(acc + t * 16), bias, g * 16, m.rows);
    }
}

i64 quantized_scratch(const Matrix &m, i64 tokens) {
    return most(kPanelBlocks * (kPanelCodes + 384) + tokens * 64, m.blocks * least(tokens, kFew) * (2 * kBlock + 8));
}

} // namespace

#include "quantized_choice.h"
