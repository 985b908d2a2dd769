// The structs that every instruction set's kernels share, and the table of function pointers that each of them fills.
#pragma once
#include <cstdint>

// What the instruction sets' source files share must never become a function of its own: the linker would keep one
// copy, perhaps the one with instructions that this machine lacks.
#if defined(_MSC_VER)
#define BESTIARY_INLINE __forceinline
#else
#define BESTIARY_INLINE inline __attribute__((always_inline))
#endif

namespace bestiary {

using i64 = int64_t;

constexpr i64 kLanes = 16;    // output rows that are interleaved
constexpr i64 kBlock = 32;    // columns that share an activation scale
constexpr i64 kSlab = 256;    // columns of a partial sum of unquantized weights
constexpr i64 kKeys = 64;     // keys of a step of the online softmax
constexpr i64 kSegment = 256; // positions after which attention may be split

// Codes of up to 4 bits, of 5, of up to 8, of up to 4 bits that are places in a codebook, of up to 2, of 3, of 6; then
// plain numbers.
enum Kind : int32_t {
    kNibble = 0, kFive = 1, kByte = 2, kBook = 3, kTwo = 4, kThree = 5, kSix = 6, kF32 = 7, kF16 = 8, kBF16 = 9
};
constexpr int64_t code_bytes_of(int32_t kind) { // of 32 columns of sixteen rows
    return kind == kByte ? 512 : kind == kSix ? 384 : kind == kFive ? 320 : kind == kThree ? 192 : kind == kTwo ? 128
                                                                                                    : 256;
}

// Scales and minimums of a header: f16 or f32 each; one f16 a row for the whole span, and with it an integer a group:
// signed bytes, scale and minimum as the halves of a byte, or scales alone of 6 bits; or powers of two, a byte each.
enum Numbers : int32_t { kHalves = 0, kSingles = 1, kBytePairs = 2, kNibblePairs = 3, kSixBits = 4, kPowers = 5 };
constexpr int64_t kSpread = 8 * 4 * 16; // numbers of the longest span that `spread` writes
// Bytes of a header with that many scales a row, and as many minimums or none.
constexpr int64_t header_bytes(int32_t numbers, int64_t scales, bool minimum) {
    const int64_t each = minimum ? 2 : 1, super = 2 * each; // of a row
    return 16 * (numbers == kHalves ? 2 * scales * each : numbers == kSingles ? 4 * scales * each
               : numbers == kPowers ? scales : numbers == kSixBits ? super + scales * 3 / 4
               : super + scales * (numbers == kBytePairs ? each : 1));
}

// How keys and values are held: as numbers, or as signed bytes of which up to 32 of a head share an f16 scale.
enum Held : int32_t { kHeldF32 = 0, kHeldF16 = 1, kHeldQ8 = 2 };

// A packed weight; docs/kernels.md has the byte offsets.
struct Matrix {
    uint8_t *data;
    i64 rows, columns;
    i64 groups;      // of 16 rows
    i64 blocks;      // of 32 columns; 0 for unquantized weights
    i64 group_bytes; // bytes of 16 rows
    i64 span;        // blocks that share a header
    i64 header;      // its bytes
    i64 code_bytes;  // bytes of a block's codes
    int32_t kind;
    int32_t zero;    // weight = scale * (code - zero) + minimum
    int32_t numbers; // how a header holds scales and minimums
    float factor;    // of powers of two
    bool half;       // every 16 columns have a scale
    bool minimum;
    uint8_t book[16]; // what the codes of kBook stand for, moved up by 128

    // Where the header of block b's span begins within a row group, and its codes.
    BESTIARY_INLINE i64 header_at(i64 b) const { return b / span * (header + span * code_bytes); }
    // Whether `spread` turns headers into f32.
    BESTIARY_INLINE bool nested() const { return numbers >= kBytePairs; }
    BESTIARY_INLINE i64 codes_at(i64 b) const { return header_at(b) + header + b % span * code_bytes; }
    // Column k of a row, among a block's codes.
    BESTIARY_INLINE int32_t code_at(const uint8_t *block, i64 lane, i64 k) const {
        const uint8_t *p = block + lane * 4 + k % 4;
        if (kind == kByte) return p[k / 4 * 64];
        const i64 two = k / 4 % 2 * 64, shift = k / 8 * 2; // of two bits
        if (kind == kTwo) return p[two] >> shift & 3;
        if (kind == kThree) return (p[two] >> shift & 3) | (p[128] >> (k / 4) & 1) << 2;
        const int32_t low = p[k / 4 % 4 * 64] >> (k >= 16 ? 4 : 0) & 15;
        if (kind == kBook) return book[low];
        if (kind == kSix) return low | (p[256 + two] >> shift & 3) << 4;
        return kind == kFive ? low | (p[256] >> (k / 4) & 1) << 4 : low;
    }
};

// Activations in blocks of 32 int8, [block][token][32], and their scales, [block][token].
struct Input {
    int8_t *codes;
    float *scales;
    i64 tokens, blocks;
    const float *lows; // what minimums are multiplied by, of a matrix that has them: from Sums
    bool far; // the weights are more than caches hold: one token reads several streams of them
};

// factor * (sum of a block's activation codes), [block][token], or [2 * block + half][token] for halves.
struct Sums {
    int32_t factor;
    bool half;
    int32_t *values;
    float *lows; // the sum * the activations' scale, or null
};

struct Rope {
    i64 heads, head_dim, start, count;
    bool halves;
};

// What one thread needs to attend with the query heads of one key head of one sequence.
struct Attention {
    i64 heads, kv_heads, key_dim, value_dim;
    i64 value_stride; // value_dim rounded up to 16
    float scale, soft_cap;
    i64 window;          // 0: none
    const float *slopes; // of all heads, or null
    Held k_held, v_held;
};

// A token whose query is asked for: where its row is, its position in the cache, and how many keys it may see.
struct Query {
    i64 row, position, visible;
};

struct Table {
    const char *name;
    i64 attention_rows; // query rows (tokens x heads) that one call handles well

    // Activations of tokens t0..t1-1 and blocks b0..b1-1, x is [token][stride].
    void (*quantize)(const float *x, i64 stride, i64 columns, i64 t0, i64 t1, i64 b0, i64 b1, const Input &in,
                     const Sums *sums, i64 count);
    // Row groups g0..g1-1 for all tokens: out[token * stride + row].
    void (*linear_quantized)(const Matrix &m, const Input &in, const int32_t *correction, const int32_t *sums, i64 g0,
                             i64 g1, const float *bias, float *out, i64 stride, uint8_t *scratch);
    i64 (*quantized_scratch)(const Matrix &m, i64 tokens);
    // The same for unquantized weights; x is [slab][token][256].
    void (*linear_plain)(const Matrix &m, const float *x, i64 tokens, i64 g0, i64 g1, const float *bias, float *out,
                         i64 stride, uint8_t *scratch);
    i64 (*plain_scratch)(const Matrix &m, i64 tokens);

    void (*rms_norm)(const float *x, const float *weight, float *out, i64 width, i64 group, float eps);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float *out, i64 width, i64 group,
                       float eps);
    void (*rope)(const Rope &r, const float *x, const float *table, float *out);
    void (*silu)(const float *x, float *out, i64 n);
    void (*silu_mul)(const float *x, const float *y, float *out, i64 n);
    void (*gelu_tanh)(const float *x, float *out, i64 n);
    void (*gelu_erf)(const float *x, float *out, i64 n);
    void (*add)(const float *x, const float *y, float *out, i64 n);
    void (*mul)(const float *x, const float *y, float *out, i64 n);
    void (*scale)(const float *x, float factor, float *out, i64 n);
    void (*soft_cap)(const float *x, float cap, float *out, i64 n);
    void (*to_f16)(const float *x, uint16_t *out, i64 n);
    void (*from_f16)(const uint16_t *x, float *out, i64 n);

    // Attention of `count` queries over one segment of 256 positions that begins at `first`. k: [4][key_dim][64],
    // v: [256][value_stride]; with q8_0 the scales of 64 keys, [key_dim / 32][64], stand behind their codes, those of
    // the values, [256][value_stride / 32], behind all codes. States: per row (query x head of the group) maximum, sum,
    // and value_stride values; rows that saw no key yet have sum < 0. The segment is merged into the state.
    void (*attend)(const Attention &a, const Query *queries, i64 count, const float *q, i64 q_stride, i64 kv_head,
                   const void *k, const void *v, i64 first, float *state, uint8_t *scratch);
    i64 (*attend_scratch)(const Attention &a, i64 rows);
    // Merges `from` into `into`, both one row's state.
    void (*merge)(const Attention &a, const float *from, float *into);
    // A row's state -> value_dim results.
    void (*finish)(const Attention &a, const float *state, float *out);
};

BESTIARY_INLINE i64 state_size(const Attention &a) { return 16 + a.value_stride; }
BESTIARY_INLINE i64 round_up(i64 n, i64 to) { return (n + to - 1) / to * to; }
BESTIARY_INLINE i64 scale_count(i64 dim) { return (dim + kBlock - 1) / kBlock; } // the last block may be shorter
// What `dim` columns of a key or value take.
BESTIARY_INLINE i64 held_bytes(Held held, i64 dim) {
    return held == kHeldQ8 ? dim + 2 * scale_count(dim) : dim * (held == kHeldF16 ? 2 : 4);
}

extern const Table table_scalar;
#if defined(BESTIARY_X86)
extern const Table table_avx2;
#if defined(BESTIARY_AVXVNNI)
extern const Table table_avxvnni;
#endif
extern const Table table_avx512;
#elif defined(BESTIARY_ARM)
extern const Table table_neon;
#endif

} // namespace bestiary
