// SPDX-License-Identifier: MIT
// Visibility ranges and words, bias, sinks and dropout draws of score_mods.inl.h, on one ISA.
#include "isa_test.h"
// clang-format off: each file builds on the ones before it
#include CPUATTN_UNITS_HEADER
#include "kernels/vmath.inl.h"
#include "kernels/elements.inl.h"
#include "kernels/score_mods.inl.h"
// clang-format on

#include <cmath>
#include <initializer_list>

#include "check.h"
#include "support.h"

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

void test_transpose_bits(Report& report) {
  report.subject("transpose_bits");
  Random random(test_seed(2));
  for (int round = 0; round < 20; ++round) {
    uint64_t before[64], after[64];
    for (int i = 0; i < 64; ++i) {
      const uint64_t one = round == 0 ? uint64_t{1} << (i * 7 % 64) : random.next();
      before[i] = after[i] = one;
    }
    transpose_bits(after);
    for (int i = 0; i < 64; ++i) {
      uint64_t column = 0;
      for (int j = 0; j < 64; ++j) column |= (before[j] >> i & 1) << j;
      report.expect(after[i] == column, "round %d word %d", round, i);
    }
  }
}

void test_boolean_bits(Report& report) {
  report.subject("boolean_bits for every step and count reads nothing beyond the last one");
  Random random(test_seed(3));
  for (const int64_t step : {1, 0, 2, 3, 7, 64, -1, -2, -5}) {
    for (int64_t count = 1; count <= 64; ++count) {
      for (const int64_t readable : {count, larger(count, 63), int64_t{64}, int64_t{70}}) {
        const int64_t extent = (readable - 1) * (step < 0 ? -step : step) + 1;
        GuardedArray array(extent);
        for (char* p = array.data(); p != array.end(); ++p) {
          *p = static_cast<char>(random.chance(50) ? random.between(1, 255) : 0);
        }
        const char* first = step < 0 ? array.end() - 1 : array.data();
        uint64_t want = 0;
        for (int64_t i = 0; i < count; ++i) {
          want |= static_cast<uint64_t>(first[i * step] != 0) << i;
        }
        report.expect(boolean_bits(first, step, count, readable) == want, "step %lld, %lld of %lld",
                      static_cast<long long>(step), static_cast<long long>(count),
                      static_cast<long long>(readable));
      }
    }
  }
  report.subject("low_bits");
  for (int64_t n = 0; n <= 70; ++n) {
    uint64_t want = 0;
    for (int64_t i = 0; i < n && i < 64; ++i) want |= uint64_t{1} << i;
    report.expect(low_bits(n) == want, "%lld", static_cast<long long>(n));
  }
}

// What docs/semantics.md calls visible, by lengths, causal and window.
bool in_band(const WorkItem& item, int64_t token, int64_t key) {
  const int64_t diagonal = token + item.offset;
  return token < item.q_length && key < item.kv_length && key >= item.kv_begin &&
         key < item.kv_end && (item.band_left == kOpen || key >= diagonal - item.band_left) &&
         (item.band_right == kOpen || key <= diagonal + item.band_right);
}

WorkItem random_band(Random& random) {
  WorkItem item{};
  item.group = random.between(1, 4);
  item.kv_len = random.between(1, 200);
  item.kv_begin = random.chance(50) ? 0 : random.below(item.kv_len);
  item.kv_end = random.between(item.kv_begin, item.kv_len);
  item.kv_length = random.chance(50) ? item.kv_len : random.between(0, item.kv_len);
  item.q_length = random.chance(50) ? INT64_MAX : random.between(0, 40);
  item.offset = random.between(-60, 220);
  item.band_left = random.chance(50) ? kOpen : random.between(0, 50);
  item.band_right = random.chance(30) ? kOpen : random.chance(50) ? 0 : random.between(0, 50);
  return item;
}

void test_key_range(Report& report) {
  report.subject("key_range");
  Random random(test_seed(4));
  for (int round = 0; round < 3000; ++round) {
    const WorkItem item = random_band(random);
    const int64_t token = random.below(40);
    const KeyRange range = key_range(item, token);
    bool right = range.begin <= range.end && range.begin >= item.kv_begin;
    for (int64_t key = 0; key < item.kv_len; ++key) {
      right = right && (key >= range.begin && key < range.end) == in_band(item, token, key);
    }
    report.expect(right, "round %d", round);
  }
  report.subject("key_range with the farthest offsets and widest windows");
  WorkItem item{};
  item.kv_end = item.kv_len = item.kv_length = 10;
  item.q_length = INT64_MAX;
  constexpr int64_t far = int64_t{1} << 60;
  for (const int64_t offset : {-far, int64_t{0}, far}) {
    for (const int64_t left : {int64_t{0}, far, kOpen}) {
      for (const int64_t right : {int64_t{0}, far, kOpen}) {
        item.offset = offset;
        item.band_left = left;
        item.band_right = right;
        const KeyRange range = key_range(item, 3);
        bool fits = true;
        for (int64_t key = 0; key < 10; ++key) {
          fits = fits && (key >= range.begin && key < range.end) == in_band(item, 3, key);
        }
        report.expect(fits, "offset %lld window (%lld, %lld)", static_cast<long long>(offset),
                      static_cast<long long>(left), static_cast<long long>(right));
      }
    }
  }
}

// A mask and segment ids over 40 tokens, 4 heads and 200 keys.
struct Planes {
  static constexpr int64_t kTokens = 40, kHeads = 4, kKeys = 200;
  GuardedArray mask{kTokens * kHeads * kKeys};
  GuardedArray q_ids{kTokens * 8};
  GuardedArray kv_ids{kKeys * 8};
  int item_size;

  Planes(Random& random, int id_size) : item_size(id_size) {
    for (char* p = mask.data(); p != mask.end(); ++p) *p = random.chance(60) ? 1 : 0;
    for (int64_t i = 0; i < kTokens; ++i) set_id(q_ids, kTokens, i, random.between(-1, 1));
    for (int64_t i = 0; i < kKeys; ++i) set_id(kv_ids, kKeys, i, random.between(-1, 1));
  }
  char* id(const GuardedArray& ids, int64_t count, int64_t i) const {
    return ids.end() - (count - i) * item_size;
  }
  void set_id(const GuardedArray& ids, int64_t count, int64_t i, int64_t value) const {
    const int32_t narrow = static_cast<int32_t>(value);
    if (item_size == 4) std::memcpy(id(ids, count, i), &narrow, 4);
    if (item_size == 8) std::memcpy(id(ids, count, i), &value, 8);
  }
  bool same_segment(int64_t token, int64_t key) const {
    return std::memcmp(id(q_ids, kTokens, token), id(kv_ids, kKeys, key),
                       static_cast<size_t>(item_size)) == 0;
  }
  void attach(WorkItem& item, bool with_mask, bool with_segments) const {
    if (with_mask) item.mask = {mask.data(), kHeads * kKeys, kKeys, 1, DType::kBool};
    if (with_segments) {
      item.q_segments = {id(q_ids, kTokens, 0), item_size, item_size};
      item.kv_segments = {id(kv_ids, kKeys, 0), item_size, item_size};
    }
  }
};

void test_row_word(Report& report) {
  report.subject("row_word: band, mask and segments together");
  Random random(test_seed(5));
  const Planes narrow(random, 4);
  const Planes wide(random, 8);
  for (int round = 0; round < 3000; ++round) {
    const Planes& planes = random.chance(50) ? narrow : wide;
    WorkItem item = random_band(random);
    if (item.kv_begin == item.kv_end) continue;
    planes.attach(item, random.chance(60), random.chance(60));
    const Row row{random.below(Planes::kTokens), random.below(Planes::kHeads)};
    const int64_t key = random.between(item.kv_begin, item.kv_end - 1);
    const int64_t count = random.between(1, smaller(64, item.kv_end - key));
    uint64_t want = 0;
    for (int64_t i = 0; i < count; ++i) {
      bool sees = in_band(item, row.token, key + i);
      if (item.mask.data != nullptr) sees = sees && row_address(item.mask, row)[key + i] != 0;
      if (item.q_segments.data != nullptr) {
        sees = sees && planes.same_segment(row.token, key + i);
      }
      want |= static_cast<uint64_t>(sees) << i;
    }
    const uint64_t got = row_word(item, row, key_range(item, row.token), key, count);
    report.expect(got == want, "round %d: got %#llx, expected %#llx", round,
                  static_cast<unsigned long long>(got), static_cast<unsigned long long>(want));
  }
}

void test_divide_rows(Report& report) {
  report.subject("divide_rows");
  for (int64_t group = 1; group <= 9; ++group) {
    WorkItem item{};
    item.group = group;
    for (int64_t first = 0; first < 30; ++first) {
      Row rows[64];
      divide_rows(item, first, 64, rows);
      bool right = true;
      for (int64_t i = 0; i < 64; ++i) {
        right =
            right && rows[i].token == (first + i) / group && rows[i].head == (first + i) % group;
      }
      report.expect(right, "group %lld first %lld", static_cast<long long>(group),
                    static_cast<long long>(first));
    }
  }
}

void test_add_bias(Report& report) {
  report.subject("a bias of -inf removes the key, NaN included");
  const auto sum = [](Real score, Real bias) {
    Real result[kLanes];
    store(result, add_bias(broadcast(score), broadcast(bias)));
    return result[0];
  };
  for (const Real score : {Real{0}, Real{5}, kInf, kNegInf, kNan}) {
    report.expect(sum(score, kNegInf) == kNegInf, "score %g", static_cast<double>(score));
  }
  const Real error = sum(1, 2) - (1 + 2 * kLog2e);
  report.expect(std::abs(error) < 8 * RealLimits::epsilon(), "1 + 2 log2(e)");
  for (const Real score : {Real{0}, Real{50}, Real{-50}}) {  // a bias that others use for "masked"
    report.expect(sum(score, -kLargest) == -kLargest, "lowest number, score %g: %g",
                  static_cast<double>(score), static_cast<double>(sum(score, -kLargest)));
  }
  report.expect(sum(1, kNan) != sum(1, kNan), "NaN bias");
  report.expect(sum(kNan, 1) != sum(kNan, 1), "NaN score");
}

// Known answers of philox4x32-10, from Random123's kat_vectors (Salmon et al. 2011).
struct PhiloxAnswer {
  uint32_t counter[4], key[2], result[4];
};
constexpr PhiloxAnswer kAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void test_philox(Report& report) {
  report.subject("philox: known answers, for every number of counters");
  for (const PhiloxAnswer& answer : kAnswers) {
    for (int count = 1; count <= 64; ++count) {
      Draws s = {};
      for (int word = 0; word < 4; ++word) {
        for (int i = 0; i < count - 1; ++i) s.word[word][i] = static_cast<uint32_t>(i * 77 + word);
        s.word[word][count - 1] = answer.counter[word];
      }
      philox(s, count, answer.key[0], answer.key[1]);
      for (int word = 0; word < 4; ++word) {
        report.expect(s.word[word][count - 1] == answer.result[word], "count %d word %d: got %08x",
                      count, word, s.word[word][count - 1]);
      }
    }
  }
}

struct ThreefryAnswer {
  uint32_t counter[2], key[2], result[2];
};
// The known answers of Random123, the authors' library.
constexpr ThreefryAnswer kThreefryAnswers[] = {
    {{0, 0}, {0, 0}, {0x6b200159, 0x99ba4efe}},
    {{0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x1cb996fc, 0xbb002be7}},
    {{0x243f6a88, 0x85a308d3}, {0x13198a2e, 0x03707344}, {0xc4923a9c, 0x483df7a0}},
};

void test_threefry(Report& report) {
  report.subject("threefry: known answers, for every number of counters");
  for (const ThreefryAnswer& answer : kThreefryAnswers) {
    for (int count = 1; count <= 64; ++count) {
      uint32_t high[64] = {};
      uint32_t low[64] = {};
      high[count - 1] = answer.counter[0];
      low[count - 1] = answer.counter[1];
      threefry(high, low, count, answer.key[0], answer.key[1]);
      report.expect(high[count - 1] == answer.result[0] && low[count - 1] == answer.result[1],
                    "count %d: got %08x %08x", count, high[count - 1], low[count - 1]);
    }
  }
}

void test_draw_threefry(Report& report) {
  report.subject("draw: Threefry counts weights by their flat index, beyond 2^32 too");
  WorkItem item{};
  item.dropout.threefry = true;
  item.dropout.key[0] = 0x12345678;
  item.dropout.key[1] = 0x9abcdef0;
  item.dropout.first = 0xfffffff0u;
  item.dropout.head_step = 700;
  item.dropout.row_step = 70;
  const Row rows[3] = {{5, 0}, {5, 1}, {6, 0}};
  Draws got;
  draw(item, rows, 3, 11, got);
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 4; ++k) {
      const auto token = static_cast<uint64_t>(rows[i].token);
      const auto head = static_cast<uint64_t>(rows[i].head);
      const uint64_t index = 0xfffffff0u + head * 700 + token * 70 + 44 + static_cast<uint64_t>(k);
      auto high = static_cast<uint32_t>(index >> 32);
      auto low = static_cast<uint32_t>(index);
      threefry(&high, &low, 1, 0x9abcdef0, 0x12345678);
      report.expect(got.word[k][i] == ~(high ^ low), "row %d key %d", i, k);
    }
  }
}

void test_draw(Report& report) {
  report.subject("draw: counter (key / 4, row, head, batch), shared axes count as 0");
  for (const bool shared_rows : {false, true}) {
    for (const bool shared_heads : {false, true}) {
      WorkItem item{};
      item.dropout.key[0] = 0x12345678;
      item.dropout.key[1] = 0x9abcdef0;
      item.dropout.batch = 3;
      item.dropout.head = 8;
      item.dropout.shared_rows = shared_rows;
      item.dropout.shared_heads = shared_heads;
      const Row rows[3] = {{5, 0}, {5, 1}, {6, 0}};
      Draws got;
      draw(item, rows, 3, 11, got);
      for (int i = 0; i < 3; ++i) {
        Draws want = {};
        want.word[0][0] = 11;
        want.word[1][0] = shared_rows ? 0 : static_cast<uint32_t>(rows[i].token);
        want.word[2][0] = shared_heads ? 0 : 8 + static_cast<uint32_t>(rows[i].head);
        want.word[3][0] = 3;
        philox(want, 1, 0x12345678, 0x9abcdef0);
        for (int word = 0; word < 4; ++word) {
          report.expect(got.word[word][i] == want.word[word][0], "row %d word %d", i, word);
        }
      }
    }
  }
}

void test_start_row(Report& report) {
  report.subject("start_row: a sink counts once, in the chunk that carries it, in any dtype");
  const Real sinks[3] = {2, kNegInf, -1};
  for (const DType dtype : kFloatDtypes) {
    const int64_t step = 3 * item_size(dtype) + 1;
    GuardedArray array(2 * step + item_size(dtype));
    for (int head = 0; head < 3; ++head) {
      store_element(array.data() + head * step, dtype, sinks[head]);
    }
    WorkItem item{};
    item.sinks = {array.data(), step, dtype};
    for (int head = 0; head < 3; ++head) {
      Real row_max = 1;
      Real row_sum = 1;
      item.start_from_sinks = true;
      start_row(item, {4, head}, row_max, row_sum);
      report.expect(row_max == sinks[head] * kLog2e, "head %d maximum", head);
      report.expect(row_sum == (head == 1 ? 0 : 1), "head %d sum", head);
      item.start_from_sinks = false;
      start_row(item, {4, head}, row_max, row_sum);
      report.expect(row_max == kNegInf && row_sum == 0, "head %d in a later chunk", head);
    }
  }
}

}  // namespace
}  // namespace CPUATTN_ISA

int run_isa_tests() {
  Report report;
  CPUATTN_ISA::test_transpose_bits(report);
  CPUATTN_ISA::test_boolean_bits(report);
  CPUATTN_ISA::test_key_range(report);
  CPUATTN_ISA::test_row_word(report);
  CPUATTN_ISA::test_divide_rows(report);
  CPUATTN_ISA::test_add_bias(report);
  CPUATTN_ISA::test_philox(report);
  CPUATTN_ISA::test_threefry(report);
  CPUATTN_ISA::test_draw(report);
  CPUATTN_ISA::test_draw_threefry(report);
  CPUATTN_ISA::test_start_row(report);
  return report.finish();
}

}  // namespace cpuattn
