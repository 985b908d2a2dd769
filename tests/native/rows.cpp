// What is done row by row: functions of a number, norms, rope, conversions.
#include "check.h"

namespace native {
namespace {

using One = void (*)(const float *, float *, i64);
using Two = void (*)(const float *, const float *, float *, i64);

constexpr i64 kWidths[] = {1, 2, 7, 15, 16, 17, 31, 32, 40, 64, 257};

// Into memory of its own, and in place.
void one(const char *name, i64 n, One expected_by, One got_by, Random &random) {
    trying_now("%s of %lld numbers", name, (long long)n);
    Fenced<float> x(n), expected(n), got(n);
    for (int round = 0; round < 4; ++round) {
        if (round < 2) fill(x, random);
        else fill_any(x, random);
        expected_by(x.data(), expected.data(), n), got_by(x.data(), got.data(), n);
        same(name, expected, got);
        got_by(x.data(), x.data(), n);
        same(name, expected, x);
    }
}

void two(const char *name, i64 n, Two expected_by, Two got_by, Random &random) {
    trying_now("%s of %lld numbers", name, (long long)n);
    Fenced<float> x(n), y(n), expected(n), got(n);
    for (int round = 0; round < 4; ++round) {
        if (round < 2) fill(x, random), fill(y, random);
        else fill_any(x, random), fill_any(y, random);
        expected_by(x.data(), y.data(), expected.data(), n), got_by(x.data(), y.data(), got.data(), n);
        same(name, expected, got);
        got_by(x.data(), y.data(), x.data(), n);
        same(name, expected, x);
    }
}

void by_a_number(const Table &reference, const Table &table, i64 n, Random &random) {
    Fenced<float> x(n), expected(n), got(n);
    for (float factor : {1.0f, 0.37f, -50.0f, 1e-39f}) {
        trying_now("%lld numbers with %g", (long long)n, (double)factor);
        fill_any(x, random);
        reference.scale(x.data(), factor, expected.data(), n), table.scale(x.data(), factor, got.data(), n);
        same("scale", expected, got);
        if (factor < 0.1f) continue;
        reference.soft_cap(x.data(), factor, expected.data(), n), table.soft_cap(x.data(), factor, got.data(), n);
        same("soft_cap", expected, got);
    }
}

void conversions(const Table &reference, const Table &table, Random &random) {
    for (i64 n : {i64(1), i64(15), i64(16), i64(33), i64(40000)}) {
        trying_now("%lld numbers to f16", (long long)n);
        Fenced<float> x(n);
        Fenced<uint16_t> expected(n), got(n);
        for (i64 i = 0; i < n; ++i) { // half of them in the range of f16 or close to it
            const uint32_t bits = ((uint32_t)(100 + random.below(46)) << 23 | random.bits() >> 9) ^ random.bits() << 31;
            if (i % 2) x[i] = random.any();
            else std::memcpy(&x[i], &bits, 4);
        }
        reference.to_f16(x.data(), expected.data(), n), table.to_f16(x.data(), got.data(), n);
        same("to_f16", expected, got);
    }
    for (i64 n : {i64(1), i64(15), i64(16), i64(33), i64(65536)}) {
        trying_now("%lld numbers from f16", (long long)n);
        Fenced<uint16_t> x(n);
        Fenced<float> expected(n), got(n);
        for (i64 i = 0; i < n; ++i) x[i] = (uint16_t)(i * (n < 65536 ? 1873 : 1));
        reference.from_f16(x.data(), expected.data(), n), table.from_f16(x.data(), got.data(), n);
        same("from_f16", expected, got);
    }
}

void norms(const Table &reference, const Table &table, i64 group, i64 groups, Random &random) {
    trying_now("%lld groups of %lld numbers", (long long)groups, (long long)group);
    const i64 n = group * groups;
    Fenced<float> x(n), weight(group), bias(group), expected(n), got(n);
    for (int round = 0; round < 5; ++round) {
        if (round < 4) fill(x, random);
        else fill_any(x, random);
        fill(weight, random), fill(bias, random);
        const float *const w = round % 2 ? nullptr : weight.data(), *const b = round % 4 < 2 ? bias.data() : nullptr;
        reference.rms_norm(x.data(), w, expected.data(), n, group, 1e-5f);
        table.rms_norm(x.data(), w, got.data(), n, group, 1e-5f);
        same("rms_norm", expected, got);
        reference.layer_norm(x.data(), w, b, expected.data(), n, group, 1e-6f);
        table.layer_norm(x.data(), w, b, got.data(), n, group, 1e-6f);
        same("layer_norm", expected, got);
        table.layer_norm(x.data(), w, b, x.data(), n, group, 1e-6f);
        same("layer_norm in place", expected, x);
    }
}

void ropes(const Table &reference, const Table &table, const Rope &r, Random &random) {
    trying_now("rope of %lld heads of %lld, columns %lld and %lld more, %s", (long long)r.heads, (long long)r.head_dim,
               (long long)r.start, (long long)r.count, r.halves ? "halves" : "pairs");
    const i64 n = r.heads * r.head_dim;
    Fenced<float> x(n), angles(r.halves ? r.count : 2 * r.count), expected(n), got(n);
    fill(x, random), fill(angles, random);
    reference.rope(r, x.data(), angles.data(), expected.data());
    table.rope(r, x.data(), angles.data(), got.data());
    same("rope", expected, got);
    table.rope(r, x.data(), angles.data(), x.data());
    same("rope in place", expected, x);
}

} // namespace

void rows(const Table &reference, const Table &table) {
    Random random(1);
    for (i64 n : kWidths) {
        one("silu", n, reference.silu, table.silu, random);
        one("gelu_tanh", n, reference.gelu_tanh, table.gelu_tanh, random);
        one("gelu_erf", n, reference.gelu_erf, table.gelu_erf, random);
        two("silu_mul", n, reference.silu_mul, table.silu_mul, random);
        two("add", n, reference.add, table.add, random);
        two("mul", n, reference.mul, table.mul, random);
        by_a_number(reference, table, n, random);
        norms(reference, table, n, 1, random);
        norms(reference, table, n, 3, random);
    }
    for (One Table::*function : {&Table::silu, &Table::gelu_tanh, &Table::gelu_erf})
        one("many numbers", 20000, reference.*function, table.*function, random);
    conversions(reference, table, random);
    for (bool halves : {false, true})
        for (const Rope &r : {Rope{1, 64, 0, 64, false}, Rope{2, 80, 0, 20, false}, Rope{3, 40, 8, 32, false},
                              Rope{2, 96, 32, 64, false}, Rope{3, 6, 2, 2, false}, Rope{1, 34, 0, 34, false}})
            ropes(reference, table, {r.heads, r.head_dim, r.start, r.count, halves}, random);
}

} // namespace native
