// A block format as data: reading codes and scales by bit address, packing rows for the kernels, and decoding them.
#pragma once
#include "table.h"

#include <vector>

namespace bestiary {

// Entry i is at bit offsets[i % size] + i / size * stride of its plane. The border has checked every address.
struct Field {
    int width = 0;
    i64 stride = 0, plane_start = 0; // in bytes from the row's first
    std::vector<i64> offsets;

    struct Run { // entries whose bytes stand beside one another, none across two bytes
        i64 entry, count, byte;
        int shift;
    };
    std::vector<Run> runs; // of one period; empty where the fields do not allow it
    void prepare();
    uint32_t at(const uint8_t *row, i64 i) const;
    void all(const uint8_t *row, i64 count, uint32_t *out) const; // entries 0..count-1
    // out[i] |= entry i << shift, for codes of at most 8 bits.
    void gather(const uint8_t *row, i64 count, int shift, uint8_t *out) const;
};

enum Number : int32_t { kNumberF32 = 0, kNumberF16 = 1, kNumberBF16 = 2, kNumberE8M0 = 3 };

struct FactorField {
    int32_t number = kNumberF32;
    Field at;
    std::vector<Field> integer;
    i64 bias = 0;
    bool is_signed = false; // the integer
    float value(const uint8_t *row, i64 group) const;
    void values(const uint8_t *row, i64 groups, uint32_t *work, float *out) const; // work: room for 2 * groups
    void wholes(const uint8_t *row, i64 groups, uint32_t *work, int32_t *out) const; // the integers and their bias
    i64 whole(const uint8_t *row, i64 group) const;
};

struct Layout {
    i64 columns = 0, row_bytes = 0;
    int32_t kind = kByte; // how it is packed
    i64 group = 0;        // columns that share a scale
    std::vector<Field> codes;
    bool is_signed = false, minimum = false;
    int width = 0;
    i64 zero = 0; // weight = scale * (code - zero), with signed codes moved up to unsigned
    float minimum_sign = 1.0f;
    FactorField scale, low;
    // Where the codes are places in a codebook: its numbers, and integers, moved up by 128, that times `factor` are
    // nearly they.
    std::vector<float> book;
    std::vector<uint8_t> rounded;
    float factor = 1.0f;

    // Where 32 codes stand in bytes that packing only has to move: from `first` on, or -1; those of the next 32 are
    // `step` bytes further. Fifth bits, if there are any, are beside them as one number.
    struct Straight {
        i64 first = -1, step = 0, fifth = -1, fifth_step = 0;
        i64 second = 8;          // of 16 bytes of nibbles: where the last 8 are, behind `first`
        bool in_order = false;   // nibbles: two neighbours a byte, else two that are 16 columns apart
        uint32_t flip = 0;       // of signed codes
        bool numbers = false;    // scales and minimums are whole bytes, and of the type that they are packed as
    } straight;

    void prepare(); // once all fields are there
    void read_codes(const uint8_t *row, uint8_t *out) const; // columns codes, unsigned
    // code: room for `columns` bytes; plain numbers need none.
    void decode(const uint8_t *row, float *out, uint8_t *code) const;
};

float half_to_float(uint16_t h);
uint16_t float_to_half(float x);

// The shape of a matrix packed from this layout; data is null.
Matrix packed_shape(const Layout &layout, i64 rows);
// Packs `count` rows from row `start` on. Different row groups may be packed at the same time.
void pack_rows(const Matrix &m, const Layout &layout, const uint8_t *rows, i64 start, i64 count);
// One row of a packed matrix as numbers.
void unpack_row(const Matrix &m, i64 row, float *out);

// One block of q8_0: `count` signed bytes, at most 32, and their scale as f16. Halves are rounded away from zero.
uint16_t quantize_block(const float *x, i64 count, int8_t *codes);
// Quantizers: rows in whole blocks of 32.
void quantize_q8_0(const float *x, i64 blocks, uint8_t *out);
void quantize_q4_0(const float *x, i64 blocks, uint8_t *out);
void quantize_q4_1(const float *x, i64 blocks, uint8_t *out);
void quantize_q5_0(const float *x, i64 blocks, uint8_t *out);
void quantize_q5_1(const float *x, i64 blocks, uint8_t *out);

} // namespace bestiary
