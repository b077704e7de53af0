# SPDX-License-Identifier: MIT
"""Sizes of 2**31 and more work or give a clear error; memory that cannot be had too."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

import cpuattn
from support import Array, expect_success


def repeated(*shape: int) -> Array:
    """Return ones of any shape that take no memory."""
    return np.broadcast_to(np.float32(1), shape)


def test_limits_long_cache_with_a_window_reads_the_window(isa: str) -> None:
    key = repeated(1, 1, 2**33, 8)
    out = cpuattn.attention(repeated(1, 2, 1, 8), key, key, causal=5, window=(3, 0))
    np.testing.assert_array_equal(out, np.ones((1, 2, 1, 8), np.float32))


def test_limits_no_query_rows_make_an_empty_result(isa: str) -> None:
    key = repeated(1, 1, 2**40, 8)
    assert cpuattn.attention(repeated(1, 1, 0, 8), key, key).shape == (1, 1, 0, 8)


@pytest.mark.parametrize("lengths", [False, True], ids=["plain", "lengths"])
def test_limits_large_batch_of_no_heads_makes_an_empty_result(
    isa: str, lengths: bool
) -> None:
    x = repeated(2**40, 0, 3, 8)
    options: dict[str, Any] = {"kv_lengths": 2} if lengths else {}
    assert cpuattn.attention(x, x, x, **options).shape == (2**40, 0, 3, 8)


CASES = {
    "head_dim": (
        (repeated(1, 1, 1, 2**33), repeated(1, 1, 1, 2**33), repeated(1, 1, 1, 3)),
        "query: head_dim must be at most 2**32; got 8589934592 "
        "(query shape (1, 1, 1, 8589934592))",
    ),
    "head_dim_v": (
        (repeated(1, 1, 1, 3), repeated(1, 1, 1, 3), repeated(1, 1, 1, 2**33)),
        "value: head_dim_v must be at most 2**32; got 8589934592 "
        "(value shape (1, 1, 1, 8589934592))",
    ),
    "num_heads": (
        (repeated(1, 2**33, 1, 3), repeated(1, 1, 1, 3), repeated(1, 1, 1, 3)),
        "query: num_heads must be at most 2**32; got 8589934592 "
        "(query shape (1, 8589934592, 1, 3))",
    ),
    "q_len": (
        (repeated(1, 1, 2**41, 3), repeated(1, 1, 1, 3), repeated(1, 1, 1, 3)),
        "query: q_len must be at most 2**40; got 2199023255552 "
        "(query shape (1, 1, 2199023255552, 3))",
    ),
    "kv_len": (
        (repeated(1, 1, 1, 3), repeated(1, 1, 2**41, 3), repeated(1, 1, 2**41, 3)),
        "key: kv_len must be at most 2**40; got 2199023255552 "
        "(key shape (1, 1, 2199023255552, 3))",
    ),
    "rows": (
        (repeated(2**30, 1, 1, 1, 3), repeated(2**30, 1, 1, 3), repeated(1, 1, 1, 3)),
        "query: batch * num_heads * q_len must be at most 2**56; got batch shape "
        "(1073741824, 1073741824), num_heads 1 and q_len 1",
    ),
    "out": (
        (repeated(2**28, 1, 1, 1), repeated(1, 1, 1, 1), repeated(1, 1, 1, 2**32)),
        None,
    ),
    "out_of_64_bits": (
        (repeated(2**40, 1, 1, 1), repeated(1, 1, 1, 1), repeated(1, 1, 1, 2**32)),
        "out: must span less than 2**63 bytes of memory; got shape "
        "(1099511627776, 1, 1, 4294967296)",
    ),
}


@pytest.mark.parametrize("call", [cpuattn.attention, cpuattn.explain])
@pytest.mark.parametrize(("arrays", "text"), CASES.values(), ids=CASES)
def test_limits_of_sizes_are_named(call: Any, arrays: Any, text: str | None) -> None:
    if text is None and call is cpuattn.explain:
        assert call(*arrays)["items"] == 2**28
        return
    error = MemoryError if text is None else ValueError
    with pytest.raises(error, match=f"^{re.escape(text)}$" if text else "allocate"):
        call(*arrays)


@pytest.mark.parametrize("name", ["lse", "weights"])
def test_limits_of_other_results_are_named(name: str) -> None:
    q, k = repeated(2**20, 1, 2**20, 1), repeated(1, 1, 2**40, 1)
    value = repeated(1, 1, 2**40, 0)
    q, k, value = (q, k, value) if name == "weights" else (q, k[:, :, :1], value)
    value = value[:, :, : k.shape[2]]
    expected = {
        "weights": (ValueError, r"^weights: must span less than 2\*\*63 bytes"),
        "lse": (MemoryError, "allocate"),
    }[name]
    with pytest.raises(expected[0], match=expected[1]):
        cpuattn.attention(q, k, value, **{f"return_{name}": True})


def test_limits_of_random_draws_ask_for_a_mask() -> None:
    key = repeated(1, 1, 2**35, 8)
    with pytest.raises(ValueError, match=r"^dropout_p: random draws reach 2\*\*32 "):
        cpuattn.attention(repeated(1, 1, 1, 8), key, key, dropout_p=0.5, dropout_seed=1)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.native
def test_limits_address_space_is_a_memory_error_and_the_next_call_is_right() -> None:
    # 24 MB more than in use: no stack for threads, and no scratch for wide heads.
    out = expect_success(
        """
import resource
import numpy as np
import cpuattn
rng = np.random.default_rng(0)
arrays = rng.standard_normal((3, 1, 4, 300, 64), np.float32)
expected = cpuattn.attention(*arrays, num_threads=1)
wide = np.broadcast_to(np.float32(1), (1, 1, 200, 65536))
narrow = np.ones((1, 1, 200, 1), np.float32)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 24 * 2**20, resource.RLIM_INFINITY))
errors = 0
for _ in range(5):
    for threads in (1, 2, 8):
        try:
            cpuattn.attention(wide, wide, narrow, num_threads=threads)
        except MemoryError as error:
            assert str(error).startswith("out of memory for scratch: "), error
            errors += 1
        assert np.array_equal(cpuattn.attention(*arrays, num_threads=threads), expected)
print(errors)
""",
        timeout=60,
    )
    assert int(out) == 15
