// Running the steps: how each is cut into chunks, and what a chunk does.
#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

namespace bestiary {

namespace {

constexpr i64 kChunkBytes = 256 << 10; // weights of a chunk of a linear step
constexpr i64 kFewRows = 8, kFewPairs = 4; // so few tokens: what is done once a chunk, and streams, want longer chunks
constexpr i64 kFar = 128 << 20;       // bytes of weights that no cache holds
constexpr i64 kChunkWork = 16 << 10;  // numbers of a chunk of any other step
constexpr i64 kTogether = 8;          // rows that pass through such steps together: what a core's cache holds

// Steps whose row t needs nothing but row t of what they read.
bool by_rows(const Step &s) {
    return s.op != kLinearQuantized && s.op != kLinearPlain && s.op != kAttend && s.op != kExperts;
}

// About how long a row takes, in numbers copied.
i64 cost(const Step &s) {
    switch (s.op) {
    case kInput: return 0; // written from outside
    case kRopeTable: return s.rope.count * 16;
    case kStore: case kSilu: case kSiluMul: case kGeluTanh: case kGeluErf: case kOrder: return s.width * 4;
    default: return s.width;
    }
}

// More threads than processors are slower; tests that want them nevertheless say so.
int most_threads() { return std::getenv("BESTIARY_OVERSUBSCRIBE") ? 1 << 10 : allowed_cpus(); }

} // namespace

Program::Program(const Table *table, int threads, int threads_prefill)
    : table_(table), threads_(threads), threads_prefill_(threads_prefill) {}

int Program::add_slot(i64 width, bool tail) {
    slots_.push_back({width, round_up(width, 16), tail, nullptr});
    return (int)slots_.size() - 1;
}

int Program::add_cache_layer(const CacheLayer &layer) {
    layers_.push_back(layer);
    return (int)layers_.size() - 1;
}

void Program::add_step(Step s) {
    if (s.op == kLinearQuantized || s.op == kLinearPlain) {
        i64 pairs = 0, largest = 1; // pairs of row groups share a panel
        for (Part &part : s.parts) {
            part.pair0 = pairs;
            part.pair1 = pairs += (part.matrix->groups + 1) / 2;
            largest = std::max(largest, 2 * part.matrix->group_bytes);
            weight_bytes_ += part.matrix->groups * part.matrix->group_bytes;
        }
        s.most_pairs = std::max<i64>(1, kChunkBytes / largest);
    }
    if (s.op == kQuantize) {
        most_blocks_ = std::max(most_blocks_, (s.width + kBlock - 1) / kBlock);
        most_factors_ = std::max(most_factors_, (i64)s.factors.size());
    }
    if (s.op == kPack) most_plain_ = std::max(most_plain_, s.width);
    if (s.op == kRopeTable && (size_t)s.table >= tables_.size()) tables_.resize((size_t)s.table + 1);
    steps_.push_back(std::move(s));
}

void Program::add_experts(Step s, i64 first) {
    s.inner.assign(steps_.begin() + first, steps_.end());
    steps_.resize((size_t)first);
    add_step(std::move(s));
}

template <typename F> void Program::parallel_ranges(i64 chunks, i64 most, F function, bool share) {
    pool_->run(chunks, most,
               [](void *f, i64 first, i64 last, int worker) { (*static_cast<F *>(f))(first, last, worker); }, &function,
               !share ? 1 : tokens_ > 1 ? threads_prefill_ : threads_);
}

template <typename F> void Program::parallel(i64 chunks, F function, bool share) {
    parallel_ranges(chunks, 1, [&](i64 first, i64 last, int worker) {
        for (; first < last; ++first) function(first, worker);
    }, share);
}

void Program::begin(const std::shared_ptr<Cache> &given, i64 tokens, const int32_t *ids, i64 streams, const int32_t *positions,
                    const int32_t *sequences, i64 wanted, const int32_t *which, const i64 *prefixes) {
    if (pool_ && !pool_->alive()) pool_.release(); // after a fork: its threads and their stacks are gone
    if (!pool_) pool_.reset(new Pool(std::min(std::max(threads_, threads_prefill_), most_threads())));
    Cache *cache = given.get();
    end();
    tokens_ = wanted_ = 0; // no slot has rows until all of this has succeeded
    ids_.assign(ids, ids ? ids + tokens : ids);
    positions_.assign(positions, positions + streams * tokens);
    which_.assign(which, which + wanted);
    size_t floats = 0;
    for (const Slot &slot : slots_) {
        floats += (size_t)(slot.stride * (slot.tail ? wanted : tokens)) + 16;
        if (floats > size_t(1) << 46) throw std::bad_alloc(); // long before it could wrap
    }
    arena_.grow(floats * 4);
    float *p = reinterpret_cast<float *>(arena_.data());
    for (Slot &slot : slots_) {
        slot.data = p;
        p += slot.stride * (slot.tail ? wanted : tokens) + 16;
    }
    // Quantized activations, or packed ones: never both at once.
    const i64 most = std::max(tokens, wanted);
    const i64 per_block = kBlock + 4 + 16 * most_factors_;
    const i64 quantized = most_blocks_ * most * per_block, plain = round_up(most_plain_, kSlab) * most * 4;
    codes_.grow((size_t)std::max(quantized, plain) + 64);
    for (const Step &s : steps_)
        if (s.op == kRopeTable) tables_[(size_t)s.table].grow((size_t)(tokens * s.rope.count * 8));

    size_t scratch = 64;
    auto need = [&](const Step &s) {
        for (const Part &part : s.parts)
            scratch = std::max(scratch, (size_t)(s.op == kLinearQuantized ? table_->quantized_scratch(*part.matrix, most)
                                                                          : table_->plain_scratch(*part.matrix, most)));
        if (s.op == kAttend) {
            const i64 group = s.attention.heads / s.attention.kv_heads;
            const i64 rows = std::max<i64>(1, table_->attention_rows / group) * group;
            scratch = std::max(scratch, (size_t)(table_->attend_scratch(s.attention, rows) +
                                                 rows * state_size(s.attention) * 4 + 64));
        }
        if (s.op == kStore) scratch = std::max(scratch, (size_t)(2 * (s.attention.key_dim + 16)));
    };
    for (const Step &s : steps_) {
        need(s);
        for (const Step &inner : s.inner) need(inner);
    }
    for (const Step &s : steps_)
        if (s.op == kEmbed && s.layout) scratch = std::max(scratch, (size_t)s.width);
    pool_->reserve(scratch);

    place_.resize((size_t)tokens);
    sequence_of_.assign(sequences, sequences + tokens);
    queries_.clear(), spans_.clear();
    std::vector<i64> added((size_t)cache->sequences(), 0);
    for (i64 t = 0; t < tokens; ++t) place_[(size_t)t] = cache->length(sequences[t]) + added[(size_t)sequences[t]]++;
    std::vector<i64> start((size_t)cache->sequences(), 0);
    for (i64 sequence = 0, first = 0; sequence < cache->sequences(); ++sequence) {
        start[(size_t)sequence] = first;
        const i64 count = added[(size_t)sequence];
        if (!count) continue;
        cache->reserve(sequence, cache->length(sequence) + count);
        spans_.push_back({sequence, first, count});
        first += count;
    }
    queries_.resize((size_t)tokens);
    for (i64 t = 0; t < tokens; ++t) {
        const i64 place = place_[(size_t)t], prefix = prefixes[sequences[t]];
        queries_[(size_t)start[(size_t)sequences[t]]++] = {t, place, place < prefix ? prefix : place + 1};
    }
    choose_wanted();
    tokens_ = tokens, wanted_ = wanted, cache_ = given, version_ = cache->version;
}

// The wanted tokens' queries, by sequence and position; their rows are those of the tail.
void Program::choose_wanted() {
    std::vector<i64> rank(queries_.size()); // of each token
    for (size_t i = 0; i < queries_.size(); ++i) rank[(size_t)queries_[i].row] = (i64)i;
    std::vector<std::pair<i64, i64>> order; // (rank, row): a token may be wanted twice
    for (size_t i = 0; i < which_.size(); ++i) order.push_back({rank[(size_t)which_[i]], (i64)i});
    std::sort(order.begin(), order.end());
    wanted_queries_.clear(), wanted_spans_.clear();
    for (const auto &one : order) {
        Query query = queries_[(size_t)one.first];
        const i64 sequence = sequence_of_[(size_t)query.row];
        if (wanted_spans_.empty() || wanted_spans_.back().sequence != sequence)
            wanted_spans_.push_back({sequence, (i64)wanted_queries_.size(), 0});
        ++wanted_spans_.back().count;
        query.row = one.second;
        wanted_queries_.push_back(query);
    }
}

void Program::commit() {
    for (const Span &span : spans_) cache_->set_length(span.sequence, cache_->length(span.sequence) + span.count);
    ++cache_->version;
    end();
}

void Program::read_slot(int slot, float *to) const {
    const i64 width = slot_width(slot);
    for (i64 t = 0; t < slot_rows(slot); ++t) std::memcpy(to + t * width, at(slot, t), (size_t)width * 4);
}

void Program::write_slot(int slot, const float *from) {
    const i64 width = slot_width(slot);
    for (i64 t = 0; t < slot_rows(slot); ++t) std::memcpy(at(slot, t), from + t * width, (size_t)width * 4);
}

int Program::run(i64 from, i64 to, int (*check)(void *), void *argument) {
    auto asked = std::chrono::steady_clock::now();
    for (i64 i = from; i < to;) {
        i = execute(steps_, i, to);
        if (check) {
            const auto now = std::chrono::steady_clock::now();
            if (now - asked > std::chrono::milliseconds(20)) {
                asked = now;
                if (check(argument)) return -1;
            }
        }
    }
    return 0;
}

// Runs step i, and those after it that work on the same rows, row by row; returns the number of the next one.
i64 Program::execute(const std::vector<Step> &steps, i64 i, i64 to) {
    const Step &s = steps[(size_t)i];
    const i64 rows = rows_of(s);
    if (by_rows(s)) {
        i64 end = i + 1; // one step at most may write the codes that the next product reads
        for (; end < to && by_rows(steps[(size_t)end]) && steps[(size_t)end].tail == s.tail; ++end) {
            const int32_t last = steps[(size_t)end - 1].op;
            if (last == kQuantize || last == kPack) break;
        }
        rows_steps(&s, end - i, rows);
        return end;
    }
    if (s.op == kAttend) attend(s);
    else if (s.op == kExperts) experts(s, rows);
    else linear(s, rows);
    return i + 1;
}

// Steps that do each row alone: a thread takes a few rows through all of them while its cache holds them.
void Program::rows_steps(const Step *steps, i64 count, i64 rows) {
    i64 work = 0;
    for (i64 i = 0; i < count; ++i) {
        work += rows * cost(steps[i]);
        if (steps[i].op == kQuantize) place_codes(steps[i], rows);
        if (steps[i].op == kPack) packed_ = reinterpret_cast<float *>(codes_.data());
    }
    const i64 chunks = std::max<i64>(1, std::min(rows, work / kChunkWork));
    parallel(chunks, [&](i64 chunk, int worker) {
        const i64 last = rows * (chunk + 1) / chunks;
        for (i64 t = rows * chunk / chunks; t < last; t += kTogether) {
            const i64 end = std::min(last, t + kTogether);
            for (i64 i = 0; i < count; ++i) some_rows(steps[i], t, end, worker);
        }
    });
}

void Program::some_rows(const Step &s, i64 t, i64 end, int worker) {
    if (s.op == kInput) return;
    if (s.op == kStore) return store(s, t, end, worker);
    if (s.op == kQuantize)
        return table_->quantize(at(s.a, 0), slots_[(size_t)s.a].stride, s.width, t, end, 0, input_.blocks, input_,
                                sums_.data(), (i64)sums_.size());
    for (; t < end; ++t) row(s, t, worker);
}

void Program::row(const Step &s, i64 t, int worker) {
    const i64 n = s.width;
    const float *x = at(s.a, t);
    float *out = at(s.out, t);
    switch (s.op) {
    case kEmbed: {
        const i64 r = s.by_position ? positions_[(size_t)t] : ids_[(size_t)t];
        if (s.matrix) unpack_row(*s.matrix, r, out);
        else s.layout->decode(s.rows + r * s.layout->row_bytes, out, pool_->scratch(worker));
        break;
    }
    case kGather: std::memcpy(out, at(s.a, which_[(size_t)t]), (size_t)n * 4); break;
    case kRopeTable: {
        const i64 pairs = s.rope.count / 2;
        float *table = reinterpret_cast<float *>(tables_[(size_t)s.table].data()) + t * s.rope.count * 2;
        const double position = positions_[(size_t)(s.stream * tokens_ + t)];
        for (i64 j = 0; j < pairs; ++j) {
            const double angle = position * s.frequencies[(size_t)j];
            const float c = (float)(std::cos(angle) * s.magnitude), v = (float)(std::sin(angle) * s.magnitude);
            if (s.rope.halves) {
                table[j] = c, table[pairs + j] = v;
            } else {
                table[2 * j] = table[2 * j + 1] = c;
                table[2 * pairs + 2 * j] = -v, table[2 * pairs + 2 * j + 1] = v;
            }
        }
        break;
    }
    case kRope:
        table_->rope(s.rope, x, reinterpret_cast<float *>(tables_[(size_t)s.table].data()) +
                                    (s.tail ? which_[(size_t)t] : t) * s.rope.count * 2, out);
        break;
    case kPack: {
        const i64 rows = rows_of(s);
        for (i64 c = 0; c < n; c += kSlab)
            std::memcpy(packed_ + c * rows + t * kSlab, x + c, (size_t)std::min(kSlab, n - c) * 4);
        break;
    }
    case kRmsNorm: table_->rms_norm(x, s.weight, out, n, s.group, s.number); break;
    case kLayerNorm: table_->layer_norm(x, s.weight, s.bias, out, n, s.group, s.number); break;
    case kSilu: table_->silu(x, out, n); break;
    case kSiluMul: table_->silu_mul(x, at(s.b, t), out, n); break;
    case kGeluTanh: table_->gelu_tanh(x, out, n); break;
    case kGeluErf: table_->gelu_erf(x, out, n); break;
    case kAdd: table_->add(x, at(s.b, t), out, n); break;
    case kMul: table_->mul(x, at(s.b, t), out, n); break;
    case kScale: table_->scale(x, s.number, out, n); break;
    case kSlice: std::memcpy(out, x + s.start, (size_t)n * 4); break;
    case kSoftCap: table_->soft_cap(x, s.number, out, n); break;
    case kOrder: {
        const int32_t *from = s.columns.data();
        for (i64 i = 0; i < n; ++i) out[i] = x[from[i]];
        break;
    }
    default: break;
    }
}

// Where the codes of a quantize step go.
void Program::place_codes(const Step &s, i64 rows) {
    const i64 blocks = (s.width + kBlock - 1) / kBlock;
    uint8_t *p = codes_.data();
    input_ = {reinterpret_cast<int8_t *>(p), reinterpret_cast<float *>(p + blocks * rows * kBlock), rows, blocks,
              nullptr, weight_bytes_ > kFar};
    int32_t *values = reinterpret_cast<int32_t *>(input_.scales + blocks * rows);
    sums_.clear();
    for (const auto &factor : s.factors) {
        const i64 count = blocks * rows * (factor.second ? 2 : 1);
        const bool alone = factor.first == 1; // what minimums need
        float *const lows = alone ? reinterpret_cast<float *>(values + count) : nullptr;
        sums_.push_back({factor.first, factor.second, values, lows});
        values += alone ? 2 * count : count;
    }
}

void Program::linear(const Step &s, i64 rows) {
    if (!rows) return;
    const i64 most = rows <= kFewRows ? std::max(s.most_pairs, kFewPairs) : s.most_pairs;
    parallel_ranges(s.parts.back().pair1, most, [&](i64 first, i64 last, int worker) {
        uint8_t *scratch = pool_->scratch(worker);
        for (const Part &part : s.parts) {
            const i64 g0 = 2 * (std::max(first, part.pair0) - part.pair0);
            const i64 g1 = std::min(part.matrix->groups, 2 * (std::min(last, part.pair1) - part.pair0));
            if (g0 >= g1) continue;
            float *out = at(part.slot, 0);
            const i64 stride = slots_[(size_t)part.slot].stride;
            if (s.op == kLinearQuantized) {
                Input in = input_;
                in.lows = sums_[(size_t)part.sums].lows;
                table_->linear_quantized(*part.matrix, in, sums_[(size_t)part.correction].values,
                                         sums_[(size_t)part.sums].values, g0, g1, part.bias, out, stride, scratch);
            } else table_->linear_plain(*part.matrix, packed_, rows, g0, g1, part.bias, out, stride, scratch);
        }
    });
}

// Which experts each row goes to, and with what weight: the largest logits, the first of equal ones.
void Program::route(const Step &s, i64 rows) {
    const size_t count = s.ends.size();
    shares_.resize(std::max(shares_.size(), count));
    for (auto &list : shares_) list.clear();
    std::vector<double> odds(count);
    std::vector<bool> taken(count);
    std::vector<size_t> best((size_t)s.top);
    for (i64 t = 0; t < rows; ++t) {
        const float *logits = at(s.b, t);
        const double most = *std::max_element(logits, logits + count);
        double all = 0, chosen = 0;
        for (size_t e = 0; e < count; ++e) all += odds[e] = std::exp((double)logits[e] - most); // NaN spreads to all
        taken.assign(count, false);
        for (size_t &place : best) {
            place = count;
            for (size_t e = 0; e < count; ++e)
                if (!taken[e] && (place == count || logits[e] > logits[place])) place = e;
            taken[place] = true;
            chosen += odds[place];
        }
        if (all != all) chosen = all;
        for (size_t e : best) shares_[e].push_back({t, (float)(odds[e] / (s.normalise ? chosen : all))});
    }
}

// Expert by expert: each row's results are added in the order of the experts, whatever the batch.
void Program::experts(const Step &s, i64 rows) {
    route(s, rows);
    for (i64 t = 0; t < rows; ++t) std::memset(at(s.out, t), 0, (size_t)s.width * 4);
    for (size_t e = 0; e < s.ends.size(); ++e) {
        const std::vector<Share> &list = shares_[e];
        const i64 count = (i64)list.size();
        if (!count) continue;
        const i64 chunks = std::max<i64>(1, std::min(count, count * s.width / kChunkWork));
        auto each = [&](auto one) {
            parallel(chunks, [&](i64 chunk, int) {
                for (i64 i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) one(i, list[(size_t)i]);
            });
        };
        each([&](i64 i, const Share &share) { std::memcpy(at(s.c, i), at(s.a, share.row), (size_t)s.width * 4); });
        inner_rows_ = count;
        for (i64 i = e ? s.ends[e - 1] : 0; i < s.ends[e];) i = execute(s.inner, i, s.ends[e]);
        inner_rows_ = -1;
        each([&](i64 i, const Share &share) {
            float *y = at(s.result, i), *out = at(s.out, share.row);
            table_->scale(y, share.weight, y, s.width);
            table_->add(out, y, out, s.width);
        });
    }
}

// Appends the keys (slot a) and values (slot b) of tokens t..end-1 to the cache.
void Program::store(const Step &s, i64 t, i64 end, int worker) {
    const CacheLayer &l = cache_->layers()[(size_t)s.cache];
    uint16_t *halves = reinterpret_cast<uint16_t *>(pool_->scratch(worker));
    for (; t < end; ++t) {
        const i64 place = place_[(size_t)t], in = place % kSegment;
        uint8_t *segment = cache_->segment(sequence_of_[(size_t)t], place / kSegment);
        for (i64 h = 0; h < l.kv_heads; ++h) {
            uint8_t *k = segment + l.k_at + (size_t)h * l.k_bytes, *v = segment + l.v_at + (size_t)h * l.v_bytes;
            k += in / kKeys * kKeys * held_bytes(l.k_held, l.key_dim);
            store_key(l, at(s.a, t) + h * l.key_dim, k, in % kKeys, halves);
            store_value(l, at(s.b, t) + h * l.value_dim, v, in);
        }
    }
}

// One head's key into lane `lane` of a block of 64.
void Program::store_key(const CacheLayer &l, const float *k, uint8_t *block, i64 lane, uint16_t *halves) const {
    if (l.k_held == kHeldF16) {
        uint16_t *o = reinterpret_cast<uint16_t *>(block) + lane;
        table_->to_f16(k, halves, l.key_dim);
        for (i64 d = 0; d < l.key_dim; ++d) o[d * kKeys] = halves[d];
    } else if (l.k_held == kHeldQ8) {
        int8_t *o = reinterpret_cast<int8_t *>(block) + lane, codes[kBlock];
        uint16_t *scales = reinterpret_cast<uint16_t *>(block + l.key_dim * kKeys) + lane;
        for (i64 d = 0; d < l.key_dim; d += kBlock, scales += kKeys) {
            const i64 count = std::min(kBlock, l.key_dim - d);
            *scales = quantize_block(k + d, count, codes);
            for (i64 i = 0; i < count; ++i) o[(d + i) * kKeys] = codes[i];
        }
    } else {
        float *o = reinterpret_cast<float *>(block) + lane;
        for (i64 d = 0; d < l.key_dim; ++d) o[d * kKeys] = k[d];
    }
}

// One head's value into row `row` of its segment.
void Program::store_value(const CacheLayer &l, const float *v, uint8_t *segment, i64 row) const {
    if (l.v_held == kHeldF16) {
        table_->to_f16(v, reinterpret_cast<uint16_t *>(segment) + row * l.value_stride, l.value_dim);
    } else if (l.v_held == kHeldQ8) {
        int8_t *codes = reinterpret_cast<int8_t *>(segment) + row * l.value_stride;
        uint16_t *scales = reinterpret_cast<uint16_t *>(segment + kSegment * l.value_stride) +
                           row * scale_count(l.value_stride);
        for (i64 d = 0; d < l.value_dim; d += kBlock)
            *scales++ = quantize_block(v + d, std::min(kBlock, l.value_dim - d), codes + d);
    } else {
        std::memcpy(reinterpret_cast<float *>(segment) + row * l.value_stride, v, (size_t)l.value_dim * 4);
    }
}

void Program::attend(const Step &s) {
    Attention a = s.attention;
    a.slopes = s.slopes.empty() ? nullptr : s.slopes.data();
    const CacheLayer &l = cache_->layers()[(size_t)s.cache];
    const i64 group = a.heads / a.kv_heads, size = state_size(a), stride = slots_[(size_t)s.a].stride;
    const i64 per_tile = std::max<i64>(1, table_->attention_rows / group);
    std::vector<Tile> tiles;
    i64 pieces = 0; // (tile, segment) pairs
    i64 work = 0;   // multiply-adds
    const std::vector<Query> &queries = s.tail ? wanted_queries_ : queries_;
    for (const Span &span : s.tail ? wanted_spans_ : spans_)
        for (i64 i = 0; i < span.count; i += per_tile) {
            Tile tile = {span.sequence, span.first + i, std::min(per_tile, span.count - i), 0, 0};
            const Query *q = &queries[(size_t)tile.first];
            i64 visible = 0;
            for (i64 j = 0; j < tile.count; ++j) visible = std::max(visible, q[j].visible);
            if (a.window > 0) tile.segment0 = std::max<i64>(0, q[0].position - a.window + 1) / kSegment;
            tile.segment1 = (visible + kSegment - 1) / kSegment;
            pieces += tile.segment1 - tile.segment0;
            work += tile.count * visible * a.heads * (a.key_dim + a.value_dim);
            tiles.push_back(tile);
        }
    const i64 tasks = (i64)tiles.size() * a.kv_heads, threads = tokens_ > 1 ? threads_prefill_ : threads_;
    auto one = [&](const Tile &tile, i64 head, i64 segment, float *state, uint8_t *scratch) {
        const uint8_t *data = cache_->segment(tile.sequence, segment);
        table_->attend(a, &queries[(size_t)tile.first], tile.count, at(s.a, 0), stride, head,
                       data + l.k_at + (size_t)head * l.k_bytes, data + l.v_at + (size_t)head * l.v_bytes,
                       segment * kSegment, state, scratch);
    };
    auto clear = [&](float *state, i64 rows) {
        for (i64 r = 0; r < rows; ++r) {
            std::memset(state + r * size, 0, (size_t)size * 4);
            state[r * size] = -INFINITY, state[r * size + 1] = -1.0f;
        }
    };
    auto put = [&](const Tile &tile, i64 head, const float *state) {
        for (i64 r = 0; r < tile.count * group; ++r)
            table_->finish(a, state + r * size, at(s.out, queries[(size_t)(tile.first + r / group)].row) +
                                                    (head * group + r % group) * a.value_dim);
    };
    if (threads == 1 || tasks >= 4 * threads || pieces == (i64)tiles.size()) {
        // The longest come last in a prompt: hand them out first.
        parallel(tasks, [&](i64 task, int worker) {
            const i64 i = tasks - 1 - task;
            const Tile &tile = tiles[(size_t)(i / a.kv_heads)];
            const i64 head = i % a.kv_heads, rows = tile.count * group;
            float *state = reinterpret_cast<float *>(pool_->scratch(worker));
            clear(state, rows);
            uint8_t *scratch = reinterpret_cast<uint8_t *>(state + rows * size);
            for (i64 segment = tile.segment0; segment < tile.segment1; ++segment) one(tile, head, segment, state, scratch);
            put(tile, head, state);
        }, work > 2 * kChunkWork);
        return;
    }
    // Few tokens and many keys: every segment is a task of its own; then they are merged in order.
    struct Piece { size_t tile; i64 segment; };
    std::vector<Piece> list;
    std::vector<i64> first;
    for (size_t i = 0; i < tiles.size(); ++i) {
        first.push_back((i64)list.size());
        for (i64 segment = tiles[i].segment0; segment < tiles[i].segment1; ++segment) list.push_back({i, segment});
    }
    const i64 room = per_tile * group * size; // of a piece and key head
    states_.grow((size_t)(pieces * a.kv_heads * room) * 4);
    float *states = reinterpret_cast<float *>(states_.data());
    parallel(pieces * a.kv_heads, [&](i64 task, int worker) {
        const Piece &piece = list[(size_t)(task / a.kv_heads)];
        const Tile &tile = tiles[piece.tile];
        float *state = states + task * room;
        clear(state, tile.count * group);
        one(tile, task % a.kv_heads, piece.segment, state, pool_->scratch(worker));
    });
    for (size_t i = 0; i < tiles.size(); ++i) {
        const Tile &tile = tiles[i];
        for (i64 head = 0; head < a.kv_heads; ++head) {
            float *total = states + (first[i] * a.kv_heads + head) * room;
            for (i64 j = 1; j < tile.segment1 - tile.segment0; ++j)
                for (i64 r = 0; r < tile.count * group; ++r)
                    table_->merge(a, states + ((first[i] + j) * a.kv_heads + head) * room + r * size, total + r * size);
            put(tile, head, total);
        }
    }
}

} // namespace bestiary
