// Every kernel that is written once over sixteen floats, so that all instruction sets give the same bits.
// Included after one of vec_*.h, into the anonymous namespace of that instruction set's source file: nothing here may
// be shared with another one. For the same reason no template of the standard library is used.
#pragma once
#include "table.h"

namespace {

using namespace bestiary;

inline i64 least(i64 a, i64 b) { return a < b ? a : b; }
inline i64 most(i64 a, i64 b) { return a > b ? a : b; }
inline float lane0(F x) {
    float v[16];
    st(v, x);
    return v[0];
}
inline int32_t float_bits(float x) {
    int32_t b;
    std::memcpy(&b, &x, 4);
    return b;
}
inline float bits_float(int32_t b) {
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}
constexpr float kInfinity = INFINITY;
constexpr i64 kAhead = 4096; // bytes of weights that are fetched ahead: processors do not look beyond a page of 4 KB
constexpr int kPairTokens = 2; // so few tokens always meet two row groups at once: else too few sums are at work

// ---------------------------------------------------------------- functions of a number

// e ** x, within 1 unit of the last place or so; 0 and infinity where it leaves the range; NaN stays NaN.
inline F exp_(F x) {
    x = min_(bc(89.0f), max_(bc(-104.0f), x)); // the second operand survives where it is NaN
    F t = fma_(x, bc(1.44269504088896341f), bc(12582912.0f)); // 1.5 * 2 ** 23: rounds to an integer
    I n = subi(as_i(t), bci(0x4B400000));
    F nf = sub(t, bc(12582912.0f));
    F r = fma_(nf, bc(-0.693359375f), x); // log 2 in two parts
    r = fma_(nf, bc(2.12194440e-4f), r);
    F p = fma_(bc(1.9875691500e-4f), r, bc(1.3981999507e-3f));
    p = fma_(p, r, bc(8.3334519073e-3f));
    p = fma_(p, r, bc(4.1665795894e-2f));
    p = fma_(p, r, bc(1.6666665459e-1f));
    p = fma_(p, r, bc(5.0000001201e-1f));
    p = add(fma_(p, mul(r, r), r), bc(1.0f));
    I h = half_i(n); // 2 ** n as two factors, so that neither leaves the range
    p = mul(p, as_f(shl23(addi(h, bci(127)))));
    return mul(p, as_f(shl23(addi(subi(n, h), bci(127)))));
}
inline float exp1(float x) { return lane0(exp_(bc(x))); }

// The same for x <= 0, in fewer steps: 0 below e ** -87.
inline F exp_below(F x) {
    F t = fma_(x, bc(1.44269504088896341f), bc(12582912.0f));
    F nf = sub(t, bc(12582912.0f));
    F r = fma_(nf, bc(-0.693359375f), x);
    r = fma_(nf, bc(2.12194440e-4f), r);
    F p = fma_(bc(1.9875691500e-4f), r, bc(1.3981999507e-3f));
    p = fma_(p, r, bc(8.3334519073e-3f));
    p = fma_(p, r, bc(4.1665795894e-2f));
    p = fma_(p, r, bc(1.6666665459e-1f));
    p = fma_(p, r, bc(5.0000001201e-1f));
    p = add(fma_(p, mul(r, r), r), bc(1.0f));
    return sel_lt(x, bc(-87.0f), bc(0.0f), mul(p, as_f(shl23(addi(as_i(t), bci(127)))))); // t's last bits are n
}

inline F tanh_(F x) {
    I sign = andi(as_i(x), bci((int32_t)0x80000000));
    F a = as_f(andi(as_i(x), bci(0x7FFFFFFF)));
    F z = mul(x, x);
    F p = fma_(bc(-5.70498872745e-3f), z, bc(2.06390887954e-2f));
    p = fma_(p, z, bc(-5.37397155531e-2f));
    p = fma_(p, z, bc(1.33314422036e-1f));
    p = fma_(p, z, bc(-3.33332819422e-1f));
    F small = fma_(mul(p, z), x, x);
    F big = sub(bc(1.0f), div(bc(2.0f), add(exp_(add(a, a)), bc(1.0f))));
    return sel_lt(a, bc(0.625f), small, as_f(ori(as_i(big), sign)));
}

inline F silu1(F x) { return div(x, add(bc(1.0f), exp_(sub(bc(0.0f), x)))); }

inline F gelu_tanh1(F x) {
    F inner = mul(bc(0.79788456080286536f), fma_(mul(mul(bc(0.044715f), x), x), x, x));
    return mul(mul(bc(0.5f), x), add(bc(1.0f), tanh_(inner)));
}

// x * Phi(x). erfc(y) = exp(-y * y) * t * P(t) with t = 1 / (1 + 0.4 y), a fit of relative error 6e-8 for y >= 0.
inline F gelu_erf1(F x) {
    F y = mul(as_f(andi(as_i(x), bci(0x7FFFFFFF))), bc(0.70710678118654752f));
    F t = div(bc(1.0f), fma_(bc(0.4f), y, bc(1.0f)));
    F p = fma_(bc(0.0402625993f), t, bc(-0.135448212f));
    p = fma_(p, t, bc(0.0737966136f));
    p = fma_(p, t, bc(0.0997799062f));
    p = fma_(p, t, bc(0.0714745838f));
    p = fma_(p, t, bc(0.196977029f));
    p = fma_(p, t, bc(0.200955072f));
    p = fma_(p, t, bc(0.226576195f));
    p = fma_(p, t, bc(0.22562627f));
    F half = mul(mul(bc(0.5f), mul(p, t)), exp_(sub(bc(0.0f), mul(y, y)))); // erfc / 2 = Phi(-|x|)
    return mul(x, sel_lt(x, bc(0.0f), half, sub(bc(1.0f), half)));
}

template <typename Function> inline void map1(const float *x, float *out, i64 n, Function f) {
    i64 i = 0;
    for (; i + 16 <= n; i += 16) st(out + i, f(ld(x + i)));
    if (i < n) st_n(out + i, f(ld_n(x + i, n - i)), n - i);
}
template <typename Function> inline void map2(const float *x, const float *y, float *out, i64 n, Function f) {
    i64 i = 0;
    for (; i + 16 <= n; i += 16) st(out + i, f(ld(x + i), ld(y + i)));
    if (i < n) st_n(out + i, f(ld_n(x + i, n - i), ld_n(y + i, n - i)), n - i);
}
void silu(const float *x, float *out, i64 n) { map1(x, out, n, [](F a) { return silu1(a); }); }
void silu_mul(const float *x, const float *y, float *out, i64 n) {
    map2(x, y, out, n, [](F a, F b) { return mul(silu1(a), b); });
}
void gelu_tanh(const float *x, float *out, i64 n) { map1(x, out, n, [](F a) { return gelu_tanh1(a); }); }
void gelu_erf(const float *x, float *out, i64 n) { map1(x, out, n, [](F a) { return gelu_erf1(a); }); }
void add_rows(const float *x, const float *y, float *out, i64 n) {
    map2(x, y, out, n, [](F a, F b) { return add(a, b); });
}
void mul_rows(const float *x, const float *y, float *out, i64 n) {
    map2(x, y, out, n, [](F a, F b) { return mul(a, b); });
}
void scale_row(const float *x, float factor, float *out, i64 n) {
    F f = bc(factor);
    map1(x, out, n, [f](F a) { return mul(a, f); });
}
void soft_cap(const float *x, float cap, float *out, i64 n) {
    F c = bc(cap);
    map1(x, out, n, [c](F a) { return mul(c, tanh_(div(a, c))); });
}
void to_f16(const float *x, uint16_t *out, i64 n) {
    i64 i = 0;
    for (; i + 16 <= n; i += 16) st_f16(out + i, ld(x + i));
    if (i < n) {
        uint16_t rest[16];
        st_f16(rest, ld_n(x + i, n - i));
        for (i64 j = 0; i + j < n; ++j) out[i + j] = rest[j];
    }
}
void from_f16(const uint16_t *x, float *out, i64 n) {
    i64 i = 0;
    for (; i + 16 <= n; i += 16) st(out + i, ld_f16(x + i));
    if (i < n) {
        uint16_t rest[16] = {};
        for (i64 j = 0; i + j < n; ++j) rest[j] = x[i + j];
        st_n(out + i, ld_f16(rest), n - i);
    }
}

// ---------------------------------------------------------------- norms and rope

// Sums run over sixteen lanes, added up at the end by halves.
void rms_norm(const float *x, const float *weight, float *out, i64 width, i64 group, float eps) {
    for (i64 g = 0; g < width; g += group, x += group, out += group) {
        F sum = bc(0.0f);
        for (i64 i = 0; i < group; i += 16) {
            F a = i + 16 <= group ? ld(x + i) : ld_n(x + i, group - i);
            sum = fma_(a, a, sum);
        }
        F r = bc(1.0f / sqrt1(hsum(sum) / (float)group + eps));
        if (weight) map2(x, weight, out, group, [r](F a, F w) { return mul(mul(a, r), w); });
        else map1(x, out, group, [r](F a) { return mul(a, r); });
    }
}

void layer_norm(const float *x, const float *weight, const float *bias, float *out, i64 width, i64 group, float eps) {
    for (i64 g = 0; g < width; g += group, x += group, out += group) {
        F sum = bc(0.0f);
        for (i64 i = 0; i < group; i += 16) sum = add(sum, i + 16 <= group ? ld(x + i) : ld_n(x + i, group - i));
        F mean = bc(hsum(sum) / (float)group);
        sum = bc(0.0f);
        i64 i = 0;
        for (; i + 16 <= group; i += 16) {
            F a = sub(ld(x + i), mean);
            sum = fma_(a, a, sum);
        }
        float squares = hsum(sum);
        for (; i < group; ++i) {
            float a = x[i] - lane0(mean);
            squares = fma1(a, a, squares);
        }
        F r = bc(1.0f / sqrt1(squares / (float)group + eps));
        map1(x, out, group, [mean, r](F a) { return mul(sub(a, mean), r); });
        if (weight) mul_rows(out, weight, out, group);
        if (bias) add_rows(out, bias, out, group);
    }
}

// table: for halves the cosines of all pairs, then the sines; for adjacent pairs both for every column (the sine's sign
// changes from column to column).
void rope(const Rope &r, const float *x, const float *table, float *out) {
    const float *c = table, *s = table + (r.halves ? r.count / 2 : r.count);
    for (i64 h = 0; h < r.heads; ++h, x += r.head_dim, out += r.head_dim) {
        if (out != x) {
            std::memcpy(out, x, (size_t)r.start * 4);
            i64 end = r.start + r.count;
            std::memcpy(out + end, x + end, (size_t)(r.head_dim - end) * 4);
        }
        const float *a = x + r.start;
        float *o = out + r.start;
        i64 n = r.halves ? r.count / 2 : r.count;
        for (i64 i = 0; i < n; i += 16) {
            i64 m = least(16, n - i);
            F x0 = ld_n(a + i, m), cos = ld_n(c + i, m), sin = ld_n(s + i, m);
            if (r.halves) {
                F x1 = ld_n(a + n + i, m);
                st_n(o + i, sub(mul(x0, cos), mul(x1, sin)), m);
                st_n(o + n + i, add(mul(x1, cos), mul(x0, sin)), m);
            } else {
                st_n(o + i, add(mul(x0, cos), mul(swap2(x0), sin)), m);
            }
        }
    }
}

// ---------------------------------------------------------------- activations

void quantize(const float *x, i64 stride, i64 columns, i64 t0, i64 t1, i64 b0, i64 b1, const Input &in,
              const Sums *sums, i64 count) {
    const I magnitude = bci(0x7FFFFFFF), magic = bci(0x4B400000);
    for (i64 b = b0; b < b1; ++b) { // tokens stand beside one another
        for (i64 t = t0; t < t1; ++t) {
            const float *p = x + t * stride + b * kBlock;
            i64 n = least(kBlock, columns - b * kBlock);
            F v0 = ld_n(p, least(n, 16)), v1 = n > 16 ? ld_n(p + 16, n - 16) : bc(0.0f);
            int32_t top = hmaxi(maxi(andi(as_i(v0), magnitude), andi(as_i(v1), magnitude)));
            float amax = bits_float(top), scale = amax / 127.0f, inverse = 127.0f / amax;
            if (!(amax >= 1e-36f && amax < kInfinity)) { // the inverse would leave the range
                v0 = v1 = bc(0.0f);
                inverse = 0.0f;
                scale = amax < 1e-36f ? 0.0f : bits_float(0x7FC00000); // infinite or NaN: so is every result
            }
            v0 = mul(v0, bc(inverse)), v1 = mul(v1, bc(inverse));
            int8_t *codes = in.codes + (b * in.tokens + t) * kBlock;
            st_i8(codes, v0), st_i8(codes + 16, v1);
            in.scales[b * in.tokens + t] = scale;
            int32_t s0 = hsumi(subi(as_i(add(v0, bc(12582912.0f))), magic));
            int32_t s1 = hsumi(subi(as_i(add(v1, bc(12582912.0f))), magic));
            for (i64 i = 0; i < count; ++i) {
                const Sums &s = sums[i];
                const int32_t of[2] = {s.half ? s0 : s0 + s1, s1};
                for (i64 part = 0; part < (s.half ? 2 : 1); ++part) {
                    const i64 at = ((s.half ? 2 * b : b) + part) * in.tokens + t;
                    s.values[at] = s.factor * of[part];
                    if (s.lows) s.lows[at] = (float)of[part] * scale;
                }
            }
        }
    }
}

// Sixteen scales or minimums.
inline F header_values(const uint8_t *p, bool wide) {
    return wide ? ld((const float *)p) : ld_f16((const uint16_t *)p);
}

// Bytes as eight at once, which is what they are taken apart in: no instruction set has shifts of bytes.
inline uint64_t eight(const uint8_t *p) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    return x;
}
inline void put_eight(int8_t *p, uint64_t x) { std::memcpy(p, &x, 8); }
constexpr uint64_t kOnes = 0x0101010101010101; // one in every byte

// The integers of a span's `count` groups, [group][16].
inline void six_bits(const uint8_t *fours, const uint8_t *twos, i64 count, int8_t *to) {
    for (i64 i = 0; i < count; i += 4, fours += 32, twos += 16)
        for (int r = 0; r < 16; r += 8) {
            const uint64_t top = eight(twos + r);
            for (int k = 0; k < 4; ++k) {
                const uint64_t low = eight(fours + k / 2 * 16 + r) >> (k % 2 * 4) & 15 * kOnes;
                const uint64_t code = low | (top >> (2 * k) & 3 * kOnes) << 4;
                put_eight(to + (i + k) * 16 + r, (code + 0x60 * kOnes) ^ 0x80 * kOnes); // less 32
            }
        }
}
inline void nibble_pairs(const uint8_t *pairs, i64 count, int8_t *low, int8_t *high) {
    for (i64 i = 0; i < 16 * count; i += 8) {
        const uint64_t x = eight(pairs + i);
        put_eight(low + i, x & 15 * kOnes), put_eight(high + i, x >> 4 & 15 * kOnes);
    }
}

// The header of a span of a nested matrix as f32: for each block its scales, [part][16], then its minimums.
template <bool Half, bool Minimum> inline void spread_as(const Matrix &m, const uint8_t *header, float *out) {
    constexpr i64 parts = Half ? 2 : 1;
    const i64 count = m.span * parts;
    if (m.numbers == kPowers) {
        for (i64 i = 0; i < count; ++i) {
            uint32_t bits[16];
            for (int r = 0; r < 16; ++r) bits[r] = (uint32_t)header[16 * i + r] << 23;
            for (int r = 0; r < 16; ++r) bits[r] = bits[r] ? bits[r] : 1u << 22; // 2 ** -127 is subnormal
            float x[16];
            std::memcpy(x, bits, sizeof x);
            st(out + 16 * i, mul(ld(x), bc(m.factor)));
        }
        return;
    }
    const F scale = ld_f16((const uint16_t *)header), low = Minimum ? ld_f16((const uint16_t *)(header + 32)) : scale;
    header += Minimum ? 64 : 32;
    int8_t room[2][kSpread / 2];
    const int8_t *scales = room[0], *minimums = room[1];
    if (m.numbers == kSixBits) six_bits(header, header + 8 * count, count, room[0]);
    else if (m.numbers == kNibblePairs) nibble_pairs(header, count, room[0], room[1]);
    else scales = (const int8_t *)header, minimums = scales + 16 * count;
    for (i64 b = 0; b < m.span; ++b) {
        for (i64 part = 0; part < parts; ++part, scales += 16, out += 16) st(out, mul(ld_i8(scales), scale));
        for (i64 part = 0; Minimum && part < parts; ++part, minimums += 16, out += 16)
            st(out, mul(ld_i8(minimums), low));
    }
}
inline void spread(const Matrix &m, const uint8_t *header, float *out) {
    if (m.half) m.minimum ? spread_as<true, true>(m, header, out) : spread_as<true, false>(m, header, out);
    else m.minimum ? spread_as<false, true>(m, header, out) : spread_as<false, false>(m, header, out);
}

// Where the numbers of a row group's blocks are, block by block: in its headers, or spread out at the first of a span.
struct Values {
    const uint8_t *at;
    i64 step; // from scale to scale, in bytes
    i64 next; // from block to block inside a span
    alignas(64) float room[kSpread];

    BESTIARY_INLINE explicit Values(const Matrix &m)
        : at(nullptr), step(m.numbers == kHalves ? 32 : 64), next(m.nested() ? (m.half ? 128 : 64) << m.minimum : 0) {}
    BESTIARY_INLINE void begin(const Matrix &m, const uint8_t *header) {
        at = header;
        if (m.nested()) spread(m, header, room), at = (const uint8_t *)room;
    }
};

// Results of 16 rows of a token, as far as the rows exist.
inline void put(float *out, F acc, const float *bias, i64 row, i64 rows) {
    i64 n = rows - row;
    if (n >= 16) st(out + row, bias ? add(acc, ld(bias + row)) : acc);
    else st_n(out + row, bias ? add(acc, ld_n(bias + row, n)) : acc, n);
}

// ---------------------------------------------------------------- unquantized weights

// size: bytes of a number; ahead: how far to fetch ahead, 0 where it is in cache.
struct LoadF32 {
    static constexpr i64 size = 4, ahead = kAhead;
    static F at(const uint8_t *p) { return ld((const float *)p); }
};
struct LoadPanel : LoadF32 { static constexpr i64 ahead = 0; };
struct LoadF16 {
    static constexpr i64 size = 2, ahead = kAhead;
    static F at(const uint8_t *p) { return ld_f16((const uint16_t *)p); }
};
struct LoadBF16 {
    static constexpr i64 size = 2, ahead = kAhead;
    static F at(const uint8_t *p) { return ld_bf16((const uint16_t *)p); }
};

// acc[token][group of rows] += the partial sum of `columns` columns. The groups' weights are `apart` bytes apart.
template <typename Load, int Tokens, int Groups>
inline void plain_tile(const uint8_t *w, i64 apart, const float *x, i64 columns, float *acc) {
    F s[Tokens][Groups];
    for (int t = 0; t < Tokens; ++t)
        for (int g = 0; g < Groups; ++g) s[t][g] = bc(0.0f);
    for (i64 c = 0; c < columns; ++c, w += 16 * Load::size) {
        F a[Groups];
#pragma GCC unroll 4
        for (int g = 0; g < Groups; ++g) {
            a[g] = Load::at(w + g * apart);
            // One token or two ask for their weights fast enough for the processor to foresee them.
            if (Load::ahead && Tokens > kPairTokens && c * 16 * Load::size % 64 == 0)
                prefetch(w + g * apart + Load::ahead);
        }
#pragma GCC unroll 8
        for (int t = 0; t < Tokens; ++t) {
            const F b = bc(x[t * kSlab + c]);
#pragma GCC unroll 4
            for (int g = 0; g < Groups; ++g) s[t][g] = fma_(a[g], b, s[t][g]);
        }
    }
    for (int t = 0; t < Tokens; ++t)
        for (int g = 0; g < Groups; ++g) {
            float *p = acc + (t * Groups + g) * 16;
            st(p, add(ld(p), s[t][g]));
        }
}

template <typename Load, int Groups, int Tokens>
inline void plain_tile_of(i64 tokens, const uint8_t *w, i64 apart, const float *x, i64 columns, float *acc) {
    if (tokens == Tokens) plain_tile<Load, Tokens, Groups>(w, apart, x, columns, acc);
    else if constexpr (Tokens > 1) plain_tile_of<Load, Groups, Tokens - 1>(tokens, w, apart, x, columns, acc);
}

// All tokens in tiles of nearly one size: a small one at the end would wait for its own sums.
template <typename Load, int Groups>
inline void plain_tokens(const uint8_t *w, i64 apart, const float *x, i64 tokens, i64 columns, float *acc) {
    constexpr int most_tokens = Groups == 4 ? 1 : Groups == 2 ? kTileTokens : kAloneTokens;
    i64 t = 0;
    for (i64 tiles = (tokens + most_tokens - 1) / most_tokens; tiles; --tiles) {
        const i64 n = (tokens - t + tiles - 1) / tiles;
        plain_tile_of<Load, Groups, most_tokens>(n, w, apart, x + t * kSlab, columns, acc + t * Groups * 16);
        t += n;
    }
}

template <typename Load, int Groups>
void plain_groups(const Matrix &m, const float *x, i64 tokens, i64 g, const float *bias, float *out, i64 stride,
                  uint8_t *scratch) {
    float *acc = (float *)scratch, *panel = acc + tokens * Groups * 16; // acc: [token][group][16]
    const uint8_t *w = m.data + g * m.group_bytes;
    std::memset(acc, 0, (size_t)(tokens * Groups) * 64);
    for (i64 c = 0; c < m.columns; c += kSlab) {
        const i64 n = least(kSlab, m.columns - c);
        const uint8_t *p = w + c * 16 * Load::size;
        if (Load::size < 4 && tokens > kPanelTokens) { // converted once for all tokens
            for (i64 i = 0; i < n; ++i)
                for (int k = 0; k < Groups; ++k)
                    st(panel + (k * kSlab + i) * 16, Load::at(p + k * m.group_bytes + i * 16 * Load::size));
            plain_tokens<LoadPanel, Groups>((uint8_t *)panel, kSlab * 64, x + c * tokens, tokens, n, acc);
        } else {
            plain_tokens<Load, Groups>(p, m.group_bytes, x + c * tokens, tokens, n, acc);
        }
    }
    for (i64 t = 0; t < tokens; ++t)
        for (i64 i = 0; i < Groups; ++i)
            put(out + t * stride, ld(acc + (t * Groups + i) * 16), bias, (g + i) * 16, m.rows);
}

template <typename Load>
void plain_all(const Matrix &m, const float *x, i64 tokens, i64 g0, i64 g1, const float *bias, float *out, i64 stride,
               uint8_t *scratch) {
    i64 g = g0;
    if (tokens == 1) // four streams of weights: a core alone reads memory faster so
        for (; g + 4 <= g1; g += 4) plain_groups<Load, 4>(m, x, tokens, g, bias, out, stride, scratch);
    if (kAloneTokens == kTileTokens || tokens <= kPairTokens || tokens > kPanelTokens)
        for (; g + 2 <= g1; g += 2) plain_groups<Load, 2>(m, x, tokens, g, bias, out, stride, scratch);
    for (; g < g1; ++g) plain_groups<Load, 1>(m, x, tokens, g, bias, out, stride, scratch);
}

void linear_plain(const Matrix &m, const float *x, i64 tokens, i64 g0, i64 g1, const float *bias, float *out,
                  i64 stride, uint8_t *scratch) {
    switch (m.kind) {
    case kF32: return plain_all<LoadF32>(m, x, tokens, g0, g1, bias, out, stride, scratch);
    case kF16: return plain_all<LoadF16>(m, x, tokens, g0, g1, bias, out, stride, scratch);
    default: return plain_all<LoadBF16>(m, x, tokens, g0, g1, bias, out, stride, scratch);
    }
}
i64 plain_scratch(const Matrix &, i64 tokens) { return tokens * 128 + 2 * kSlab * 64; }

// ---------------------------------------------------------------- attention

// Few rows take more vectors at once: else their additions would wait for one another.
constexpr int tile_vectors(int rows) { return kTileRows > 1 && rows * kTileVectors < 4 ? 4 / rows : kTileVectors; }

// Scores of `Rows` rows and 64 keys: q [row][dim], k [dim][64] -> s [row][64].
template <int Rows, int Vectors> inline void scores(const float *q, const float *k, i64 dim, float *s) {
    for (int j0 = 0; j0 < 4; j0 += Vectors) {
        F a[Rows][Vectors];
        for (int r = 0; r < Rows; ++r)
            for (int j = 0; j < Vectors; ++j) a[r][j] = bc(0.0f);
        for (i64 d = 0; d < dim; ++d) {
            F c[Rows];
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) c[r] = bc(q[r * dim + d]);
#pragma GCC unroll 4
            for (int j = 0; j < Vectors; ++j) {
                F b = ld(k + d * kKeys + (j0 + j) * 16);
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) a[r][j] = fma_(c[r], b, a[r][j]);
            }
        }
        for (int r = 0; r < Rows; ++r)
            for (int j = 0; j < Vectors; ++j) st(s + r * kKeys + (j0 + j) * 16, a[r][j]);
    }
}
template <int Rows> inline void scores_rest(i64 rest, const float *q, const float *k, i64 dim, float *s) {
    if (rest == Rows) scores<Rows, tile_vectors(Rows)>(q, k, dim, s);
    else if constexpr (Rows > 1) scores_rest<Rows - 1>(rest, q, k, dim, s);
}

// acc[row][16 * Vectors] = acc * factor[row] + p[row][from..to-1] v[from..to-1].
template <int Rows, int Vectors>
inline void values(const float *p, const float *v, i64 v_stride, const float *factor, i64 from, i64 to, float *acc,
                   i64 acc_stride) {
    F a[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) a[r][j] = mul(ld(acc + r * acc_stride + 16 * j), bc(factor[r]));
    for (i64 i = from; i < to; ++i) {
        F c[Rows];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) c[r] = bc(p[r * kKeys + i]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
            F b = ld(v + i * v_stride + 16 * j);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) a[r][j] = fma_(c[r], b, a[r][j]);
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) st(acc + r * acc_stride + 16 * j, a[r][j]);
}

// The same where the rows' ranges of keys may differ: keys that a row does not see may hold anything.
template <int Rows, int Vectors>
inline void values_seen(const float *p, const float *v, i64 v_stride, const float *factor, const int32_t *lo,
                        const int32_t *hi, float *acc, i64 acc_stride) {
    float factors[Rows];
    i64 first = 0, last = kKeys; // what all rows see
    for (int r = 0; r < Rows; ++r) first = most(first, lo[r]), last = least(last, hi[r]), factors[r] = factor[r];
    const bool apart = first >= last;
    for (int r = 0; r < Rows; ++r)
        if (apart ? lo[r] < hi[r] : lo[r] < first) {
            values<1, Vectors>(p + r * kKeys, v, v_stride, factors + r, lo[r], apart ? hi[r] : first,
                               acc + r * acc_stride, acc_stride);
            factors[r] = 1.0f;
        }
    if (apart) return;
    values<Rows, Vectors>(p, v, v_stride, factors, first, last, acc, acc_stride);
    for (int r = 0; r < Rows; ++r) {
        factors[r] = 1.0f;
        if (last < hi[r])
            values<1, Vectors>(p + r * kKeys, v, v_stride, factors + r, last, hi[r], acc + r * acc_stride, acc_stride);
    }
}
template <int Rows>
inline void values_rest(i64 rest, const float *p, const float *v, i64 v_stride, const float *factor, const int32_t *lo,
                        const int32_t *hi, float *acc, i64 acc_stride) {
    if constexpr (Rows > 1)
        if (rest < Rows) return values_rest<Rows - 1>(rest, p, v, v_stride, factor, lo, hi, acc, acc_stride);
    i64 d = 0;
    for (; d + 16 * tile_vectors(Rows) <= v_stride; d += 16 * tile_vectors(Rows))
        values_seen<Rows, tile_vectors(Rows)>(p, v + d, v_stride, factor, lo, hi, acc + d, acc_stride);
    for (; d < v_stride; d += 16) values_seen<Rows, 1>(p, v + d, v_stride, factor, lo, hi, acc + d, acc_stride);
}

// A state is {maximum, sum, 14 unused, values}; sum < 0: no key seen.
inline void clear_state(const Attention &a, float *state) {
    std::memset(state, 0, (size_t)state_size(a) * 4);
    state[0] = -kInfinity;
    state[1] = -1.0f;
}

void merge(const Attention &a, const float *from, float *into) {
    if (from[1] < 0.0f) return;
    if (into[1] < 0.0f) {
        std::memcpy(into, from, (size_t)state_size(a) * 4);
        return;
    }
    float top = from[0] > into[0] ? from[0] : into[0];
    float f = exp1(from[0] - top), g = exp1(into[0] - top);
    into[0] = top;
    into[1] = fma1(into[1], g, from[1] * f);
    F vf = bc(f), vg = bc(g);
    for (i64 i = 16; i < state_size(a); i += 16) st(into + i, fma_(ld(into + i), vg, mul(ld(from + i), vf)));
}

void finish(const Attention &a, const float *state, float *out) {
    F inverse = bc(1.0f / state[1]);
    map1(state + 16, out, a.value_dim, [inverse](F x) { return mul(x, inverse); });
}

i64 attend_scratch(const Attention &a, i64 rows) {
    return 4 * (round_up(rows * a.key_dim, 16) + a.key_dim * kKeys + kKeys * a.value_stride + rows * kKeys +
                rows * state_size(a) + 3 * round_up(rows, 16));
}

// 64 keys as f32, [dim][64].
inline void read_keys(Held held, const void *from, i64 dim, float *out) {
    if (held == kHeldF16) return from_f16((const uint16_t *)from, out, dim * kKeys);
    const int8_t *codes = (const int8_t *)from;
    const uint16_t *scales = (const uint16_t *)(codes + dim * kKeys);
    for (i64 d0 = 0; d0 < dim; d0 += kBlock, scales += kKeys)
        for (i64 j = 0; j < kKeys; j += 16) {
            const F scale = ld_f16(scales + j);
            for (i64 d = d0; d < least(dim, d0 + kBlock); ++d)
                st(out + d * kKeys + j, mul(ld_i8(codes + d * kKeys + j), scale));
        }
}

// Values of positions begin..end-1 of a segment as f32, [position][stride].
inline void read_values(Held held, const void *from, i64 begin, i64 end, i64 stride, float *out) {
    if (held == kHeldF16) return from_f16((const uint16_t *)from + begin * stride, out, (end - begin) * stride);
    const int8_t *codes = (const int8_t *)from;
    const uint16_t *scales = (const uint16_t *)(codes + kSegment * stride);
    const i64 count = scale_count(stride);
    for (i64 i = begin; i < end; ++i, out += stride)
        for (i64 d = 0; d < stride; d += 16)
            st(out + d, mul(ld_i8(codes + i * stride + d), bc_f16(scales + i * count + d / kBlock)));
}

// Masks a row's scores; its maximum becomes the state's, and what that was less the new one is returned.
inline float mask(const Attention &a, float *s, float *state, int32_t lo, int32_t hi, float slope, i64 distance) {
    F v[4];
    const F lowest = bc(-kInfinity);
    alignas(64) static const float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const bool plain = a.soft_cap == 0.0f && !a.slopes && lo <= 0 && hi >= kKeys;
    for (int j = 0; j < 4; ++j) {
        v[j] = ld(s + 16 * j);
        if (plain) continue;
        if (a.soft_cap != 0.0f) v[j] = mul(bc(a.soft_cap), tanh_(div(v[j], bc(a.soft_cap))));
        F index = add(ld(kIota), bc((float)(16 * j)));
        if (a.slopes) v[j] = fma_(bc(slope), add(index, bc((float)distance)), v[j]);
        if (lo > 0) v[j] = sel_lt(index, bc((float)lo), lowest, v[j]);
        if (hi < kKeys) v[j] = sel_lt(index, bc((float)hi), v[j], lowest);
        st(s + 16 * j, v[j]);
    }
    if (state[1] < 0.0f) state[1] = 0.0f;
    const float before = state[0], top = hmax(max_(max_(v[0], v[1]), max_(v[2], v[3])));
    state[0] = before > top ? before : top;
    return before - state[0];
}

// Turns a row's scores into weights, and adds them to the sum so far times `factor`.
inline void soften(float *s, float *state, float factor) {
    F v[4];
    const F top = bc(state[0]);
    for (int j = 0; j < 4; ++j) {
        v[j] = exp_below(sub(ld(s + 16 * j), top));
        st(s + 16 * j, v[j]);
    }
    state[1] = fma1(state[1], factor, hsum(add(add(v[0], v[1]), add(v[2], v[3]))));
}

// Calls f(first row, rows) for tiles of nearly equal height in which some row sees a key.
template <typename Function> inline void tiles(i64 rows, const int32_t *lo, const int32_t *hi, Function f) {
    for (i64 r0 = 0, n; r0 < rows; r0 += n) {
        const i64 left = (rows - r0 + kTileRows - 1) / kTileRows;
        n = (rows - r0 + left - 1) / left;
        bool any = false;
        for (i64 r = r0; r < r0 + n; ++r) any = any || lo[r] < hi[r];
        if (any) f(r0, n);
    }
}

void attend(const Attention &a, const Query *queries, i64 count, const float *q, i64 q_stride, i64 kv_head,
            const void *k, const void *v, i64 first, float *state, uint8_t *scratch) {
    const i64 group = a.heads / a.kv_heads, rows = count * group, size = state_size(a);
    float *qs = (float *)scratch, *ks = qs + round_up(rows * a.key_dim, 16), *vs = ks + a.key_dim * kKeys;
    float *p = vs + kKeys * a.value_stride, *part = p + rows * kKeys, *factor = part + rows * size;
    int32_t *lo = (int32_t *)(factor + round_up(rows, 16)), *hi = lo + round_up(rows, 16);
    for (i64 i = 0; i < count; ++i) // the group's heads stand beside one another
        scale_row(q + queries[i].row * q_stride + kv_head * group * a.key_dim, a.scale, qs + i * group * a.key_dim,
                  group * a.key_dim);
    for (i64 r = 0; r < rows; ++r) clear_state(a, part + r * size);
    for (i64 block = 0; block < kSegment / kKeys; ++block) {
        const i64 base = first + block * kKeys;
        i64 begin = kKeys, end = 0;
        for (i64 r = 0; r < rows; ++r) {
            const Query &query = queries[r / group];
            i64 from = a.window > 0 ? query.position - a.window + 1 : 0;
            hi[r] = (int32_t)least(kKeys, most(0, query.visible - base));
            lo[r] = (int32_t)least(hi[r], most(0, from - base));
            if (lo[r] < hi[r]) begin = least(begin, lo[r]), end = most(end, hi[r]);
        }
        if (begin >= end) continue;
        const float *kb = (const float *)k + block * a.key_dim * kKeys;
        const float *vb = (const float *)v + block * kKeys * a.value_stride;
        if (a.k_held != kHeldF32) {
            read_keys(a.k_held, (const uint8_t *)k + block * kKeys * held_bytes(a.k_held, a.key_dim), a.key_dim, ks);
            kb = ks;
        }
        if (a.v_held != kHeldF32) {
            read_values(a.v_held, v, block * kKeys + begin, block * kKeys + end, a.value_stride,
                        vs + begin * a.value_stride);
            vb = vs;
        }
        // First all scores, then all values: 64 keys or values stay in the nearest cache meanwhile.
        tiles(rows, lo, hi, [&](i64 r, i64 n) {
            scores_rest<kTileRows>(n, qs + r * a.key_dim, kb, a.key_dim, p + r * kKeys);
        });
        for (i64 r = 0; r < rows; ++r) {
            factor[r] = 0.0f;
            if (lo[r] >= hi[r]) continue;
            float slope = a.slopes ? a.slopes[kv_head * group + r % group] : 0.0f;
            factor[r] = mask(a, p + r * kKeys, part + r * size, lo[r], hi[r], slope,
                             base - queries[r / group].position);
        }
        map1(factor, factor, rows, [](F x) { return exp_below(x); }); // of 16 rows at once
        for (i64 r = 0; r < rows; ++r)
            if (lo[r] < hi[r]) soften(p + r * kKeys, part + r * size, factor[r]);
        tiles(rows, lo, hi, [&](i64 r, i64 n) {
            values_rest<kTileRows>(n, p + r * kKeys, vb, a.value_stride, factor + r, lo + r, hi + r,
                                   part + r * size + 16, size);
        });
    }
    for (i64 r = 0; r < rows; ++r) merge(a, part + r * size, state + r * size);
}

} // namespace

#define BESTIARY_TABLE(NAME, ROWS)                                                                                     \
    {NAME, ROWS, quantize, linear_quantized, quantized_scratch, linear_plain, plain_scratch, rms_norm, layer_norm,     \
     rope, silu, silu_mul, gelu_tanh, gelu_erf, add_rows, mul_rows, scale_row, soft_cap, to_f16, from_f16, attend,     \
     attend_scratch, merge, finish}
