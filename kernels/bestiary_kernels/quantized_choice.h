// Which product a matrix takes: `groups<Kind, Half, Minimum>`, which is written before this is included.
#pragma once

namespace {

template <bool Half, bool Minimum>
void by_kind(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
             const float *bias, float *out, i64 stride, uint8_t *scratch) {
    switch (m.kind) {
    case kNibble: return groups<kNibble, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kFive: return groups<kFive, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kTwo: return groups<kTwo, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kThree: return groups<kThree, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kSix: return groups<kSix, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    case kBook: return groups<kBook, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    default: return groups<kByte, Half, Minimum>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    }
}

void linear_quantized(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0, i64 g1,
                      const float *bias, float *out, i64 stride, uint8_t *scratch) {
    if (m.half && m.minimum) by_kind<true, true>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else if (m.half) by_kind<true, false>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else if (m.minimum) by_kind<false, true>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
    else by_kind<false, false>(m, in, correction, sums, g0, g1, bias, out, stride, scratch);
}

} // namespace
