// SPDX-License-Identifier: MIT
// How a kv block is cut for a tile of rows into runs of keys that somebody sees.
#pragma once

namespace cpuattn {
namespace CPUATTN_ISA {
namespace {

// A run of keys [begin, end) against the vectors [first_vec, last_vec) of a tile.
struct Run {
  int64_t begin, end;
  int first_vec, last_vec;
  const uint64_t* visible;  // row bits per key of the run, or nullptr when every row sees them all
};

enum class Sight { kNone, kSome, kAll };

// Row bits of `count` <= 64 keys, and what they amount to.
CPUATTN_NOINLINE Sight look(const WorkItem& item, const RowTile& tile, int64_t key, int64_t count,
                            int first_vec, int last_vec, uint64_t* visible) {
  uint64_t words[64] = {};
  uint64_t any_word = 0;
  uint64_t all_words = low_bits(count);
  const int last = static_cast<int>(smaller(tile.rows, last_vec * kLanes));
  bool mask_only = item.q_segments.data == nullptr && item.mask.data != nullptr &&
                   item.mask.col_step == 1 && item.kv_len - key >= kWordKeys;
  for (int vec = first_vec; vec < last_vec; ++vec) {
    mask_only = mask_only && tile.every[vec].begin <= key && key + count <= tile.every[vec].end;
  }
  for (int i = first_vec * kLanes; i < last; ++i) {
    if (mask_only) {  // the usual case, without the arithmetic of ranges
      const char* p = row_address(item.mask, tile.of[i]) + key;
      prefetch_l2(p + kMaskAhead);
      words[i] = nonzero_bits64(reinterpret_cast<const uint8_t*>(p)) & low_bits(count);
    } else {
      words[i] = row_word(item, tile.of[i], tile.range[i], key, count);
    }
    any_word |= words[i];
    all_words &= words[i];
  }
  if (any_word == 0) return Sight::kNone;
  if (all_words == low_bits(count)) {
    for (int64_t i = 0; i < count; ++i) visible[i] = kAllKeys;
    return Sight::kAll;
  }
  transpose_bits(words);
  for (int64_t i = 0; i < count; ++i) visible[i] = words[i];
  return Sight::kSome;
}

// Calls step(Run) for the runs of the keys [begin, end), which `vecs` rows see at least in part.
template <class Step>
CPUATTN_INLINE void split_by_sight(const WorkItem& item, const RowTile& tile, Run run,
                                   uint64_t* visible, Step step) {
  bool every_row = !has_bits(item);
  for (int vec = run.first_vec; vec < run.last_vec; ++vec) {
    every_row = every_row && tile.every[vec].begin <= run.begin && run.end <= tile.every[vec].end;
  }
  if (every_row) {
    run.visible = nullptr;
    step(run);
    return;
  }
  Run open = run;
  bool partial = false;
  for (int64_t key = run.begin; key < run.end; key += kWordKeys) {
    const int64_t count = smaller(kWordKeys, run.end - key);
    const Sight sight =
        look(item, tile, key, count, run.first_vec, run.last_vec, visible + (key - open.begin));
    if (sight == Sight::kNone) {
      open.end = key;
      open.visible = partial ? visible : nullptr;
      if (open.begin < open.end) step(open);
      open.begin = key + count;
      partial = false;
    }
    partial = partial || sight == Sight::kSome;
  }
  open.end = run.end;
  open.visible = partial ? visible : nullptr;
  if (open.begin < open.end) step(open);
}

// Cuts a kv block into runs over which the set of vectors with a visible key is constant. Ranges
// grow monotonously with the row, so that set is contiguous.
template <class Step>
CPUATTN_INLINE void for_runs(const WorkItem& item, const RowTile& tile, const KvBlock& block,
                             uint64_t* visible, Step step) {
  for (int64_t begin = block.begin; begin < block.end;) {
    Run run{begin, block.end, tile.vecs, 0, nullptr};
    for (int vec = 0; vec < tile.vecs; ++vec) {
      const KeyRange some = tile.some[vec];
      if (some.begin >= some.end || begin >= some.end) continue;
      if (begin < some.begin) {
        run.end = smaller(run.end, some.begin);
      } else {
        run.end = smaller(run.end, some.end);
        run.first_vec = vec < run.first_vec ? vec : run.first_vec;
        run.last_vec = vec + 1;
      }
    }
    begin = run.end;
    if (run.first_vec < run.last_vec) split_by_sight(item, tile, run, visible, step);
  }
}

}  // namespace
}  // namespace CPUATTN_ISA
}  // namespace cpuattn
