# SPDX-License-Identifier: MIT
"""return_weights: before and after dropout, in every shape, for every kind of row."""

from __future__ import annotations

import numpy as np
import pytest

import cpuattn
from options import Sizes, combine
from support import compare, sees

SIZES = {
    "small": Sizes(),
    "odd": Sizes(heads=6, q_len=37, kv_len=71, head_dim=24, head_dim_v=20),
    "decode": Sizes(heads=8, q_len=1, kv_len=300),
    "long": Sizes(batch=(1,), heads=2, q_len=2, kv_len=5000),
    "tall": Sizes(batch=(1,), heads=2, q_len=400, kv_len=30),
}


@pytest.mark.parametrize("when", [True, "before_dropout", "after_dropout"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_weights_match_oracle(
    sizes: Sizes, when: bool | str, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, sizes, "causal", "bias", "dropout")
    out, weights = compare(*sizes.qkv(rng), **options, return_weights=when)
    assert weights.shape == sizes.scores
    assert weights.dtype == np.float32
    assert out.shape == (*sizes.scores[:-1], sizes.head_dim_v)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_weights_of_a_row_sum_to_1(
    sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    _, weights = cpuattn.attention(*sizes.qkv(rng), causal=5, return_weights=True)
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), 1, atol=1e-5)
    assert (weights >= 0).all()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_weights_with_sinks_sum_to_what_the_sink_leaves(
    sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, sizes, "sinks")
    _, lse, weights = cpuattn.attention(
        *sizes.qkv(rng), **options, return_lse=True, return_weights=True
    )
    left = 1 - np.exp(options["sinks"][:, None] - lse.astype(np.float64))
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), left, atol=1e-5)


@pytest.mark.parametrize("when", ["before_dropout", "after_dropout"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_weights_times_value_are_the_output(
    layout: str, when: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    inputs = sizes.qkv(rng, layout)
    options = {"layout": layout, "return_weights": when}
    if when == "after_dropout":
        options |= {"dropout_p": 0.5, "dropout_seed": 8}
    out, weights = cpuattn.attention(*inputs, **options)
    value = inputs[2].swapaxes(1, 2) if layout == "bshd" else inputs[2]
    expected = weights @ value.repeat(2, 1)
    out = out.swapaxes(1, 2) if layout == "bshd" else out
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-6)


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
def test_weights_of_unseen_keys_are_0_and_of_seen_ones_are_not(
    names: tuple[str, ...], isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    inputs, options = sizes.qkv(rng), combine(rng, sizes, *names)
    _, weights = cpuattn.attention(*inputs, **options, return_weights=True)
    np.testing.assert_array_equal(weights > 0, sees(*inputs, **options))


@pytest.mark.parametrize(
    ("policy", "number"), [("zero", 0.0), ("mean", 1 / 71), ("nan", np.nan)]
)
@pytest.mark.parametrize("when", ["before_dropout", "after_dropout"])
def test_weights_of_a_fully_masked_row_follow_policy(
    when: str, policy: str, number: float, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    mask = np.ones((37, 71), bool)
    mask[[0, 20]] = False
    _, weights = cpuattn.attention(
        *sizes.qkv(rng), mask=mask, fully_masked=policy, return_weights=when
    )
    expected = np.full((2, 4, 2, 71), np.float32(number))
    np.testing.assert_array_equal(weights[:, :, [0, 20]], expected)


@pytest.mark.parametrize("policy", ["zero", "mean", "nan"])
def test_weights_of_padding_rows_are_0(
    policy: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    _, weights = cpuattn.attention(
        *sizes.qkv(rng), q_lengths=[30, 0], fully_masked=policy, return_weights=True
    )
    assert not weights[0, :, 30:].any()
    assert not weights[1].any()


def test_weights_do_not_change_the_output_beyond_rounding(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = Sizes(q_len=1, kv_len=300).qkv(rng)
    plain = cpuattn.attention(*inputs)
    out, _ = cpuattn.attention(*inputs, return_weights=True)
    np.testing.assert_allclose(out, plain, rtol=1e-4, atol=1e-6)
