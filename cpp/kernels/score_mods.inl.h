// SPDX-License-Identifier: MIT
// Which keys a row sees, as column ranges and 64-bit words, and what is added to its scores.
//
// Causal, window and lengths are ranges [begin, end) of columns, found by arithmetic. Boolean masks
// and segment ids are bits, 64 keys at a time, ANDed with the range. A run of keys that nobody sees
// costs neither product; a run that everybody sees costs no masking.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

constexpr int kWordKeys = 64;  // keys of one visibility word
constexpr uint64_t kAllKeys = ~uint64_t{0};
constexpr int64_t kMaskAhead = 128;  // bytes: the line that the next block of keys needs

struct KeyRange {
  int64_t begin, end;
};

// The columns that causal, window and lengths leave to one token, within the item's chunk.
CPUATTN_INLINE KeyRange key_range(const WorkItem& item, int64_t token) {
  const int64_t diagonal = token + item.offset;
  int64_t begin = item.kv_begin;
  int64_t end = smaller(item.kv_end, item.kv_length);
  if (item.band_left != kOpen) begin = larger(begin, diagonal - item.band_left);
  if (item.band_right != kOpen) end = smaller(end, diagonal + item.band_right + 1);
  if (token >= item.q_length || end <= begin) return {item.kv_begin, item.kv_begin};
  return {begin, end};
}

CPUATTN_INLINE bool has_bits(const WorkItem& item) {
  return item.mask.data != nullptr || item.q_segments.data != nullptr;
}

// A query row: row = token * group + head. Divided out once per tile, not once per use.
struct Row {
  int64_t token, head;
};

CPUATTN_INLINE void divide_rows(const WorkItem& item, int64_t first, int64_t count, Row* rows) {
  Row row{first / item.group, first % item.group};
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = row;
    if (++row.head == item.group) row = {row.token + 1, 0};
  }
}

CPUATTN_INLINE char* row_address(const RowPlane& plane, Row row) {
  return plane.data + row.token * plane.token_step + row.head * plane.head_step;
}

CPUATTN_INLINE uint64_t low_bits(int64_t n) { return n >= 64 ? kAllKeys : (uint64_t{1} << n) - 1; }

// Bits of `count` <= 64 strided booleans, of which `readable` >= count lie within the array.
CPUATTN_INLINE uint64_t boolean_bits(const char* p, int64_t step, int64_t count, int64_t readable) {
  if (step == 1) {
    if (readable >= kWordKeys) {
      return nonzero_bits64(reinterpret_cast<const uint8_t*>(p)) & low_bits(count);
    }
    uint8_t bytes[kWordKeys] = {};
    __builtin_memcpy(bytes, p, static_cast<size_t>(count));
    return nonzero_bits64(bytes);
  }
  if (step == 0) return *p != 0 ? low_bits(count) : 0;
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(p[i * step] != 0) << i;
  return bits;
}

// Bit i says whether `row` sees key + i, for i < count <= 64.
CPUATTN_INLINE uint64_t row_word(const WorkItem& item, Row row, KeyRange range, int64_t key,
                                 int64_t count) {
  const int64_t begin = larger(range.begin - key, 0);
  const int64_t end = smaller(range.end - key, count);
  if (end <= begin) return 0;
  uint64_t word = low_bits(end) & ~low_bits(begin);
  if (item.mask.data != nullptr) {
    const char* p = row_address(item.mask, row) + key * item.mask.col_step;
    prefetch_l2(p + kMaskAhead);  // a row's bytes lie far from the next row's: no stream to detect
    word &= boolean_bits(p, item.mask.col_step, count, item.kv_len - key);
  }
  if (item.q_segments.data != nullptr) {
    const int64_t segment = integer_at(item.q_segments, row.token);
    uint64_t same = 0;
    for (int64_t i = 0; i < count; ++i) {
      same |= static_cast<uint64_t>(integer_at(item.kv_segments, key + i) == segment) << i;
    }
    word &= same;
  }
  return word;
}

// 64 x 64 bits: afterwards bit i of a[j] is what bit j of a[i] was.
CPUATTN_NOINLINE void transpose_bits(uint64_t (&a)[64]) {
  uint64_t low = 0x00000000ffffffffu;
  for (int width = 32; width != 0; width >>= 1, low ^= low << width) {
    for (int base = 0; base < 64; base += 2 * width) {
      for (int i = base; i < base + width; ++i) {
        const uint64_t swap = ((a[i] >> width) ^ a[i + width]) & low;
        a[i] ^= swap << width;
        a[i + width] ^= swap;
      }
    }
  }
}

// score + bias in log2 units. A bias of -inf removes the key even where the score is NaN; the
// lowest float, which other libraries use for the same end, must not become -inf by the factor:
// a row of it is a row of equal scores.
CPUATTN_INLINE Vec add_bias(Vec score, Vec bias) {
  const Vec gone = broadcast(kNegInf);
  const Vec scaled = max(broadcast(kLowest), mul(bias, broadcast(kLog2e)));  // keeps NaN
  return select(equal(bias, gone), gone, add(scaled, score));
}

// Draws of up to 64 rows for four keys, 32 random bits each.
struct Draws {
  uint32_t word[4][64];
};

// Philox4x32-10 (Salmon et al. 2011) of `count` counters, which the draws replace.
CPUATTN_NOINLINE void philox(Draws& s, int count, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < count; ++i) {
      const uint64_t a = uint64_t{0xD2511F53u} * s.word[0][i];
      const uint64_t b = uint64_t{0xCD9E8D57u} * s.word[2][i];
      const uint32_t word1 = s.word[1][i];
      const uint32_t word3 = s.word[3][i];
      s.word[0][i] = static_cast<uint32_t>(b >> 32) ^ word1 ^ key0;
      s.word[1][i] = static_cast<uint32_t>(b);
      s.word[2][i] = static_cast<uint32_t>(a >> 32) ^ word3 ^ key1;
      s.word[3][i] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Threefry2x32-20 (Salmon et al. 2011) of `count` counters (high, low), which its words replace.
CPUATTN_NOINLINE void threefry(uint32_t* high, uint32_t* low, int count, uint32_t key0,
                               uint32_t key1) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
  for (uint32_t group = 0; group <= 5; ++group) {
    const uint32_t add_high = keys[group % 3];
    const uint32_t add_low = keys[(group + 1) % 3] + group;
    for (int i = 0; i < count; ++i) {
      high[i] += add_high;
      low[i] += add_low;
    }
    for (int round = 0; round < 4 && group < 5; ++round) {
      const int left = kRotations[group % 2][round];
      for (int i = 0; i < count; ++i) {
        high[i] += low[i];
        low[i] = (low[i] << left | low[i] >> (32 - left)) ^ high[i];
      }
    }
  }
}

// Draws for `count` rows and the four keys 4 * quad ... 4 * quad + 3. Threefry's are those of
// jax.random.bits for the flat index of the weight; JAX keeps the small ones, hence the complement.
CPUATTN_INLINE void draw(const WorkItem& item, const Row* rows, int count, int64_t quad, Draws& s) {
  const Dropout& d = item.dropout;
  if (!d.threefry) {
    for (int i = 0; i < count; ++i) {
      s.word[0][i] = static_cast<uint32_t>(quad);
      s.word[1][i] = d.shared_rows ? 0 : static_cast<uint32_t>(rows[i].token);
      s.word[2][i] = d.shared_heads ? 0 : d.head + static_cast<uint32_t>(rows[i].head);
      s.word[3][i] = d.batch;
    }
    return philox(s, count, d.key[0], d.key[1]);
  }
  for (int k = 0; k < 4; ++k) {
    uint32_t* high = s.word[k];
    uint32_t low[64];
    for (int i = 0; i < count; ++i) {
      const uint64_t index = d.first + d.head_step * static_cast<uint64_t>(rows[i].head) +
                             d.row_step * static_cast<uint64_t>(rows[i].token) +
                             static_cast<uint64_t>(4 * quad + k);
      high[i] = static_cast<uint32_t>(index >> 32);
      low[i] = static_cast<uint32_t>(index);
    }
    threefry(high, low, count, d.key[1], d.key[0]);
    for (int i = 0; i < count; ++i) high[i] = ~(high[i] ^ low[i]);
  }
}

CPUATTN_INLINE Real of_head(const HeadList& list, Row row) {
  return load_element<Real>(list.data + row.head * list.step, list.dtype);
}

// The softmax of a row starts from its sink, which has a score and no value, or from nothing.
CPUATTN_INLINE void start_row(const WorkItem& item, Row row, Real& row_max, Real& row_sum) {
  row_max = kNegInf;
  row_sum = 0;
  if (item.sinks.data == nullptr || !item.start_from_sinks) return;
  const Real sink = of_head(item.sinks, row);
  row_max = sink * kLog2e;
  row_sum = sink == kNegInf ? 0 : 1;
}

// Where the factor of the scores goes: into the query, or (its size) to the softmax. A factor of 0
// always goes into the query: it must not meet the -inf of a hidden key.
CPUATTN_INLINE Real query_factor(const WorkItem& item) {
  const Real factor = static_cast<Real>(item.query_factor);
  if (kFoldsScale || factor == 0) return factor;
  return factor < 0 ? -1 : 1;
}
CPUATTN_INLINE Real score_factor(const WorkItem& item) {
  const Real factor = static_cast<Real>(item.query_factor);
  if (kFoldsScale || factor == 0) return 1;
  return factor < 0 ? -factor : factor;
}

CPUATTN_INLINE bool changes_scores(const WorkItem& item) {
  return item.softcap_factor != 0 || item.bias.data != nullptr || item.alibi_slopes.data != nullptr;
}

// What the softmax multiplies the scores of score_run by.
CPUATTN_INLINE Real pending_factor(const WorkItem& item) {
  return changes_scores(item) ? 1 : score_factor(item);
}

// Whether some row of the item may not see a key that is computed for another row.
CPUATTN_INLINE bool may_hide_keys(const WorkItem& item) {
  return has_bits(item) || item.bias.data != nullptr || item.band_left != kOpen ||
         item.band_right != kOpen || item.kv_length < item.kv_len || item.q_length < INT64_MAX;
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
