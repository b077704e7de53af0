// SPDX-License-Identifier: MIT
// Docstrings of the native functions (numpydoc); the first line is read by inspect.signature.
#pragma once

namespace cpuattn {

constexpr char kAttentionDoc[] =
    R"(attention(query, key, value, *, layout='bhsd', mask=None, bias=None, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None, q_lengths=None, kv_lengths=None, q_segment_ids=None, kv_segment_ids=None, dropout_p=0.0, dropout_seed=None, dropout_mask=None, dropout_broadcast=(), dropout_generator='philox', fully_masked='zero', precision='highest', return_lse=False, return_weights=False, out=None, num_threads=None)
--

Compute exact scaled dot-product attention.

``out = dropout(softmax(scale * query @ key^T + bias)) @ value`` over the keys that each
query row may see, in one pass over blocks of keys: no (q_len, kv_len) array is made unless
``return_weights`` asks for it.

Parameters
----------
query : ndarray, shape (..., num_heads, q_len, head_dim), float32|float16|bfloat16|float64
    Queries. Any strides, zero and negative included. bfloat16 is the dtype of ml_dtypes.
key : ndarray, shape (..., num_kv_heads, kv_len, head_dim), dtype of query
    Keys. A float16 or bfloat16 key and value with a float32 query is allowed: a half-size cache.
    num_kv_heads divides num_heads; query head h reads kv head h // (num_heads // num_kv_heads).
    Leading axes broadcast with those of query and value.
value : ndarray, shape (..., num_kv_heads, kv_len, head_dim_v), dtype of key
    Values; head_dim_v is free.
layout : {'bhsd', 'bshd'}
    'bshd' puts the length axis before the heads axis in query, key, value and out.
mask : ndarray, bool, optional
    True = attend. Broadcasts to (..., num_heads, q_len, kv_len).
bias : ndarray, float32|float16|bfloat16|float64, optional
    Added to the scaled and soft-capped scores; -inf removes a key. Broadcasts like mask.
causal : bool, {'top_left', 'bottom_right'}, int or integer array
    Hide keys to the right of a diagonal: key j is visible to row i if j <= i + offset.
    'top_left' has offset 0; 'bottom_right' and True have kv_len - q_len (lengths count where
    given); an int, or an int array that broadcasts to the batch shape, is the offset itself.
    With q_len 2 and kv_len 5::

        'top_left'     'bottom_right'
        1 0 0 0 0      1 1 1 1 0
        1 1 0 0 0      1 1 1 1 1

window : tuple (left, right), optional
    Keys from left before to right after the diagonal; None or -1 leaves a side open.
    The diagonal is that of causal, bottom-right when causal is False.
scale : float, optional
    Factor of the scores; 1 / sqrt(head_dim) by default.
softcap : float, optional
    Scores become softcap * tanh(score / softcap), before bias and masks.
alibi_slopes : ndarray, shape (num_heads,) or (..., num_heads), any dtype of bias, optional
    Subtracts slope * abs(i + offset - j) from the scores (ALiBi, Press et al. 2022).
sinks : ndarray, shape (num_heads,), any dtype of bias, optional
    One logit per head that joins the softmax's denominator and no value.
q_lengths, kv_lengths : integer array that broadcasts to the batch shape, optional
    Valid rows and keys of each batch element. Rows past q_lengths are 0 with lse -inf.
q_segment_ids, kv_segment_ids : integer arrays, shape (..., q_len) and (..., kv_len), optional
    A row sees only keys of its own segment.
dropout_p : float
    Probability with which a weight is dropped; kept ones are divided by 1 - dropout_p.
dropout_seed : int, optional
    Seed of the draws, 0 to 2**64 - 1; needed when 0 < dropout_p < 1 without dropout_mask.
    The draw of a weight depends on seed, batch, head, row and column only.
dropout_mask : ndarray, bool, optional
    True = keep, used instead of draws. Broadcasts like mask.
dropout_broadcast : tuple of {'batch', 'heads', 'q_len', 'kv_len'}
    Axes along which all weights share one draw.
dropout_generator : {'philox', 'threefry'}
    Philox4x32-10, or the draws of ``jax.random.bernoulli(key, 1 - dropout_p, shape)``
    with the seed ``key[0] << 32 | key[1]``, shape that of the weights without shared axes.
fully_masked : {'zero', 'mean', 'nan'}
    What a row with no visible key becomes: 0, the mean of all value rows (as in Keras, Flax
    and JAX; NaN where only a bias of -inf hides keys), or NaN.
precision : {'highest', 'high', 'medium'}
    Least accuracy of the products: 'highest' is float32's (float64's for float64); 'high'
    allows three bfloat16 products for one and 'medium' one, each only where a matrix unit
    makes it faster. `explain` says what runs.
return_lse : bool
    Also return the natural log-sum-exp of the scores, sinks included.
return_weights : bool or {'before_dropout', 'after_dropout'}
    Also return the weights; True means 'before_dropout'. Costs a second pass.
out : ndarray, dtype of query, optional
    Where to write the result; any strides, no memory shared with an input.
num_threads : int, optional
    Threads of this call; otherwise `threads`, `set_num_threads`, CPUATTN_NUM_THREADS,
    OMP_NUM_THREADS, or the CPUs that affinity and the cgroup quota leave.

Returns
-------
out : ndarray, shape (..., num_heads, q_len, head_dim_v), dtype of query
    In the layout of query.
lse : ndarray, shape (..., num_heads, q_len), float32 (float64 for a float64 query)
    Only with return_lse; -inf for a row with no visible key.
weights : ndarray, shape (..., num_heads, q_len, kv_len), dtype of query
    Only with return_weights.

Raises
------
TypeError
    An argument has the wrong type or dtype.
ValueError
    A shape, a value or a combination is wrong; the text names the argument and what was found.
RuntimeError
    CPUATTN_ISA names an instruction set that cannot run here.
MemoryError
    Scratch memory or a result cannot be had.
KeyboardInterrupt
    Or whatever a signal handler raises during a long call on the main thread; what `out`
    holds is then not specified.

Notes
-----
CPU tensors of torch, JAX and other DLPack libraries are read in place and answered in the
query's kind, without a copy either way.
A key that is masked reaches nothing, NaN and Inf in its key and value row included.
Results are bitwise equal for any number of threads, and for a batch computed whole or one
element at a time. Keys and values are never copied whole; blocks of them are copied into
scratch when their strides do not suit the kernels (`explain` says so).

References
----------
Dao 2023, "FlashAttention-2", arXiv:2307.08691. Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", arXiv:1805.02867.

Examples
--------
>>> import numpy as np, cpuattn
>>> rng = np.random.default_rng(0)
>>> query = rng.standard_normal((1, 8, 16, 64), dtype=np.float32)
>>> key, value = rng.standard_normal((2, 1, 2, 16, 64), dtype=np.float32)
>>> cpuattn.attention(query, key, value, causal=True).shape
(1, 8, 16, 64)
)";

constexpr char kExplainDoc[] =
    R"(explain(query, key, value, *, layout='bhsd', mask=None, bias=None, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None, q_lengths=None, kv_lengths=None, q_segment_ids=None, kv_segment_ids=None, dropout_p=0.0, dropout_seed=None, dropout_mask=None, dropout_broadcast=(), dropout_generator='philox', fully_masked='zero', precision='highest', return_lse=False, return_weights=False, out=None, num_threads=None)
--

Say how `attention` would run the same arguments, without running it.

Parameters
----------
query, key, value : ndarray
    As in `attention`, like every keyword.

Returns
-------
plan : dict
    isa, kernel ('prefill' or 'decode'), products ('float32', 'float64', 'bfloat16' or
    'bfloat16 x3': what is multiplied), lanes, row_tile, row_block, kv_block, kv_splits,
    items, threads, threads_from, workspace_bytes (per thread), shared_workspace_bytes (per
    call), estimated_microseconds (one thread), copies and notes (lists of str).

Raises
------
TypeError, ValueError, RuntimeError
    As `attention` would.

Examples
--------
>>> import numpy as np, cpuattn
>>> x = np.zeros((1, 8, 1, 64), np.float32)
>>> cpuattn.explain(x, x, x)["kernel"]
'decode'
)";

}  // namespace cpuattn
