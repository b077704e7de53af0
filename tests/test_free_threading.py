# SPDX-License-Identifier: MIT
"""Promise: many threads call everything at once, with or without the GIL."""

from __future__ import annotations

import sysconfig

import pytest

from support import expect_success

# All threads start together; what one of them raises ends the process with an error.
TOGETHER = """
import threading
import numpy as np
import cpuattn

def together(count, work):
    barrier = threading.Barrier(count)
    errors = []
    def run(n):
        barrier.wait()
        try:
            work(n)
        except BaseException as error:
            errors.append(repr(error))
    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
"""


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="this Python always has the GIL",
)
def test_free_threading_import_leaves_the_gil_off() -> None:
    expect_success(
        """
import sys, warnings
warnings.simplefilter("error")  # what turns the GIL on says so
import numpy
assert not sys._is_gil_enabled(), "NumPy"
import cpuattn, cpuattn.compat.torch, cpuattn.compat.keras, cpuattn.runtime
x = numpy.ones((1, 2, 40, 8), numpy.float32)
cpuattn.attention(x, x, x)
assert not sys._is_gil_enabled()
"""
    )


@pytest.mark.parametrize("count", [2, 8, 24])
def test_free_threading_everything_at_once_gives_the_same_bits(count: int) -> None:
    expect_success(
        f"""{TOGETHER}
import ml_dtypes
rng = np.random.default_rng(0)
dtypes = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
calls = []
for n, (heads, q_len, kv_len) in enumerate(
    [(1, 1, 1), (8, 1, 900), (2, 40, 70), (4, 200, 200), (1, 2, 3000)]
):
    q = rng.standard_normal((1, heads, q_len, 32)).astype(dtypes[n % 4])
    k, v = rng.standard_normal((2, 1, heads, kv_len, 32)).astype(dtypes[n % 4])
    options = dict(causal=True, window=[40, None], return_lse=True,
                   dropout_p=0.1, dropout_seed=n, dropout_broadcast=["heads"])
    calls.append((q, k, v, options, cpuattn.attention(q, k, v, **options)))
plans = [cpuattn.explain(q, k, v, num_threads=2, **o) for q, k, v, o, _ in calls]
features = cpuattn.info()["features"]

def work(n):
    for step in range(60):
        q, k, v, options, (out, lse) = calls[(n + step) % len(calls)]
        threads = (n + step) % 3 + 1
        if step % 4 == 0:
            got = cpuattn.attention(q, k, v, num_threads=threads, **options)
        elif step % 4 == 1:
            with cpuattn.threads(threads):
                got = cpuattn.attention(q, k, v, **options)
                assert cpuattn.info()["threads"] == threads
        else:
            cpuattn.set_num_threads(threads if step % 4 == 2 else None)
            got = cpuattn.attention(q, k, v, **options)
        assert got[0].tobytes() == out.tobytes()
        assert got[1].tobytes() == lse.tobytes()
        plan = cpuattn.explain(q, k, v, num_threads=2, **options)
        assert plan == plans[(n + step) % len(calls)]
    assert cpuattn.info()["features"] == features

together({count}, work)
""",
        timeout=300,
    )


def test_free_threading_first_uses_may_meet() -> None:
    # Each starts with no cache filled: the ISA, bfloat16's number, MaskedArray, the
    # context variable of threads(), the workspace of the thread.
    expect_success(
        f"""{TOGETHER}
import ml_dtypes
x = np.ones((1, 2, 33, 16), ml_dtypes.bfloat16)
masked = np.ma.masked_array(np.ones((1, 2, 33, 16), np.float32))
results = [None] * 16

def work(n):
    with cpuattn.threads(n % 3 + 1):
        assert cpuattn.info()["threads"] == n % 3 + 1
        results[n] = cpuattn.attention(x, x, x).tobytes()
    try:
        cpuattn.attention(masked, masked, masked)
    except TypeError as error:
        assert "MaskedArray" in str(error)
    else:
        raise AssertionError("a masked array was taken")

together(16, work)
assert len(set(results)) == 1
""",
        timeout=120,
    )


def test_free_threading_contexts_keep_no_references() -> None:
    expect_success(
        f"""{TOGETHER}
import sys
from cpuattn.runtime import _threads
with cpuattn.threads(1):
    pass
before = sys.getrefcount(_threads)

def work(n):
    for _ in range(500):
        with cpuattn.threads(2):
            pass

together(8, work)
assert abs(sys.getrefcount(_threads) - before) < 8, (before, sys.getrefcount(_threads))
"""
    )


def test_free_threading_one_out_array_for_each_thread() -> None:
    expect_success(
        f"""{TOGETHER}
rng = np.random.default_rng(1)
q = rng.standard_normal((1, 4, 64, 32), np.float32)
whole = np.empty((8, 4, 64, 32), np.float32)
expected = cpuattn.attention(q, q, q)

def work(n):
    for threads in (1, 2) * 20:
        out = whole[n : n + 1]
        assert cpuattn.attention(q, q, q, out=out, num_threads=threads) is out
        assert np.array_equal(out, expected)
        out[...] = np.nan

together(8, work)
"""
    )
