// Reading, packing and decoding rows of any block format that is given as data.
#include "layout.h"

#include "vec_scalar.h"

#include <algorithm>
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define BESTIARY_SSE2
#endif

namespace bestiary {

float half_to_float(uint16_t h) { return f16_to_f32(h); }
uint16_t float_to_half(float x) { return f32_to_f16(x); }

void Field::prepare() {
    runs.clear();
    if (stride % 8 || width > 8) return;
    for (size_t i = 0; i < offsets.size(); ++i) {
        const i64 byte = offsets[i] / 8;
        const int shift = (int)(offsets[i] % 8);
        if (shift + width > 8) {
            runs.clear();
            return;
        }
        if (!runs.empty() && runs.back().shift == shift && runs.back().byte + runs.back().count == byte)
            ++runs.back().count;
        else runs.push_back({(i64)i, 1, byte, shift});
    }
}

namespace {

uint32_t bits_at(const uint8_t *plane, i64 bit, int width) {
    const uint8_t *p = plane + (bit >> 3);
    const int shift = (int)(bit & 7);
    if (shift + width <= 8) return (uint32_t)(*p >> shift) & ((1u << width) - 1);
    const int bytes = (shift + width + 7) / 8;
    uint64_t value = 0;
    for (int j = 0; j < bytes; ++j) value |= (uint64_t)p[j] << (8 * j);
    return (uint32_t)((value >> shift) & ((uint64_t(1) << width) - 1));
}

float number_of(uint32_t bits, int32_t number) {
    float x;
    switch (number) {
    case kNumberF32: std::memcpy(&x, &bits, 4); return x;
    case kNumberF16: return f16_to_f32((uint16_t)bits);
    case kNumberBF16: {
        const uint32_t up = bits << 16;
        std::memcpy(&x, &up, 4);
        return x;
    }
    default: return std::ldexp(1.0f, (int)bits - 127);
    }
}

} // namespace

uint32_t Field::at(const uint8_t *row, i64 i) const {
    const i64 period = (i64)offsets.size();
    const i64 bit = period == 1 ? offsets[0] + i * stride : offsets[(size_t)(i % period)] + i / period * stride;
    return bits_at(row + plane_start, bit, width);
}

void Field::all(const uint8_t *row, i64 count, uint32_t *out) const {
    i64 i = 0;
    for (i64 start = 0; i < count; start += stride)
        for (size_t j = 0; j < offsets.size() && i < count; ++j, ++i)
            out[i] = bits_at(row + plane_start, start + offsets[j], width);
}

void Field::gather(const uint8_t *row, i64 count, int shift, uint8_t *out) const {
    const i64 period = (i64)offsets.size();
    i64 i = 0;
    if (!runs.empty()) {
        const unsigned mask = (1u << width) - 1;
        const uint8_t *base = row + plane_start;
        for (; i + period <= count; i += period, base += stride / 8)
            for (const Run &run : runs) {
                const uint8_t *p = base + run.byte;
                uint8_t *o = out + i + run.entry;
                const int down = run.shift;
                i64 j = 0;
                for (; j + 16 <= run.count; j += 16) { // a fixed count, which compilers turn into vectors
                    uint8_t from[16], to[16];
                    std::memcpy(from, p + j, 16), std::memcpy(to, o + j, 16);
                    for (int k = 0; k < 16; ++k) to[k] = (uint8_t)(to[k] | (((from[k] >> down) & mask) << shift));
                    std::memcpy(o + j, to, 16);
                }
                for (; j < run.count; ++j) o[j] = (uint8_t)(o[j] | (((p[j] >> down) & mask) << shift));
            }
    }
    for (; i < count; ++i) out[i] = (uint8_t)(out[i] | (at(row, i) << shift));
}

float FactorField::value(const uint8_t *row, i64 group) const {
    const float x = number_of(at.at(row, group), number);
    if (integer.empty()) return x;
    return x * (float)whole(row, group);
}

i64 FactorField::whole(const uint8_t *row, i64 group) const {
    uint32_t bits = 0;
    int width = 0;
    for (const Field &piece : integer) {
        bits |= piece.at(row, group) << width;
        width += piece.width;
    }
    return (i64)bits - (is_signed && bits >> (width - 1) ? i64(1) << width : 0) + bias;
}

void FactorField::values(const uint8_t *row, i64 groups, uint32_t *work, float *out) const {
    at.all(row, groups, work);
    for (i64 g = 0; g < groups; ++g) // one number often serves several groups
        out[g] = g && work[g] == work[g - 1] ? out[g - 1] : number_of(work[g], number);
    if (integer.empty()) return;
    std::vector<int32_t> whole((size_t)groups);
    wholes(row, groups, work, whole.data());
    for (i64 g = 0; g < groups; ++g) out[g] *= (float)whole[(size_t)g];
}

void FactorField::wholes(const uint8_t *row, i64 groups, uint32_t *work, int32_t *out) const {
    uint32_t *piece = work + groups;
    std::fill(work, piece, 0);
    int width = 0;
    for (const Field &part : integer) {
        part.all(row, groups, piece);
        for (i64 g = 0; g < groups; ++g) work[g] |= piece[g] << width;
        width += part.width;
    }
    const int64_t beyond = is_signed ? int64_t(1) << (width - 1) : int64_t(1) << width;
    for (i64 g = 0; g < groups; ++g)
        out[g] = (int32_t)((int64_t)work[g] - ((int64_t)work[g] >= beyond ? 2 * beyond : 0) + bias);
}

namespace {

bool one_run(const Field &f, size_t i, i64 entry, i64 count, int shift) {
    const Field::Run &run = f.runs[i];
    return run.entry == entry && run.count == count && run.shift == shift;
}

bool whole_bytes(const FactorField &f, int32_t number) {
    const Field &at = f.at;
    return f.number == number && f.integer.empty() && at.offsets.size() == 1 && at.offsets[0] % 8 == 0 &&
           at.stride % 8 == 0;
}

// Entries beside one another from a whole byte on.
bool beside(const Field &f) {
    for (size_t i = 0; i < f.offsets.size(); ++i)
        if (f.offsets[i] != f.offsets[0] + (i64)i * f.width) return false;
    return f.offsets[0] % 8 == 0 && f.stride % 8 == 0;
}

// An integer a group, and one f16 for all groups of a span of whole blocks, at most eight, that panels do not cut.
bool in_spans(const FactorField &f, i64 group) {
    const i64 groups = (i64)f.at.offsets.size(), columns = groups * group;
    const bool fits = columns == 32 || columns == 64 || columns == 128 || columns == 256;
    if (f.number != kNumberF16 || f.integer.empty() || !fits) return false;
    for (i64 offset : f.at.offsets)
        if (offset != f.at.offsets[0]) return false;
    return true;
}

// The integers that a factor may have.
void reach(const FactorField &f, i64 &least, i64 &most) {
    int width = 0;
    for (const Field &piece : f.integer) width += piece.width;
    least = f.bias - (f.is_signed ? i64(1) << (width - 1) : 0), most = least + (i64(1) << width) - 1;
}

int32_t numbers_of(const Layout &layout) {
    const FactorField &scale = layout.scale, &low = layout.low;
    if (scale.number == kNumberF16 && scale.integer.empty() && layout.factor == 1.0f &&
        (!layout.minimum || (low.number == kNumberF16 && low.integer.empty())))
        return kHalves;
    if (scale.number == kNumberE8M0 && scale.integer.empty() && !layout.minimum && layout.group == kBlock)
        return kPowers;
    if (layout.factor != 1.0f || (layout.group != kBlock && layout.group != kBlock / 2) ||
        !in_spans(scale, layout.group) ||
        (layout.minimum && (!in_spans(low, layout.group) || low.at.offsets.size() != scale.at.offsets.size())))
        return kSingles;
    i64 least, most, low_least = 0, low_most = 0;
    reach(scale, least, most);
    if (layout.minimum) reach(low, low_least, low_most);
    if (layout.minimum && least == 0 && low_least == 0 && most < 16 && low_most < 16) return kNibblePairs;
    if (!layout.minimum && least >= -32 && most < 32 && scale.at.offsets.size() % 4 == 0) return kSixBits;
    return least >= -128 && most < 128 && low_least >= -128 && low_most < 128 ? kBytePairs : kSingles;
}

} // namespace

void Layout::prepare() {
    straight = {};
    if (kind >= kF32 || codes.empty() || columns % kBlock) return;
    const Field &f = codes[0];
    if (kind == kTwo || kind == kThree || kind == kSix) return;
    const i64 period = (i64)f.offsets.size();
    const bool whole = period == kBlock;
    const bool halves = whole && f.width == 4 && f.runs.size() == 2 && one_run(f, 0, 0, 16, 0) &&
                        one_run(f, 1, 16, 16, 4) && f.runs[0].byte == f.runs[1].byte;
    const bool in_order = f.width == 4 && (whole || period == kBlock / 2) && beside(f);
    const bool bytes = whole && f.width == 8 && f.runs.size() == 1 && one_run(f, 0, 0, 32, 0);
    if (kind == kByte ? !bytes || !book.empty() || codes.size() != 1 : !halves && !in_order) return;
    if (kind == kFive) {
        if (codes.size() != 2 || is_signed) return;
        const Field &top = codes[1];
        if (top.width != 1 || top.offsets.size() != (size_t)kBlock || !beside(top)) return;
        straight.fifth = top.plane_start + top.offsets[0] / 8, straight.fifth_step = top.stride / 8;
    } else if (codes.size() != 1) return;
    straight.first = f.plane_start + f.offsets[0] / 8, straight.step = kBlock / period * (f.stride / 8);
    straight.in_order = in_order;
    if (!whole) straight.second = f.stride / 8;
    straight.flip = !is_signed ? 0 : kind == kByte ? 0x80808080u : 0x88888888u;
    const int32_t number = scale.number, how = numbers_of(*this);
    straight.numbers = (how == kHalves || how == kSingles) && (group == kBlock || group == kBlock / 2) &&
                       factor == 1.0f && (number == kNumberF16 || number == kNumberF32) &&
                       whole_bytes(scale, number) && (!minimum || whole_bytes(low, number));
}

void Layout::read_codes(const uint8_t *row, uint8_t *out) const {
    std::memset(out, 0, (size_t)columns);
    int shift = 0;
    for (const Field &piece : codes) {
        piece.gather(row, columns, shift, out);
        shift += piece.width;
    }
    if (is_signed) {
        const uint8_t flip = (uint8_t)(1u << (width - 1));
        for (i64 i = 0; i < columns; ++i) out[i] ^= flip;
    }
}

void Layout::decode(const uint8_t *row, float *out, uint8_t *code) const {
    if (kind == kF32) {
        std::memcpy(out, row, (size_t)columns * 4);
        return;
    }
    if (kind == kF16 || kind == kBF16) {
        for (i64 i = 0; i < columns; ++i) {
            uint16_t bits;
            std::memcpy(&bits, row + 2 * i, 2);
            const uint32_t up = (uint32_t)bits << 16;
            if (kind == kF16) out[i] = f16_to_f32(bits);
            else std::memcpy(out + i, &up, 4);
        }
        return;
    }
    read_codes(row, code);
    for (i64 g = 0; g * group < columns; ++g) {
        const float d = scale.value(row, g), m = minimum ? minimum_sign * low.value(row, g) : 0.0f;
        for (i64 i = g * group; i < (g + 1) * group && i < columns; ++i) {
            out[i] = (book.empty() ? (float)((i64)code[i] - zero) : book[code[i]]) * d;
            if (minimum) out[i] = out[i] + m;
        }
    }
}

Matrix packed_shape(const Layout &layout, i64 rows) {
    Matrix m = {};
    m.rows = rows, m.columns = layout.columns, m.kind = layout.kind;
    m.groups = (rows + kLanes - 1) / kLanes;
    m.span = 1;
    if (m.kind >= kF32) {
        m.group_bytes = layout.columns * kLanes * (m.kind == kF32 ? 4 : 2);
        return m;
    }
    m.blocks = (layout.columns + kBlock - 1) / kBlock;
    m.half = layout.group == 16;
    m.minimum = layout.minimum;
    m.factor = layout.factor;
    m.zero = layout.book.empty() ? (int32_t)layout.zero : 128;
    if (m.kind == kBook) std::copy(layout.rounded.begin(), layout.rounded.end(), m.book); // its border checked: at most 16
    m.numbers = numbers_of(layout);
    const i64 parts = m.half ? 2 : 1;
    const bool shared = m.nested() && m.numbers != kPowers;
    m.span = shared ? (i64)layout.scale.at.offsets.size() / parts : m.half ? 1 : (layout.group + kBlock - 1) / kBlock;
    m.header = header_bytes(m.numbers, shared ? m.span * parts : parts, m.minimum);
    m.code_bytes = code_bytes_of(m.kind);
    m.group_bytes = (m.blocks + m.span - 1) / m.span * m.header + m.blocks * m.code_bytes;
    return m;
}

namespace {

#if !defined(BESTIARY_SSE2)
// Of 32 nibbles in order, two neighbours a byte, bytes of two that are 16 apart.
void to_halves(const uint8_t *first, const uint8_t *second, uint8_t *out) {
    for (int i = 0; i < 8; ++i) {
        out[2 * i] = (uint8_t)((first[i] & 15) | second[i] << 4);
        out[2 * i + 1] = (uint8_t)(first[i] >> 4 | (second[i] & 0xF0));
    }
}
#endif

// Sixteen rows' four words -> four vectors of sixteen words, `flip` changed in each. InOrder: the words are nibbles in
// order, and the last eight bytes of a row are `second` behind the first.
template <bool InOrder = false>
void interleave_words(const uint8_t *row, i64 stride, uint32_t flip, uint8_t *out, i64 second = 8) {
#if defined(BESTIARY_SSE2)
    const __m128i change = _mm_set1_epi32((int)flip), low = _mm_set1_epi8(15);
    for (int r = 0; r < 16; r += 4, row += 4 * stride, out += 16) {
        __m128i x[4];
        for (int i = 0; i < 4; ++i) {
            const uint8_t *from = row + i * stride;
            if (InOrder) {
                const __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)from),
                                                         _mm_loadl_epi64((const __m128i *)(from + second)));
                const __m128i even = _mm_and_si128(bytes, low), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
                x[i] = _mm_or_si128(_mm_unpacklo_epi8(even, odd), _mm_slli_epi16(_mm_unpackhi_epi8(even, odd), 4));
            } else x[i] = _mm_loadu_si128((const __m128i *)from);
            x[i] = _mm_xor_si128(x[i], change);
        }
        const __m128i a = _mm_unpacklo_epi32(x[0], x[1]), b = _mm_unpacklo_epi32(x[2], x[3]);
        const __m128i c = _mm_unpackhi_epi32(x[0], x[1]), d = _mm_unpackhi_epi32(x[2], x[3]);
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + 64), _mm_unpackhi_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + 128), _mm_unpacklo_epi64(c, d));
        _mm_storeu_si128((__m128i *)(out + 192), _mm_unpackhi_epi64(c, d));
    }
#else
    for (int r = 0; r < 16; ++r) {
        uint8_t bytes[16];
        if (InOrder) to_halves(row + r * stride, row + r * stride + second, bytes);
        else std::memcpy(bytes, row + r * stride, 16);
        for (int i = 0; i < 4; ++i) {
            uint32_t x;
            std::memcpy(&x, bytes + 4 * i, 4);
            x ^= flip;
            std::memcpy(out + 64 * i + 4 * r, &x, 4);
        }
    }
#endif
}

// Eight rows' eight numbers of 16 bits -> eight times eight, 32 bytes apart.
void interleave_halves(const uint8_t *row, i64 stride, uint8_t *out) {
#if defined(BESTIARY_SSE2)
    __m128i x[8], y[8];
    for (int i = 0; i < 8; ++i) x[i] = _mm_loadu_si128((const __m128i *)(row + i * stride));
    for (int i = 0; i < 4; ++i) { // rows i and i + 4, three times: a perfect shuffle each
        y[2 * i] = _mm_unpacklo_epi16(x[i], x[i + 4]);
        y[2 * i + 1] = _mm_unpackhi_epi16(x[i], x[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = _mm_unpacklo_epi16(y[i], y[i + 4]);
        x[2 * i + 1] = _mm_unpackhi_epi16(y[i], y[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        _mm_storeu_si128((__m128i *)(out + 64 * i), _mm_unpacklo_epi16(x[i], x[i + 4]));
        _mm_storeu_si128((__m128i *)(out + 64 * i + 32), _mm_unpackhi_epi16(x[i], x[i + 4]));
    }
#else
    for (int r = 0; r < 8; ++r)
        for (int i = 0; i < 8; ++i) std::memcpy(out + 32 * i + 2 * r, row + r * stride + 2 * i, 2);
#endif
}

// A row of plain numbers from column `first` on.
void pack_plain(const Matrix &m, const uint8_t *from, i64 row, i64 first) {
    const i64 size = m.kind == kF32 ? 4 : 2;
    uint8_t *to = m.data + row / kLanes * m.group_bytes + row % kLanes * size;
    if (size == 4)
        for (i64 c = first; c < m.columns; ++c) std::memcpy(to + c * 64, from + c * 4, 4);
    else
        for (i64 c = first; c < m.columns; ++c) std::memcpy(to + c * 32, from + c * 2, 2);
}

// Sixteen rows of plain numbers, all columns.
void pack_plain_group(const Matrix &m, const uint8_t *rows, i64 row_bytes, i64 start) {
    uint8_t *to = m.data + start / kLanes * m.group_bytes;
    i64 c = 0;
    if (m.kind == kF32)
        for (; c + 4 <= m.columns; c += 4) interleave_words(rows + 4 * c, row_bytes, 0, to + 64 * c);
    else
        for (; c + 32 <= m.columns; c += 32) // a line of the cache of eight rows at a time: they may share one place
            for (int half = 0; half < 2; ++half)
                for (i64 i = c; i < c + 32; i += 8)
                    interleave_halves(rows + 8 * half * row_bytes + 2 * i, row_bytes, to + 32 * i + 16 * half);
    for (i64 r = 0; r < kLanes; ++r) pack_plain(m, rows + r * row_bytes, start + r, c);
}

// Bit 4j+c -> bit j of byte c.
uint32_t fifth_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int c = 0; c < 4; ++c) {
        uint32_t x = bits >> c & 0x11111111;
        x = (x | x >> 3) & 0x03030303;
        x = (x | x >> 6) & 0x000F000F;
        out |= ((x | x >> 12) & 0xFF) << (8 * c);
    }
    return out;
}

// Sixteen rows' codes that stand in the file as packing wants them.
void pack_straight_codes(const Matrix &m, const Layout &layout, const uint8_t *rows, i64 start) {
    const Layout::Straight &s = layout.straight;
    const int quarters = m.kind == kByte ? 2 : 1;
    uint8_t *group = m.data + start / kLanes * m.group_bytes;
    for (i64 b = 0; b < m.blocks; ++b) {
        uint8_t *to = group + m.codes_at(b);
        const uint8_t *from = rows + s.first + b * s.step;
        if (s.in_order) interleave_words<true>(from, layout.row_bytes, s.flip, to, s.second);
        else
            for (int i = 0; i < quarters; ++i)
                interleave_words(from + 16 * i, layout.row_bytes, s.flip, to + 256 * i);
        if (m.kind != kFive) continue;
        uint32_t bits[kLanes];
        const uint8_t *top = rows + s.fifth + b * s.fifth_step;
        for (i64 r = 0; r < kLanes; ++r) std::memcpy(bits + r, top + r * layout.row_bytes, 4);
        for (i64 r = 0; r < kLanes; ++r) bits[r] = fifth_bits(bits[r]);
        std::memcpy(to + 256, bits, sizeof bits);
    }
}

// A number of sixteen rows and every group, to `to` in the blocks' headers.
template <class T>
void pack_straight_numbers(const Matrix &m, const Layout &layout, const Field &at, T flip, const uint8_t *rows,
                           uint8_t *to) {
    const i64 step = at.stride / 8, further = m.header + m.code_bytes;
    const uint8_t *from = rows + at.plane_start + at.offsets[0] / 8;
    for (i64 b = 0; b < m.blocks; ++b, to += further)
        for (int part = 0; part < (m.half ? 2 : 1); ++part, from += step) {
            T x[kLanes];
            for (i64 r = 0; r < kLanes; ++r) std::memcpy(x + r, from + r * layout.row_bytes, sizeof(T));
            for (i64 r = 0; r < kLanes; ++r) x[r] ^= flip;
            std::memcpy(to + part * sizeof x, x, sizeof x);
        }
}

// Scales and minimums that stand in the file as they are packed.
template <class T> void pack_straight_headers(const Matrix &m, const Layout &layout, const uint8_t *rows, i64 start) {
    uint8_t *to = m.data + start / kLanes * m.group_bytes;
    pack_straight_numbers<T>(m, layout, layout.scale.at, 0, rows, to);
    const T flip = layout.minimum_sign < 0 ? (T)((T)1 << (8 * sizeof(T) - 1)) : 0;
    if (m.minimum) pack_straight_numbers<T>(m, layout, layout.low.at, flip, rows, to + m.header / 2);
}

void put_number(uint8_t *header, i64 lane, bool wide, float value, uint16_t half) {
    if (wide) std::memcpy(header + lane * 4, &value, 4);
    else std::memcpy(header + lane * 2, &half, 2);
}

// 32 codes of a row as its lane of a packed block: 4 bytes of every vector.
void squeeze(int32_t kind, const uint8_t *c, uint8_t *to) {
    if (kind == kByte) {
        std::memcpy(to, c, 32);
        return;
    }
    if (kind != kTwo && kind != kThree) {
        for (int i = 0; i < 16; ++i) to[i] = (uint8_t)((c[i] & 15) | c[16 + i] << 4);
        to += 16;
    }
    if (kind == kTwo || kind == kThree || kind == kSix) {
        const int from = kind == kSix ? 4 : 0;
        for (int i = 0; i < 8; ++i)
            to[i] = (uint8_t)((c[i] >> from & 3) | (c[8 + i] >> from & 3) << 2 | (c[16 + i] >> from & 3) << 4 |
                              (c[24 + i] >> from & 3) << 6);
        to += 8;
    }
    if (kind == kThree || kind == kFive) {
        const int at_bit = kind == kThree ? 2 : 4;
        uint32_t bits = 0; // one a code
        for (int j = 0; j < 8; ++j) {
            uint32_t quad;
            std::memcpy(&quad, c + 4 * j, 4);
            bits |= (quad >> at_bit & 0x01010101) << j;
        }
        std::memcpy(to, &bits, 4);
    }
}

// The codes of `count` rows of a row group, of any layout. code: room for a row's blocks, what lies beyond the columns
// is 0; squeezed: for `count` rows' blocks of 32 bytes.
void pack_codes(const Matrix &m, const Layout &layout, const uint8_t *rows, i64 at, i64 count, uint8_t *code,
                uint8_t *squeezed) {
    const i64 each = m.code_bytes / kLanes, row = m.blocks * each;
    for (i64 r = 0; r < count; ++r) {
        layout.read_codes(rows + r * layout.row_bytes, code);
        if (m.kind == kByte && !layout.book.empty())
            for (i64 i = 0; i < layout.columns; ++i) code[i] = layout.rounded[code[i]];
        for (i64 b = 0; b < m.blocks; ++b) squeeze(m.kind, code + b * kBlock, squeezed + r * row + b * each);
    }
    uint8_t *to = m.data + at / kLanes * m.group_bytes + at % kLanes * 4;
    for (i64 b = 0; b < m.blocks; ++b) {
        uint8_t *p = to + m.codes_at(b);
        for (i64 i = 0; i < each; i += 4, p += 4 * kLanes)
            for (i64 r = 0; r < count; ++r) std::memcpy(p + 4 * r, squeezed + r * row + b * each + i, 4);
    }
}

// The same where headers hold integers: a number of the super-block, if there is one, and an integer a group.
void pack_nested(const Matrix &m, const Layout &layout, const uint8_t *row, i64 at, std::vector<uint32_t> &work) {
    const i64 parts = m.half ? 2 : 1, count = m.span * parts, lane = at % kLanes, numbers = (i64)work.size() / 2;
    const i64 stride = m.header + m.span * m.code_bytes;
    uint8_t *const to = m.data + at / kLanes * m.group_bytes;
    if (m.numbers == kPowers) {
        layout.scale.at.all(row, numbers, work.data());
        for (i64 g = 0; g < numbers; ++g)
            to[g / count * stride + g % count * kLanes + lane] = (uint8_t)work[(size_t)g];
        return;
    }
    std::vector<int32_t> whole((size_t)numbers);
    for (int part = 0; part < (m.minimum ? 2 : 1); ++part) { // scales, then minimums
        const FactorField &from = part ? layout.low : layout.scale;
        const uint16_t flip = part && layout.minimum_sign < 0 ? 0x8000 : 0;
        for (i64 g = 0; g < numbers; g += count)
            put_number(to + g / count * stride + 32 * part, lane, false, 0.0f, (uint16_t)(from.at.at(row, g) ^ flip));
        from.wholes(row, numbers, work.data(), whole.data());
        for (i64 g = 0; g < numbers; ++g) {
            const i64 i = g % count;
            uint8_t *const first = to + g / count * stride + (m.minimum ? 64 : 32) + lane;
            const int32_t x = whole[(size_t)g];
            if (m.numbers == kSixBits) {
                const unsigned code = (unsigned)(x + 32);
                uint8_t *four = first + i / 2 * kLanes, *two = first + 8 * count + i / 4 * kLanes;
                *four = (uint8_t)((i % 2 ? *four : 0) | (code & 15) << (i % 2 * 4));
                *two = (uint8_t)((i % 4 ? *two : 0) | code >> 4 << (i % 4 * 2));
            } else if (m.numbers == kNibblePairs) {
                uint8_t &pair = first[i * kLanes];
                pair = (uint8_t)(part ? pair | x << 4 : x);
            } else first[(i + part * count) * kLanes] = (uint8_t)x;
        }
    }
}

// One row's scales and minimums, of any layout. values: room for a row's numbers, work: for twice as many.
void pack_numbers(const Matrix &m, const Layout &layout, const uint8_t *row, i64 at, std::vector<uint32_t> &work,
                  std::vector<float> &values) {
    if (m.nested()) return pack_nested(m, layout, row, at, work);
    const bool wide = m.numbers == kSingles;
    const i64 parts = m.half ? 2 : 1, step = wide ? 64 : 32, lane = at % kLanes;
    const i64 numbers = (i64)values.size(), stride = m.header + m.span * m.code_bytes;
    for (int part = 0; part < (m.minimum ? 2 : 1); ++part) {
        const FactorField &from = part ? layout.low : layout.scale;
        const float factor = part ? layout.minimum_sign : layout.factor;
        uint8_t *to = m.data + at / kLanes * m.group_bytes + part * parts * step;
        if (wide) from.values(row, numbers, work.data(), values.data());
        else from.at.all(row, numbers, work.data());
        for (i64 g = 0; g < numbers; ++g) {
            uint8_t *header = to + (m.half ? g / 2 * stride + g % 2 * step : g * stride);
            const uint16_t half = (uint16_t)(work[(size_t)g] ^ (part && factor < 0 ? 0x8000 : 0));
            put_number(header, lane, wide, factor * values[(size_t)g], half);
        }
    }
}

} // namespace

void pack_rows(const Matrix &m, const Layout &layout, const uint8_t *rows, i64 start, i64 count) {
    std::vector<uint8_t> code((size_t)(m.blocks * kBlock));
    std::vector<uint8_t> squeezed(m.kind < kF32 ? (size_t)(m.blocks * kBlock * kLanes) : 0);
    const size_t numbers = layout.group ? (size_t)((layout.columns + layout.group - 1) / layout.group) : 0;
    std::vector<float> values(numbers);
    std::vector<uint32_t> work(2 * numbers);
    for (i64 r = 0, taken; r < count; r += taken, start += taken, rows += taken * layout.row_bytes) {
        const bool whole = start % kLanes == 0 && count - r >= kLanes; // row groups at once, what is left row by row
        taken = whole ? kLanes : 1;
        if (m.kind >= kF32) {
            if (whole) pack_plain_group(m, rows, layout.row_bytes, start);
            else pack_plain(m, rows, start, 0);
            continue;
        }
        if (whole && layout.straight.first >= 0) pack_straight_codes(m, layout, rows, start);
        else pack_codes(m, layout, rows, start, taken, code.data(), squeezed.data());
        if (whole && layout.straight.numbers) {
            if (m.numbers == kSingles) pack_straight_headers<uint32_t>(m, layout, rows, start);
            else pack_straight_headers<uint16_t>(m, layout, rows, start);
        } else
            for (i64 i = 0; i < taken; ++i)
                pack_numbers(m, layout, rows + i * layout.row_bytes, start + i, work, values);
    }
}

void unpack_row(const Matrix &m, i64 row, float *out) {
    const uint8_t *w = m.data + row / kLanes * m.group_bytes;
    const i64 lane = row % kLanes;
    if (m.kind >= kF32) {
        for (i64 c = 0; c < m.columns; ++c) {
            uint16_t half;
            std::memcpy(&half, w + (c * kLanes + lane) * (m.kind == kF32 ? 4 : 2), 2);
            const uint32_t up = (uint32_t)half << 16;
            if (m.kind == kF32) std::memcpy(out + c, w + (c * kLanes + lane) * 4, 4);
            else if (m.kind == kF16) out[c] = f16_to_f32(half);
            else std::memcpy(out + c, &up, 4);
        }
        return;
    }
    const i64 parts = m.half ? 2 : 1, step = m.numbers == kSingles ? 64 : 32;
    auto half_at = [&](const uint8_t *p) {
        uint16_t h;
        std::memcpy(&h, p + lane * 2, 2);
        return f16_to_f32(h);
    };
    auto number = [&](i64 b, i64 part, bool low) { // the scale, or the minimum
        const uint8_t *header = w + m.header_at(b);
        float x;
        if (!m.nested()) {
            header += (part + (low ? parts : 0)) * step;
            if (m.numbers == kHalves) return half_at(header);
            std::memcpy(&x, header + lane * 4, 4);
            return x;
        }
        const i64 count = m.span * parts;
        const uint8_t *whole = header + (b % m.span * parts + part) * kLanes + lane;
        if (m.numbers == kPowers) return m.factor * std::ldexp(1.0f, (int)*whole - 127);
        whole += m.minimum ? 64 : 32;
        if (m.numbers == kSixBits) {
            const i64 i = b % m.span * parts + part;
            const uint8_t *four = header + 32 + i / 2 * 16, *two = header + 32 + 8 * count + i / 4 * 16;
            x = (float)(((four[lane] >> (i % 2 * 4) & 15) | (two[lane] >> (i % 4 * 2) & 3) << 4) - 32);
        } else if (m.numbers == kNibblePairs) x = (float)(low ? *whole >> 4 : *whole & 15);
        else x = (float)(int8_t)whole[low ? count * kLanes : 0];
        return half_at(header + (low ? 32 : 0)) * x;
    };
    for (i64 c = 0; c < m.columns; ++c) {
        const i64 b = c / kBlock, k = c % kBlock, part = m.half ? k / 16 : 0;
        out[c] = (float)(m.code_at(w + m.codes_at(b), lane, k) - m.zero) * number(b, part, false);
        if (m.minimum) out[c] = out[c] + number(b, part, true);
    }
}

// The rounding of the format's own reference: away from zero at halves.
uint16_t quantize_block(const float *x, i64 count, int8_t *codes) {
    int32_t top = 0;
    for (i64 i = 0; i < count; ++i) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7FFFFFFF;
        top = bits > top ? bits : top;
    }
    float amax;
    std::memcpy(&amax, &top, 4);
    const float d = amax / 127.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
    const bool expressible = inverse > 0.0f && inverse <= 3.4028234663852886e38f; // else zeros, or no finite numbers
    for (i64 i = 0; i < count; ++i) {
        const float y = expressible ? x[i] * inverse : 0.0f, a = std::fabs(y);
        const int floor = (int)a, rounded = floor + (int)(2.0f * (a - (float)floor));
        codes[i] = (int8_t)(y < 0.0f ? -rounded : rounded);
    }
    return f32_to_f16(d);
}

void quantize_q8_0(const float *x, i64 blocks, uint8_t *out) {
    for (i64 b = 0; b < blocks; ++b, x += 32, out += 34) {
        const uint16_t scale = quantize_block(x, 32, reinterpret_cast<int8_t *>(out + 2));
        std::memcpy(out, &scale, 2);
    }
}

namespace {

// A number and a half already added, as a code.
uint8_t code_of(float y, int top) {
    if (!(y >= 0.0f && y < 256.0f)) return 0; // infinite or NaN
    const int whole = (int)y;
    return (uint8_t)(whole > top ? top : whole);
}

// 32 codes: the fifth bits, if there are any, then bytes of two nibbles, 16 weights apart.
void put_codes(const uint8_t *code, int bits, uint8_t *out) {
    if (bits == 5) {
        uint32_t fifth = 0;
        for (int i = 0; i < 32; ++i) fifth |= (uint32_t)(code[i] >> 4) << i;
        for (int i = 0; i < 4; ++i) *out++ = (uint8_t)(fifth >> (8 * i));
    }
    for (int i = 0; i < 16; ++i) out[i] = (uint8_t)((code[i] & 15) | code[16 + i] << 4);
}

// A scale alone: the first weight of the largest magnitude becomes code 0.
template <int Bits> void quantize_by_largest(const float *x, i64 blocks, uint8_t *out) {
    constexpr int middle = 1 << (Bits - 1), code_bytes = 4 * Bits;
    for (i64 b = 0; b < blocks; ++b, x += 32, out += 2 + code_bytes) {
        int32_t top = -1;
        float extreme = 0.0f;
        for (int i = 0; i < 32; ++i) {
            int32_t bits;
            std::memcpy(&bits, x + i, 4);
            bits &= 0x7FFFFFFF;
            if (bits > 0x7F800000) bits = 0x7F800001; // one NaN is as good as another
            if (bits > top) top = bits, extreme = x[i];
        }
        const float d = extreme / (float)-middle, inverse = d == 0.0f ? 0.0f : 1.0f / d;
        const uint16_t half = f32_to_f16(d);
        std::memcpy(out, &half, 2);
        uint8_t code[32];
        for (int i = 0; i < 32; ++i) code[i] = code_of(x[i] * inverse + ((float)middle + 0.5f), 2 * middle - 1);
        put_codes(code, Bits, out + 2);
    }
}

// A scale and a minimum: the codes go from the smallest weight to the largest.
template <int Bits> void quantize_by_range(const float *x, i64 blocks, uint8_t *out) {
    constexpr int top = (1 << Bits) - 1, code_bytes = 4 * Bits;
    for (i64 b = 0; b < blocks; ++b, x += 32, out += 4 + code_bytes) {
        float least = x[0], most = x[0];
        bool number = true;
        for (int i = 0; i < 32; ++i) {
            least = x[i] < least ? x[i] : least;
            most = x[i] > most ? x[i] : most;
            number = number && x[i] == x[i];
        }
        if (!number) least = most = std::nanf("");
        const float d = (most - least) / (float)top, inverse = d == 0.0f ? 0.0f : 1.0f / d;
        const uint16_t halves[2] = {f32_to_f16(d), f32_to_f16(least)};
        std::memcpy(out, halves, 4);
        uint8_t code[32];
        for (int i = 0; i < 32; ++i) code[i] = code_of((x[i] - least) * inverse + 0.5f, top);
        put_codes(code, Bits, out + 4);
    }
}

} // namespace

void quantize_q4_0(const float *x, i64 blocks, uint8_t *out) { quantize_by_largest<4>(x, blocks, out); }
void quantize_q5_0(const float *x, i64 blocks, uint8_t *out) { quantize_by_largest<5>(x, blocks, out); }
void quantize_q4_1(const float *x, i64 blocks, uint8_t *out) { quantize_by_range<4>(x, blocks, out); }
void quantize_q5_1(const float *x, i64 blocks, uint8_t *out) { quantize_by_range<5>(x, blocks, out); }

} // namespace bestiary
