// SPDX-License-Identifier: MIT
// The checks of build_sizes and build_problem as C++ sees them: text, kind, and resulting views.
#include "core/problem.h"

#include <cstring>
#include <initializer_list>

#include "check.h"
#include "support.h"

namespace cpuattn {
namespace {

// An array of up to 6 axes over shared memory, C-contiguous. No check may read an element, except
// those of lengths.
struct TestArray {
  int64_t shape[6] = {};
  int64_t strides[6] = {};
  Array array;

  TestArray(const char* name, std::initializer_list<int64_t> sizes, DType dtype = DType::kFloat32,
            char* data = nullptr) {
    array.name = name;
    array.data = data != nullptr ? data : reinterpret_cast<char*>(uintptr_t{64});
    array.dtype = dtype;
    array.dtype_name = name_of(dtype);
    array.writeable = true;
    for (const int64_t size : sizes) shape[array.ndim++] = size;
    int64_t step = item_size(dtype);
    for (int i = array.ndim - 1; i >= 0; --i) {
      strides[i] = step;
      step *= shape[i];
    }
  }
  const Array& get() {
    array.shape = shape;
    array.strides = strides;
    return array;
  }
};

// Query (2, 4, 5, 8), key (2, 2, 7, 8), value (2, 2, 7, 6).
struct Valid {
  TestArray query{"query", {2, 4, 5, 8}};
  TestArray key{"key", {2, 2, 7, 8}};
  TestArray value{"value", {2, 2, 7, 6}};
  TestArray out{"out", {2, 4, 5, 6}};
  Arguments args;

  Valid() {
    args.query = query.get();
    args.key = key.get();
    args.value = value.get();
    args.out = out.get();
  }
};

void expect_error(Report& report, const Arguments& args, Error::Kind kind, const char* text) {
  AttentionProblem p;
  Error error;
  const bool built = build_sizes(args, p, error) && build_problem(args, p, error);
  report.expect(!built && error.kind == kind && std::strcmp(error.text, text) == 0,
                "got \"%s\", expected \"%s\"", error.text, text);
}

// Arrays that repeat one element.
void test_limits(Report& report) {
  report.subject("sizes that 64 bits cannot count are refused");
  constexpr int64_t kWide = (int64_t{1} << 32) + 1;
  constexpr int64_t kLong = (int64_t{1} << 40) + 1;
  constexpr int64_t kMany = int64_t{1} << 30;
  using Sizes = std::initializer_list<int64_t>;
  const auto expect_text = [&](Sizes query, Sizes key, Sizes value, const char* text) {
    TestArray q{"query", query}, k{"key", key}, v{"value", value};
    Arguments args;
    args.query = q.get();
    args.key = k.get();
    args.value = v.get();
    AttentionProblem p;
    Error error;
    const bool built = build_sizes(args, p, error);
    report.expect(!built && std::strncmp(error.text, text, std::strlen(text)) == 0,
                  "got \"%s\", expected \"%s\"", error.text, text);
  };
  expect_text({kWide, 1, 0}, {1, 1, 0}, {1, 1, 0}, "query: num_heads must be at most 2**32");
  expect_text({1, kLong, 0}, {1, 1, 0}, {1, 1, 0}, "query: q_len must be at most 2**40");
  expect_text({1, 0, kWide}, {1, 0, kWide}, {1, 0, 0}, "query: head_dim must be at most 2**32");
  expect_text({0, 1, 0}, {kWide, 1, 0}, {kWide, 1, 0}, "key: num_kv_heads must be at most 2**32");
  expect_text({1, 1, 0}, {1, kLong, 0}, {1, kLong, 0}, "key: kv_len must be at most 2**40");
  expect_text({1, 1, 0}, {1, 1, 0}, {1, 1, kWide}, "value: head_dim_v must be at most 2**32");
  const char* const rows =
      "query: batch * num_heads * q_len must be at most 2**56; got batch shape";
  expect_text({kMany, 1, 1, 1, 0}, {kMany, 1, 1, 0}, {1, 1, 0}, rows);
  expect_text({0, kMany, kMany, 1, 1, 0}, {1, 1, 0}, {1, 1, 0}, rows);
}

void test_sizes(Report& report) {
  report.subject("sizes and views of a valid problem");
  const Valid valid;
  AttentionProblem p;
  Error error;
  const bool built = build_sizes(valid.args, p, error) && build_problem(valid.args, p, error);
  report.expect(built && !error, "%s", error.text);
  report.expect(p.batch == 2 && p.num_heads == 4 && p.num_kv_heads == 2 && p.q_len == 5 &&
                    p.kv_len == 7 && p.head_dim == 8 && p.head_dim_v == 6,
                "sizes");
  report.expect(p.group() == 2 && p.rows() == 10, "rows");
  report.expect(
      p.query.head_step == 5 * 8 * 4 && p.query.row_step == 8 * 4 && p.query.col_step == 4,
      "steps of query");
  report.expect(batch_offset(p, p.query, 1) == 4 * 5 * 8 * 4, "batch step of query");
  report.expect(p.scale * p.scale * 8.0 > 0.999999 && p.scale * p.scale * 8.0 < 1.000001, "scale");
  report.expect(!p.mask && !p.bias && !p.lse && !p.weights, "absent views");
}

void test_layout(Report& report) {
  report.subject("layout bshd exchanges the steps of heads and rows");
  TestArray query("query", {2, 5, 4, 8});
  TestArray key("key", {2, 7, 2, 8});
  TestArray value("value", {2, 7, 2, 6});
  TestArray out("out", {2, 5, 4, 6});
  Arguments args;
  args.layout = Layout::kBshd;
  args.query = query.get();
  args.key = key.get();
  args.value = value.get();
  args.out = out.get();
  AttentionProblem p;
  Error error;
  report.expect(build_sizes(args, p, error) && build_problem(args, p, error), "%s", error.text);
  report.expect(p.num_heads == 4 && p.q_len == 5 && p.num_kv_heads == 2 && p.kv_len == 7, "sizes");
  report.expect(p.query.head_step == 8 * 4 && p.query.row_step == 4 * 8 * 4, "steps");
}

void test_broadcast(Report& report) {
  report.subject("masks of every rank broadcast by steps of 0");
  const auto view_of = [&](std::initializer_list<int64_t> shape) {
    Valid valid;
    TestArray mask("mask", shape, DType::kBool);
    valid.args.mask = mask.get();
    AttentionProblem p;
    Error error;
    report.expect(build_sizes(valid.args, p, error) && build_problem(valid.args, p, error), "%s",
                  error.text);
    return p.mask;
  };
  View view = view_of({2, 4, 5, 7});
  report.expect(
      view.batch_step[0] == 140 && view.head_step == 35 && view.row_step == 7 && view.col_step == 1,
      "full");
  view = view_of({2, 1, 1, 7});
  report.expect(
      view.batch_step[0] == 7 && view.head_step == 0 && view.row_step == 0 && view.col_step == 1,
      "(2, 1, 1, 7)");
  view = view_of({5, 1});
  report.expect(
      view.batch_step[0] == 0 && view.head_step == 0 && view.row_step == 1 && view.col_step == 0,
      "(5, 1)");
  view = view_of({});
  report.expect(view.data != nullptr && view.batch_step[0] == 0 && view.col_step == 0, "()");
}

void test_tensor_errors(Report& report) {
  report.subject("errors of query, key, value");
  Valid valid;
  TestArray head_dim("key", {2, 2, 7, 9});
  valid.args.key = head_dim.get();
  expect_error(report, valid.args, Error::Kind::kValue,
               "key: head_dim must equal query head_dim 8; got 9 (key shape (2, 2, 7, 9))");
  Valid rank;
  TestArray flat("query", {5, 8});
  rank.args.query = flat.get();
  expect_error(report, rank.args, Error::Kind::kValue,
               "query: must have at least 3 axes (..., heads, length, head_dim); got shape (5, 8)");
  Valid heads;
  TestArray three("key", {2, 3, 7, 8});
  TestArray three_values("value", {2, 3, 7, 6});
  heads.args.key = three.get();
  heads.args.value = three_values.get();
  expect_error(
      report, heads.args, Error::Kind::kValue,
      "key: number of heads must divide query num_heads 4; got 3 (key shape (2, 3, 7, 8))");
  Valid length;
  TestArray longer("value", {2, 2, 8, 6});
  length.args.value = longer.get();
  expect_error(report, length.args, Error::Kind::kValue,
               "value: length must equal key length 7; got 8 (value shape (2, 2, 8, 6))");
  Valid batch;
  TestArray other("key", {3, 2, 7, 8});
  batch.args.key = other.get();
  expect_error(report, batch.args, Error::Kind::kValue,
               "key: leading axes must broadcast with those of query (2, 4, 5, 8); got key shape "
               "(3, 2, 7, 8)");
}

// Query, key, value and out of these dtypes.
struct Typed {
  TestArray query, key, value, out;
  Arguments args;

  Typed(DType query_dtype, DType key_dtype, DType value_dtype, DType out_dtype)
      : query("query", {2, 4, 5, 8}, query_dtype),
        key("key", {2, 2, 7, 8}, key_dtype),
        value("value", {2, 2, 7, 6}, value_dtype),
        out("out", {2, 4, 5, 6}, out_dtype) {
    args.query = query.get();
    args.key = key.get();
    args.value = value.get();
    args.out = out.get();
  }
};

void test_dtypes(Report& report) {
  report.subject(
      "one float dtype for all, or a 16-bit cache under a float32 query; views say which");
  for (const DType query : kFloatDtypes) {
    for (const DType key : kFloatDtypes) {
      Typed typed(query, key, key, query);
      AttentionProblem p;
      Error error;
      const bool built = build_sizes(typed.args, p, error) && build_problem(typed.args, p, error);
      const bool allowed = query == key || (query == DType::kFloat32 && is_half(key));
      report.expect(built == allowed, "query %s, key %s: %s", name_of(query), name_of(key),
                    error.text);
      if (!built) continue;
      report.expect(p.query.dtype == query && p.key.dtype == key && p.value.dtype == key &&
                        p.out.dtype == query,
                    "query %s, key %s: dtypes of the views", name_of(query), name_of(key));
      report.expect(p.query.row_step == 8 * item_size(query) && p.key.col_step == item_size(key),
                    "query %s, key %s: steps of the views", name_of(query), name_of(key));
    }
  }
  report.subject("bias, slopes, sinks and lse of any float dtype under any query");
  for (const DType query : kFloatDtypes) {
    for (const DType dtype : kFloatDtypes) {
      Typed typed(query, query, query, query);
      TestArray bias("bias", {4, 5, 7}, dtype);
      TestArray slopes("alibi_slopes", {4}, dtype);
      TestArray sinks("sinks", {4}, dtype);
      TestArray lse("lse", {2, 4, 5}, dtype);
      typed.args.bias = bias.get();
      typed.args.alibi_slopes = slopes.get();
      typed.args.sinks = sinks.get();
      typed.args.lse = lse.get();
      AttentionProblem p;
      Error error;
      report.expect(build_sizes(typed.args, p, error) && build_problem(typed.args, p, error), "%s",
                    error.text);
      report.expect(p.bias.dtype == dtype && p.alibi_slopes.dtype == dtype &&
                        p.sinks.dtype == dtype && p.lse.dtype == dtype,
                    "dtypes of the views");
      report.expect(p.sinks.head_step == item_size(dtype) && p.bias.col_step == item_size(dtype),
                    "steps of the views");
    }
  }
}

void test_dtype_errors(Report& report) {
  report.subject("errors of dtypes");
  using enum DType;
  const auto expect = [&](const Typed& typed, const char* text) {
    expect_error(report, typed.args, Error::Kind::kType, text);
  };
  expect(Typed(kInt32, kInt32, kInt32, kInt32),
         "query: dtype must be float16, bfloat16, float32 or float64; got int32");
  expect(Typed(kOther, kFloat32, kFloat32, kFloat32),
         "query: dtype must be float16, bfloat16, float32 or float64; got complex64");
  expect(Typed(kFloat32, kFloat64, kFloat64, kFloat32),
         "key: dtype must be float32 like query's, or float16 or bfloat16 under a float32 query; "
         "got float64");
  expect(Typed(kFloat64, kFloat16, kFloat16, kFloat64),
         "key: dtype must be float64 like query's, or float16 or bfloat16 under a float32 query; "
         "got float16");
  expect(Typed(kFloat16, kBFloat16, kBFloat16, kFloat16),
         "key: dtype must be float16 like query's, or float16 or bfloat16 under a float32 query; "
         "got bfloat16");
  expect(Typed(kBFloat16, kFloat32, kFloat32, kBFloat16),
         "key: dtype must be bfloat16 like query's, or float16 or bfloat16 under a float32 query; "
         "got float32");
  expect(Typed(kFloat32, kInt64, kFloat32, kFloat32),
         "key: dtype must be float32 like query's, or float16 or bfloat16 under a float32 query; "
         "got int64");
  expect(Typed(kFloat32, kFloat32, kFloat64, kFloat32),
         "value: dtype must be float32 like key's; got float64");
  expect(Typed(kFloat32, kFloat16, kFloat32, kFloat32),
         "value: dtype must be float16 like key's; got float32");
  expect(Typed(kFloat32, kFloat16, kBFloat16, kFloat32),
         "value: dtype must be float16 like key's; got bfloat16");
  expect(Typed(kFloat32, kFloat16, kFloat16, kFloat16),
         "out: dtype must be float32 like query's; got float16");
  expect(Typed(kBFloat16, kBFloat16, kBFloat16, kFloat32),
         "out: dtype must be bfloat16 like query's; got float32");
  Valid modifiers;
  TestArray bias("bias", {5, 7}, kBool);
  modifiers.args.bias = bias.get();
  expect_error(report, modifiers.args, Error::Kind::kType,
               "bias: dtype must be float16, bfloat16, float32 or float64; got bool");
  Valid slopes;
  TestArray integers("alibi_slopes", {4}, kInt32);
  slopes.args.alibi_slopes = integers.get();
  expect_error(report, slopes.args, Error::Kind::kType,
               "alibi_slopes: dtype must be float16, bfloat16, float32 or float64; got int32");
  Valid sinks;
  TestArray others("sinks", {4}, kOther);
  sinks.args.sinks = others.get();
  expect_error(report, sinks.args, Error::Kind::kType,
               "sinks: dtype must be float16, bfloat16, float32 or float64; got complex64");
  Valid lengths;
  TestArray floats("kv_lengths", {2}, kFloat16);
  lengths.args.kv_lengths = floats.get();
  expect_error(report, lengths.args, Error::Kind::kType,
               "kv_lengths: dtype must be int32 or int64; got float16");
}

void test_modifier_errors(Report& report) {
  report.subject("errors of mask, bias, sinks, segments");
  Valid mask;
  TestArray wrong("mask", {5, 6}, DType::kBool);
  mask.args.mask = wrong.get();
  expect_error(report, mask.args, Error::Kind::kValue,
               "mask: must broadcast to (..., num_heads, q_len, kv_len) = (2, 4, 5, 7); got shape "
               "(5, 6)");
  Valid dtype;
  TestArray number("mask", {5, 7});
  dtype.args.mask = number.get();
  expect_error(report, dtype.args, Error::Kind::kType, "mask: dtype must be bool; got float32");
  Valid sinks;
  TestArray flat("sinks", {1, 4});
  sinks.args.sinks = flat.get();
  expect_error(report, sinks.args, Error::Kind::kValue,
               "sinks: must have shape (num_heads,) = (4,); got shape (1, 4)");
  Valid segments;
  TestArray ids("q_segment_ids", {2, 5}, DType::kInt32);
  segments.args.q_segment_ids = ids.get();
  expect_error(report, segments.args, Error::Kind::kValue,
               "kv_segment_ids: must be given together with q_segment_ids; got None");
}

void test_length_errors(Report& report) {
  report.subject("errors of lengths: values are checked, for every batch element");
  int64_t lengths[2] = {7, 8};
  Valid beyond;
  TestArray array("kv_lengths", {2}, DType::kInt64, reinterpret_cast<char*>(lengths));
  beyond.args.kv_lengths = array.get();
  expect_error(report, beyond.args, Error::Kind::kValue,
               "kv_lengths: must be between 0 and kv_len 7; got 8");
  lengths[1] = -1;
  expect_error(report, beyond.args, Error::Kind::kValue,
               "kv_lengths: must be between 0 and kv_len 7; got -1");
  lengths[1] = 0;
  AttentionProblem p;
  Error error;
  report.expect(build_sizes(beyond.args, p, error) && build_problem(beyond.args, p, error), "%s",
                error.text);
  report.expect(
      integer_in_batch(p, p.kv_lengths, 0) == 7 && integer_in_batch(p, p.kv_lengths, 1) == 0,
      "values");
}

void test_option_errors(Report& report) {
  report.subject("errors of options");
  Valid window;
  window.args.window_left = -2;
  window.args.window_right = 3;
  expect_error(report, window.args, Error::Kind::kValue,
               "window: sides must be None, -1 or at least 0; got (-2, 3)");
  Valid softcap;
  softcap.args.has_softcap = true;
  softcap.args.softcap = 0.0;
  expect_error(report, softcap.args, Error::Kind::kValue,
               "softcap: must be a positive finite number; got 0");
  Valid dropout;
  dropout.args.dropout_p = 1.5;
  expect_error(report, dropout.args, Error::Kind::kValue,
               "dropout_p: must be between 0 and 1; got 1.5");
  dropout.args.dropout_p = 0.25;
  expect_error(report, dropout.args, Error::Kind::kValue,
               "dropout_seed: must be given when dropout_p is 0.25 and there is no dropout_mask; "
               "got None");
}

void test_out_errors(Report& report) {
  report.subject("errors of out");
  Valid shape;
  TestArray narrow("out", {2, 4, 5, 8});
  shape.args.out = narrow.get();
  expect_error(report, shape.args, Error::Kind::kValue,
               "out: must have shape (..., num_heads, q_len, head_dim_v) = (2, 4, 5, 6); got shape "
               "(2, 4, 5, 8)");
  Valid readable;
  readable.args.out.writeable = false;
  expect_error(report, readable.args, Error::Kind::kValue,
               "out: must be writeable; got a read-only array");
  Valid overlap;
  overlap.out.strides[1] = 0;
  expect_error(report, overlap.args, Error::Kind::kValue,
               "out: elements must not overlap; got stride 0 on axis 1");
}

void test_error_text(Report& report) {
  report.subject("error texts are one line, cut when too long, never read past their end");
  Error error;
  char name[2000];
  std::memset(name, 'y', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  report.expect(!error, "a new error is none");
  report.expect(!fail(error, Error::Kind::kValue, "%s: must be short", name), "fail returns false");
  report.expect(static_cast<bool>(error) && std::strlen(error.text) == sizeof error.text - 1,
                "cut at %d", static_cast<int>(std::strlen(error.text)));
  Valid valid;
  TestArray mask("mask", {3, 1, 4, 1, 5, 9}, DType::kBool);
  valid.args.mask = mask.get();
  expect_error(report, valid.args, Error::Kind::kValue,
               "mask: must broadcast to (..., num_heads, q_len, kv_len) = (2, 4, 5, 7); got shape "
               "(3, 1, 4, 1, 5, 9)");
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_sizes(report);
  cpuattn::test_limits(report);
  cpuattn::test_layout(report);
  cpuattn::test_broadcast(report);
  cpuattn::test_tensor_errors(report);
  cpuattn::test_dtypes(report);
  cpuattn::test_dtype_errors(report);
  cpuattn::test_modifier_errors(report);
  cpuattn::test_length_errors(report);
  cpuattn::test_option_errors(report);
  cpuattn::test_out_errors(report);
  cpuattn::test_error_text(report);
  return report.finish();
}
