/* SPDX-License-Identifier: MIT
 * The C interface, from C99: results against a plain loop, plans, threads of the caller's, errors.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpuattn/cpuattn.h"

static int failures = 0;
static const char* subject = "";

#define EXPECT(condition, ...)                             \
  do {                                                     \
    if (!(condition)) {                                    \
      ++failures;                                          \
      printf("FAIL %s, line %d: ", subject, __LINE__);     \
      printf(__VA_ARGS__);                                 \
      printf(" (last error: %s)\n", cpuattn_last_error()); \
    }                                                      \
  } while (0)

/* Every allocation of the process passes here (glibc). */
static long allocations = 0;
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);
void* malloc(size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
#else
#define COUNTS_ALLOCATIONS 0
#endif

/* One batch element: sizes, arrays with no gaps, and the shapes that views point to. */
typedef struct {
  int64_t heads, kv_heads, q_len, kv_len, head_dim, head_dim_v;
  float *query, *key, *value, *out, *lse, *weights, *bias;
  unsigned char* mask;
  int64_t query_shape[3], key_shape[3], value_shape[3], out_shape[3], lse_shape[2], score_shape[3];
} case_data;

/* As in support.h: fewer cases on emulated CPUs. */
static int is_sampled(void) {
  const char* sample = getenv("CPUATTN_TEST_SAMPLE");
  return sample != NULL && atoi(sample) > 1;
}

static float noise(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static float* numbers(int64_t count) {
  float* x = malloc((size_t)(count + 1) * sizeof(float));
  for (int64_t i = 0; i < count; ++i) x[i] = noise();
  return x;
}

static void resize(case_data* c, int64_t q_len, int64_t kv_len) {
  c->q_len = q_len;
  c->kv_len = kv_len;
  const int64_t query[3] = {c->heads, q_len, c->head_dim};
  const int64_t key[3] = {c->kv_heads, kv_len, c->head_dim};
  const int64_t value[3] = {c->kv_heads, kv_len, c->head_dim_v};
  const int64_t out[3] = {c->heads, q_len, c->head_dim_v};
  const int64_t score[3] = {c->heads, q_len, kv_len};
  memcpy(c->query_shape, query, sizeof query);
  memcpy(c->key_shape, key, sizeof key);
  memcpy(c->value_shape, value, sizeof value);
  memcpy(c->out_shape, out, sizeof out);
  memcpy(c->lse_shape, out, sizeof c->lse_shape);
  memcpy(c->score_shape, score, sizeof score);
}

static case_data new_case(int64_t heads, int64_t kv_heads, int64_t q_len, int64_t kv_len,
                          int64_t head_dim, int64_t head_dim_v) {
  case_data c = {.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
  c.head_dim_v = head_dim_v;
  resize(&c, q_len, kv_len);
  c.query = numbers(heads * q_len * head_dim);
  c.key = numbers(kv_heads * kv_len * head_dim);
  c.value = numbers(kv_heads * kv_len * head_dim_v);
  c.out = numbers(heads * q_len * head_dim_v);
  c.lse = numbers(heads * q_len);
  c.weights = numbers(heads * q_len * kv_len);
  c.bias = numbers(heads * q_len * kv_len);
  c.mask = malloc((size_t)(q_len * kv_len) + 1);
  for (int64_t i = 0; i < q_len * kv_len; ++i) c.mask[i] = rand() % 4 != 0;
  return c;
}

static void free_case(case_data* c) {
  free(c->query);
  free(c->key);
  free(c->value);
  free(c->out);
  free(c->lse);
  free(c->weights);
  free(c->bias);
  free(c->mask);
}

static cpuattn_problem problem_of(const case_data* c) {
  cpuattn_problem p = cpuattn_problem_default();
  p.query = (cpuattn_array){c->query, c->query_shape, NULL, 3, CPUATTN_FLOAT32};
  p.key = (cpuattn_array){c->key, c->key_shape, NULL, 3, CPUATTN_FLOAT32};
  p.value = (cpuattn_array){c->value, c->value_shape, NULL, 3, CPUATTN_FLOAT32};
  p.out = (cpuattn_array){c->out, c->out_shape, NULL, 3, CPUATTN_FLOAT32};
  return p;
}

/* The largest error of out, lse and weights against docs/semantics.md, written as a plain loop. */
static double largest_error(const case_data* c, const cpuattn_problem* p) {
  const double scale = p->has_scale ? p->scale : 1 / sqrt((double)c->head_dim);
  double largest = 0;
  double* weight = malloc((size_t)(c->kv_len + 1) * sizeof(double));
  for (int64_t head = 0; head < c->heads; ++head) {
    const int64_t kv_head = head / (c->heads / c->kv_heads);
    for (int64_t i = 0; i < c->q_len; ++i) {
      const int64_t row = head * c->q_len + i;
      double sum = 0;
      for (int64_t j = 0; j < c->kv_len; ++j) {
        double score = 0;
        for (int64_t d = 0; d < c->head_dim; ++d) {
          score += (double)c->query[row * c->head_dim + d] *
                   (double)c->key[(kv_head * c->kv_len + j) * c->head_dim + d];
        }
        score *= scale;
        if (p->softcap != 0) score = p->softcap * tanh(score / p->softcap);
        if (p->bias.data != NULL) score += (double)c->bias[row * c->kv_len + j];
        int sees = p->mask.data == NULL || c->mask[i * c->kv_len + j];
        const int64_t offset = p->causal == CPUATTN_CAUSAL_TOP_LEFT ? 0
                               : p->causal == CPUATTN_CAUSAL_OFFSET ? p->causal_offset
                                                                    : c->kv_len - c->q_len;
        if (p->causal != CPUATTN_CAUSAL_NONE) sees = sees && j <= i + offset;
        if (p->window_left >= 0) sees = sees && j >= i + offset - p->window_left;
        weight[j] = sees ? exp(score) : 0;
        sum += weight[j];
      }
      for (int64_t j = 0; j < c->kv_len; ++j) {
        weight[j] = sum > 0 ? weight[j] / sum : 0;
        if (p->weights.data == NULL) continue;
        largest = fmax(largest, fabs(weight[j] - (double)c->weights[row * c->kv_len + j]));
      }
      for (int64_t d = 0; d < c->head_dim_v; ++d) {
        double out = 0;
        for (int64_t j = 0; j < c->kv_len; ++j) {
          out += weight[j] * (double)c->value[(kv_head * c->kv_len + j) * c->head_dim_v + d];
        }
        largest = fmax(largest, fabs(out - (double)c->out[row * c->head_dim_v + d]));
      }
      if (p->lse.data != NULL && sum > 0) {
        largest = fmax(largest, fabs(log(sum) - (double)c->lse[row]));
      }
    }
  }
  free(weight);
  return largest;
}

static void test_results(void) {
  subject = "results match a plain loop";
  const int64_t sizes[][6] = {
      {1, 1, 1, 1, 1, 1},     {4, 2, 37, 65, 40, 24},  {8, 8, 1, 300, 64, 64},
      {6, 3, 130, 130, 8, 3}, {2, 1, 3, 2500, 64, 64}, {2, 2, 0, 5, 8, 8},
  };
  for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; ++n) {
    const int64_t* s = sizes[n];
    case_data c = new_case(s[0], s[1], s[2], s[3], s[4], s[5]);
    for (int options = 0; options < 64; options += is_sampled() ? 21 : 1) {
      cpuattn_problem p = problem_of(&c);
      if (options & 1) p.bias = (cpuattn_array){c.bias, c.score_shape, NULL, 3, CPUATTN_FLOAT32};
      if (options & 2) p.mask = (cpuattn_array){c.mask, c.score_shape + 1, NULL, 2, CPUATTN_BOOL};
      if (options & 4) p.causal = 1 + rand() % 3;
      if (options & 8) p.softcap = 2;
      if (options & 16) p.lse = (cpuattn_array){c.lse, c.lse_shape, NULL, 2, CPUATTN_FLOAT32};
      if (options & 32) {
        p.weights = (cpuattn_array){c.weights, c.score_shape, NULL, 3, CPUATTN_FLOAT32};
        p.window_left = 9;
        p.has_scale = 1;
        p.scale = 0.25;
      }
      p.causal_offset = 3;
      EXPECT(cpuattn_attention(&p) == CPUATTN_OK, "case %zu, options %d", n, options);
      const double error = largest_error(&c, &p);
      EXPECT(error < 1e-5, "case %zu, options %d: error %g", n, options, error);
    }
    free_case(&c);
  }
}

static void test_strides(void) {
  subject = "strides: rows read backwards and with gaps";
  case_data c = new_case(2, 2, 9, 20, 16, 16);
  cpuattn_problem p = problem_of(&c);
  EXPECT(cpuattn_attention(&p) == CPUATTN_OK, "dense");
  float* gaps = malloc(2 * 20 * 32 * sizeof(float));
  for (int row = 0; row < 40; ++row) memcpy(gaps + 32 * (39 - row), c.key + 16 * row, 64);
  const int64_t strides[3] = {-20 * 128, -128, 4};
  float* plain = malloc(2 * 9 * 16 * sizeof(float));
  memcpy(plain, c.out, 2 * 9 * 16 * sizeof(float));
  p.key.data = gaps + 32 * 39;
  p.key.strides = strides;
  EXPECT(cpuattn_attention(&p) == CPUATTN_OK, "strided");
  EXPECT(memcmp(plain, c.out, 2 * 9 * 16 * sizeof(float)) == 0, "bits differ");
  free(gaps);
  free(plain);
  free_case(&c);
}

static void test_errors(void) {
  subject = "errors: status and text";
  case_data c = new_case(4, 2, 5, 7, 8, 8);
  const int64_t wrong[3] = {2, 7, 9};
  const int64_t negative[3] = {2, -1, 8};
  const int64_t lse_shape[2] = {4, 7};
  const int64_t huge[3] = {INT64_C(1) << 31, INT64_C(1) << 31, 8};
  struct {
    cpuattn_status status;
    const char* text;
    cpuattn_problem problem;
  } cases[16];
  int count = 0;
#define CASE(STATUS, TEXT, CHANGE)      \
  do {                                  \
    cpuattn_problem p = problem_of(&c); \
    CHANGE;                             \
    cases[count].status = STATUS;       \
    cases[count].text = TEXT;           \
    cases[count++].problem = p;         \
  } while (0)
  CASE(CPUATTN_ERROR_VALUE, "problem: size must be sizeof(cpuattn_problem)", p.size = 8);
  CASE(CPUATTN_ERROR_VALUE, "query: must be given", memset(&p.query, 0, sizeof p.query));
  CASE(CPUATTN_ERROR_VALUE,
       "key: head_dim must equal query head_dim 8; got 9 (key shape (2, 7, 9))",
       p.key.shape = wrong);
  CASE(CPUATTN_ERROR_VALUE, "key: sizes must not be negative; got -1 on axis 1",
       p.key.shape = negative);
  CASE(CPUATTN_ERROR_VALUE,
       sizeof(void*) == 8 ? "value: must span less than 2**63 bytes"
                          : "value: must span less than 2**31 bytes",
       p.value.shape = huge);
  CASE(CPUATTN_ERROR_VALUE, "query: ndim must be between 0 and 64; got 65", p.query.ndim = 65);
  CASE(CPUATTN_ERROR_VALUE, "query: data must be given; got NULL", p.query.data = NULL);
  CASE(CPUATTN_ERROR_TYPE, "query: dtype must be float16, bfloat16, float32 or float64; got int32",
       p.query.dtype = CPUATTN_INT32);
  CASE(CPUATTN_ERROR_TYPE, "value: dtype must be float32 like key's; got an unknown dtype",
       p.value.dtype = 99);
  CASE(CPUATTN_ERROR_VALUE, "out: must not share memory with query", p.out.data = c.query);
  CASE(CPUATTN_ERROR_VALUE, "causal: must be between 0 and 3; got 7", p.causal = 7);
  CASE(CPUATTN_ERROR_VALUE, "softcap: must be a positive finite number; got -1", p.softcap = -1);
  CASE(CPUATTN_ERROR_VALUE,
       "lse: must have shape (..., num_heads, q_len) = (4, 5); got shape (4, 7)",
       p.lse = ((cpuattn_array){c.lse, lse_shape, NULL, 2, CPUATTN_FLOAT32}));
  CASE(CPUATTN_ERROR_TYPE, "lse: dtype must be float16, bfloat16, float32 or float64; got bool",
       p.lse = ((cpuattn_array){c.lse, c.lse_shape, NULL, 2, CPUATTN_BOOL}));
  CASE(CPUATTN_ERROR_TYPE, "weights: dtype must be float32 like query's; got float64",
       p.weights = ((cpuattn_array){c.weights, c.score_shape, NULL, 3, CPUATTN_FLOAT64}));
#undef CASE
  for (int i = 0; i < count; ++i) {
    EXPECT(cpuattn_attention(&cases[i].problem) == cases[i].status, "case %d", i);
    EXPECT(strncmp(cpuattn_last_error(), cases[i].text, strlen(cases[i].text)) == 0,
           "case %d: wanted %s", i, cases[i].text);
  }
  EXPECT(cpuattn_attention(NULL) == CPUATTN_ERROR_VALUE, "NULL");
  EXPECT(cpuattn_set_isa("nothing") == CPUATTN_ERROR_RUNTIME, "isa");
  EXPECT(strncmp(cpuattn_last_error(), "CPUATTN_ISA: must be one of", 27) == 0, "isa");
  free_case(&c);
}

static void test_versions(void) {
  subject = "versions: a longer struct is read if what is new in it is 0";
  case_data c = new_case(2, 2, 3, 4, 8, 8);
  struct {
    cpuattn_problem known;
    int64_t later;
  } longer = {problem_of(&c), 0};
  longer.known.size = sizeof longer;
  EXPECT(cpuattn_attention(&longer.known) == CPUATTN_OK, "zero");
  longer.later = 1;
  EXPECT(cpuattn_attention(&longer.known) == CPUATTN_ERROR_UNSUPPORTED, "an unknown option");
  EXPECT(strcmp(cpuattn_version(), CPUATTN_VERSION) == 0, "version");
  free_case(&c);
}

/* An executor that runs tasks in reverse order, and counts them. */
static void run_backwards(void* pool, int64_t count, cpuattn_task task, void* context) {
  *(int64_t*)pool += count;
  while (count > 0) task(context, --count);
}

static void test_plans(void) {
  subject = "plans: the same bits, no allocation, every smaller problem";
  case_data c = new_case(8, 2, 70, 3000, 64, 64);
  const size_t out_bytes = (size_t)(8 * 70 * 64) * sizeof(float);
  float* wanted = malloc(out_bytes);
  cpuattn_problem p = problem_of(&c);
  int64_t tasks = 0;
  const cpuattn_executor executor = {run_backwards, &tasks};
  for (int threads = is_sampled() ? 2 : 1; threads <= (is_sampled() ? 2 : 3); ++threads) {
    p.num_threads = threads;
    size_t bytes = 0;
    cpuattn_plan* plan = NULL;
    cpuattn_plan* placed = NULL;
    resize(&c, 70, 3000);
    EXPECT(cpuattn_plan_create(&p, &plan) == CPUATTN_OK, "create");
    p.executor = &executor;
    EXPECT(cpuattn_plan_bytes(&p, &bytes) == CPUATTN_OK && bytes > 0, "bytes");
    char* memory = malloc(bytes + 1);
    EXPECT(cpuattn_plan_place(&p, memory + 1, bytes - 1, &placed) == CPUATTN_ERROR_MEMORY, "small");
    EXPECT(cpuattn_plan_place(&p, memory + 1, bytes, &placed) == CPUATTN_OK, "place");
    long allocated = 0;
    for (int round = 0; round < 2; ++round) { /* the first one starts the threads */
      allocated = 0;
      for (int64_t q_len = 1; q_len <= 70; q_len += is_sampled() ? 46 : 23) {
        for (int64_t kv_len = 0; kv_len <= 3000; kv_len += is_sampled() ? 1500 : 375) {
          resize(&c, q_len, kv_len);
          const size_t used = (size_t)(8 * q_len * 64) * sizeof(float);
          p.executor = NULL;
          EXPECT(cpuattn_attention(&p) == CPUATTN_OK, "attention");
          memcpy(wanted, c.out, used);
          memset(c.out, 0, used);
          const long before = allocations;
          EXPECT(cpuattn_plan_run(plan, &p) == CPUATTN_OK, "run");
          allocated += allocations - before;
          EXPECT(memcmp(c.out, wanted, used) == 0, "%d threads, %d x %d: bits", threads, (int)q_len,
                 (int)kv_len);
          p.executor = &executor;
          memset(c.out, 0, used);
          EXPECT(cpuattn_plan_run(placed, &p) == CPUATTN_OK, "run with an executor");
          EXPECT(memcmp(c.out, wanted, used) == 0, "%d threads: bits of the executor", threads);
        }
      }
    }
    EXPECT(allocated == 0, "%ld allocations", allocated);
    p.executor = NULL;
    cpuattn_plan_destroy(plan);
    free(memory);
  }
  EXPECT(tasks > 0, "the executor never ran");
  resize(&c, 1, 10);
  cpuattn_plan* small = NULL;
  EXPECT(cpuattn_plan_create(&p, &small) == CPUATTN_OK, "create");
  resize(&c, 70, 3000);
  EXPECT(cpuattn_plan_run(small, &p) == CPUATTN_ERROR_MEMORY, "a larger problem");
  EXPECT(strncmp(cpuattn_last_error(), "plan: must be made for the largest problem", 42) == 0,
         "text");
  EXPECT(cpuattn_plan_run(NULL, &p) == CPUATTN_ERROR_VALUE, "no plan");
  cpuattn_plan_destroy(small);
  cpuattn_plan_destroy(NULL);
  free(wanted);
  free_case(&c);
}

int main(void) {
  const char* const isas[] = {"scalar",      "simd128", "avx2",     "avx512",
                              "avx512_bf16", "neon",    "neon_bf16"};
  int usable = 0;
  for (size_t i = 0; i < sizeof isas / sizeof isas[0]; ++i) {
    if (cpuattn_set_isa(isas[i]) != CPUATTN_OK) {
      printf("skipped %s: %s\n", isas[i], cpuattn_last_error());
      continue;
    }
    ++usable;
    srand(1);
    test_results();
    test_strides();
    test_errors();
    test_versions();
    test_plans();
    printf("%s: %d failures so far%s\n", cpuattn_isa(), failures,
           COUNTS_ALLOCATIONS ? "" : " (allocations not counted here)");
  }
  return failures == 0 && usable > 0 ? 0 : 1;
}
