// Attention over some segments: each kind of mask, cache, slope and window; what no query may see is NaN.
#include "check.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

namespace native {
namespace {

constexpr const char *kTypes[] = {"f32", "f16", "q8_0"};
constexpr Held kHeld[] = {kHeldF32, kHeldF16, kHeldQ8};
constexpr int kTypeCount = 3;

// Number i of a key or value, and the scale that it shares where it is a code.
void put(uint8_t *to, i64 i, uint8_t *scale, Held held, float x, Random &random) {
    const uint16_t half = float_to_half(held == kHeldQ8 && !nan(x) ? 0.02f * random.number() : x);
    if (held == kHeldF32) std::memcpy(to + 4 * i, &x, 4);
    if (held == kHeldF16) std::memcpy(to + 2 * i, &half, 2);
    if (held != kHeldQ8) return;
    std::memcpy(scale, &half, 2);
    to[i] = (uint8_t)(int8_t)(nan(x) ? 0 : 127.0f * x);
}

// One head's segment: keys [4][key_dim][64], values [256][value_stride]; table.h says where scales are.
struct Segment {
    Fenced<uint8_t> k, v;
    Segment(const Attention &a, i64 first, i64 seen, Random &random)
        : k(kSegment * held_bytes(a.k_held, a.key_dim)), v(kSegment * held_bytes(a.v_held, a.value_stride)) {
        for (i64 i = 0; i < kSegment; ++i) {
            const bool hidden = first + i >= seen;
            uint8_t *keys = k.data() + i / kKeys * kKeys * held_bytes(a.k_held, a.key_dim);
            for (i64 d = 0; d < a.key_dim; ++d)
                put(keys, d * kKeys + i % kKeys, keys + a.key_dim * kKeys + 2 * (d / kBlock * kKeys + i % kKeys),
                    a.k_held, hidden ? NAN : random.number(), random);
            uint8_t *scales = v.data() + kSegment * a.value_stride + 2 * i * scale_count(a.value_stride);
            for (i64 d = 0; d < a.value_stride; ++d)
                put(v.data(), i * a.value_stride + d, scales + 2 * (d / kBlock), a.v_held,
                    hidden ? NAN : d < a.value_dim ? random.number() : 0.0f, random);
        }
    }
};

void clear(const Attention &a, const Fenced<float> &states) {
    std::memset(states.data(), 0, (size_t)states.size() * 4);
    for (i64 i = 0; i < states.size(); i += state_size(a)) states[i] = -INFINITY, states[i + 1] = -1.0f;
}

// The results of all queries of one key head, [row][value_dim]: segment upon segment into one state, or each into a
// state of its own that is merged, which must be the same.
void attend(const Table &table, const Attention &a, const std::vector<Query> &queries, const Fenced<float> &q,
            i64 kv_head, const std::vector<std::unique_ptr<Segment>> &segments, i64 from, bool apart,
            const Fenced<float> &out) {
    const i64 rows = (i64)queries.size() * (a.heads / a.kv_heads), size = state_size(a);
    Fenced<float> total(rows * size), part(rows * size);
    clear(a, total);
    for (size_t i = (size_t)from; i < segments.size(); ++i) {
        Fenced<uint8_t> scratch(table.attend_scratch(a, rows), 64);
        const Segment &s = *segments[i];
        if (apart) clear(a, part);
        table.attend(a, queries.data(), (i64)queries.size(), q.data(), a.heads * a.key_dim, kv_head, s.k.data(),
                     s.v.data(), (i64)i * kSegment, (apart ? part : total).data(), scratch.data());
        for (i64 r = 0; apart && r < rows; ++r) table.merge(a, part.data() + r * size, total.data() + r * size);
    }
    for (i64 r = 0; r < rows; ++r) table.finish(a, total.data() + r * size, out.data() + r * a.value_dim);
}

struct Shape { i64 heads, kv_heads, key_dim, value_dim; };
constexpr Shape kShapes[] = {{4, 2, 40, 24}, {3, 3, 64, 64}, {7, 1, 17, 33}};

void one(const Table &reference, const Table &table, int k_type, int v_type, bool slopes, float cap, i64 window,
         Random &random) {
    const Shape &shape = kShapes[random.below(3)];
    const i64 first = random.coin() ? random.below(500) : 250 + random.below(12), count = 1 + random.below(9);
    const bool prefix = random.below(3) == 0; // every query sees all
    trying_now("attention: cache %s and %s, %lld/%lld heads of %lld and %lld, %lld tokens from position %lld%s%s%s%s",
               kTypes[k_type], kTypes[v_type], (long long)shape.heads, (long long)shape.kv_heads,
               (long long)shape.key_dim, (long long)shape.value_dim, (long long)count, (long long)first,
               prefix ? ", prefix" : "", slopes ? ", slopes" : "", cap != 0.0f ? ", soft cap" : "",
               window ? (", window " + std::to_string(window)).c_str() : "");
    Attention a = {};
    a.heads = shape.heads, a.kv_heads = shape.kv_heads, a.key_dim = shape.key_dim, a.value_dim = shape.value_dim;
    a.value_stride = round_up(a.value_dim, 16);
    a.scale = 0.7f, a.soft_cap = cap, a.window = window;
    a.k_held = kHeld[k_type], a.v_held = kHeld[v_type];
    Fenced<float> slope(a.heads);
    for (i64 h = 0; h < a.heads; ++h) slope[h] = 0.1f / (float)(h + 1);
    a.slopes = slopes ? slope.data() : nullptr;
    std::vector<Query> queries;
    i64 row = 0;
    for (i64 i = 0; i < count; ++i) {
        queries.push_back({row, first + i, prefix ? first + count : first + i + 1});
        row += i + 1 < count ? 1 + random.below(2) : 1; // rows between them are not asked for
    }
    Fenced<float> q(row * a.heads * a.key_dim);
    fill(q, random);
    const i64 end = first + count, oldest = window ? std::max<i64>(0, first - window + 1) : 0;
    const i64 rows = count * (a.heads / a.kv_heads);
    for (i64 head = 0; head < a.kv_heads; ++head) {
        std::vector<std::unique_ptr<Segment>> segments;
        for (i64 at = 0; at < end; at += kSegment)
            segments.push_back(std::make_unique<Segment>(a, at, end, random));
        Fenced<float> expected(rows * a.value_dim), got(rows * a.value_dim);
        attend(reference, a, queries, q, head, segments, oldest / kSegment, false, expected);
        for (i64 i = 0; i < expected.size(); ++i)
            if (nan(expected[i])) fail("scalar saw what no query may see");
        for (bool apart : {false, true}) {
            attend(table, a, queries, q, head, segments, oldest / kSegment, apart, got);
            same(apart ? "merged" : "attend", expected, got);
        }
    }
}

} // namespace

void attention(const Table &reference, const Table &table) {
    Random random(6);
    for (int round = 0; round < 5; ++round)
        for (int types = 0; types < kTypeCount * kTypeCount; ++types)
            for (bool slopes : {false, true})
                for (float cap : {0.0f, 2.5f})
                    for (i64 window : {0, 3, 130})
                        one(reference, table, types / kTypeCount, types % kTypeCount, slopes, cap, window, random);
}

} // namespace native
