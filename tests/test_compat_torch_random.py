# SPDX-License-Identifier: MIT
"""Random calls of compat.torch, right and wrong ones, against torch itself."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from cpuattn import reference
from cpuattn.compat.torch import SDPBackend, scaled_dot_product_attention, sdpa_kernel
from dtypes import BFLOAT16
from support import SEED, Array, assert_within, normal

torch = pytest.importorskip("torch", reason="torch is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

theirs = torch.nn.functional.scaled_dot_product_attention
their_kernel = torch.nn.attention.sdpa_kernel
Theirs = torch.nn.attention.SDPBackend

DTYPES = [np.dtype(x) for x in ("f4", "f4", "f8", "f2", BFLOAT16)]
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([1, 16, 17, 33, 65]))


def tensor(array: Array) -> Any:
    """Return a tensor of the same memory, strides included."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@st.composite
def strided(draw: Any, array: Array) -> Array:
    """Return the same values in another order of axes, or with gaps."""
    kind = draw(st.sampled_from(["as_is", "as_is", "order", "gaps"]))
    if kind == "order" and array.ndim > 1:
        axes = draw(st.permutations(range(array.ndim)))
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    if kind == "gaps" and array.ndim > 0:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return array


@st.composite
def reduced(draw: Any, shape: tuple[int, ...], wrong: bool) -> tuple[int, ...]:
    """Return a shape that broadcasts to another; perhaps one that does not."""
    shape = tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in shape)
    shape = shape[draw(st.sampled_from([0, 0, 0, *range(len(shape) + 1)])) :]
    if wrong and shape and draw(st.booleans()):
        n = draw(st.integers(0, len(shape) - 1))
        return (*shape[:n], shape[n] + draw(st.integers(1, 2)), *shape[n + 1 :])
    return (2, *shape) if wrong and draw(st.booleans()) else shape


@st.composite
def calls(draw: Any, wrong: bool) -> tuple[list[Array], dict[str, Any]]:
    """Draw inputs and options; some sizes and dtypes do not fit if `wrong`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.sampled_from([4, 4, 4, 2, 3, 5]))
    batch = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)))
    kv_heads = draw(st.integers(1, 3))
    gqa = rank > 2 and draw(st.booleans())
    heads = kv_heads * (draw(st.integers(1, 3)) if gqa else 1)
    q_len, kv_len, head_dim = draw(SIZES), draw(SIZES), draw(SIZES)
    width = draw(st.sampled_from([head_dim, head_dim, draw(SIZES)]))
    dtype = draw(st.sampled_from(DTYPES))
    tails = [(heads, q_len, head_dim), (kv_heads, kv_len, head_dim)]
    tails.append((kv_heads, kv_len, width))
    lead = (*batch[: rank - 3],) if rank > 3 else ()
    inputs = []
    plain = draw(st.booleans())
    for tail in tails:
        shape = (*lead, *tail)[-rank:]
        if not plain and rank > 2:
            axes = 3 if gqa else 2
            shape = (*draw(reduced(shape[:-axes], False)), *shape[-axes:])
            if len(shape) == 2 and draw(st.booleans()):
                shape = (1, *shape)
        if wrong and draw(st.integers(0, 4)) == 0:
            n = draw(st.integers(0, len(shape) - 1))
            shape = (*shape[:n], shape[n] + 1, *shape[n + 1 :])
        kind = draw(st.sampled_from(DTYPES)) if wrong and rng.random() < 0.1 else dtype
        inputs.append(draw(strided(normal(rng, *shape, dtype=kind))))
    options: dict[str, Any] = {}
    if gqa or (wrong and draw(st.booleans())):
        options["enable_gqa"] = True
    if draw(st.booleans()):
        options["is_causal"] = True
    if draw(st.booleans()):
        scales = [0.0, 0.3, -0.5, 2, True]
        options["scale"] = draw(st.sampled_from(scales))
    if draw(st.integers(0, 7)) == 0:
        options["dropout_p"] = 1.0
    if draw(st.booleans()):
        # The axes that query and key have together: a mask may not add any.
        scores = (*lead, heads, q_len, kv_len)
        if not wrong:
            scores = score_shape(inputs, gqa)
        shape = draw(reduced(scores, wrong))
        mask = np.asarray(rng.random(shape) < draw(st.sampled_from([0.2, 0.8, 1.0])))
        kinds = [np.dtype(np.float32), dtype, np.dtype(bool), np.dtype(bool)]
        kinds += [np.dtype(np.float64), np.dtype(np.int32)] if wrong else []
        kind = draw(st.sampled_from(kinds))
        if kind != np.bool_:
            drawn = np.asarray(normal(rng, *shape))
            holes = np.where(mask, drawn, np.float32(-np.inf))
            mask = drawn.astype(kind) if kind == np.int32 else holes.astype(kind)
        options["attn_mask"] = draw(strided(np.asarray(mask)))
    return inputs, options


def score_shape(inputs: list[Array], gqa: bool) -> tuple[int, ...]:
    """Return the shape of the scores of query and key."""
    query, key, _ = inputs
    heads = query.shape[-3:-2] if gqa else key.shape[-3:-2]
    lead = np.broadcast_shapes(query.shape[:-2], (*key.shape[:-3], *heads))
    return (*lead, query.shape[-2], key.shape[-2])


def as_torch(
    inputs: list[Array], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the tensors of a call; a mask with is_causal becomes one mask."""
    options = dict(options)
    mask = options.pop("attn_mask", None)
    if mask is not None:
        if options.pop("is_causal", False):
            tril = np.tri(inputs[0].shape[-2], inputs[1].shape[-2], dtype=bool)
            hidden = np.where(tril, mask, np.array(-np.inf).astype(mask.dtype))
            mask = mask & tril if mask.dtype == bool else hidden
        options["attn_mask"] = tensor(mask)
    return [tensor(x) for x in inputs], options


def oracle(inputs: list[Array], options: dict[str, Any]) -> Array:
    """Return what the float64 oracle of cpuattn gives, broadcast as torch does."""
    if options.get("dropout_p"):
        return np.zeros(result_shape(inputs, options))
    query, key, value = (x if x.ndim > 2 else x[None] for x in inputs)
    if options.get("enable_gqa"):
        count = query.shape[-3]
        key, value = (x.repeat(count // x.shape[-3], -3) for x in (key, value))
    heads = max(x.shape[-3] for x in (query, key, value))
    query, key, value = (
        np.broadcast_to(x, (*x.shape[:-3], heads, *x.shape[-2:]))
        for x in (query, key, value)
    )
    mask = options.get("attn_mask")
    names = {"bias": mask}
    if mask is not None and mask.dtype == bool:
        names = {"mask": mask}
    out = reference.attention(
        query,
        key,
        value,
        **names,
        scale=options.get("scale"),
        causal="top_left" if options.get("is_causal") else False,
        dtype=np.longdouble if query.dtype == np.float64 else np.float64,
    )
    return np.asarray(out.reshape(result_shape(inputs, options)))


def result_shape(inputs: list[Array], options: dict[str, Any]) -> tuple[int, ...]:
    query, key, value = (x.shape for x in inputs)
    leads = [query[:-2], key[:-2], value[:-2]]
    if options.get("enable_gqa"):
        leads = [(*x[:-1], query[-3]) for x in leads]
    return (*np.broadcast_shapes(*leads), query[-2], value[-1])


def rounding(inputs: list[Array]) -> float:
    """Return what numbers of the dtype may lose once, beside the naive error.

    A score is rounded in the dtype computed in, which moves its weight by as much.
    bfloat16 products round weights, too (docs/semantics.md).
    """
    query, key, value = (x.astype(np.float64) for x in inputs)
    eps = {"float16": 2**-11, "bfloat16": 2**-8, "float64": 2**-52}
    size = np.abs(query).max() * np.abs(key).max() * math.sqrt(query.shape[-1]) + 4
    unit = eps.get(inputs[0].dtype.name, 2**-23)
    scores = size * (2**-52 if inputs[0].dtype == np.float64 else 2**-23)
    return float(np.abs(value).max() * (unit + 4 * scores))


SETTINGS = hypothesis.settings(
    deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


@hypothesis.seed(SEED)
@hypothesis.settings(SETTINGS, max_examples=600)
@hypothesis.given(call=calls(wrong=False), data=st.data())
def test_compat_torch_random_call_agrees_with_torch(
    call: tuple[list[Array], dict[str, Any]], data: Any
) -> None:
    inputs, options = call
    mask = options.get("attn_mask")
    as_given = options if mask is None else options | {"attn_mask": tensor(mask)}
    math_only = data.draw(st.integers(0, 3)) == 0
    tensors, given = as_torch(inputs, options)
    with their_kernel(Theirs.MATH):
        naive = theirs(*tensors, **given)
    try:
        if math_only:
            with sdpa_kernel(SDPBackend.MATH):
                ours = scaled_dot_product_attention(*inputs, **options)
        else:
            ours = scaled_dot_product_attention(*inputs, **options)
    except IndexError:
        with pytest.raises(IndexError):
            theirs(*tensors, **as_given)
        return
    assert ours.dtype == inputs[0].dtype
    assert ours.shape == tuple(naive.shape)
    exact = oracle(inputs, options)
    error = np.abs(naive.double().numpy() - exact).max(initial=0)
    assert_within(ours, exact, 2 * float(error) + rounding(inputs))
    with sdpa_kernel(SDPBackend.MATH if math_only else list(SDPBackend)):
        answer = scaled_dot_product_attention(*tensors, **as_given)
    assert isinstance(answer, torch.Tensor)
    np.testing.assert_array_equal(answer.double().numpy(), ours.astype(np.float64))


def outcome(function: Any, inputs: list[Any], options: dict[str, Any]) -> Any:
    """Return the shape of a result, or the type of the exception."""
    try:
        return tuple(function(*inputs, **options).shape)
    except Exception as error:
        return type(error)


@hypothesis.seed(SEED + 1)
@hypothesis.settings(SETTINGS, max_examples=1500)
@hypothesis.given(call=calls(wrong=True), choice=st.sampled_from(["both", "flash"]))
def test_compat_torch_random_call_is_refused_as_torch_refuses_it(
    call: tuple[list[Array], dict[str, Any]], choice: str
) -> None:
    inputs, options = call
    # Accepted by torch, which then reads beyond the shorter of the two.
    hypothesis.assume(inputs[1].shape[-2] == inputs[2].shape[-2])
    # Refused by torch on one path only.
    hypothesis.assume(not ("attn_mask" in options and "is_causal" in options))
    tensors, given = as_torch(inputs, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if choice == "both":
            expected = outcome(theirs, tensors, given)
            ours = outcome(scaled_dot_product_attention, inputs, options)
        else:
            with their_kernel(Theirs.FLASH_ATTENTION):
                expected = outcome(theirs, tensors, given)
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                ours = outcome(scaled_dot_product_attention, inputs, options)
    hypothesis.event(str(expected) if isinstance(expected, type) else "accepted")
    assert ours == expected
