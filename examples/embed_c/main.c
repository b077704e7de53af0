/* SPDX-License-Identifier: MIT
 * A decode loop over a growing KV cache, in C: grouped-query attention (32 query heads, 8 kv
 * heads) for one token after the other, without a heap allocation inside the loop.
 *
 * Usage: embed_c [tokens]. Prints a checksum and what it ran on. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cpuattn/cpuattn.h"

enum { kHeads = 32, kKvHeads = 8, kHeadDim = 64 };

/* The cache is (kv_heads, capacity, head_dim); a call sees the part that is filled so far. */
typedef struct {
  float* data;
  int64_t shape[3], strides[3];
} cache;

static cache new_cache(int64_t capacity) {
  const int64_t row = kHeadDim * (int64_t)sizeof(float);
  cache c = {calloc((size_t)(kKvHeads * capacity * kHeadDim), sizeof(float)),
             {kKvHeads, capacity, kHeadDim},
             {capacity * row, row, sizeof(float)}};
  return c;
}

/* A stand-in for a model's projections: smooth numbers that depend on token, head and channel. */
static void project(float* out, int heads, int64_t head_stride, int64_t token, float phase) {
  for (int head = 0; head < heads; ++head) {
    for (int d = 0; d < kHeadDim; ++d) {
      out[head * head_stride + d] =
          sinf(phase + 0.1f * (float)(token * (head + 1)) + 0.3f * (float)d);
    }
  }
}

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, cpuattn_last_error());
  return 1;
}

int main(int argc, char** argv) {
  const int64_t capacity = argc > 1 ? atoll(argv[1]) : 4096;
  if (capacity < 1) {
    fprintf(stderr, "tokens: must be at least 1\n");
    return 1;
  }
  cache key = new_cache(capacity);
  cache value = new_cache(capacity);
  float query[kHeads * kHeadDim], out[kHeads * kHeadDim];
  const int64_t row_shape[3] = {kHeads, 1, kHeadDim};
  if (key.data == NULL || value.data == NULL) return 1;

  cpuattn_problem problem = cpuattn_problem_default();
  problem.query = (cpuattn_array){query, row_shape, NULL, 3, CPUATTN_FLOAT32};
  problem.out = (cpuattn_array){out, row_shape, NULL, 3, CPUATTN_FLOAT32};
  problem.key = (cpuattn_array){key.data, key.shape, key.strides, 3, CPUATTN_FLOAT32};
  problem.value = (cpuattn_array){value.data, value.shape, value.strides, 3, CPUATTN_FLOAT32};

  /* Made once, for the longest cache: from here on nothing allocates. */
  cpuattn_plan* plan = NULL;
  if (cpuattn_plan_create(&problem, &plan) != CPUATTN_OK) return fail("plan");

  double checksum = 0.0;
  for (int64_t token = 0; token < capacity; ++token) {
    project(key.data + token * kHeadDim, kKvHeads, capacity * kHeadDim, token, 0.5f);
    project(value.data + token * kHeadDim, kKvHeads, capacity * kHeadDim, token, 1.5f);
    project(query, kHeads, kHeadDim, token, 2.5f);
    key.shape[1] = value.shape[1] = token + 1;
    if (cpuattn_plan_run(plan, &problem) != CPUATTN_OK) return fail("run");
    for (int i = 0; i < kHeads * kHeadDim; ++i) checksum += out[i];
  }
  printf("%lld tokens on %s, checksum %.4f\n", (long long)capacity, cpuattn_isa(), checksum);

  cpuattn_plan_destroy(plan);
  free(key.data);
  free(value.data);
  return isfinite(checksum) ? 0 : 1;
}
