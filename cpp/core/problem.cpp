// SPDX-License-Identifier: MIT
// Every check of every argument, in the order in which a user would read them.
#include "core/problem.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace cpuattn {
namespace {

using Kind = Error::Kind;

constexpr int64_t kFar = int64_t{1} << 60;  // offsets are clamped here: sums cannot overflow

// "(2, 8, 512, 64)", for error texts.
struct ShapeText {
  char text[160];
  ShapeText(const int64_t* shape, int ndim) {
    int used = std::snprintf(text, sizeof text, "(");
    for (int i = 0; i < ndim && used < static_cast<int>(sizeof text) - 30; ++i) {
      const char* separator = i + 1 < ndim ? ", " : ndim == 1 ? "," : "";
      used += std::snprintf(text + used, sizeof text - static_cast<size_t>(used), "%lld%s",
                            static_cast<long long>(shape[i]), separator);
    }
    std::snprintf(text + used, sizeof text - static_cast<size_t>(used), ")");
  }
  explicit ShapeText(const Array& array) : ShapeText(array.shape, array.ndim) {}
};

struct Axes {
  int head, row, col;
};

Axes axes_of(const Array& array, Layout layout) {
  const int n = array.ndim;
  return layout == Layout::kBhsd ? Axes{n - 3, n - 2, n - 1} : Axes{n - 2, n - 3, n - 1};
}

bool check_dtype(const Array& array, DType wanted, const char* wanted_name, Error& error) {
  if (array.dtype == wanted) return true;
  return fail(error, Kind::kType, "%s: dtype must be %s; got %s", array.name, wanted_name,
              array.dtype_name);
}

bool check_float(const Array& array, Error& error) {
  if (is_float(array.dtype) && is_built(array.dtype)) return true;
  if (is_float(array.dtype)) {
    return fail(error, Kind::kNotImplemented, "%s: this build of cpuattn has no %s", array.name,
                array.dtype_name);
  }
  return fail(error, Kind::kType, "%s: dtype must be float16, bfloat16, float32 or float64; got %s",
              array.name, array.dtype_name);
}

// Query, key and value have one dtype, but a float32 query may read a 16-bit cache.
bool check_tensor_dtypes(const Arguments& args, Error& error) {
  const Array& key = args.key;
  if (!check_float(args.query, error)) return false;
  if (is_half(key.dtype) && !check_float(key, error)) return false;
  const bool cached = args.query.dtype == DType::kFloat32 && is_half(key.dtype);
  if (key.dtype != args.query.dtype && !cached) {
    return fail(error, Kind::kType,
                "key: dtype must be %s like query's, or float16 or bfloat16 under a float32 "
                "query; got %s",
                args.query.dtype_name, key.dtype_name);
  }
  if (args.value.dtype == key.dtype) return true;
  return fail(error, Kind::kType, "value: dtype must be %s like key's; got %s", key.dtype_name,
              args.value.dtype_name);
}

bool check_integer(const Array& array, Error& error) {
  if (array.dtype == DType::kInt32 || array.dtype == DType::kInt64) return true;
  return fail(error, Kind::kType, "%s: dtype must be int32 or int64; got %s", array.name,
              array.dtype_name);
}

bool check_rank(const Array& array, Layout layout, Error& error) {
  if (array.ndim >= 3 && array.ndim <= kMaxBatchDims + 3) return true;
  return fail(
      error, Kind::kValue, "%s: must have at least 3 axes %s; got shape %s", array.name,
      layout == Layout::kBhsd ? "(..., heads, length, head_dim)" : "(..., length, heads, head_dim)",
      ShapeText(array).text);
}

// The batch shape: leading axes of query, key and value, broadcast.
bool broadcast_batch(const Arguments& args, AttentionProblem& p, Error& error) {
  const Array* arrays[] = {&args.query, &args.key, &args.value};
  p.batch_dims = std::max({args.query.ndim, args.key.ndim, args.value.ndim}) - 3;
  std::fill_n(p.batch_shape, p.batch_dims, int64_t{1});
  for (const Array* array : arrays) {
    const int lead = p.batch_dims - (array->ndim - 3);
    for (int i = 0; i < array->ndim - 3; ++i) {
      int64_t& size = p.batch_shape[lead + i];
      if (array->shape[i] == size || array->shape[i] == 1) continue;
      if (size != 1) {
        return fail(error, Kind::kValue,
                    "%s: leading axes must broadcast with those of query %s; got %s shape %s",
                    array->name, ShapeText(args.query).text, array->name, ShapeText(*array).text);
      }
      size = array->shape[i];
    }
  }
  return true;
}

constexpr int64_t kMostRows = int64_t{1} << kRowsBits;

// a * b with 1 instead of 0, or more than kMostRows where that is exceeded.
int64_t bounded_product(int64_t a, int64_t b) {
  a = std::max<int64_t>(a, 1);
  b = std::max<int64_t>(b, 1);
  const bool exceeded = static_cast<double>(a) * static_cast<double>(b) > double{kMostRows};
  return exceeded ? kMostRows + 1 : a * b;
}

bool check_limits(const Arguments& args, AttentionProblem& p, Error& error) {
  const struct {
    const Array& array;
    const char* size_name;
    int64_t size;
    int bits;
  } sizes[] = {{args.query, "num_heads", p.num_heads, kWidthBits},
               {args.query, "q_len", p.q_len, kLengthBits},
               {args.query, "head_dim", p.head_dim, kWidthBits},
               {args.key, "num_kv_heads", p.num_kv_heads, kWidthBits},
               {args.key, "kv_len", p.kv_len, kLengthBits},
               {args.value, "head_dim_v", p.head_dim_v, kWidthBits}};
  for (const auto& row : sizes) {
    if (row.size <= int64_t{1} << row.bits) continue;
    return fail(error, Kind::kValue, "%s: %s must be at most 2**%d; got %lld (%s shape %s)",
                row.array.name, row.size_name, row.bits, static_cast<long long>(row.size),
                row.array.name, ShapeText(row.array).text);
  }
  int64_t batch = 1;
  for (int i = 0; i < p.batch_dims; ++i) batch = bounded_product(batch, p.batch_shape[i]);
  const int64_t heads = std::max(p.num_heads, p.num_kv_heads);
  if (bounded_product(batch, bounded_product(heads, p.q_len)) > kMostRows) {
    return fail(error, Kind::kValue,
                "query: batch * num_heads * q_len must be at most 2**%d; got batch shape %s, "
                "num_heads %lld and q_len %lld",
                kRowsBits, ShapeText(p.batch_shape, p.batch_dims).text,
                static_cast<long long>(heads), static_cast<long long>(p.q_len));
  }
  const int64_t* const begin = p.batch_shape;
  const int64_t* const end = begin + p.batch_dims;
  p.batch = std::find(begin, end, 0) == end ? batch : 0;
  return true;
}

// Fills batch_step of a view whose `lead` leading axes broadcast to the batch shape.
bool view_batch(const Array& array, int lead, const AttentionProblem& p, View& view, Error& error) {
  const int missing = p.batch_dims - lead;
  for (int i = 0; i < p.batch_dims; ++i) {
    view.batch_step[i] = 0;
    if (i < missing) continue;
    const int64_t size = array.shape[i - missing];
    if (size == p.batch_shape[i]) {
      view.batch_step[i] = size == 1 ? 0 : array.strides[i - missing];
    } else if (size != 1) {
      return fail(error, Kind::kValue,
                  "%s: leading axes must broadcast to the batch shape %s; got shape %s", array.name,
                  ShapeText(p.batch_shape, p.batch_dims).text, ShapeText(array).text);
    }
  }
  return true;
}

// A view of an array that broadcasts to (batch..., num_heads, q_len, kv_len).
bool view_scores(const Array& array, const AttentionProblem& p, View& view, Error& error) {
  if (!array) return true;
  const int64_t tail[3] = {p.num_heads, p.q_len, p.kv_len};
  int64_t* steps[3] = {&view.head_step, &view.row_step, &view.col_step};
  const int lead = std::max(0, array.ndim - 3);
  bool fits = lead <= p.batch_dims;
  for (int i = 0; i < 3 && fits; ++i) {
    const int axis = array.ndim - 3 + i;
    if (axis < 0) continue;
    const int64_t size = array.shape[axis];
    fits = size == tail[i] || size == 1;
    *steps[i] = size == 1 ? 0 : array.strides[axis];
  }
  for (int i = 0; i < lead && fits; ++i) {
    const int64_t size = array.shape[i];
    fits = size == p.batch_shape[p.batch_dims - lead + i] || size == 1;
  }
  if (!fits) {
    int64_t full[kMaxBatchDims + 3];
    std::copy_n(p.batch_shape, p.batch_dims, full);
    std::copy_n(tail, 3, full + p.batch_dims);
    return fail(error, Kind::kValue,
                "%s: must broadcast to (..., num_heads, q_len, kv_len) = %s; got shape %s",
                array.name, ShapeText(full, p.batch_dims + 3).text, ShapeText(array).text);
  }
  view.data = array.data;
  view.dtype = array.dtype;
  return view_batch(array, lead, p, view, error);
}

// A view of query, key, value or out, whose last three axes follow the layout.
bool view_tensor(const Array& array, Layout layout, const AttentionProblem& p, View& view,
                 Error& error) {
  const Axes axes = axes_of(array, layout);
  view.data = array.data;
  view.dtype = array.dtype;
  view.head_step = array.strides[axes.head];
  view.row_step = array.strides[axes.row];
  view.col_step = array.strides[axes.col];
  return view_batch(array, array.ndim - 3, p, view, error);
}

// A view of one number per batch element.
bool view_per_batch(const Array& array, const AttentionProblem& p, View& view, Error& error) {
  if (!array) return true;
  if (array.ndim > p.batch_dims) {
    return fail(error, Kind::kValue, "%s: must broadcast to the batch shape %s; got shape %s",
                array.name, ShapeText(p.batch_shape, p.batch_dims).text, ShapeText(array).text);
  }
  view.data = array.data;
  view.dtype = array.dtype;
  return view_batch(array, array.ndim, p, view, error);
}

// A view of a list per batch element: the last axis has `size` entries, `step` bytes apart.
bool view_list(const Array& array, const char* size_name, int64_t size, const AttentionProblem& p,
               View& view, int64_t& step, Error& error) {
  if (!array) return true;
  const int lead = array.ndim - 1;
  if (lead < 0 || lead > p.batch_dims || array.shape[lead] != size) {
    return fail(error, Kind::kValue, "%s: must have shape (..., %s) with %s %lld; got shape %s",
                array.name, size_name, size_name, static_cast<long long>(size),
                ShapeText(array).text);
  }
  step = array.strides[lead];
  view.data = array.data;
  view.dtype = array.dtype;
  return view_batch(array, lead, p, view, error);
}

bool view_output(const Array& array, const int64_t* shape, int ndim, const char* rule,
                 Error& error) {
  if (!array.writeable) {
    return fail(error, Kind::kValue, "%s: must be writeable; got a read-only array", array.name);
  }
  if (array.ndim != ndim || !std::equal(shape, shape + ndim, array.shape)) {
    return fail(error, Kind::kValue, "%s: must have shape %s = %s; got shape %s", array.name, rule,
                ShapeText(shape, ndim).text, ShapeText(array).text);
  }
  const bool empty = std::find(shape, shape + ndim, 0) != shape + ndim;
  for (int i = 0; i < ndim; ++i) {
    if (array.shape[i] > 1 && array.strides[i] == 0 && !empty) {
      return fail(error, Kind::kValue, "%s: elements must not overlap; got stride 0 on axis %d",
                  array.name, i);
    }
  }
  return true;
}

// A draw is found by 32-bit numbers of the batch element, the head, the row and four columns.
bool check_draws(const Arguments& args, const AttentionProblem& p, Error& error) {
  if (args.dropout_mask || args.dropout_p == 0.0 || args.dropout_p == 1.0) return true;
  constexpr int64_t kMost = int64_t{1} << 32;
  if (p.batch <= kMost && p.q_len <= kMost && p.kv_len <= 4 * kMost) return true;
  return fail(error, Kind::kValue,
              "dropout_p: random draws reach 2**32 batch elements, 2**32 rows and 2**34 columns; "
              "got %lld, %lld and %lld, which need a dropout_mask",
              static_cast<long long>(p.batch), static_cast<long long>(p.q_len),
              static_cast<long long>(p.kv_len));
}

bool check_options(const Arguments& args, AttentionProblem& p, Error& error) {
  p.causal = args.causal;
  p.diagonal = args.diagonal;
  p.offset = std::clamp(args.offset, -kFar, kFar);
  for (const int64_t side : {args.window_left, args.window_right}) {
    if (side < -1) {
      return fail(
          error, Kind::kValue, "window: sides must be None, -1 or at least 0; got (%lld, %lld)",
          static_cast<long long>(args.window_left), static_cast<long long>(args.window_right));
    }
  }
  p.window_left = std::min(args.window_left, kFar);
  p.window_right = std::min(args.window_right, kFar);
  if (args.has_scale) {
    p.scale = args.scale;
  } else {
    p.scale = p.head_dim > 0 ? 1.0 / std::sqrt(static_cast<double>(p.head_dim)) : 1.0;
  }
  p.softcap = 0.0;
  if (args.has_softcap) {
    if (!(args.softcap > 0.0) || std::isinf(args.softcap)) {
      return fail(error, Kind::kValue, "softcap: must be a positive finite number; got %g",
                  args.softcap);
    }
    p.softcap = args.softcap;
  }
  if (!(args.dropout_p >= 0.0 && args.dropout_p <= 1.0)) {
    return fail(error, Kind::kValue, "dropout_p: must be between 0 and 1; got %g", args.dropout_p);
  }
  if (args.dropout_p > 0.0 && args.dropout_p < 1.0 && !args.has_seed && !args.dropout_mask) {
    return fail(error, Kind::kValue,
                "dropout_seed: must be given when dropout_p is %g and there is no dropout_mask; "
                "got None",
                args.dropout_p);
  }
  if (!check_draws(args, p, error)) return false;
  p.dropout_p = args.dropout_p;
  p.dropout_seed = args.dropout_seed;
  p.dropout_broadcast = args.dropout_broadcast;
  p.dropout_generator = args.dropout_generator;
  p.fully_masked = args.fully_masked;
  p.precision = args.precision;
  p.return_weights = args.return_weights;
  return true;
}

bool view_modifiers(const Arguments& args, AttentionProblem& p, Error& error) {
  if (args.mask && !check_dtype(args.mask, DType::kBool, "bool", error)) return false;
  if (args.bias && !check_float(args.bias, error)) return false;
  if (args.dropout_mask && !check_dtype(args.dropout_mask, DType::kBool, "bool", error))
    return false;
  if (!view_scores(args.mask, p, p.mask, error)) return false;
  if (!view_scores(args.bias, p, p.bias, error)) return false;
  if (!view_scores(args.dropout_mask, p, p.dropout_mask, error)) return false;
  for (const Array* array : {&args.alibi_slopes, &args.sinks}) {
    if (*array && !check_float(*array, error)) return false;
  }
  if (args.sinks && args.sinks.ndim != 1) {
    return fail(error, Kind::kValue, "sinks: must have shape (num_heads,) = (%lld,); got shape %s",
                static_cast<long long>(p.num_heads), ShapeText(args.sinks).text);
  }
  return view_list(args.alibi_slopes, "num_heads", p.num_heads, p, p.alibi_slopes,
                   p.alibi_slopes.head_step, error) &&
         view_list(args.sinks, "num_heads", p.num_heads, p, p.sinks, p.sinks.head_step, error);
}

bool view_lengths(const Arguments& args, AttentionProblem& p, Error& error) {
  for (const Array* array : {&args.q_lengths, &args.kv_lengths, &args.q_segment_ids,
                             &args.kv_segment_ids, &args.causal_offsets}) {
    if (*array && !check_integer(*array, error)) return false;
  }
  if (static_cast<bool>(args.q_segment_ids) != static_cast<bool>(args.kv_segment_ids)) {
    const bool q = static_cast<bool>(args.q_segment_ids);
    return fail(error, Kind::kValue, "%s: must be given together with %s; got None",
                q ? "kv_segment_ids" : "q_segment_ids", q ? "q_segment_ids" : "kv_segment_ids");
  }
  return view_per_batch(args.q_lengths, p, p.q_lengths, error) &&
         view_per_batch(args.kv_lengths, p, p.kv_lengths, error) &&
         view_per_batch(args.causal_offsets, p, p.causal_offsets, error) &&
         view_list(args.q_segment_ids, "q_len", p.q_len, p, p.q_segment_ids,
                   p.q_segment_ids.row_step, error) &&
         view_list(args.kv_segment_ids, "kv_len", p.kv_len, p, p.kv_segment_ids,
                   p.kv_segment_ids.col_step, error);
}

// Lengths beyond the array would be reads out of bounds, so their values are part of the checks.
bool check_length_values(const View& view, const char* name, const char* limit_name, int64_t limit,
                         const AttentionProblem& p, Error& error) {
  if (!view || p.batch == 0) return true;
  // Each number once, however often it is repeated.
  AttentionProblem numbers;
  numbers.batch_dims = p.batch_dims;
  for (int i = 0; i < p.batch_dims; ++i) {
    numbers.batch_shape[i] = view.batch_step[i] == 0 ? 1 : p.batch_shape[i];
    numbers.batch *= numbers.batch_shape[i];
  }
  for (int64_t b = 0; b < numbers.batch; ++b) {
    const int64_t length = integer_in_batch(numbers, view, b);
    if (length >= 0 && length <= limit) continue;
    return fail(error, Kind::kValue, "%s: must be between 0 and %s %lld; got %lld", name,
                limit_name, static_cast<long long>(limit), static_cast<long long>(length));
  }
  return true;
}

bool view_outputs(const Arguments& args, AttentionProblem& p, Error& error) {
  int64_t shape[kMaxBatchDims + 3];
  std::copy_n(p.batch_shape, p.batch_dims, shape);
  const int n = p.batch_dims;
  const bool bhsd = args.layout == Layout::kBhsd;
  shape[n] = bhsd ? p.num_heads : p.q_len;
  shape[n + 1] = bhsd ? p.q_len : p.num_heads;
  shape[n + 2] = p.head_dim_v;
  const char* rule =
      bhsd ? "(..., num_heads, q_len, head_dim_v)" : "(..., q_len, num_heads, head_dim_v)";
  if (args.out.dtype != args.query.dtype) {
    return fail(error, Kind::kType, "out: dtype must be %s like query's; got %s",
                args.query.dtype_name, args.out.dtype_name);
  }
  if (!view_output(args.out, shape, n + 3, rule, error) ||
      !view_tensor(args.out, args.layout, p, p.out, error)) {
    return false;
  }
  shape[n] = p.num_heads;
  shape[n + 1] = p.q_len;
  shape[n + 2] = p.kv_len;
  if (args.lse) {
    if (!check_float(args.lse, error)) return false;
    if (!view_output(args.lse, shape, n + 2, "(..., num_heads, q_len)", error)) return false;
    p.lse.data = args.lse.data;
    p.lse.dtype = args.lse.dtype;
    p.lse.head_step = args.lse.strides[n];
    p.lse.row_step = args.lse.strides[n + 1];
    if (!view_batch(args.lse, n, p, p.lse, error)) return false;
  }
  if (!args.weights) return true;
  if (args.weights.dtype != args.query.dtype) {
    return fail(error, Kind::kType, "weights: dtype must be %s like query's; got %s",
                args.query.dtype_name, args.weights.dtype_name);
  }
  return view_output(args.weights, shape, n + 3, "(..., num_heads, q_len, kv_len)", error) &&
         view_scores(args.weights, p, p.weights, error);
}

// An array without elements may have any strides, which must not make addresses.
void forget_steps_of_empty_arrays(AttentionProblem& p) {
  const auto forget = [&](std::initializer_list<View*> views) {
    for (View* view : views) {
      view->head_step = view->row_step = view->col_step = 0;
      std::fill_n(view->batch_step, p.batch_dims, int64_t{0});
    }
  };
  if (p.head_dim == 0) forget({&p.query, &p.key});
  if (p.head_dim_v == 0) forget({&p.value, &p.out});
  if (p.kv_len == 0) {
    forget({&p.key, &p.value, &p.mask, &p.bias, &p.dropout_mask, &p.weights, &p.kv_segment_ids});
  }
}

}  // namespace

int64_t batch_offset(const AttentionProblem& p, const View& view, int64_t batch) {
  int64_t offset = 0;
  for (int i = p.batch_dims - 1; i >= 0; --i) {
    offset += batch % p.batch_shape[i] * view.batch_step[i];
    batch /= p.batch_shape[i];
  }
  return offset;
}

int64_t integer_in_batch(const AttentionProblem& p, const View& view, int64_t batch) {
  const char* at = view.data + batch_offset(p, view, batch);
  if (view.dtype == DType::kInt32) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  int64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

bool build_sizes(const Arguments& args, AttentionProblem& p, Error& error) {
  if (!check_tensor_dtypes(args, error)) return false;
  for (const Array* array : {&args.query, &args.key, &args.value}) {
    if (!check_rank(*array, args.layout, error)) return false;
  }
  const Axes q = axes_of(args.query, args.layout);
  const Axes k = axes_of(args.key, args.layout);
  const Axes v = axes_of(args.value, args.layout);
  p.num_heads = args.query.shape[q.head];
  p.q_len = args.query.shape[q.row];
  p.head_dim = args.query.shape[q.col];
  p.num_kv_heads = args.key.shape[k.head];
  p.kv_len = args.key.shape[k.row];
  p.head_dim_v = args.value.shape[v.col];
  if (args.key.shape[k.col] != p.head_dim) {
    return fail(error, Kind::kValue,
                "key: head_dim must equal query head_dim %lld; got %lld (key shape %s)",
                static_cast<long long>(p.head_dim), static_cast<long long>(args.key.shape[k.col]),
                ShapeText(args.key).text);
  }
  if (args.value.shape[v.row] != p.kv_len) {
    return fail(error, Kind::kValue,
                "value: length must equal key length %lld; got %lld (value shape %s)",
                static_cast<long long>(p.kv_len), static_cast<long long>(args.value.shape[v.row]),
                ShapeText(args.value).text);
  }
  if (args.value.shape[v.head] != p.num_kv_heads) {
    return fail(error, Kind::kValue,
                "value: number of heads must equal that of key %lld; got %lld (value shape %s)",
                static_cast<long long>(p.num_kv_heads),
                static_cast<long long>(args.value.shape[v.head]), ShapeText(args.value).text);
  }
  if (p.num_kv_heads == 0 ? p.num_heads != 0 : p.num_heads % p.num_kv_heads != 0) {
    return fail(error, Kind::kValue,
                "key: number of heads must divide query num_heads %lld; got %lld (key shape %s)",
                static_cast<long long>(p.num_heads), static_cast<long long>(p.num_kv_heads),
                ShapeText(args.key).text);
  }
  return broadcast_batch(args, p, error) && check_limits(args, p, error);
}

bool build_problem(const Arguments& args, AttentionProblem& p, Error& error) {
  if (!check_options(args, p, error) || !view_tensor(args.query, args.layout, p, p.query, error) ||
      !view_tensor(args.key, args.layout, p, p.key, error) ||
      !view_tensor(args.value, args.layout, p, p.value, error) || !view_modifiers(args, p, error) ||
      !view_lengths(args, p, error) ||
      !check_length_values(p.q_lengths, "q_lengths", "q_len", p.q_len, p, error) ||
      !check_length_values(p.kv_lengths, "kv_lengths", "kv_len", p.kv_len, p, error) ||
      !view_outputs(args, p, error)) {
    return false;
  }
  forget_steps_of_empty_arrays(p);
  return true;
}

}  // namespace cpuattn
