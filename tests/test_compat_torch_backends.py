# SPDX-License-Identifier: MIT
"""sdpa_kernel of compat.torch: who computes, in which scope, and what is refused."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest

from cpuattn import reference
from cpuattn.compat.torch import (
    SDPBackend,
    attention,
    causal_lower_right,
    scaled_dot_product_attention,
    sdpa_kernel,
)
from dtypes import BFLOAT16
from support import Array, check, normal, run_python

torch = pytest.importorskip("torch", reason="torch is not installed")
theirs = torch.nn.functional.scaled_dot_product_attention
their_kernel = torch.nn.attention.sdpa_kernel
Theirs = torch.nn.attention.SDPBackend

BACKENDS = list(SDPBackend)
SHAPE = (2, 4, 5, 8)


def tensor(array: Array) -> Any:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(value: Any) -> Array:
    """Return a tensor as an array of float64."""
    return value.double().numpy()


def backend(name: str) -> Any:
    return getattr(Theirs, name)


class NativeCalled(Exception):
    """The native function was called."""


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call of the native function fail."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise NativeCalled

    monkeypatch.setattr(attention, "attention", fail)


def uses_math() -> bool:
    """Whether MATH computes here: NaN at a masked key spreads there alone."""
    x = np.full((1, 1, 2, 4), 1, np.float32)
    key = x.copy()
    key[0, 0, 1] = np.nan
    out = scaled_dot_product_attention(x, key, x, np.array([[True, False]]))
    return bool(np.isnan(out).any())


def test_compat_torch_backend_names_and_values_are_those_of_torch() -> None:
    assert {b.name: int(b) for b in BACKENDS} == {
        name: int(b) for name, b in Theirs.__members__.items()
    }
    for ours in BACKENDS:
        other = backend(ours.name)
        assert ours.value == other.value
        assert (repr(ours), str(ours)) == (repr(other), str(other))
        assert isinstance(ours, int) == isinstance(other, int)
        assert (ours == int(ours)) == (other == int(other))
        assert SDPBackend(other.value) is ours
        assert pickle.loads(pickle.dumps(ours)) is ours


def test_compat_torch_sdpa_kernel_has_the_signature_of_torch() -> None:
    ours, other = (inspect.signature(f).parameters for f in (sdpa_kernel, their_kernel))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in other.values()
    ]


@pytest.mark.parametrize("set_priority", [False, True])
def test_compat_torch_sdpa_kernel_chooses_and_restores(set_priority: bool) -> None:
    flash, math = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
    assert not uses_math()
    with sdpa_kernel(math, set_priority) as given:
        assert given == {}
        assert uses_math()
        with sdpa_kernel([math, flash], set_priority):
            assert not uses_math()
        with sdpa_kernel(flash, set_priority=set_priority):
            assert not uses_math()
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, math]):
            assert uses_math()
        assert uses_math()
    assert not uses_math()


def test_compat_torch_sdpa_kernel_takes_the_backends_of_torch() -> None:
    with sdpa_kernel(Theirs.MATH):
        assert uses_math()
    with sdpa_kernel([Theirs.MATH, SDPBackend.EFFICIENT_ATTENTION]):
        assert uses_math()
    with sdpa_kernel([Theirs.FLASH_ATTENTION]):
        assert not uses_math()


def test_compat_torch_sdpa_kernel_is_left_by_an_exception() -> None:
    with pytest.raises(KeyError), sdpa_kernel(SDPBackend.MATH):
        raise KeyError
    assert not uses_math()


def test_compat_torch_sdpa_kernel_decorates() -> None:
    @sdpa_kernel(SDPBackend.MATH)
    def decorated() -> bool:
        return uses_math()

    assert [decorated(), decorated(), uses_math()] == [True, True, False]


def test_compat_torch_sdpa_kernel_does_not_reach_other_threads() -> None:
    seen: list[bool] = []
    with sdpa_kernel(SDPBackend.MATH):
        thread = threading.Thread(target=lambda: seen.append(uses_math()))
        thread.start()
        thread.join()
        assert uses_math()
    assert seen == [False]


def test_compat_torch_sdpa_kernel_does_not_reach_other_tasks() -> None:
    async def inside(entered: asyncio.Event, done: asyncio.Event) -> bool:
        with sdpa_kernel(SDPBackend.MATH):
            entered.set()
            await done.wait()
            return uses_math()

    async def outside(entered: asyncio.Event, done: asyncio.Event) -> bool:
        await entered.wait()
        seen = uses_math()
        done.set()
        return seen

    async def both() -> list[bool]:
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(inside(*events), outside(*events))

    assert asyncio.run(both()) == [True, False]


@pytest.mark.parametrize(
    "backends",
    [None, "MATH", 0, 1, (SDPBackend.MATH,), {SDPBackend.MATH}, [[]]],
    ids=str,
)
def test_compat_torch_sdpa_kernel_refuses_on_entry_as_torch(backends: Any) -> None:
    raised = []
    for kernel in (sdpa_kernel, their_kernel):
        manager = kernel(backends)
        with pytest.raises((AssertionError, TypeError)) as caught, manager:
            pass
        raised.append((caught.type, str(caught.value)))
    assert raised[0][0] is raised[1][0]
    if raised[0][0] is AssertionError:
        assert raised[0] == raised[1]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["ERROR"],
        ["EFFICIENT_ATTENTION"],
        ["CUDNN_ATTENTION", "OVERRIDEABLE"],
        [0],
        ["x"],
    ],
    ids=str,
)
def test_compat_torch_no_viable_backend_raises_as_torch(names: list[Any]) -> None:
    query = np.ones(SHAPE, np.float32)
    known = SDPBackend.__members__
    with pytest.raises(RuntimeError) as expected:  # noqa: SIM117
        with their_kernel([backend(n) if n in known else n for n in names]):
            theirs(*[tensor(query)] * 3)
    with pytest.raises(RuntimeError) as ours:  # noqa: SIM117
        with sdpa_kernel([known.get(n, n) for n in names]):
            scaled_dot_product_attention(query, query, query)
    assert str(ours.value) == str(expected.value)


def views(*shape: int) -> Array:
    """Return heads of a (batch, length, heads, head_dim) array."""
    batch, heads, length, head_dim = shape
    return np.ones((batch, length, heads, head_dim), np.float32).swapaxes(1, 2)


ONES = np.ones((2, 4, 7, 8), np.float32)
# What FLASH_ATTENTION alone is asked to do, as a change of a call it takes.
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask_of_2_axes": {"attn_mask": np.ones((5, 7), bool)},
    "mask_of_ones": {"attn_mask": np.ones((1, 1), bool)},
    "mask_of_3_axes": {"attn_mask": np.ones((4, 5, 7), bool)},
    "mask_of_4_axes": {"attn_mask": np.ones((2, 1, 1, 7), np.float32)},
    "mask_of_wrong_size": {"attn_mask": np.ones((5, 6), bool)},
    "mask_and_causal": {"attn_mask": np.ones((5, 7), bool), "is_causal": True},
    "scale": {"scale": 0.3},
    "float64": {name: np.ones(SHAPE, np.float64) for name in ("query", "key", "value")},
    "int32": {name: np.ones(SHAPE, np.int32) for name in ("query", "key", "value")},
    "dropout": {"dropout_p": 0.5},
    "dropout_of_1": {"dropout_p": 1.0},
    "rank_2": {
        "query": np.ones((5, 8), np.float32),
        "key": np.ones((7, 8), np.float32),
        "value": np.ones((7, 8), np.float32),
    },
    "rank_5": {name: ONES[None] for name in ("query", "key", "value")},
    "rank_3_key": {"key": ONES[0], "value": ONES[0]},
    "batch_of_1_key": {"key": ONES[:1], "value": ONES[:1]},
    "one_kv_head": {"key": ONES[:, :1], "value": ONES[:, :1]},
    "gqa": {"key": ONES[:, :2], "value": ONES[:, :2], "enable_gqa": True},
    "gqa_of_two_sizes": {"key": ONES[:, :2], "value": ONES[:, :1], "enable_gqa": True},
    "gqa_that_does_not_divide": {
        "key": ONES[:, :3],
        "value": ONES[:, :3],
        "enable_gqa": True,
    },
    "value_dim": {"value": ONES[..., :3]},
    "head_dim": {"key": ONES[..., :3]},
    "strided_query": {"query": np.ones((2, 4, 8, 5), np.float32).swapaxes(-1, -2)},
    "gaps_in_value": {"value": np.ones((2, 4, 7, 16), np.float32)[..., ::2]},
    "bshd_views": {"query": views(*SHAPE), "key": views(2, 4, 7, 8)},
    "no_keys": {"key": ONES[:, :, :0], "value": ONES[:, :, :0], "dropout_p": 0.5},
    "no_rows": {"query": np.ones((2, 4, 0, 8), np.float32), "is_causal": True},
    "no_head_dim": {
        "query": np.ones((2, 4, 5, 0), np.float32),
        "key": np.ones((2, 4, 7, 0), np.float32),
    },
}


@pytest.mark.parametrize("change", ASKED.values(), ids=ASKED)
def test_compat_torch_flash_alone_takes_what_torch_takes(
    change: dict[str, Any],
) -> None:
    good = {"query": np.ones(SHAPE, np.float32), "key": ONES, "value": ONES}
    arguments = good | change
    tensors = {
        name: tensor(x) if isinstance(x, np.ndarray) else x
        for name, x in arguments.items()
    }
    with warnings.catch_warnings(), their_kernel(Theirs.FLASH_ATTENTION):
        warnings.simplefilter("ignore")
        try:
            expected = theirs(**tensors)
        except RuntimeError as error:
            expected = error
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if isinstance(expected, RuntimeError):
            assert str(expected) == "No available kernel.  Aborting execution."
            with (
                pytest.raises(RuntimeError, match=f"^{expected}"),
                pytest.warns(UserWarning, match="Flash attention kernel not used bec"),
            ):
                scaled_dot_product_attention(**arguments)
        else:
            out = scaled_dot_product_attention(**arguments)
            assert out.shape == tuple(expected.shape)
            np.testing.assert_allclose(out, array(expected), rtol=1e-5)


def test_compat_torch_flash_alone_raises_index_error_as_torch() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(IndexError):
        scaled_dot_product_attention(ONES, ONES, ONES, np.ones(7, bool))


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("shape", [(33,), ()], ids=str)
def test_compat_torch_masks_of_less_than_2_axes_agree_beside_rank_4(
    shape: tuple[int, ...], rank: int, rng: np.random.Generator
) -> None:
    mask = np.asarray(rng.random(shape) < 0.7)
    lead = (2, 1, 3)[: rank - 2]
    query, key = normal(rng, *lead, 17, 16), normal(rng, *lead, 33, 16)
    out = scaled_dot_product_attention(query, key, key, mask)
    expected = theirs(*map(tensor, (query, key, key, mask)))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_compat_torch_mask_of_1_axis_agrees_with_dropout_and_under_math(
    rng: np.random.Generator,
) -> None:
    query, mask = normal(rng, *SHAPE), np.array([True, False, True, True, False])
    out = scaled_dot_product_attention(query, query, query, mask, dropout_p=1.0)
    assert not out.any()
    with sdpa_kernel(SDPBackend.MATH):
        out = scaled_dot_product_attention(query, query, query, mask)
    expected = theirs(*[tensor(query)] * 3, tensor(np.tile(mask, (5, 1))))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)


def hidden(rng: np.random.Generator) -> Array:
    """Return a mask with one empty row."""
    mask = rng.random((2, 1, 17, 33)) < 0.7
    mask[1, 0, 3] = False
    return mask


MATH: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool_mask": {"attn_mask": hidden},
    "float_mask": {"attn_mask": lambda rng: normal(rng, 17, 33)},
    "bool_mask_of_1_axis": {"attn_mask": lambda rng: rng.random(33) < 0.7},
    "minus_inf": {
        "attn_mask": lambda rng: np.where(hidden(rng), 0, -np.inf).astype(np.float32)
    },
    "scale": {"scale": 0.3},
    "negative_scale": {"scale": -0.7},
    "scale_of_0": {"scale": 0},
    "scale_of_nan": {"scale": np.nan},
    "scale_of_inf": {"scale": np.inf},
    "gqa": {"kv_heads": (2, 2), "enable_gqa": True},
    "gqa_of_two_sizes": {"kv_heads": (3, 2), "enable_gqa": True},
    "one_kv_head": {"kv_heads": (1, 1)},
    "value_dim": {"head_dim_v": 7},
    "no_keys": {"kv_len": 0},
    "dropout_of_1": {"dropout_p": 1.0},
}


def problem(
    rng: np.random.Generator, dtype: Any, options: dict[str, Any]
) -> tuple[list[Array], dict[str, Any]]:
    """Return the inputs that the entries of MATH are about, and what is left."""
    options = dict(options)
    kv_len = options.pop("kv_len", 33)
    heads = options.pop("kv_heads", (6, 6))
    width = options.pop("head_dim_v", 16)
    inputs = [
        normal(rng, 2, 6, 17, 16, dtype=dtype),
        normal(rng, 2, heads[0], kv_len, 16, dtype=dtype),
        normal(rng, 2, heads[1], kv_len, width, dtype=dtype),
    ]
    if "attn_mask" in options:
        options["attn_mask"] = options["attn_mask"](rng)
    return inputs, options


@pytest.mark.usefixtures("no_native")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("options", MATH.values(), ids=MATH)
def test_compat_torch_math_agrees_with_the_math_of_torch(
    options: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    dtype_of = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    inputs, options = problem(rng, dtype_of, options)
    with sdpa_kernel(SDPBackend.MATH):
        ours = scaled_dot_product_attention(*inputs, **options)
    assert ours.dtype == dtype_of
    given = {
        name: tensor(x) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    with their_kernel(Theirs.MATH):
        naive = theirs(*map(tensor, inputs), **given)
    largest = float(np.abs(inputs[2].astype(np.float64)).max(initial=0))
    exact = oracle(*inputs, **options)
    check(ours, exact, array(naive).astype(dtype_of), scale=largest)


def oracle(*inputs: Array, **options: Any) -> Array:
    """Return the same attention to more digits than any dtype has."""
    mask = options.pop("attn_mask", None)
    options.pop("enable_gqa", None)
    if mask is not None:
        options["mask" if mask.dtype == bool else "bias"] = mask
    if options.pop("is_causal", False):
        options["causal"] = "top_left"
    return np.asarray(reference.attention(*inputs, **options, dtype=np.longdouble))


@pytest.mark.usefixtures("no_native")
@pytest.mark.parametrize("where", ["query", "key", "masked_key", "value", "mask"])
def test_compat_torch_math_has_nan_where_torch_has_it(
    where: str, rng: np.random.Generator
) -> None:
    arrays = {name: normal(rng, 2, 3, 20, 8) for name in ("query", "key", "value")}
    mask = np.where(rng.random((20, 20)) < 0.6, 0, -np.inf).astype(np.float32)
    mask[:, 5] = -np.inf
    mask[2] = -np.inf
    if where == "mask":
        mask[7, 3] = np.nan
    else:
        arrays[where.removeprefix("masked_")][1, 2, 5 if "_" in where else 4, 1] = (
            np.nan
        )
    with sdpa_kernel(SDPBackend.MATH):
        ours = scaled_dot_product_attention(**arrays, attn_mask=mask)
    with their_kernel(Theirs.MATH):
        expected = theirs(*map(tensor, arrays.values()), tensor(mask)).numpy()
    assert np.isnan(expected).any()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_native")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_compat_torch_math_answers_tensors_in_kind(
    dtype: str, rng: np.random.Generator
) -> None:
    query, key = (
        torch.from_numpy(normal(rng, 2, 3, n, 8)).to(getattr(torch, dtype))
        for n in (5, 7)
    )
    bias = torch.from_numpy(normal(rng, 5, 7)).to(query.dtype)
    with sdpa_kernel(SDPBackend.MATH), their_kernel(Theirs.MATH):
        ours = scaled_dot_product_attention(query, key, key, bias)
        expected = theirs(query, key, key, bias)
    assert isinstance(ours, torch.Tensor)
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("options", MATH.values(), ids=MATH)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_compat_torch_math_agrees_with_the_native_function(
    options: dict[str, Any], dropout_p: float, rng: np.random.Generator
) -> None:
    inputs, options = problem(rng, np.float32, options)
    if options.get("attn_mask", inputs[0]).ndim < 2:
        options["attn_mask"] = options["attn_mask"][None]
    options = {"dropout_p": dropout_p} | options
    outs = []
    for chosen in (SDPBackend.MATH, [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        np.random.seed(7)  # noqa: NPY002
        with sdpa_kernel(chosen):
            outs.append(scaled_dot_product_attention(*inputs, **options))
    np.testing.assert_allclose(*outs, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("no_native")
def test_compat_torch_math_combines_a_mask_with_causality(
    rng: np.random.Generator,
) -> None:
    query, mask = normal(rng, *SHAPE), rng.random((5, 5)) < 0.7
    with pytest.warns(UserWarning, match="the first 2 of 5 rows see no key"):
        bias = causal_lower_right(5, 3)
    with sdpa_kernel(SDPBackend.MATH):
        both = scaled_dot_product_attention(query, query, query, mask, is_causal=True)
        lower = scaled_dot_product_attention(
            query, query[:, :, :3], query[:, :, :3], bias
        )
    expected = theirs(*[tensor(query)] * 3, tensor(np.tril(mask)))
    np.testing.assert_allclose(both, expected.numpy(), rtol=1e-4, atol=1e-5)
    corner = tensor(np.tri(5, 3, -2, dtype=bool))
    few = tensor(query[:, :, :3])
    expected = theirs(tensor(query), few, few, corner)
    np.testing.assert_allclose(lower, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_compat_torch_works_without_torch() -> None:
    done = run_python(
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from cpuattn.compat.torch import *\n"
        "x = np.ones((1, 2, 4, 8), np.float32)\n"
        "for chosen in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):\n"
        "    with sdpa_kernel(chosen):\n"
        "        a = scaled_dot_product_attention(x, x, x, causal_upper_left(4, 4))\n"
        "        assert np.allclose(a, 1), a\n"
        "assert scaled_dot_product_attention(x, x, x, dropout_p=0.5).shape == x.shape\n"
    )
    assert done.returncode == 0, done.stderr


def test_compat_torch_imports_no_torch() -> None:
    done = run_python("import sys, cpuattn.compat.torch; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
