# SPDX-License-Identifier: MIT
"""Promise 2: the same bits for any number of threads, for a batch or its elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype, sampled
from options import OPTIONS, Sizes, combine
from support import Array, as_tuple, assert_same

# Sizes at which row blocks, key chunks and the number of tasks depend on the threads,
# if on anything.
SIZES = {
    "prefill": Sizes(batch=(2,), heads=4, kv_heads=2, q_len=130, kv_len=130),
    "long_prefill": Sizes(batch=(1,), heads=2, kv_heads=2, q_len=1500, kv_len=700),
    "one_head": Sizes(batch=(1,), heads=1, kv_heads=1, q_len=2000, kv_len=300),
    "decode": Sizes(batch=(3,), heads=8, kv_heads=2, q_len=1, kv_len=900, head_dim=64),
    "split_decode": Sizes(
        batch=(1,), heads=8, kv_heads=2, q_len=1, kv_len=9000, head_dim=64
    ),
    "split_few_rows": Sizes(
        batch=(2,), heads=4, kv_heads=1, q_len=5, kv_len=6001, head_dim=64
    ),
    "split_prefill_rows": Sizes(
        batch=(1,), heads=2, kv_heads=1, q_len=40, kv_len=5000, head_dim=32
    ),
    "many_heads": Sizes(batch=(5,), heads=12, kv_heads=12, q_len=64, kv_len=64),
}

OPTION_SETS = {
    "plain": (),
    "causal": ("causal", "return_lse"),
    "masked": ("mask_blocks", "kv_lengths", "segments", "return_lse"),
    "modified": ("bias_row", "softcap", "alibi_slopes", "sinks", "window"),
    "dropped": ("dropout", "causal_top_left"),
    "weights": ("causal", "return_weights", "fully_masked_mean"),
}


def assert_same_bits(ours: tuple[Array, ...], expected: tuple[Array, ...]) -> None:
    for mine, other in zip(ours, expected, strict=True):
        bits = f"u{mine.itemsize}"
        np.testing.assert_array_equal(mine.view(bits), other.view(bits))


@pytest.mark.parametrize(
    ("sizes", "names", "threads", "dtypes"),
    sampled(SIZES, OPTION_SETS, [2, 3, 4, 7, 16]),
)
def test_determinism_any_number_of_threads_gives_the_same_bits(
    sizes: Sizes,
    names: tuple[str, ...],
    threads: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = combine(rng, sizes, *names) | dtypes.options
    one = as_tuple(cpuattn.attention(*inputs, **options, num_threads=1))
    many = as_tuple(cpuattn.attention(*inputs, **options, num_threads=threads))
    assert_same_bits(many, one)


@pytest.mark.parametrize(("sizes", "threads", "dtypes"), sampled(SIZES, [1, 2, 5]))
def test_determinism_repeated_calls_give_the_same_bits(
    sizes: Sizes, threads: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = {"causal": True, "num_threads": threads, **dtypes.options}
    results = [cpuattn.attention(*inputs, **options) for _ in range(4)]
    assert len({result.tobytes() for result in results}) == 1


def element(value: Any, sizes: Sizes, name: str, b: tuple[int, ...]) -> Any:
    """Return what an argument means for batch element `b` alone."""
    per_batch = ("causal", "q_lengths", "kv_lengths")
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    rank = {"alibi_slopes": 1, "sinks": 1, "q_segment_ids": 1, "kv_segment_ids": 1}
    tail = 0 if name in per_batch else rank.get(name, 3)
    if value.ndim <= tail:
        return value
    return np.broadcast_to(value, (*sizes.batch, *value.shape[value.ndim - tail :]))[b]


BATCH_SETS = {
    name: names for name, names in OPTION_SETS.items() if name != "dropped"
} | {
    "offsets": ("causal_offsets", "q_lengths", "kv_lengths"),
    "dropout_of_one": ("dropout_mask",),
    "per_batch_slopes": ("alibi_slopes_per_batch", "bias", "mask"),
}


BATCHES = {
    "prefill": Sizes(batch=(6,), q_len=150, kv_len=100),
    "rank-5": Sizes(batch=(2, 3), heads=2, q_len=40, kv_len=70),
    "decode": Sizes(batch=(6,), heads=8, q_len=1, kv_len=500),
    "split": Sizes(batch=(4,), heads=8, q_len=1, kv_len=4200),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("names", BATCH_SETS.values(), ids=BATCH_SETS)
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@every_dtype
def test_determinism_batch_equals_its_elements_to_the_bit(
    dtypes: Dtypes,
    sizes: Sizes,
    names: tuple[str, ...],
    threads: int,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = combine(rng, sizes, *names) | dtypes.options
    whole = as_tuple(cpuattn.attention(*inputs, **options, num_threads=threads))
    for b in np.ndindex(sizes.batch):
        single = cpuattn.attention(
            *(x[b] for x in inputs),
            **{name: element(x, sizes, name, b) for name, x in options.items()},
            num_threads=threads,
        )
        assert_same_bits(as_tuple(single), tuple(x[b] for x in whole))


@pytest.mark.parametrize("name", ["dropout", "dropout_broadcast"])
def test_determinism_first_batch_element_drops_like_the_whole(
    name: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(batch=(3,), q_len=50, kv_len=70)
    inputs, options = sizes.qkv(rng), OPTIONS[name](rng, sizes)
    whole = cpuattn.attention(*inputs, **options)
    first = cpuattn.attention(*(x[:1] for x in inputs), **options)
    np.testing.assert_array_equal(first, whole[:1])


@pytest.mark.parametrize("q_len", [1, 50])
@every_dtype
def test_determinism_set_num_threads_and_context_change_no_bit(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(heads=8, q_len=q_len, kv_len=3000, head_dim=64, head_dim_v=64)
    inputs, options = sizes.qkv(rng, dtypes=dtypes), dtypes.options
    one = cpuattn.attention(*inputs, num_threads=1, **options)
    with cpuattn.threads(2):
        inside = cpuattn.attention(*inputs, **options)
    cpuattn.set_num_threads(3)
    try:
        default = cpuattn.attention(*inputs, **options)
    finally:
        cpuattn.set_num_threads(None)
    assert_same_bits((inside, default), (one, one))


@pytest.mark.parametrize(
    "sizes",
    [SIZES["split_decode"], SIZES["split_few_rows"]],
    ids=["decode", "few_rows"],
)
@every_dtype
def test_determinism_split_keys_are_really_split(
    dtypes: Dtypes, sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    # Guards the tests above: they must cover the merge of partial results.
    inputs = sizes.qkv(rng, dtypes=dtypes)
    plan = cpuattn.explain(*inputs, num_threads=4, **dtypes.options)
    assert plan["kv_splits"] > 1


@pytest.mark.parametrize("alignment", [1, 2, 4, 16, 32, 36, 60])
@pytest.mark.parametrize("name", ["prefill", "decode"])
@every_dtype
def test_determinism_address_of_the_data_changes_no_bit(
    dtypes: Dtypes, name: str, alignment: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = SIZES[name].qkv(rng, dtypes=dtypes)

    def moved(array: Array) -> Array:
        raw = np.zeros(array.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + alignment
        view = raw[start : start + array.nbytes].view(array.dtype)
        view[...] = array.ravel()
        return view.reshape(array.shape)

    out = cpuattn.attention(*(moved(x) for x in inputs), **dtypes.options)
    assert_same(out, cpuattn.attention(*inputs, **dtypes.options))
