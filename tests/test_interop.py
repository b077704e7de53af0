# SPDX-License-Identifier: MIT
"""CPU tensors of torch, JAX and other DLPack libraries: in, and out in kind."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from support import Array, expect_success, normal, qkv


def require(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


def make(library: str, array: Array) -> Any:
    """Return the array as a tensor of a library."""
    if library == "torch":
        return require("torch").from_numpy(array.copy())
    return require("jax").numpy.asarray(array)


LIBRARIES = pytest.mark.parametrize("library", ["torch", "jax"])


@LIBRARIES
@pytest.mark.parametrize("q_len", [1, 20])
def test_interop_tensors_are_answered_in_kind(
    library: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=30)
    tensors = [make(library, x) for x in inputs]
    out = cpuattn.attention(*tensors, causal=True)
    assert type(out) is type(tensors[0])
    expected = cpuattn.attention(*inputs, causal=True)
    np.testing.assert_array_equal(np.asarray(out), expected)


@LIBRARIES
def test_interop_tuple_is_answered_in_kind(
    library: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=20, kv_len=30)
    tensors = [make(library, x) for x in inputs]
    returned = cpuattn.attention(*tensors, return_lse=True, return_weights=True)
    expected = cpuattn.attention(*inputs, return_lse=True, return_weights=True)
    assert len(returned) == 3
    assert all(type(x) is type(tensors[0]) for x in returned)
    same = [
        np.array_equal(np.asarray(x), y)
        for x, y in zip(returned, expected, strict=True)
    ]
    assert all(same)


@LIBRARIES
def test_interop_every_array_argument_is_accepted(
    library: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=20, kv_len=30)
    options = {
        "mask": rng.random((20, 30)) < 0.8,
        "bias": normal(rng, 4, 20, 30),
        "causal": np.array([15, 5], np.int32),
        "alibi_slopes": normal(rng, 4),
        "sinks": normal(rng, 4),
        "q_lengths": np.array([20, 7], np.int32),
        "kv_lengths": np.array([30, 11], np.int32),
        "q_segment_ids": rng.integers(0, 2, 20).astype(np.int32),
        "kv_segment_ids": rng.integers(0, 2, 30).astype(np.int32),
        "dropout_mask": rng.random((20, 30)) < 0.8,
    }
    expected = cpuattn.attention(*inputs, **options, dropout_p=0.2)
    tensors = {name: make(library, x) for name, x in options.items()}
    out = cpuattn.attention(
        *(make(library, x) for x in inputs), **tensors, dropout_p=0.2
    )
    np.testing.assert_array_equal(np.asarray(out), expected)


@LIBRARIES
def test_interop_kinds_may_be_mixed_and_query_decides(
    library: str, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng)
    expected = cpuattn.attention(query, key, value)
    tensor = make(library, key)
    with_key = cpuattn.attention(query, tensor, value)
    assert type(with_key) is np.ndarray
    with_query = cpuattn.attention(make(library, query), key, value)
    assert type(with_query) is type(tensor)
    np.testing.assert_array_equal(with_key, expected)
    np.testing.assert_array_equal(np.asarray(with_query), expected)


@LIBRARIES
def test_interop_explain_takes_tensors(
    library: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    plan = cpuattn.explain(*(make(library, x) for x in inputs))
    assert plan["kernel"] == cpuattn.explain(*inputs)["kernel"]


@LIBRARIES
def test_interop_keras_front_end_answers_in_kind(
    library: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, layout="bshd")
    bias, mask = normal(rng, 5, 9), rng.random((5, 9)) < 0.7
    out = cpuattn.dot_product_attention(
        *(make(library, x) for x in inputs),
        bias=make(library, bias),
        mask=make(library, mask),
    )
    expected = cpuattn.dot_product_attention(*inputs, bias=bias, mask=mask)
    assert type(out) is type(make(library, bias))
    np.testing.assert_array_equal(np.asarray(out), expected)


def test_interop_torch_views_are_read_in_place(
    isa: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    packed = torch.from_numpy(normal(rng, 2, 20, 3, 4, 16))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    out = cpuattn.attention(query, key, value)
    expected = reference.attention(*(x.numpy() for x in (query, key, value)))
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    expanded = key[:, :1].expand(2, 4, 20, 16)
    out = cpuattn.attention(query, expanded, value)
    expected = reference.attention(*(x.numpy() for x in (query, expanded, value)))
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def test_interop_torch_out_is_written_and_returned(
    isa: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    out = torch.zeros_like(query)
    returned = cpuattn.attention(query, key, value, out=out)
    assert returned is out
    assert torch.equal(out, cpuattn.attention(query, key, value))
    pair = cpuattn.attention(query, key, value, out=out, return_lse=True)
    assert pair[0] is out
    assert isinstance(pair[1], torch.Tensor)


def test_interop_torch_out_of_wrong_shape_gives_its_line(
    rng: np.random.Generator,
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    with pytest.raises(ValueError, match=r"^out: must have shape .* \(2, 4, 5, 16\);"):
        cpuattn.attention(query, key, value, out=torch.zeros(2, 4, 5, 15))


@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
def test_interop_requires_grad_is_refused(name: str, rng: np.random.Generator) -> None:
    torch = require("torch")
    arrays = dict(zip(("query", "key", "value"), qkv(rng), strict=True))
    arrays["bias"] = normal(rng, 5, 9)
    tensors = {n: torch.from_numpy(x) for n, x in arrays.items()}
    tensors[name].requires_grad_()
    text = (
        f"{name}: must not require grad, cpuattn has no backward pass; got "
        "requires_grad=True, use .detach() or torch.no_grad()"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        cpuattn.attention(**tensors)
    with torch.no_grad():
        out = cpuattn.attention(**tensors)
    assert not out.requires_grad
    np.testing.assert_array_equal(out.numpy(), cpuattn.attention(**arrays))


@pytest.mark.parametrize(
    ("dtype", "text"), [("float16", "float16"), ("float64", "float64")]
)
def test_interop_other_dtypes_are_a_type_error(
    dtype: str, text: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    wrong = query.to(getattr(torch, dtype))
    with pytest.raises(TypeError, match=f"query: dtype must be float32; got {text}"):
        cpuattn.attention(wrong, key, value)


def test_interop_bfloat16_is_a_type_error_with_its_line(
    rng: np.random.Generator,
) -> None:
    torch = require("torch")
    tensors = [torch.from_numpy(x).to(torch.bfloat16) for x in qkv(rng)]
    with pytest.raises(
        TypeError, match=r"^query: dtype must be float32; got .*bfloat16"
    ):
        cpuattn.attention(*tensors)


def test_interop_ml_dtypes_bfloat16_is_a_type_error(rng: np.random.Generator) -> None:
    ml_dtypes = require("ml_dtypes")
    arrays = [x.astype(ml_dtypes.bfloat16) for x in qkv(rng)]
    with pytest.raises(TypeError, match=r"^query: dtype must .* got bfloat16$"):
        cpuattn.attention(*arrays)


@pytest.mark.parametrize("layout", ["sparse", "conj"])
def test_interop_tensors_without_plain_memory_are_a_type_error(
    layout: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    odd = query.to_sparse() if layout == "sparse" else query.to(torch.complex64).conj()
    with pytest.raises(TypeError, match=r"^query: "):
        cpuattn.attention(odd, key, value)


class Elsewhere:
    """A tensor that claims to lie on a CUDA device."""

    dtype = "float32"

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("must not be asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def test_interop_other_devices_are_refused(rng: np.random.Generator) -> None:
    query, _, value = qkv(rng)
    with pytest.raises(
        TypeError, match=r"^key: must be on the CPU; got DLPack device type 2$"
    ):
        cpuattn.attention(query, Elsewhere(), value)


class Foreign:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_interop_any_dlpack_array_is_read(isa: str, rng: np.random.Generator) -> None:
    inputs = qkv(rng)
    out = cpuattn.attention(*(Foreign(x) for x in inputs))
    np.testing.assert_array_equal(np.asarray(out), cpuattn.attention(*inputs))


def test_interop_numpy_subclass_is_answered_as_an_ndarray(
    isa: str, rng: np.random.Generator
) -> None:
    class Sub(np.ndarray):
        pass

    inputs = qkv(rng)
    out = cpuattn.attention(*(x.view(Sub) for x in inputs))
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, cpuattn.attention(*inputs))


def test_interop_result_owns_its_memory(isa: str, rng: np.random.Generator) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    out = cpuattn.attention(query, key, value)
    before = out.clone()
    for tensor in (query, key, value):
        tensor.zero_()
    del query, key, value, tensor
    assert torch.equal(out, before)
    out += 1
    assert torch.equal(out, before + 1)


@pytest.mark.parametrize("name", ["torch", "jax", "ml_dtypes"])
def test_interop_does_not_import_the_library(name: str) -> None:
    out = expect_success(
        f"""
import sys
import numpy as np
import cpuattn
x = np.ones((1, 2, 4, 8), np.float32)
cpuattn.attention(x, x, x)
cpuattn.scaled_dot_product_attention(x, x, x)
cpuattn.dot_product_attention(x, x, x)
cpuattn.explain(x, x, x)
print({name!r} in sys.modules)
"""
    )
    assert out.strip() == "False"
