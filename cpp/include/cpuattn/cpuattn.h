/* SPDX-License-Identifier: MIT
 *
 * cpuattn: exact attention on CPUs. C99 interface, for programs without Python.
 *
 * One struct describes a call: arrays as strided views, options as numbers. What each of them means
 * is written in docs/semantics.md; names and defaults are those of Python's cpuattn.attention.
 *
 *   cpuattn_problem problem = cpuattn_problem_default();
 *   problem.query = ...; problem.key = ...; problem.value = ...; problem.out = ...;
 *   problem.causal = CPUATTN_CAUSAL_BOTTOM_RIGHT;
 *   if (cpuattn_attention(&problem) != CPUATTN_OK) puts(cpuattn_last_error());
 *
 * A loop that must not allocate makes a cpuattn_plan for its largest problem once and runs that.
 *
 * Stable ABI: structs only ever grow at their end, by fields whose value 0 means what was before;
 * `size` says which of them the caller knows. Every function may be called from any thread.
 */
#ifndef CPUATTN_CPUATTN_H
#define CPUATTN_CPUATTN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cpuattn/version.h"

#if defined(_WIN32) && defined(CPUATTN_SHARED)
#if defined(CPUATTN_BUILDS_LIBRARY)
#define CPUATTN_API __declspec(dllexport)
#else
#define CPUATTN_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define CPUATTN_API __attribute__((visibility("default")))
#else
#define CPUATTN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a function returns. */
typedef int32_t cpuattn_status;
enum {
  CPUATTN_OK = 0,
  CPUATTN_ERROR_TYPE = 1,        /* a dtype is wrong */
  CPUATTN_ERROR_VALUE = 2,       /* a shape, a value or a combination is wrong */
  CPUATTN_ERROR_RUNTIME = 3,     /* CPUATTN_ISA names what cannot run here; see also cancelled */
  CPUATTN_ERROR_MEMORY = 4,      /* out of memory, or a plan is too small for a problem */
  CPUATTN_ERROR_UNSUPPORTED = 5, /* this build of the library lacks what is asked for */
  CPUATTN_ERROR_CANCELLED = 6    /* the problem's function `cancelled` said so */
};

/* Element types. */
enum {
  CPUATTN_FLOAT32 = 0,
  CPUATTN_FLOAT64 = 1,
  CPUATTN_FLOAT16 = 2,
  CPUATTN_BFLOAT16 = 3,
  CPUATTN_BOOL = 4, /* one byte; not 0 = true */
  CPUATTN_INT32 = 5,
  CPUATTN_INT64 = 6
};

/* A view of an array. All zero: not given. */
typedef struct cpuattn_array {
  void* data;
  const int64_t* shape;   /* (ndim) */
  const int64_t* strides; /* (ndim), in bytes, of any sign; NULL: C order without gaps */
  int32_t ndim;           /* at most 64 */
  int32_t dtype;
} cpuattn_array;

enum { CPUATTN_BHSD = 0, CPUATTN_BSHD = 1 };
enum {
  CPUATTN_CAUSAL_NONE = 0,
  CPUATTN_CAUSAL_BOTTOM_RIGHT = 1,
  CPUATTN_CAUSAL_TOP_LEFT = 2,
  CPUATTN_CAUSAL_OFFSET = 3 /* key j is visible to row i if j <= i + offset */
};
enum { CPUATTN_DRAW_PHILOX = 0, CPUATTN_DRAW_THREEFRY = 1 };
enum { CPUATTN_MASKED_ZERO = 0, CPUATTN_MASKED_MEAN = 1, CPUATTN_MASKED_NAN = 2 };
enum { CPUATTN_HIGHEST = 0, CPUATTN_HIGH = 1, CPUATTN_MEDIUM = 2 };
/* Bits of dropout_broadcast. */
enum { CPUATTN_BATCH = 1, CPUATTN_HEADS = 2, CPUATTN_Q_LEN = 4, CPUATTN_KV_LEN = 8 };

/* Runs task(context, i) once for every i in [0, count), at most num_threads at the same time and in
 * any order, and returns when all are done. It must not return or throw while a task runs; if it
 * returns before all have run, the call is an error. */
typedef void (*cpuattn_task)(void* context, int64_t index);
typedef struct cpuattn_executor {
  void (*run)(void* pool, int64_t count, cpuattn_task task, void* context);
  void* pool;
} cpuattn_executor;

typedef struct cpuattn_problem {
  size_t size; /* sizeof(cpuattn_problem) */

  /* (..., num_heads, q_len, head_dim), (..., num_kv_heads, kv_len, head_dim),
   * (..., num_kv_heads, kv_len, head_dim_v); with CPUATTN_BSHD the two axes before the last change
   * places. Leading axes broadcast. */
  cpuattn_array query, key, value;
  /* Results: out as query but head_dim_v wide; where wanted, lse (..., num_heads, q_len) of any
   * float dtype and weights (..., num_heads, q_len, kv_len). Must not overlap an input. */
  cpuattn_array out, lse, weights;
  cpuattn_array mask, bias, dropout_mask;      /* broadcast to (..., num_heads, q_len, kv_len) */
  cpuattn_array alibi_slopes, sinks;           /* (..., num_heads), (num_heads) */
  cpuattn_array q_lengths, kv_lengths;         /* integers that broadcast to the batch shape */
  cpuattn_array causal_offsets;                /* the same; instead of causal_offset */
  cpuattn_array q_segment_ids, kv_segment_ids; /* integers (..., q_len), (..., kv_len) */

  double scale;   /* where has_scale; else 1 / sqrt(head_dim) */
  double softcap; /* 0: none */
  double dropout_p;
  uint64_t dropout_seed;
  int64_t causal_offset; /* for CPUATTN_CAUSAL_OFFSET */
  int64_t window_left;   /* -1: open */
  int64_t window_right;  /* -1: open */

  int32_t has_scale;
  int32_t layout;
  int32_t causal;
  int32_t dropout_broadcast; /* CPUATTN_BATCH | ... : axes that share one draw */
  int32_t dropout_generator;
  int32_t fully_masked;
  int32_t precision;
  int32_t weights_after_dropout; /* what `weights` receives */

  int32_t num_threads; /* 0: environment, affinity and cgroup decide */
  int32_t reserved;
  const cpuattn_executor* executor; /* NULL: the library's own threads */

  /* Whether the call is to end early, with CPUATTN_ERROR_CANCELLED and unspecified results; NULL:
   * never. Asked many times a millisecond, by every thread that computes: it may read a flag or the
   * clock, and must not throw. It may call this library. If it forks, the call ends in the child
   * with CPUATTN_ERROR_RUNTIME where other threads had a part in it. */
  int32_t (*cancelled)(void* context);
  void* cancelled_context;
} cpuattn_problem;

/* A problem with every option at its default and no array. */
static inline cpuattn_problem cpuattn_problem_default(void) {
  cpuattn_problem problem;
  memset(&problem, 0, sizeof problem);
  problem.size = sizeof problem;
  problem.window_left = -1;
  problem.window_right = -1;
  return problem;
}

/* Computes the problem. Scratch memory is kept by each thread that computes, for the next call. */
CPUATTN_API cpuattn_status cpuattn_attention(const cpuattn_problem* problem);

/* Scratch memory and thread count for a problem and every one like it that is not larger: the same
 * arrays, dtypes and options, and any q_len, kv_len and batch up to those of the problem. Running
 * it allocates nothing and gives the same bits as cpuattn_attention. */
typedef struct cpuattn_plan cpuattn_plan;

CPUATTN_API cpuattn_status cpuattn_plan_create(const cpuattn_problem* largest, cpuattn_plan** plan);
CPUATTN_API void cpuattn_plan_destroy(cpuattn_plan* plan); /* NULL is allowed */

/* The same in memory of the caller, of at least cpuattn_plan_bytes, any alignment. Nothing is to be
 * destroyed; the memory must live as long as the plan is used. */
CPUATTN_API cpuattn_status cpuattn_plan_bytes(const cpuattn_problem* largest, size_t* bytes);
CPUATTN_API cpuattn_status cpuattn_plan_place(const cpuattn_problem* largest, void* memory,
                                              size_t bytes, cpuattn_plan** plan);

/* Computes a problem in a plan's scratch. One run of a plan at a time: a second one is an error. */
CPUATTN_API cpuattn_status cpuattn_plan_run(cpuattn_plan* plan, const cpuattn_problem* problem);

/* One line about the last failure on the calling thread; "" if there was none. */
CPUATTN_API const char* cpuattn_last_error(void);

/* CPUATTN_VERSION of the library that runs. */
CPUATTN_API const char* cpuattn_version(void);

/* Name of the instruction set in use; NULL with an error if CPUATTN_ISA names an unusable one. */
CPUATTN_API const char* cpuattn_isa(void);

/* Uses one instruction set by its name; NULL returns to the best that can run. Not while other
 * threads compute. */
CPUATTN_API cpuattn_status cpuattn_set_isa(const char* name);

#ifdef __cplusplus
}
#endif

#endif /* CPUATTN_CPUATTN_H */
