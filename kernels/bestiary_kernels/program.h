// A forward pass as a list of steps over slots of activations, run on a thread pool without entering Python.
#pragma once
#include "cache.h"
#include "layout.h"
#include "pool.h"

#include <algorithm>
#include <memory>

namespace bestiary {

enum Op : int32_t {
    kInput, kEmbed, kGather, kRopeTable, kRope, kQuantize, kLinearQuantized, kPack, kLinearPlain, kRmsNorm, kLayerNorm,
    kStore, kAttend, kSilu, kSiluMul, kGeluTanh, kGeluErf, kAdd, kMul, kScale, kSlice, kSoftCap, kExperts,
    kOrder
};

// One matrix of a linear step.
struct Part {
    const Matrix *matrix = nullptr;
    const float *bias = nullptr;
    int slot = 0, correction = 0, sums = 0; // indices into the quantize step's list of factors
    i64 pair0 = 0, pair1 = 0;               // its pairs of row groups among those of the step
};

struct Step {
    int32_t op = kInput;
    int a = 0, b = 0, c = 0, out = 0; // slots
    bool tail = false;                // runs over the wanted tokens instead of all
    i64 width = 0, group = 0, start = 0;
    float number = 0.0f; // eps, factor or cap
    std::vector<int32_t> columns; // order: where each column comes from
    const float *weight = nullptr, *bias = nullptr;
    // embed: one of the two, and what chooses the row
    const Matrix *matrix = nullptr;
    const Layout *layout = nullptr;
    const uint8_t *rows = nullptr;
    bool by_position = false;
    // rope and its table
    Rope rope = {};
    int table = 0, stream = 0;
    double magnitude = 1.0;
    std::vector<double> frequencies;
    // linear
    std::vector<Part> parts;
    i64 most_pairs = 1; // that a thread takes at a time
    std::vector<std::pair<int32_t, bool>> factors; // quantize: (factor, by halves)
    // attention
    Attention attention = {};
    std::vector<float> slopes;
    int cache = 0; // which layer of the cache
    bool prefix = false;
    // experts: the rows of each one's tokens go to slot c; its steps are inner[ends[e - 1]] .. inner[ends[e] - 1], and
    // leave their result in slot `result`. b: the router's logits.
    std::vector<Step> inner;
    std::vector<i64> ends;
    int result = 0;
    i64 top = 0;
    bool normalise = false;
};

class Program {
  public:
    Program(const Table *table, int threads, int threads_prefill);
    int add_slot(i64 width, bool tail);
    void add_step(Step step);
    // The steps from `first` on become the inner ones of this.
    void add_experts(Step step, i64 first);
    int add_cache_layer(const CacheLayer &layer);
    const std::vector<CacheLayer> &cache_layers() const { return layers_; }
    bool accepts(const Cache &cache) const { return cache.layers() == layers_; }
    i64 steps() const { return (i64)steps_.size(); }
    const Table *table() const { return table_; }

    // Starts a forward: sizes all slots. Everything has been checked: ids, positions, sequences, room in the cache.
    // Where memory does not suffice, no forward is begun.
    void begin(const std::shared_ptr<Cache> &cache, i64 tokens, const int32_t *ids, i64 streams, const int32_t *positions,
               const int32_t *sequences, i64 wanted, const int32_t *which, const i64 *prefixes);
    // Runs steps from..to-1; -1 as soon as `check`, asked every 20 ms or so between steps, is not 0.
    int run(i64 from, i64 to, int (*check)(void *), void *argument);
    void commit(); // the cache now holds the tokens
    void end() { cache_.reset(); }
    // Null where no forward was begun, or where the cache was changed since.
    Cache *cache() const { return cache_ && cache_->version == version_ ? cache_.get() : nullptr; }
    int threads() const { return pool_ ? pool_->threads() : std::max(threads_, threads_prefill_); }
    i64 slot_rows(int slot) const { return slots_[(size_t)slot].tail ? wanted_ : tokens_; }
    i64 slot_width(int slot) const { return slots_[(size_t)slot].width; }
    bool slot_tail(int slot) const { return slots_[(size_t)slot].tail; }
    i64 slots() const { return (i64)slots_.size(); }
    void read_slot(int slot, float *to) const;
    void write_slot(int slot, const float *from);
    i64 activation_bytes() const { return (i64)arena_.size(); }

  private:
    struct Slot {
        i64 width, stride;
        bool tail;
        float *data;
    };
    struct Tile { // queries first..first+count-1 of one sequence, and the segments that they see
        i64 sequence, first, count, segment0, segment1;
    };
    void choose_wanted();
    i64 execute(const std::vector<Step> &steps, i64 i, i64 to);
    void rows_steps(const Step *steps, i64 count, i64 rows);
    void some_rows(const Step &s, i64 t, i64 end, int worker);
    void row(const Step &s, i64 t, int worker);
    void place_codes(const Step &s, i64 rows);
    void linear(const Step &s, i64 rows);
    void store(const Step &s, i64 t, i64 end, int worker);
    void store_key(const CacheLayer &l, const float *k, uint8_t *block, i64 lane, uint16_t *halves) const;
    void store_value(const CacheLayer &l, const float *v, uint8_t *segment, i64 row) const;
    void attend(const Step &s);
    void route(const Step &s, i64 rows);
    void experts(const Step &s, i64 rows);
    i64 rows_of(const Step &s) const { return inner_rows_ >= 0 ? inner_rows_ : s.tail ? wanted_ : tokens_; }
    template <typename F> void parallel(i64 chunks, F function, bool share = true);
    template <typename F> void parallel_ranges(i64 chunks, i64 most, F function, bool share = true);
    float *at(int slot, i64 t) const { return slots_[(size_t)slot].data + t * slots_[(size_t)slot].stride; }

    const Table *table_;
    int threads_, threads_prefill_;
    std::unique_ptr<Pool> pool_;
    std::vector<Slot> slots_;
    std::vector<Step> steps_;
    std::vector<CacheLayer> layers_;
    Memory arena_, codes_, states_;
    std::vector<Memory> tables_;
    i64 weight_bytes_ = 0; // of all steps together
    // the largest of any step
    i64 most_blocks_ = 0, most_factors_ = 0, most_plain_ = 0;

    // the forward that runs
    std::shared_ptr<Cache> cache_; // kept alive until the forward ends
    i64 version_ = 0;
    i64 tokens_ = 0, wanted_ = 0;
    std::vector<int32_t> ids_, positions_, which_;
    std::vector<i64> place_;       // position of a token in the cache
    std::vector<i64> sequence_of_;
    struct Span { i64 sequence, first, count; };
    std::vector<Query> queries_, wanted_queries_; // sorted by sequence and position
    std::vector<Span> spans_, wanted_spans_;
    Input input_ = {};
    std::vector<Sums> sums_;
    float *packed_ = nullptr;
    i64 inner_rows_ = -1; // of the expert that is at work
    struct Share { i64 row; float weight; };
    std::vector<std::vector<Share>> shares_; // of each expert
};

} // namespace bestiary
