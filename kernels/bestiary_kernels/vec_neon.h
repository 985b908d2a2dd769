// Sixteen floats as four NEON registers.
#pragma once
#include <arm_neon.h>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct F { float32x4_t a, b, c, d; };
struct I { int32x4_t a, b, c, d; };
// Unquantized weights: tokens of a tile of two row groups, and of one; more tokens than kPanelTokens take two, and
// have the weights converted beforehand.
constexpr int kTileTokens = 2, kAloneTokens = 2, kPanelTokens = 2;
constexpr int kTileVectors = 1, kTileRows = 4;

#define EACH1(f) {f(x.a), f(x.b), f(x.c), f(x.d)}
#define EACH2(f) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}
inline F ld(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
inline F ld_n(const float *p, int64_t n) {
    if (n == 16) return ld(p);
    float t[16] = {};
    std::memcpy(t, p, (size_t)n * 4);
    return ld(t);
}
inline void st(float *p, F x) {
    vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
inline void st_n(float *p, F x, int64_t n) {
    if (n == 16) return st(p, x);
    float t[16];
    st(t, x);
    std::memcpy(p, t, (size_t)n * 4);
}
inline F bc(float x) { float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
inline I bci(int32_t x) { int32x4_t v = vdupq_n_s32(x); return {v, v, v, v}; }
inline F add(F x, F y) { return EACH2(vaddq_f32); }
inline F sub(F x, F y) { return EACH2(vsubq_f32); }
inline F mul(F x, F y) { return EACH2(vmulq_f32); }
inline F div(F x, F y) { return EACH2(vdivq_f32); }
inline F fma_(F x, F y, F z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
// As x86 has them, the second operand where one is NaN: vmaxq and vminq would give NaN.
inline float32x4_t greater(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
inline float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
inline F max_(F x, F y) { return EACH2(greater); }
inline F min_(F x, F y) { return EACH2(smaller); }
inline F sel_lt(F x, F y, F p, F q) {
    return {vbslq_f32(vcltq_f32(x.a, y.a), p.a, q.a), vbslq_f32(vcltq_f32(x.b, y.b), p.b, q.b),
            vbslq_f32(vcltq_f32(x.c, y.c), p.c, q.c), vbslq_f32(vcltq_f32(x.d, y.d), p.d, q.d)};
}
inline F swap2(F x) { return EACH1(vrev64q_f32); }
inline I as_i(F x) { return EACH1(vreinterpretq_s32_f32); }
inline F as_f(I x) { return EACH1(vreinterpretq_f32_s32); }
inline I addi(I x, I y) { return EACH2(vaddq_s32); }
inline I subi(I x, I y) { return EACH2(vsubq_s32); }
inline I andi(I x, I y) { return EACH2(vandq_s32); }
inline I ori(I x, I y) { return EACH2(vorrq_s32); }
inline I maxi(I x, I y) { return EACH2(vmaxq_s32); }
inline I half_i(I x) {
    return {vshrq_n_s32(x.a, 1), vshrq_n_s32(x.b, 1), vshrq_n_s32(x.c, 1), vshrq_n_s32(x.d, 1)};
}
inline I shl23(I x) {
    return {vshlq_n_s32(x.a, 23), vshlq_n_s32(x.b, 23), vshlq_n_s32(x.c, 23), vshlq_n_s32(x.d, 23)};
}
inline F to_f(I x) { return EACH1(vcvtq_f32_s32); }
inline float hsum(F x) {
    float32x4_t s = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
inline float hmax(F x) {
    float32x4_t s = greater(greater(x.a, x.c), greater(x.b, x.d));
    s = greater(s, vextq_f32(s, s, 2));
    return vgetq_lane_f32(greater(s, vextq_f32(s, s, 1)), 0);
}
inline int32_t hmaxi(I x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
inline int32_t hsumi(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
inline F ld_f16(const uint16_t *p) {
    float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p)), y = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
inline void st_f16(uint16_t *p, F x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
inline F bc_f16(const uint16_t *p) { return bc(vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p))), 0)); }
inline F ld_i8(const int8_t *p) {
    int8x16_t x = vld1q_s8(p);
    int16x8_t y = vmovl_s8(vget_low_s8(x)), z = vmovl_high_s8(x);
    return to_f({vmovl_s16(vget_low_s16(y)), vmovl_high_s16(y), vmovl_s16(vget_low_s16(z)), vmovl_high_s16(z)});
}
inline F ld_bf16(const uint16_t *p) {
    uint16x8_t x = vld1q_u16(p), y = vld1q_u16(p + 8);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(x, 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(y), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(y, 16))};
}
inline float fma1(float a, float b, float c) {
    return vget_lane_f32(vfma_f32(vdup_n_f32(c), vdup_n_f32(a), vdup_n_f32(b)), 0);
}
inline void prefetch(const void *p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}
inline float sqrt1(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
inline void st_i8(int8_t *p, F x) {
    int16x8_t low = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.a)), vmovn_s32(vcvtnq_s32_f32(x.b)));
    int16x8_t high = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.c)), vmovn_s32(vcvtnq_s32_f32(x.d)));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
#undef EACH1
#undef EACH2

} // namespace
