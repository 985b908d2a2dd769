// The kernels in plain C++: the reference of every instruction set, and what other hosts run.
#include "vec_scalar.h"

#include "generic.h"

namespace {

// Sixteen rows and one token.
void quantized_row(const Matrix &m, const uint8_t *w, const Input &in, const int32_t *correction, i64 t, float *acc) {
    const i64 parts = m.half ? 2 : 1, n = in.tokens;
    const bool wide = m.numbers != kHalves;
    Values values(m);
    F total = bc(0.0f);
    for (i64 b = 0; b < m.blocks; ++b, values.at += values.next) {
        if (b % m.span == 0) values.begin(m, w + m.header_at(b));
        const uint8_t *header = values.at, *codes = w + m.codes_at(b);
        const int8_t *a = in.codes + (b * n + t) * kBlock;
        F scale = bc(in.scales[b * n + t]);
        for (i64 part = 0; part < parts; ++part) {
            I dot = bci(correction[(b * parts + part) * n + t]);
            for (i64 k = part * (kBlock / parts); k < (part + 1) * (kBlock / parts); ++k) {
                const i64 j = m.kind == kByte ? k / 4 : k / 4 % 4, shift = m.kind != kByte && k >= 16 ? 4 : 0;
                const uint8_t *p = codes + j * 64 + k % 4;
                const int32_t mask = m.kind == kByte ? 255 : 15;
                if (m.kind == kFive) {
                    const uint8_t *fifth = codes + 256 + k % 4;
                    const i64 at = k / 4;
                    for (int r = 0; r < 16; ++r)
                        dot.v[r] += (((p[r * 4] >> shift) & mask) | ((fifth[r * 4] >> at) & 1) << 4) * a[k];
                } else if (m.kind == kBook) {
                    for (int r = 0; r < 16; ++r) dot.v[r] += m.book[(p[r * 4] >> shift) & 15] * a[k];
                } else if (m.kind == kNibble || m.kind == kByte) {
                    for (int r = 0; r < 16; ++r) dot.v[r] += ((p[r * 4] >> shift) & mask) * a[k];
                } else {
                    for (int r = 0; r < 16; ++r) dot.v[r] += m.code_at(codes, r, k) * a[k];
                }
            }
            if (m.minimum) {
                F low = header_values(header + (parts + part) * values.step, wide);
                total = fma_(bc(in.lows[(b * parts + part) * n + t]), low, total);
            }
            total = fma_(to_f(dot), mul(header_values(header + part * values.step, wide), scale), total);
        }
    }
    st(acc, total);
}

void linear_quantized(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *, i64 g0, i64 g1,
                      const float *bias, float *out, i64 stride, uint8_t *) {
    for (i64 g = g0; g < g1; ++g)
        for (i64 t = 0; t < in.tokens; ++t) {
            float acc[16];
            quantized_row(m, m.data + g * m.group_bytes, in, correction, t, acc);
            put(out + t * stride, ld(acc), bias, g * 16, m.rows);
        }
}
i64 quantized_scratch(const Matrix &, i64) { return 0; }

} // namespace

namespace bestiary {
const Table table_scalar = BESTIARY_TABLE("scalar", 8);
}
