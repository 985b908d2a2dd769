// Sixteen floats as an array: what every other instruction set must equal to the bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct F { float v[16]; };
struct I { int32_t v[16]; };
// Unquantized weights: tokens of a tile of two row groups, and of one; more tokens than kPanelTokens take two, and
// have the weights converted beforehand.
constexpr int kTileTokens = 2, kAloneTokens = 2, kPanelTokens = 2;
constexpr int kTileVectors = 1, kTileRows = 1;

#define EACH for (int i = 0; i < 16; ++i)
inline F ld(const float *p) { F r; std::memcpy(r.v, p, 64); return r; }
inline F ld_n(const float *p, int64_t n) { F r; EACH r.v[i] = i < n ? p[i] : 0.0f; return r; }
inline void st(float *p, F a) { std::memcpy(p, a.v, 64); }
inline void st_n(float *p, F a, int64_t n) { EACH if (i < n) p[i] = a.v[i]; }
inline F bc(float x) { F r; EACH r.v[i] = x; return r; }
inline I bci(int32_t x) { I r; EACH r.v[i] = x; return r; }
inline F add(F a, F b) { F r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
inline F sub(F a, F b) { F r; EACH r.v[i] = a.v[i] - b.v[i]; return r; }
inline F mul(F a, F b) { F r; EACH r.v[i] = a.v[i] * b.v[i]; return r; }
inline F div(F a, F b) { F r; EACH r.v[i] = a.v[i] / b.v[i]; return r; }
inline F fma_(F a, F b, F c) { F r; EACH r.v[i] = ::fmaf(a.v[i], b.v[i], c.v[i]); return r; }
// As x86 has them: the second operand where one is NaN.
inline F max_(F a, F b) { F r; EACH r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
inline F min_(F a, F b) { F r; EACH r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return r; }
inline F sel_lt(F a, F b, F x, F y) { F r; EACH r.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i]; return r; }
inline F swap2(F a) { F r; EACH r.v[i] = a.v[i ^ 1]; return r; }
inline I as_i(F a) { I r; std::memcpy(&r, &a, 64); return r; }
inline F as_f(I a) { F r; std::memcpy(&r, &a, 64); return r; }
inline I addi(I a, I b) { I r; EACH r.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]); return r; }
inline I subi(I a, I b) { I r; EACH r.v[i] = (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]); return r; }
inline I andi(I a, I b) { I r; EACH r.v[i] = a.v[i] & b.v[i]; return r; }
inline I ori(I a, I b) { I r; EACH r.v[i] = a.v[i] | b.v[i]; return r; }
inline I maxi(I a, I b) { I r; EACH r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
inline I half_i(I a) { I r; EACH r.v[i] = a.v[i] >> 1; return r; }
inline I shl23(I a) { I r; EACH r.v[i] = (int32_t)((uint32_t)a.v[i] << 23); return r; }
inline F to_f(I a) { F r; EACH r.v[i] = (float)a.v[i]; return r; }
// Lanes i and i + 8, then i and i + 4, i + 2, i + 1.
inline float hsum(F a) {
    for (int n = 8; n; n >>= 1)
        for (int i = 0; i < n; ++i) a.v[i] += a.v[i + n];
    return a.v[0];
}
inline float hmax(F a) {
    for (int n = 8; n; n >>= 1)
        for (int i = 0; i < n; ++i) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
    return a.v[0];
}
inline int32_t hmaxi(I a) {
    int32_t m = a.v[0];
    EACH m = a.v[i] > m ? a.v[i] : m;
    return m;
}
inline int32_t hsumi(I a) {
    int32_t s = 0;
    EACH s += a.v[i];
    return s;
}
inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, bits;
    if (e == 31) {
        bits = sign | 0x7F800000 | m << 13 | (m ? 0x400000 : 0);
    } else if (e) {
        bits = sign | (e + 112) << 23 | m << 13;
    } else {
        float f = (float)m * 5.9604644775390625e-08f; // 2 ** -24
        std::memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float r;
    std::memcpy(&r, &bits, 4);
    return r;
}
inline uint16_t f32_to_f16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, a = bits & 0x7FFFFFFF;
    if (a > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (a >> 13 & 0x3FF));
    if (a >= 0x477FF000) return (uint16_t)(sign | 0x7C00); // rounds to 65536 or more
    if (a < 0x38800000) {                                  // subnormal: units of 2 ** -24, rounded to even
        float f;
        std::memcpy(&f, &a, 4);
        f += 0.5f; // the unit of 0.5's last place is 2 ** -24
        uint32_t b;
        std::memcpy(&b, &f, 4);
        return (uint16_t)(sign | (b - 0x3F000000));
    }
    uint32_t r = a + 0xFFF + (a >> 13 & 1);
    return (uint16_t)(sign | ((r >> 13) - (112u << 10)));
}
inline F ld_f16(const uint16_t *p) { F r; EACH r.v[i] = f16_to_f32(p[i]); return r; }
inline F bc_f16(const uint16_t *p) { return bc(f16_to_f32(*p)); }
inline F ld_i8(const int8_t *p) { F r; EACH r.v[i] = (float)p[i]; return r; }
inline void st_f16(uint16_t *p, F a) { EACH p[i] = f32_to_f16(a.v[i]); }
inline F ld_bf16(const uint16_t *p) {
    I r;
    EACH r.v[i] = (int32_t)((uint32_t)p[i] << 16);
    return as_f(r);
}
inline float fma1(float a, float b, float c) { return ::fmaf(a, b, c); }
inline void prefetch(const void *) {}
inline float sqrt1(float x) { return ::sqrtf(x); }
// Sixteen floats in -127..127, rounded to even.
inline void st_i8(int8_t *p, F a) {
    EACH {
        float t = a.v[i] + 12582912.0f; // 1.5 * 2 ** 23: the sum's last bits are the rounded integer
        int32_t b;
        std::memcpy(&b, &t, 4);
        p[i] = (int8_t)(b - 0x4B400000);
    }
}
#undef EACH

} // namespace
