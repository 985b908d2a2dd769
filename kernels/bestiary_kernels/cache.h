// The keys and values of the sequences so far, in segments of 256 positions that are allocated as they are needed.
#pragma once
#include "memory.h"
#include "table.h"

#include <vector>

namespace bestiary {

// One attention's part of a segment: keys [kv_head][4][key_dim][64], values [kv_head][256][value_stride];
// table.h says where q8_0 has its scales.
struct CacheLayer {
    i64 kv_heads = 0, key_dim = 0, value_dim = 0, value_stride = 0;
    Held k_held = kHeldF32, v_held = kHeldF32;
    size_t k_bytes = 0, v_bytes = 0; // of one head's segment
    size_t k_at = 0, v_at = 0;       // where the first head's begins
    bool operator==(const CacheLayer &o) const {
        return kv_heads == o.kv_heads && key_dim == o.key_dim && value_dim == o.value_dim && k_held == o.k_held &&
               v_held == o.v_held;
    }
};

class Cache {
  public:
    // kv_heads, key_dim, value_dim of each layer are given; the rest is computed.
    Cache(const std::vector<CacheLayer> &layers, i64 sequences, i64 context) : layers_(layers), context_(context) {
        for (CacheLayer &l : layers_) {
            l.value_stride = round_up(l.value_dim, 16);
            l.k_bytes = (size_t)(kSegment * held_bytes(l.k_held, l.key_dim));
            l.v_bytes = (size_t)(kSegment * held_bytes(l.v_held, l.value_stride));
            l.k_at = size_;
            size_ += (size_t)l.kv_heads * l.k_bytes;
            size_ = (size_ + 63) / 64 * 64;
            l.v_at = size_;
            size_ += (size_t)l.kv_heads * l.v_bytes;
            size_ = (size_ + 63) / 64 * 64;
        }
        segments_.resize((size_t)sequences);
        length_.assign((size_t)sequences, 0);
    }
    const std::vector<CacheLayer> &layers() const { return layers_; }
    i64 sequences() const { return (i64)length_.size(); }
    i64 context() const { return context_; }
    i64 length(i64 sequence) const { return length_[(size_t)sequence]; }
    void set_length(i64 sequence, i64 length) { length_[(size_t)sequence] = length; }
    void reserve(i64 sequence, i64 length) {
        std::vector<Memory> &list = segments_[(size_t)sequence];
        while ((i64)list.size() * kSegment < length) list.emplace_back(size_);
    }
    void truncate(i64 sequence, i64 length) {
        length_[(size_t)sequence] = length;
        segments_[(size_t)sequence].resize((size_t)((length + kSegment - 1) / kSegment));
    }
    // The segments of `length` tokens; reserve and truncate the target before and after.
    void copy_segments(i64 source, i64 target, i64 length) {
        if (source == target) return;
        for (size_t i = 0; (i64)i * kSegment < length; ++i)
            std::memcpy(segments_[(size_t)target][i].data(), segments_[(size_t)source][i].data(), size_);
    }
    uint8_t *segment(i64 sequence, i64 index) const { return segments_[(size_t)sequence][(size_t)index].data(); }
    // The process in which a thread works on the segments without the GIL: nobody else may touch them meanwhile.
    // (After a fork that thread is not here.)
    i64 busy = 0;
    // Counts what changed the cache: a forward that was begun before does not fit any more.
    i64 version = 0;
    i64 bytes() const {
        i64 sum = 0;
        for (const auto &list : segments_) sum += (i64)(list.size() * size_);
        return sum;
    }

  private:
    std::vector<CacheLayer> layers_;
    i64 context_;
    size_t size_ = 0;
    std::vector<std::vector<Memory>> segments_;
    std::vector<i64> length_;
};

} // namespace bestiary
