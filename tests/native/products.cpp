// Products with quantized and with plain weights, and the rounding of activations that precedes the former.
#include "check.h"

#include <cmath>
#include <string>
#include <vector>

namespace native {
namespace {

constexpr i64 kTokens[] = {1, 2, 3, 5, 8, 17, 33};

// A random matrix; `extreme`: the largest codes, which saturate where 16 bits are too few.
Matrix matrix(int32_t kind, bool half, bool minimum, int32_t numbers, i64 span, i64 rows, i64 columns) {
    Matrix m = {};
    m.rows = rows, m.columns = columns, m.kind = kind;
    m.groups = (rows + kLanes - 1) / kLanes;
    m.blocks = (columns + kBlock - 1) / kBlock;
    m.half = half, m.minimum = minimum, m.numbers = numbers, m.span = span, m.factor = 0.5f;
    m.header = header_bytes(numbers, (half ? 2 : 1) * (m.nested() ? span : 1), minimum);
    m.code_bytes = code_bytes_of(kind);
    m.group_bytes = (m.blocks + span - 1) / span * m.header + m.blocks * m.code_bytes;
    m.zero = kind == kNibble ? 8 : kind == kFive ? 16 : kind == kSix ? 32 : kind == kTwo || kind == kThree ? 2 : 128;
    return m;
}

void fill_matrix(Matrix &m, const Fenced<uint8_t> &data, bool extreme, Random &random) {
    m.data = data.data();
    for (i64 i = 0; i < data.size(); ++i) data[i] = extreme ? 255 : (uint8_t)random.bits();
    for (uint8_t &level : m.book) level = (uint8_t)(extreme ? 1 + 254 * random.below(2) : 1 + random.below(255));
    for (i64 g = 0; g < m.groups; ++g)
        for (i64 b = 0; b < m.blocks; b += m.span) {
            uint8_t *header = m.data + g * m.group_bytes + m.header_at(b);
            const bool wide = m.numbers == kSingles;
            const i64 numbers = m.nested() ? (m.numbers == kPowers ? 0 : m.minimum ? 64 : 32) : m.header;
            for (i64 i = 0; i < numbers; i += wide ? 4 : 2) {
                const float x = 0.1f * random.number();
                const uint16_t h = float_to_half(x);
                if (wide) std::memcpy(header + i, &x, 4);
                else std::memcpy(header + i, &h, 2);
            }
            for (i64 i = 0; m.numbers == kPowers && i < m.header; ++i) header[i] = (uint8_t)(110 + random.below(16));
        }
}

struct Activations {
    Fenced<int8_t> codes;
    Fenced<float> scales;
    Fenced<int32_t> sums, correction;
    Fenced<float> lows;
    Input in;

    Activations(const Matrix &m, i64 tokens, bool extreme, Random &random)
        : codes(tokens * m.blocks * kBlock), scales(tokens * m.blocks), sums(scales.size() * (m.half ? 2 : 1)),
          correction(sums.size()), lows(sums.size()),
          in{codes.data(), scales.data(), tokens, m.blocks, lows.data(), random.coin()} {
        const i64 parts = m.half ? 2 : 1, width = kBlock / parts;
        for (i64 b = 0; b < m.blocks; ++b)
            for (i64 t = 0; t < tokens; ++t) {
                int8_t *p = in.codes + (b * tokens + t) * kBlock;
                scales[b * tokens + t] = 0.1f * random.number();
                const int8_t edge = random.coin() ? 127 : -127;
                for (i64 k = 0; k < kBlock; ++k)
                    p[k] = (int8_t)(b * kBlock + k >= m.columns ? 0 : extreme ? edge : random.below(255) - 127);
                for (i64 part = 0; part < parts; ++part) {
                    int32_t sum = 0;
                    for (i64 k = part * width; k < (part + 1) * width; ++k) sum += p[k];
                    sums[(b * parts + part) * tokens + t] = sum;
                    correction[(b * parts + part) * tokens + t] = -m.zero * sum;
                    lows[(b * parts + part) * tokens + t] = (float)sum * scales[b * tokens + t];
                }
            }
    }
};

std::string words(const Matrix &m, i64 tokens) {
    static const char *const kinds[] = {"nibbles", "five bits", "bytes", "codebook", "two bits", "three bits", "six bits",
                                        "f32", "f16", "bf16"};
    static const char *const numbers[] = {"", ", wide", ", byte pairs", ", nibble pairs", ", six bits each", ", powers"};
    std::string s = std::string(kinds[m.kind]) + (m.half ? ", halves" : "") + (m.minimum ? ", minimums" : "") +
                    numbers[m.numbers] + ", " + std::to_string(m.rows) + " x " + std::to_string(m.columns) +
                    ", " + std::to_string(tokens) + " tokens";
    return m.span > 1 ? s + ", a scale for " + std::to_string(m.span) + " blocks" : s;
}

// out: [token][stride], the last token's row ends with the matrix. Row groups in one call, or in two.
void quantized(const Table &table, const Matrix &m, const Activations &a, const float *bias, i64 stride, i64 cut,
               const Fenced<float> &out) {
    Fenced<uint8_t> scratch(table.quantized_scratch(m, a.in.tokens), 64);
    for (i64 g : {i64(0), cut}) {
        const i64 end = g == cut ? m.groups : cut;
        if (g < end)
            table.linear_quantized(m, a.in, a.correction.data(), a.sums.data(), g, end, bias, out.data(), stride,
                                   scratch.data());
        if (g == cut) break;
    }
}

void quantized_case(const Table &reference, const Table &table, Matrix m, i64 tokens, bool extreme, Random &random) {
    trying_now("%s%s", words(m, tokens).c_str(), extreme ? ", extreme" : "");
    Fenced<uint8_t> data(m.groups * m.group_bytes);
    fill_matrix(m, data, extreme, random);
    const Activations a(m, tokens, extreme, random);
    Fenced<float> bias(m.rows);
    fill(bias, random);
    const float *const b = random.coin() ? bias.data() : nullptr;
    const i64 stride = m.rows + random.below(5), size = (tokens - 1) * stride + m.rows;
    Fenced<float> expected(size), got(size);
    quantized(reference, m, a, b, stride, 0, expected);
    quantized(table, m, a, b, stride, random.below(m.groups), got);
    same("linear_quantized", expected, got);
}

void plain_case(const Table &reference, const Table &table, int32_t kind, i64 rows, i64 columns, i64 tokens,
                Random &random) {
    const i64 size = kind == kF32 ? 4 : 2, groups = (rows + kLanes - 1) / kLanes;
    Matrix m = {};
    m.rows = rows, m.columns = columns, m.kind = kind, m.groups = groups, m.span = 1;
    m.group_bytes = columns * kLanes * size;
    trying_now("%s", words(m, tokens).c_str());
    Fenced<uint8_t> data(groups * m.group_bytes);
    m.data = data.data();
    for (i64 i = 0; i < data.size(); i += size) {
        const float x = random.number();
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const uint16_t h = kind == kF16 ? float_to_half(x) : (uint16_t)(bits >> 16);
        if (size == 4) std::memcpy(&data[i], &x, 4);
        else std::memcpy(&data[i], &h, 2);
    }
    const i64 whole = (columns - 1) / kSlab; // x: [slab][token][256], up to the last column of the last token
    Fenced<float> x((whole * tokens + tokens - 1) * kSlab + columns - whole * kSlab), bias(rows);
    fill(x, random), fill(bias, random);
    const float *const b = random.coin() ? bias.data() : nullptr;
    const i64 stride = rows + random.below(5), cut = random.below(groups);
    Fenced<float> expected((tokens - 1) * stride + rows), got(expected.size());
    {
        Fenced<uint8_t> scratch(reference.plain_scratch(m, tokens), 64);
        reference.linear_plain(m, x.data(), tokens, 0, groups, b, expected.data(), stride, scratch.data());
    }
    Fenced<uint8_t> scratch(table.plain_scratch(m, tokens), 64);
    table.linear_plain(m, x.data(), tokens, 0, cut, b, got.data(), stride, scratch.data());
    table.linear_plain(m, x.data(), tokens, cut, groups, b, got.data(), stride, scratch.data());
    same("linear_plain", expected, got);
}

// x: [token][stride], with rows that are zero, tiny, infinite or no numbers.
void rounding_case(const Table &reference, const Table &table, i64 columns, i64 tokens, Random &random) {
    trying_now("quantize of %lld tokens of %lld numbers", (long long)tokens, (long long)columns);
    const i64 stride = columns + random.below(3), blocks = (columns + kBlock - 1) / kBlock, n = blocks * tokens;
    Fenced<float> x((tokens - 1) * stride + columns);
    for (i64 i = 0; i < x.size(); ++i) {
        const i64 sort = (i / 40) % 7; // about a block of each sort
        x[i] = sort == 0 ? random.any() : sort == 1 ? 1e-37f * random.number() : sort == 2 ? 0.0f : random.number();
        if (sort == 3) x[i] = (float)random.below(255) - 127.0f + 0.5f * (float)random.below(2); // halves are rounded
    }
    struct Result {
        Fenced<int8_t> codes;
        Fenced<float> scales;
        Fenced<int32_t> whole, halves;
        Fenced<float> lows;
        explicit Result(i64 n) : codes(n * kBlock), scales(n), whole(n), halves(2 * n), lows(2 * n) {}
    } expected(n), got(n);
    const struct { const Table &table; const Result &result; } both[] = {{reference, expected}, {table, got}};
    const i64 t = random.below(tokens), b = random.below(blocks);
    for (const auto &[of, result] : both) {
        const Sums sums[] = {{1, false, result.whole.data(), nullptr}, {-8, true, result.halves.data(), result.lows.data()}};
        const Input in = {result.codes.data(), result.scales.data(), tokens, blocks, nullptr, false};
        of.quantize(x.data(), stride, columns, 0, t, 0, blocks, in, sums, 2);
        of.quantize(x.data(), stride, columns, t, tokens, 0, b, in, sums, 2);
        of.quantize(x.data(), stride, columns, t, tokens, b, blocks, in, sums, 2);
    }
    same("scales", expected.scales, got.scales);
    same("codes", expected.codes, got.codes);
    same("sums", expected.whole, got.whole);
    same("sums of halves", expected.halves, got.halves);
    same("sums times their scale", expected.lows, got.lows);
}

} // namespace

void products(const Table &reference, const Table &table) {
    Random random(2);
    for (int32_t kind : {kNibble, kFive, kByte, kBook, kTwo, kThree, kSix})
        for (int i = 0; i < 24; ++i) {
            const bool half = i & 1, minimum = i & 2;
            const int32_t numbers = i / 4;
            const bool nested = numbers >= kBytePairs;
            if ((numbers == kNibblePairs && !minimum) || (numbers == kSixBits && minimum) ||
                (numbers == kPowers && (half || minimum)))
                continue;
            const auto shape = [=](i64 span, i64 rows, i64 columns) {
                return matrix(kind, half, minimum, numbers, span, rows, columns);
            };
            for (i64 span : {1, 2, 8}) {
                if ((half && !nested && span > 1) || (numbers == kPowers && span > 1)) continue;
                if (numbers == kSixBits && (half ? 2 : 1) * span % 4) continue;
                for (i64 tokens : kTokens)
                    quantized_case(reference, table, shape(span, 101, 305), tokens, false, random);
                quantized_case(reference, table, shape(span, 16, 32 * span), 5, true, random);
                quantized_case(reference, table, shape(span, 1, 7), 1, true, random);
            }
            for (i64 tokens : {1, 6}) // more blocks than a panel holds
                quantized_case(reference, table, shape((half && !nested) || numbers == kPowers ? 1 : 8, 17, 4171), tokens,
                               false, random);
        }
}

void plain_products(const Table &reference, const Table &table) {
    Random random(3);
    for (int32_t kind : {kF32, kF16, kBF16})
        for (i64 tokens : kTokens) {
            plain_case(reference, table, kind, 101, 271, tokens, random);
            plain_case(reference, table, kind, 33, 512, tokens, random);
            plain_case(reference, table, kind, 16, 1, tokens, random);
            plain_case(reference, table, kind, 5, 40, tokens, random);
        }
}

void activations(const Table &reference, const Table &table) {
    Random random(4);
    for (i64 columns : {1, 15, 16, 17, 31, 32, 33, 48, 320, 1001})
        for (i64 tokens : {1, 2, 7}) rounding_case(reference, table, columns, tokens, random);
}

void packing(const Table &, const Table &table) {
    Random random(5);
    trying_now("packed rows of q4_0");
    const i64 rows = 35, columns = 320, blocks = columns / kBlock;
    Layout layout;
    layout.columns = columns, layout.row_bytes = blocks * 18, layout.kind = kNibble, layout.group = kBlock;
    layout.width = 4, layout.zero = 8;
    Field codes;
    codes.width = 4, codes.stride = 18 * 8;
    for (int i = 0; i < 32; ++i) codes.offsets.push_back(16 + 8 * (i % 16) + 4 * (i / 16));
    codes.prepare();
    layout.codes = {codes};
    layout.scale.number = kNumberF16;
    layout.scale.at.width = 16, layout.scale.at.stride = 18 * 8, layout.scale.at.offsets = {0};
    Fenced<float> x(rows * columns), decoded(columns), unpacked(columns);
    fill(x, random);
    Fenced<uint8_t> stored(rows * layout.row_bytes), code(columns);
    quantize_q4_0(x.data(), rows * blocks, stored.data());
    Matrix m = packed_shape(layout, rows);
    Fenced<uint8_t> data(m.groups * m.group_bytes);
    m.data = data.data();
    std::memset(m.data, 0, (size_t)data.size());
    pack_rows(m, layout, stored.data(), 0, rows);
    const Activations a(m, 1, false, random);
    Fenced<float> got(rows);
    quantized(table, m, a, nullptr, rows, 0, got);
    for (i64 r = 0; r < rows; ++r) {
        layout.decode(stored.data() + r * layout.row_bytes, decoded.data(), code.data());
        unpack_row(m, r, unpacked.data());
        same("a packed row", decoded, unpacked);
        double sum = 0, size = 0;
        for (i64 c = 0; c < columns; ++c) {
            const double term = (double)decoded[c] * a.codes[c] * a.scales[c / kBlock];
            sum += term, size += std::fabs(term);
        }
        if (!(std::fabs(sum - got[r]) <= 1e-6 * size)) fail("a product is not the sum of the products");
    }
}

} // namespace native
