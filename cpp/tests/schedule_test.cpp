// SPDX-License-Identifier: MIT
// Invariants of the plan: what decides bits depends on one batch element's shape and the ISA only;
// items cover rows exactly once; scratch stays small; kernels stay countable.
#include "core/schedule.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "check.h"
#include "core/dispatch.h"
#include "core/work_items.h"
#include "support.h"

namespace cpuattn {
namespace {

struct Shape {
  int64_t num_heads, num_kv_heads, q_len, kv_len, head_dim;
};

constexpr Shape kShapes[] = {
    {1, 1, 1, 8, 8},          {32, 8, 1, 1024, 128},  {32, 8, 1, 32768, 128},
    {32, 8, 4, 4096, 128},    {32, 32, 1, 4096, 128}, {8, 1, 8, 5000, 64},
    {12, 12, 128, 128, 64},   {12, 12, 512, 512, 64}, {32, 8, 2048, 2048, 128},
    {16, 16, 257, 257, 80},   {8, 8, 4096, 77, 40},   {1, 1, 16384, 16384, 128},
    {4, 2, 65, 3000, 59},     {2, 1, 33, 2048, 256},  {1, 1, 64, 4096, 576},
    {1, 1, 128, 100000, 576}, {128, 1, 1, 8192, 576}, {3, 3, 1, 1, 1},
    {2, 2, 0, 10, 16},        {2, 2, 10, 0, 16},      {0, 0, 10, 10, 16},
    {5, 5, 7, 2047, 576},
};

// An ISA, the dtype of query, key, value and out, and how exact the products have to be.
struct Which {
  const Isa& isa;
  DType dtype;
  Precision precision = Precision::kHighest;
};

AttentionProblem make_problem(const Which& which, const Shape& shape, int64_t batch, bool causal) {
  AttentionProblem p;
  for (View* view : {&p.query, &p.key, &p.value, &p.out}) view->dtype = which.dtype;
  p.precision = which.precision;
  p.batch_dims = 1;
  p.batch_shape[0] = p.batch = batch;
  p.num_heads = shape.num_heads;
  p.num_kv_heads = shape.num_kv_heads;
  p.q_len = shape.q_len;
  p.kv_len = shape.kv_len;
  p.head_dim = p.head_dim_v = shape.head_dim;
  p.causal = causal;
  return p;
}

template <class Body>
void for_usable(Body body) {
  for (const Isa& isa : all_isas()) {
    if (!usable(isa)) continue;
    for (const DType dtype : kFloatDtypes) body(Which{isa, dtype});
    body(Which{isa, DType::kFloat32, Precision::kHigh});
    body(Which{isa, DType::kFloat32, Precision::kMedium});
  }
}

void describe(char (&text)[160], const Which& which, const Shape& s) {
  std::snprintf(text, sizeof text, "%s %s, heads %lld/%lld q_len %lld kv_len %lld head_dim %lld",
                which.isa.name, name_of(which.dtype), static_cast<long long>(s.num_heads),
                static_cast<long long>(s.num_kv_heads), static_cast<long long>(s.q_len),
                static_cast<long long>(s.kv_len), static_cast<long long>(s.head_dim));
}

// Row blocks may follow batch and threads: rows of different tiles never meet.
void check_same_bits(Report& report, const Which& which, const Shape& shape, bool causal) {
  char text[160];
  describe(text, which, shape);
  const Plan first = make_plan(make_problem(which, shape, 1, causal), which.isa, 1);
  for (const int64_t batch : {1, 2, 7, 64}) {
    const AttentionProblem p = make_problem(which, shape, batch, causal);
    for (const int threads : {1, 2, 3, 8, 64}) {
      const Plan plan = make_plan(p, which.isa, threads);
      report.expect(plan.table == first.table && plan.kernel == first.kernel &&
                        plan.is_decode == first.is_decode && plan.chunk == first.chunk &&
                        plan.chunks == first.chunks && plan.planes == first.planes,
                    "%s: batch %lld threads %d changes kernel or chunks", text,
                    static_cast<long long>(batch), threads);
      const bool tiled =
          plan.is_decode ? plan.row_block >= p.rows() : plan.row_block % plan.kernel->row_tile == 0;
      report.expect(tiled && plan.row_block > 0, "%s: batch %lld threads %d: row block %lld", text,
                    static_cast<long long>(batch), threads, static_cast<long long>(plan.row_block));
      report.expect(plan.threads >= 1 && plan.threads <= threads, "%s: %d threads of %d", text,
                    plan.threads, threads);
    }
  }
}

void test_same_bits(Report& report) {
  report.subject("kernel, chunks and row tiles do not depend on batch or threads");
  for_usable([&](const Which& which) {
    for (const Shape& shape : kShapes) {
      check_same_bits(report, which, shape, false);
      check_same_bits(report, which, shape, true);
    }
  });
}

void check_cover(Report& report, const Which& which, const Shape& shape, int64_t batch,
                 int threads) {
  char text[160];
  describe(text, which, shape);
  const AttentionProblem p = make_problem(which, shape, batch, false);
  const Plan plan = make_plan(p, which.isa, threads);
  const int64_t items = plan.tasks / (plan.parallel_chunks ? plan.chunks : 1);
  report.expect(items == (p.rows() > 0 ? plan.groups * plan.row_blocks : 0), "%s: %lld tasks", text,
                static_cast<long long>(plan.tasks));
  std::vector<int> seen(static_cast<size_t>(plan.groups * p.rows()), 0);
  bool inside = true;
  for (int64_t index = 0; index < items; ++index) {
    const WorkItem item = make_work_item(p, plan, index);
    inside = inside && item.row_begin >= 0 && item.row_begin < item.row_end &&
             item.row_end <= p.rows() && item.row_end - item.row_begin <= plan.row_block &&
             item.row_begin % plan.row_block == 0;
    const int64_t group = index / plan.row_blocks;
    for (int64_t row = item.row_begin; inside && row < item.row_end; ++row) {
      ++seen[static_cast<size_t>(group * p.rows() + row)];
    }
  }
  bool once = true;
  for (const int count : seen) once = once && count == 1;
  report.expect(inside && once, "%s: batch %lld threads %d", text, static_cast<long long>(batch),
                threads);
  const bool keys = plan.chunks >= 1 && plan.chunk * plan.chunks >= p.kv_len &&
                    plan.chunk * (plan.chunks - 1) <= p.kv_len;
  report.expect(keys, "%s: %lld chunks of %lld keys", text, static_cast<long long>(plan.chunks),
                static_cast<long long>(plan.chunk));
}

void test_cover(Report& report) {
  report.subject("items cover every row of every kv head exactly once, chunks cover the keys");
  for_usable([&](const Which& which) {
    for (const Shape& shape : kShapes) {
      for (const int threads : {1, 2, 16}) {
        check_cover(report, which, shape, 1, threads);
        check_cover(report, which, shape, 3, threads);
      }
    }
  });
}

// Item scratch is per thread; the states of parallel chunks belong to the call.
void test_scratch(Report& report) {
  report.subject(
      "scratch of a thread stays below 1 MB (float64, two terms: 2 MB) for head_dim up to 576");
  constexpr int64_t lengths[] = {1, 2, 8, 15, 16, 31, 32, 33, 64, 65, 128, 129, 1024, 100000};
  for_usable([&](const Which& which) {
    int64_t most = 0;
    for (const int64_t head_dim : {1, 64, 80, 128, 192, 256, 576}) {
      for (const int64_t q_len : lengths) {
        for (const int64_t kv_len : lengths) {
          for (const int threads : {1, 4}) {
            const Shape shape{1, 1, q_len, kv_len, head_dim};
            const Plan plan = make_plan(make_problem(which, shape, 1, false), which.isa, threads);
            char text[160];
            describe(text, which, shape);
            const bool wide = which.dtype == DType::kFloat64 || plan.planes > 1;
            report.expect(plan.item_scratch < (wide ? int64_t{2} : int64_t{1}) << 20,
                          "%s: %lld bytes", text, static_cast<long long>(plan.item_scratch));
            report.expect(plan.kernel_scratch % 64 == 0 && plan.item_scratch >= plan.kernel_scratch,
                          "%s: layout", text);
            most = std::max(most, plan.item_scratch);
          }
        }
      }
    }
    std::printf("%s %s: at most %lld bytes of scratch\n", which.isa.name, name_of(which.dtype),
                static_cast<long long>(most));
  });
}

void test_tables(Report& report) {
  report.subject("what is multiplied follows the dtype, the precision and the ISA");
  for_usable([&](const Which& which) {
    const Isa& isa = which.isa;
    const AttentionProblem p = make_problem(which, {1, 1, 100, 100, 64}, 1, false);
    const Plan plan = make_plan(p, isa, 1);
    const bool matrix = isa.bfloat16 != nullptr && isa.bfloat16->max_planes > 1;
    const KernelTable* table = isa.float32;
    int planes = 1;
    if (which.dtype == DType::kFloat64) {
      table = isa.float64;
    } else if (which.dtype == DType::kBFloat16 || which.precision == Precision::kMedium) {
      if (isa.bfloat16 != nullptr) table = isa.bfloat16;
    } else if (matrix && (which.dtype == DType::kFloat16 || which.precision == Precision::kHigh)) {
      table = isa.bfloat16;
      planes = 2;
    }
    const char* text = table == isa.float64   ? "float64"
                       : table == isa.float32 ? "float32"
                       : planes == 1          ? "bfloat16"
                                              : "bfloat16 x3";
    report.expect(plan.isa == &isa && plan.table == table && plan.planes == planes,
                  "%s %s: %s of %s", isa.name, name_of(which.dtype), products(p, plan),
                  plan.table->isa);
    report.expect(std::strcmp(products(p, plan), text) == 0, "%s: says %s", isa.name,
                  products(p, plan));
    report.expect(plan.kernel == &plan.table->prefill && !plan.is_decode, "%s: kernel", isa.name);
  });
}

void test_variants(Report& report) {
  report.subject("a table has two kernels at most, and no two tables share one");
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : all_isas()) {
    for (const KernelTable* table : {isa.float32, isa.float64, isa.bfloat16}) {
      const bool known = std::find(tables.begin(), tables.end(), table) != tables.end();
      if (table != nullptr && !known) tables.push_back(table);
    }
  }
  std::vector<void (*)(const WorkItem&)> kernels;
  for (const KernelTable* table : tables) {
    // Does not compile once a table has more kernels: look at them here as well then.
    const auto& [name, lanes, max_planes, prefill, decode_rows, decode] = *table;
    report.expect(name[0] != '\0' && lanes > 0 && max_planes > 0, "%s", name);
    report.expect(prefill.row_tile % lanes == 0 && prefill.row_tile <= 64, "%s: row tile %d", name,
                  prefill.row_tile);
    report.expect((decode_rows > 0) == (decode.run != nullptr), "%s: decode", name);
    for (const auto run : {prefill.run, decode.run}) {
      if (run == nullptr) continue;
      const bool known = std::find(kernels.begin(), kernels.end(), run) != kernels.end();
      report.expect(!known, "%s shares a kernel", name);
      kernels.push_back(run);
    }
  }
  report.expect(!tables.empty(), "no table");
  std::printf("%d kernels in %d tables\n", static_cast<int>(kernels.size()),
              static_cast<int>(tables.size()));
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_same_bits(report);
  cpuattn::test_cover(report);
  cpuattn::test_scratch(report);
  cpuattn::test_tables(report);
  cpuattn::test_variants(report);
  return report.finish();
}
