# SPDX-License-Identifier: MIT
"""return_weights: before and after dropout, in every shape, for every kind of row."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from dtypes import Dtypes, every_dtype
from options import Sizes, combine
from support import Array, assert_same, compare, sees

SIZES = {
    "small": Sizes(),
    "odd": Sizes(heads=6, q_len=37, kv_len=71, head_dim=24, head_dim_v=20),
    "decode": Sizes(heads=8, q_len=1, kv_len=300),
    "long": Sizes(batch=(1,), heads=2, q_len=2, kv_len=5000),
    "tall": Sizes(batch=(1,), heads=2, q_len=400, kv_len=30),
}


@pytest.mark.parametrize("when", [True, "before_dropout", "after_dropout"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@every_dtype
def test_weights_match_oracle(
    dtypes: Dtypes, sizes: Sizes, when: bool | str, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, sizes, "causal", "bias", "dropout") | dtypes.options
    inputs = sizes.qkv(rng, dtypes=dtypes)
    out, weights = compare(*inputs, **options, return_weights=when)
    assert weights.shape == sizes.scores
    assert weights.dtype == dtypes.query
    assert out.shape == (*sizes.scores[:-1], sizes.head_dim_v)


def sums(weights: Array) -> Array:
    """Return the sum of each row."""
    return np.asarray(weights.astype(np.float64).sum(-1))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@every_dtype
def test_weights_of_a_row_sum_to_1(
    dtypes: Dtypes, sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    inputs, options = sizes.qkv(rng, dtypes=dtypes), dtypes.options
    _, weights = cpuattn.attention(*inputs, causal=5, return_weights=True, **options)
    # Each weight is rounded, by half a last digit of its own at most.
    limit = max(1e-5, dtypes.epsilon / 2)
    np.testing.assert_allclose(sums(weights), 1, atol=limit)
    assert (weights >= 0).all()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@every_dtype
def test_weights_with_sinks_sum_to_what_the_sink_leaves(
    dtypes: Dtypes, sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, sizes, "sinks") | dtypes.options
    _, lse, weights = cpuattn.attention(
        *sizes.qkv(rng, dtypes=dtypes), **options, return_lse=True, return_weights=True
    )
    left = 1 - np.exp(options["sinks"][:, None] - lse.astype(np.float64))
    limit = max(1e-5, dtypes.epsilon / 2)
    np.testing.assert_allclose(sums(weights), left, atol=limit)


@pytest.mark.parametrize("when", ["before_dropout", "after_dropout"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@every_dtype
def test_weights_times_value_are_the_output(
    dtypes: Dtypes, layout: str, when: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    inputs = sizes.qkv(rng, layout, dtypes)
    options = {"layout": layout, "return_weights": when, **dtypes.options}
    if when == "after_dropout":
        options |= {"dropout_p": 0.5, "dropout_seed": 8}
    out, weights = cpuattn.attention(*inputs, **options)
    out, weights, value = (x.astype(np.float64) for x in (out, weights, inputs[2]))
    if layout == "bshd":
        value, out = value.swapaxes(1, 2), out.swapaxes(1, 2)
    # Out and weights are rounded, and what "medium" multiplies.
    digit = 2**-8 if dtypes.precision == "medium" else dtypes.epsilon
    limit = max(2e-6, 2 * digit)
    np.testing.assert_allclose(out, weights @ value.repeat(2, 1), rtol=0, atol=limit)


@pytest.mark.parametrize(
    "names",
    [
        ("mask",),
        ("mask_blocks", "causal"),
        ("bias_minus_inf",),
        ("causal_top_left", "window_left"),
        ("kv_lengths", "segments"),
        ("mask", "softcap", "alibi_slopes"),
    ],
    ids="+".join,
)
@every_dtype
def test_weights_of_unseen_keys_are_0_and_of_seen_ones_are_not(
    dtypes: Dtypes, names: tuple[str, ...], isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = combine(rng, sizes, *names) | dtypes.options
    _, weights = cpuattn.attention(*inputs, **options, return_weights=True)
    seen = sees(*inputs, **options)
    assert not weights[~seen].any()
    # ALiBi makes weights that float16 does not hold.
    _, exact = reference.attention(*inputs, **options, return_weights=True)
    held = exact > float(ml_dtypes.finfo(dtypes.query).smallest_subnormal)
    assert (weights[seen & held] > 0).all()


@pytest.mark.parametrize(
    ("policy", "number"), [("zero", 0.0), ("mean", 1 / 71), ("nan", np.nan)]
)
@pytest.mark.parametrize("when", ["before_dropout", "after_dropout"])
@every_dtype
def test_weights_of_a_fully_masked_row_follow_policy(
    dtypes: Dtypes,
    when: str,
    policy: str,
    number: float,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    mask = np.ones((37, 71), bool)
    mask[[0, 20]] = False
    _, weights = cpuattn.attention(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        mask=mask,
        fully_masked=policy,
        return_weights=when,
    )
    assert_same(weights[:, :, [0, 20]], np.full((2, 4, 2, 71), number, dtypes.query))


@pytest.mark.parametrize("policy", ["zero", "mean", "nan"])
@every_dtype
def test_weights_of_padding_rows_are_0(
    dtypes: Dtypes, policy: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    _, weights = cpuattn.attention(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        q_lengths=[30, 0],
        fully_masked=policy,
        return_weights=True,
    )
    assert not weights[0, :, 30:].any()
    assert not weights[1].any()


@every_dtype
def test_weights_do_not_change_the_output_beyond_rounding(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    inputs = Sizes(q_len=1, kv_len=300).qkv(rng, dtypes=dtypes)
    plain = cpuattn.attention(*inputs, **dtypes.options)
    out, _ = cpuattn.attention(*inputs, return_weights=True, **dtypes.options)
    digit = 2**-8 if dtypes.precision == "medium" else dtypes.epsilon
    difference = np.abs(out.astype(np.float64) - plain.astype(np.float64))
    assert difference.max() < max(1e-6, digit)
