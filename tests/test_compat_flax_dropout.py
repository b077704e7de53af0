# SPDX-License-Identifier: MIT
"""Dropout of compat.flax: the draws of JAX's keys, other sources, rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpuattn.compat import flax as ours
from cpuattn.compat.flax import nnx as our_nnx
from support import qkv

jax = pytest.importorskip("jax", reason="jax is not installed")
linen = pytest.importorskip("flax.linen", reason="flax is not installed")
nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

from jax_support import assert_alike  # noqa: E402

KEYS: dict[str, Any] = {
    "typed": jax.random.key(17),
    "raw": jax.random.PRNGKey(2**32 - 1),
    "numpy": np.array([2**32 - 5, 99], np.uint32),
    "split": jax.random.split(jax.random.key(3))[1],
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("rate", [1e-8, 0.1, 0.5, 0.9, 1 - 1e-7])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 5, 7), (2, 4, 33, 65), (2, 1, 3, 2, 4), (2, 3, 0, 5)],
    ids=str,
)
@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
def test_flax_dropout_keeps_what_jax_keeps(
    shape: tuple[int, ...], key: Any, rate: float, shared: bool
) -> None:
    *batch, heads, q_len, kv_len = shape
    drawn = (*[1] * (len(shape) - 2), q_len, kv_len) if shared else shape
    kept = np.broadcast_to(
        np.asarray(jax.random.bernoulli(key, 1 - rate, drawn)), shape
    )
    query = np.zeros((*batch, q_len, heads, 4), np.float32)
    keys = np.zeros((*batch, kv_len, heads, 4), np.float32)
    options = {"dropout_rng": key, "dropout_rate": rate, "broadcast_dropout": shared}
    weights = ours.dot_product_attention_weights(query, keys, **options)
    np.testing.assert_array_equal(weights != 0, kept)
    # The weights are equal, so sums of unit vectors show them once more.
    value = np.broadcast_to(
        np.eye(kv_len, dtype=np.float32)[:, None], (*batch, kv_len, heads, kv_len)
    )
    for function in (ours.dot_product_attention, our_nnx.dot_product_attention):
        out = function(query, keys, value, **options)
        np.testing.assert_array_equal(out.swapaxes(-2, -3) != 0, kept)


@pytest.mark.parametrize(
    "seed", [0, 5, 2**32 - 1, 2**40 + 5, -1, np.uint32(7)], ids=str
)
def test_flax_dropout_int_is_the_seed_of_a_key(
    seed: Any, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, layout="bshd")
    mine = ours.dot_product_attention(*inputs, dropout_rng=seed, dropout_rate=0.5)
    key = jax.random.PRNGKey(int(seed))
    assert_alike(
        mine, linen.dot_product_attention(*inputs, dropout_rng=key, dropout_rate=0.5)
    )


def test_flax_dropout_generator_gives_its_next_64_bits(
    rng: np.random.Generator,
) -> None:
    inputs = qkv(rng, layout="bshd")
    generator, same = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(2):
        mine = ours.dot_product_attention(
            *inputs, dropout_rng=generator, dropout_rate=0.5
        )
        seed = int(same.integers(2**64, dtype=np.uint64))
        words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
        again = ours.dot_product_attention(*inputs, dropout_rng=words, dropout_rate=0.5)
        np.testing.assert_array_equal(mine, again)


WRONG_KEYS: dict[str, Any] = {
    "none": None,
    "list": [0, 3],
    "text": "a",
    "int64": np.array([0, 3]),
    "three": np.array([0, 3, 4], np.uint32),
    "scalar": np.array(3, np.uint32),
    "two_keys": np.array([[0, 3]], np.uint32),
    "typed_keys": jax.random.split(jax.random.key(3)),
}


@pytest.mark.parametrize("key", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_flax_dropout_key_errors_have_the_same_class(key: Any) -> None:
    x = np.zeros((2, 3, 1, 4), np.float32)
    with pytest.raises((TypeError, ValueError)) as theirs:
        linen.dot_product_attention(x, x, x, dropout_rng=key, dropout_rate=0.5)
    with pytest.raises(theirs.type) as mine:
        ours.dot_product_attention(x, x, x, dropout_rng=key, dropout_rate=0.5)
    assert mine.type is theirs.type
    if key is None:
        assert str(mine.value) == str(theirs.value)
    ours.dot_product_attention(x, x, x, dropout_rng=key, dropout_rate=0.0)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_flax_dropout_key_of_another_generator_is_not_implemented(kind: str) -> None:
    x = np.zeros((2, 3, 1, 4), np.float32)
    key = jax.random.key(3, impl=kind)
    with pytest.raises(NotImplementedError, match="must be a threefry2x32 key"):
        ours.dot_product_attention(x, x, x, dropout_rng=key, dropout_rate=0.5)


RATES = [0.0, 1.0, 1, True, 1.5, 2, -0.5, float("nan"), np.float32(0.3), 1e-30]


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_flax_dropout_rates_agree(
    rate: Any, shared: bool, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, layout="bshd")
    mask = rng.random((5, 9)) < 0.7
    mask[2] = False
    options = {"dropout_rng": jax.random.key(8), "dropout_rate": rate}
    options |= {"broadcast_dropout": shared, "mask": mask}
    assert_alike(
        ours.dot_product_attention(*inputs, **options),
        linen.dot_product_attention(*inputs, **options),
    )
    assert_alike(
        ours.dot_product_attention_weights(*inputs[:2], **options),
        linen.dot_product_attention_weights(*inputs[:2], **options),
    )
    assert_alike(
        our_nnx.dot_product_attention(*inputs, **options),
        nnx.dot_product_attention(*inputs, **options),
    )


def test_flax_dropout_rate_1_without_keys_is_0() -> None:
    x = np.ones((2, 3, 1, 4), np.float32)
    inputs = (x, x[:, :0], x[:, :0])
    options = {"dropout_rng": jax.random.key(8), "dropout_rate": 1.0}
    assert_alike(
        ours.dot_product_attention(*inputs, **options),
        linen.dot_product_attention(*inputs, **options),
    )


@pytest.mark.parametrize("rate", ["x", None, 1j])
def test_flax_dropout_rate_of_a_wrong_type_is_a_type_error(rate: Any) -> None:
    x = np.ones((2, 3, 1, 4), np.float32)
    with pytest.raises(TypeError):
        ours.dot_product_attention(x, x, x, dropout_rng=1, dropout_rate=rate)
