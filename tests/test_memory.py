# SPDX-License-Identifier: MIT
"""Promise 3: O(block) scratch at any length; no heap allocation in a decode loop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import FLOAT32, Dtypes, every_dtype
from support import expect_success

LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="peak memory is read from Linux's /proc/self",
)

# Measures how far the peak resident size rises above the size before a call.
PEAK = """
import json, sys
import numpy as np
import cpuattn

def resident(name):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024

def peak_rise(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 1, 64, 64), np.float32)
cpuattn.attention(x, x, x)
"""

LENGTH = 16384
# What may grow: 2 threads with their stacks and scratch. A score matrix is 1 GiB.
LIMIT = 6 * 2**20

OPTIONS: dict[str, str] = {
    "causal": "causal=True",
    "window": "window=(128, 128), causal=100",
    "causal_dropout_lse": "causal=True, window=(900, 0), dropout_p=0.5, "
    "dropout_seed=1, return_lse=True",
    "softcap_alibi_sinks": "window=(700, 0), softcap=5.0, alibi_slopes=[0.1], "
    "sinks=[0.0]",
    "lengths": "kv_lengths=5000, q_lengths=3000, causal=2000",
    "mask_row": "mask=rng.random((1, length)) < 0.2, window=(500, 500)",
    "bias_column": "bias=rng.standard_normal((length, 1), np.float32), window=(99, 99)",
    "mean": "mask=np.zeros((1, 1), bool), fully_masked='mean'",
    "segments": "q_segment_ids=ids, kv_segment_ids=ids, causal=True",
}


@LINUX
@pytest.mark.native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_memory_peak_of_a_long_call_stays_at_blocks(options: str) -> None:
    code = f"""{PEAK}
length = {LENGTH}
query, key, value = rng.standard_normal((3, 1, 1, length, 64), np.float32)
out = np.zeros_like(query)
ids = np.arange(length) // 512
arguments = dict({options})
def call():
    cpuattn.attention(query, key, value, out=out, **arguments)
print(peak_rise(call))
"""
    rise = int(expect_success(code))
    assert rise < LIMIT, f"peak rose by {rise / 2**20:.1f} MiB"


@LINUX
@pytest.mark.native
def test_memory_peak_of_long_decode_stays_at_blocks() -> None:
    code = f"""{PEAK}
query = rng.standard_normal((1, 8, 1, 64), np.float32)
key, value = rng.standard_normal((2, 1, 2, 200_000, 64), np.float32)
print(peak_rise(lambda: cpuattn.attention(query, key, value)))
"""
    rise = int(expect_success(code))
    assert rise < LIMIT, f"peak rose by {rise / 2**20:.1f} MiB"


@LINUX
@pytest.mark.native
def test_memory_measurement_sees_what_it_must() -> None:
    # Guards the tests above: a temporary array that is freed again is seen.
    code = f"""{PEAK}
print(peak_rise(lambda: np.ones(32 * 2**20, np.uint8).sum()))
"""
    assert int(expect_success(code)) > 30 * 2**20


LAYOUTS: dict[str, str] = {
    "contiguous": "x",
    "bshd_view": "np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)",
    "transposed": "np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)",
    "negative_rows": "x[:, :, ::-1]",
    "negative_columns": "x[..., ::-1]",
    "every_other_column": "np.repeat(x, 2, -1)[..., ::2]",
    "rows_4096_apart": "np.concatenate([x] * 16, -1)[..., :64]",
    "unaligned": "unaligned(x)",
    "broadcast": "np.broadcast_to(x[:, :, :1], x.shape)",
}


@LINUX
@pytest.mark.native
@pytest.mark.parametrize("q_len", [1, 1000])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_no_layout_is_copied_whole(layout: str, q_len: int) -> None:
    # Keys and values of 16 MiB each: a copy of either would show.
    code = f"""{PEAK}
def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(x.shape)
    view[...] = x
    return view
def laid_out(x):
    return {layout}
query = rng.standard_normal((1, 2, {q_len}, 64), np.float32)
key = laid_out(rng.standard_normal((1, 2, 32768, 64), np.float32))
value = laid_out(rng.standard_normal((1, 2, 32768, 64), np.float32))
key.sum(), value.sum()
rise = peak_rise(lambda: cpuattn.attention(query, key, value, window=(20000, 3000)))
plan = cpuattn.explain(query, key, value, window=(20000, 3000))
print(json.dumps([rise, plan["copies"]]))
"""
    rise, copies = json.loads(expect_success(code))
    assert rise < LIMIT, f"peak rose by {rise / 2**20:.1f} MiB; copies: {copies}"


ARRAYS = """
import ml_dtypes
def make(dtype, *shape):
    array = np.empty(shape, dtype)
    for row in array.reshape(-1, shape[-1]):
        row[...] = 0.5
    return array
"""


@LINUX
@pytest.mark.native
@pytest.mark.parametrize("q_len", [1, 300])
@pytest.mark.parametrize("stride", ["", "[..., ::-1]"], ids=["plain", "reversed"])
@every_dtype
def test_memory_no_dtype_is_converted_whole(
    dtypes: Dtypes, stride: str, q_len: int, isa: str
) -> None:
    # The smallest array of keys has 8 MiB: as float32 it would be 16 MiB.
    code = f"""{PEAK}{ARRAYS}
query = make("{dtypes.query}", 1, 2, {q_len}, 64)
key, value = (make("{dtypes.cache}", 1, 2, 32768, 64) for _ in range(2))
out = make("{dtypes.query}", 1, 2, {q_len}, 64)
options = dict(window=(20000, 3000), out=out, precision="{dtypes.precision}")
def call():
    cpuattn.attention(query{stride}, key{stride}, value{stride}, **options)
print(peak_rise(call))
"""
    rise = int(expect_success(code, CPUATTN_ISA=isa))
    assert rise < LIMIT, f"peak rose by {rise / 2**20:.1f} MiB"


@LINUX
@pytest.mark.native
@pytest.mark.parametrize("style", ["rank_2", "row", "stride_0", "transposed"])
def test_memory_broadcast_mask_and_bias_are_not_expanded(style: str) -> None:
    # Expanded over 64 heads they would take 64 MiB and 256 MiB.
    code = f"""{PEAK}
query, key, value = rng.standard_normal((3, 1, 64, 1024, 16), np.float32)
mask = rng.random((1024, 1024)) < 0.5
bias = rng.standard_normal((1024, 1024), np.float32)
style = {style!r}
if style == "row":
    mask, bias = mask[:1], bias[:1]
elif style == "stride_0":
    mask, bias = (np.broadcast_to(x, (1, 64, 1024, 1024)) for x in (mask, bias))
elif style == "transposed":
    mask, bias = mask.T, bias.T
out = np.zeros_like(query)
print(peak_rise(lambda: cpuattn.attention(query, key, value, mask=mask, bias=bias,
                                          out=out)))
"""
    rise = int(expect_success(code))
    assert rise < LIMIT, f"peak rose by {rise / 2**20:.1f} MiB"


def planned(
    dtypes: Dtypes, length: int, heads: int = 1, head_dim: int = 64
) -> dict[str, Any]:
    shape = (1, heads, length, head_dim)
    query = np.broadcast_to(dtypes.query.type(0), shape)
    key = np.broadcast_to(dtypes.cache.type(0), shape)
    return cpuattn.explain(query, key, key, **dtypes.options)


@pytest.mark.parametrize("length", [1, 100, 4096, LENGTH, 2**20])
@every_dtype
def test_memory_scratch_is_at_most_1_mb_per_thread(
    dtypes: Dtypes, length: int, isa: str
) -> None:
    plan = planned(dtypes, length)
    assert 0 <= plan["workspace_bytes"] <= 2**20


@every_dtype
def test_memory_scratch_does_not_grow_with_length(dtypes: Dtypes, isa: str) -> None:
    long, longer = (planned(dtypes, n)["workspace_bytes"] for n in (2**14, 2**20))
    assert long == longer


@pytest.mark.parametrize("head_dim", [64, 128, 256, 576])
@every_dtype
def test_memory_scratch_of_wide_heads_is_at_most_1_mb(
    dtypes: Dtypes, head_dim: int, isa: str
) -> None:
    plan = planned(dtypes, 8192, heads=4, head_dim=head_dim)
    assert plan["workspace_bytes"] <= 2**20


def test_memory_that_cannot_be_had_is_a_memory_error() -> None:
    row = np.broadcast_to(np.float32(0), (1, 1, 1, 2**32))
    value = np.zeros((1, 1, 1, 3), np.float32)
    with pytest.raises(MemoryError, match="out of memory for scratch"):
        cpuattn.attention(row, row, value)


# A malloc that counts, put before libc's.
COUNTER = r"""
#include <stddef.h>
#include <errno.h>
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static volatile long count;
long allocations(void) { return count; }
static void one(void) { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); }
void *malloc(size_t n) { one(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { one(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { one(); return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { one(); return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { one(); return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  one();
  *p = __libc_memalign(a, n);
  return *p == NULL ? ENOMEM : 0;
}
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a shared library that counts allocations when it is preloaded."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        pytest.skip("LD_PRELOAD needs Linux")
    if compiler is None:
        pytest.skip("there is no C compiler to build the malloc counter with")
    folder = tmp_path_factory.mktemp("counter")
    source, library = folder / "counter.c", folder / "counter.so"
    source.write_text(COUNTER)
    command = [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"the malloc counter does not build: {built.stderr.strip()[-200:]}")
    return str(library)


LOOP = """
import ctypes, gc
import numpy as np
import cpuattn

allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_long
import ml_dtypes
rng = np.random.default_rng(0)
heads, kv_heads, kv_len = {sizes}
query = rng.standard_normal((1, heads, 1, 64)).astype("{dtypes.query}")
key, value = rng.standard_normal((2, 1, kv_heads, kv_len, 64)).astype("{dtypes.cache}")
out = np.zeros_like(query)
options = dict({options})

def loop(n):
    for _ in range(n):
        cpuattn.attention(query, key, value, out=out, **options)

gc.disable()
loop(50)
counts = []
for _ in range(4):
    before = allocations()
    loop(60)
    counts.append(allocations() - before)
print(*counts)
"""


def counted(
    counter: str, sizes: str, options: str, dtypes: Dtypes = FLOAT32
) -> list[int]:
    """Allocations in four rounds of 60 calls, after a warm-up."""
    code = LOOP.format(sizes=sizes, options=options, dtypes=dtypes)
    return [int(n) for n in expect_success(code, LD_PRELOAD=counter).split()]


def assert_steady(counts: list[int]) -> None:
    # A thread that gets its first task late makes its scratch late, once: a round or
    # two may count a few allocations, but none can count one per call.
    assert min(counts) == 0
    assert sum(counts) < 10


DECODE_OPTIONS = {
    "plain": "",
    "causal": "causal=True",
    "lengths": "kv_lengths=np.array([kv_len - 3])",
    "mask": "mask=rng.random((1, kv_len)) < 0.9",
    "bias": "bias=rng.standard_normal((1, kv_len), np.float32)",
    "sinks_softcap": "sinks=np.zeros(heads, np.float32), softcap=20.0",
    "alibi_window": "alibi_slopes=np.ones(heads, np.float32), window=(500, 0)",
    "dropout": "dropout_p=0.1, dropout_seed=3",
}

DECODE_SIZES = {
    "tiny": "2, 2, 8",
    "serial": "8, 2, 300",
    "gqa_threads": "32, 8, 1500",
    "split_in_parallel": "4, 1, 20000",
}


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", DECODE_OPTIONS.values(), ids=DECODE_OPTIONS)
def test_memory_decode_loop_allocates_nothing(
    options: str, threads: int, counter: str
) -> None:
    options = f"{options}, num_threads={threads}".lstrip(", ")
    assert_steady(counted(counter, DECODE_SIZES["gqa_threads"], options))


@pytest.mark.native
@pytest.mark.parametrize("sizes", DECODE_SIZES.values(), ids=DECODE_SIZES)
def test_memory_decode_loop_of_any_size_allocates_nothing(
    sizes: str, counter: str
) -> None:
    assert_steady(counted(counter, sizes, "num_threads=2"))


@pytest.mark.native
@every_dtype
def test_memory_decode_loop_of_any_dtype_allocates_nothing(
    dtypes: Dtypes, counter: str
) -> None:
    options = f"num_threads=2, precision='{dtypes.precision}'"
    assert_steady(counted(counter, DECODE_SIZES["gqa_threads"], options, dtypes))


@pytest.mark.native
def test_memory_counter_sees_what_it_must(counter: str) -> None:
    # Guards the tests above: each call allocates its lse, too large for NumPy's cache.
    assert min(counted(counter, "600, 8, 100", "return_lse=True")) >= 60


@pytest.mark.native
@LINUX
def test_memory_growing_cache_reuses_its_scratch() -> None:
    # A decode loop over a cache that grows by one key a step keeps its resident size.
    code = f"""{PEAK}
cache_k, cache_v = rng.standard_normal((2, 1, 2, 4096, 64), np.float32)
query = rng.standard_normal((1, 8, 1, 64), np.float32)
out = np.zeros_like(query)
def steps(first, last):
    for n in range(first, last):
        cpuattn.attention(query, cache_k[:, :, :n], cache_v[:, :, :n], out=out)
steps(1, 2000)
print(peak_rise(lambda: steps(2000, 4096)))
"""
    rise = int(expect_success(code))
    assert rise < 2**20, f"peak rose by {rise / 2**20:.1f} MiB"
