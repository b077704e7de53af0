# SPDX-License-Identifier: MIT
"""compat.flax against flax.linen and flax.nnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn.compat import flax as ours
from cpuattn.compat.flax import nnx as our_nnx
from cpuattn.compat.flax._options import level
from support import SEED, Array, expect_success, normal, qkv

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

from dtypes import BFLOAT16  # noqa: E402
from jax_support import (  # noqa: E402, F401
    agree,
    float64,
    force_isa,
    problems,
    same_parameters,
    settings,
    widened,
)

jax = pytest.importorskip("jax", reason="jax is not installed")
linen = pytest.importorskip("flax.linen", reason="flax is not installed")
nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

LINEN_BATCHES: list[tuple[int, ...]] = [(), (1,), (2,), (2,), (2, 3), (1, 2, 2), (0,)]
NNX_BATCHES: list[tuple[int, ...]] = [(), (1,), (2,), (2,), (3,), (0,)]
PRECISIONS = [None, "highest", "default", "float32", ("high", "highest")]

SIGNATURES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    **{f"linen.{name}": (getattr(ours, name), getattr(linen, name)) for name in ours.__all__},
    **{f"nnx.{name}": (getattr(our_nnx, name), getattr(nnx, name)) for name in our_nnx.__all__},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_flax_parameters_are_the_same(name: str) -> None:
    same_parameters(*SIGNATURES[name])


class Sink:
    """A module: it keeps what is sown."""

    def __init__(self) -> None:
        self.sown: list[tuple[Any, ...]] = []

    def sow(self, *what: Any) -> None:
        self.sown.append(what)


def draw_dropout(draw: Any, shape: tuple[int, ...]) -> tuple[dict[str, Any], Any]:
    """Draw arguments for dropout, and what JAX keeps of weights of this shape."""
    rate = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.97, 1.5, -0.5]), label="rate")
    call = {
        "dropout_rate": rate,
        "dropout_rng": jax.random.key(draw(st.integers(0, 2**32 - 1))),
        "deterministic": draw(st.sampled_from([False, False, True])),
        "broadcast_dropout": draw(st.booleans(), label="broadcast_dropout"),
    }
    if rate <= 0 or call["deterministic"]:
        return call, {}
    drawn = (*[1] * len(shape[:-2]), *shape[-2:]) if call["broadcast_dropout"] else shape
    kept = np.asarray(jax.random.bernoulli(call["dropout_rng"], 1 - rate, drawn))
    if rate > 1:
        kept = np.zeros_like(kept)
    return call, {"dropout_p": min(rate, 0.999), "dropout_mask": kept}


@hypothesis.seed(SEED)
@hypothesis.settings(settings, max_examples=40)
@hypothesis.given(data=st.data())
def test_linen_random_calls_agree(data: Any) -> None:
    problem = data.draw(problems(LINEN_BATCHES))
    inputs, bias, mask = (problem[name] for name in ("inputs", "bias", "mask"))
    query, key, _ = inputs
    shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    call, oracle = draw_dropout(data.draw, shape)
    call |= {"bias": bias, "precision": data.draw(st.sampled_from(PRECISIONS))}
    if mask is not None:
        kinds = st.sampled_from(["?", "?", "i4", "f4", BFLOAT16])
        call["mask"] = mask.astype(data.draw(kinds))
    forced = call["force_fp32_for_softmax"] = data.draw(st.booleans(), label="force")
    isa = force_isa(data.draw)
    sinks = Sink(), Sink()
    cpuattn._core.set_isa(isa)
    try:
        out = ours.dot_product_attention(*inputs, **call)
        same = ours.dot_product_attention(*inputs, **call, module=sinks[0])
        weights = ours.dot_product_attention_weights(query, key, **call)
        theirs = linen.dot_product_attention(*inputs, **call, module=sinks[1])
        their_weights = linen.dot_product_attention_weights(query, key, **call)
        assert [x[:2] for x in sinks[0].sown] == [x[:2] for x in sinks[1].sown]

        oracle |= {"bias": widened(bias), "mask": mask}
        oracle |= {"layout": "bshd", "fully_masked": "mean"}
        cast = common(*inputs, forced=forced)
        agree(out, theirs, *cast, **oracle)
        agree(same, theirs, *cast, **oracle)
        plain = {k: x for k, x in oracle.items() if not k.startswith("dropout")}
        sown = (sink.sown[0][2] for sink in sinks)
        agree(*sown, *cast, result=1, return_weights="before_dropout", **plain)
        cast = common(query, key, key[..., :0], forced=forced)
        asked = oracle | {"return_weights": "after_dropout"}
        agree(weights, their_weights, *cast, result=1, **asked)
    finally:
        cpuattn._core.set_isa(None)


def common(*inputs: Array, forced: bool) -> list[Array]:
    """Return arrays of the dtype that JAX gives them, the first as float32 if forced."""
    dtype = np.dtype(jax.numpy.result_type(*inputs))
    query, *others = (x.astype(dtype) for x in inputs)
    return [query.astype(np.float32) if forced else query, *others]
