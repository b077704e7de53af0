# SPDX-License-Identifier: MIT
"""CPU tensors of torch, JAX and other DLPack libraries: in, and out in kind."""

from __future__ import annotations

import ctypes
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from support import Array, expect_success, normal, qkv


def require(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


def rounded(array: Array, dtype: str) -> Array:
    """Return the array in a dtype, bfloat16 included."""
    return array.astype(require("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


def make(library: str, array: Array) -> Any:
    """Return the array as a tensor of a library."""
    if library == "jax":
        return require("jax").numpy.asarray(array)
    torch = require("torch")
    if array.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def back(tensor: Any) -> Array:
    """Return what `make` was given."""
    if str(tensor.dtype) == "torch.bfloat16":
        bits: Array = tensor.view(require("torch").uint16).numpy()
        return bits.view(require("ml_dtypes").bfloat16)
    return np.asarray(tensor)


def capsule_of(memory: Any, name: bytes) -> Any:
    """Return a capsule of a C array; both it and `name` must outlive the capsule."""
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype = ctypes.py_object
    make_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make_capsule(ctypes.addressof(memory), name, None)


@pytest.fixture
def jax_float64() -> Iterator[None]:
    """Let JAX have float64 where it is installed."""
    try:
        import jax
    except ImportError:
        yield
        return
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


LIBRARIES = pytest.mark.parametrize("library", ["torch", "jax"])
DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
# Half a unit in the last place, and the error of some sums.
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}


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


@DTYPES
@pytest.mark.parametrize("q_len", [1, 20])
def test_interop_numpy_results_have_the_dtype_of_query(
    q_len: int, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = [rounded(x, dtype) for x in qkv(rng, q_len=q_len, kv_len=30)]
    out, lse, weights = cpuattn.attention(*inputs, return_lse=True, return_weights=True)
    assert out.dtype == weights.dtype == inputs[0].dtype
    assert lse.dtype == ("float64" if dtype == "float64" else "float32")
    exact = reference.attention(*(x.astype(np.float64) for x in inputs))
    np.testing.assert_allclose(
        out.astype(np.float64), exact, rtol=0, atol=TOLERANCE[dtype]
    )


@LIBRARIES
@DTYPES
@pytest.mark.parametrize("q_len", [1, 20])
@pytest.mark.usefixtures("jax_float64")
def test_interop_tensors_of_every_dtype_are_answered_in_kind(
    q_len: int, dtype: str, library: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = [rounded(x, dtype) for x in qkv(rng, q_len=q_len, kv_len=30)]
    mask = rng.random((q_len, 30)) < 0.8
    options: dict[str, Any] = {"return_lse": True, "return_weights": True, "mask": mask}
    expected = cpuattn.attention(*inputs, **options)
    tensors = [make(library, x) for x in inputs]
    returned = cpuattn.attention(*tensors, **options)
    assert all(type(x) is type(tensors[0]) for x in returned)
    assert returned[0].dtype == returned[2].dtype == tensors[0].dtype
    same = [np.array_equal(back(x), y) for x, y in zip(returned, expected, strict=True)]
    assert all(same)


@DTYPES
def test_interop_torch_views_of_every_dtype_are_read_in_place(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    packed = make("torch", rounded(normal(rng, 2, 20, 3, 4, 16), dtype))
    views = packed.permute(2, 0, 3, 1, 4)[..., 5:, 3:]
    expected = cpuattn.attention(*(back(x.contiguous()) for x in views))
    np.testing.assert_array_equal(back(cpuattn.attention(*views)), expected)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_interop_half_size_cache_under_a_float32_query(
    dtype: str, library: str, isa: str, rng: np.random.Generator
) -> None:
    query, *cache = qkv(rng, kv_len=30)
    cache = [rounded(x, dtype) for x in cache]
    if library == "numpy":
        out = cpuattn.attention(query, *cache)
    else:
        tensors = [make(library, x) for x in (query, *cache)]
        out = back(cpuattn.attention(*tensors))
    assert out.dtype == np.float32
    exact = reference.attention(query, *(x.astype(np.float64) for x in cache))
    np.testing.assert_allclose(out, exact, rtol=0, atol=TOLERANCE["float32"])


@DTYPES
def test_interop_dtypes_of_query_and_bias_may_differ(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    options = {"bias": normal(rng, 5, 9), "alibi_slopes": normal(rng, 4)}
    options = {name: rounded(x, dtype) for name, x in options.items()}
    tensors = {name: make("torch", x) for name, x in options.items()}
    expected = cpuattn.attention(*inputs, **options)
    np.testing.assert_array_equal(cpuattn.attention(*inputs, **tensors), expected)


@LIBRARIES
@DTYPES
@pytest.mark.usefixtures("jax_float64")
def test_interop_results_are_handed_over_without_a_copy(
    dtype: str, library: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, batch=(), heads=1, q_len=2000, head_dim=256)
    tensors = [make(library, rounded(x, dtype)) for x in inputs]
    cpuattn.attention(*tensors)
    tracemalloc.start()  # which counts NumPy's memory, where results begin
    try:
        out = cpuattn.attention(*tensors)
        size = out.nbytes
        assert tracemalloc.get_traced_memory()[0] >= size
        del out
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()


@DTYPES
def test_interop_torch_out_of_every_dtype_is_written(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    arrays = [rounded(x, dtype) for x in qkv(rng)]
    query, key, value = (make("torch", x) for x in arrays)
    out = torch.zeros_like(query)
    assert cpuattn.attention(query, key, value, out=out) is out
    expected = cpuattn.attention(*arrays)
    np.testing.assert_array_equal(back(out), expected)
    out.zero_()
    assert cpuattn.attention(*arrays, out=out) is out
    np.testing.assert_array_equal(back(out), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_interop_torch_out_over_query_gives_its_line(
    dtype: str, rng: np.random.Generator
) -> None:
    query, key, value = (make("torch", rounded(x, dtype)) for x in qkv(rng, kv_len=5))
    text = "out: must not share memory with an input; got an overlap with query"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        cpuattn.attention(query, key, value, out=query)
    # Interleaved in one buffer, but disjoint.
    pair = make("torch", rounded(normal(rng, 2, 4, 5, 16, 2), dtype))
    cpuattn.attention(pair[..., 0], key, value, out=pair[..., 1])


def test_interop_read_only_out_gives_its_line(rng: np.random.Generator) -> None:
    inputs = qkv(rng)
    frozen = np.zeros_like(inputs[0])
    frozen.flags.writeable = False
    for out in (make("jax", frozen), Foreign(frozen)):
        with pytest.raises(ValueError, match=r"^out: must be writeable; got a read-on"):
            cpuattn.attention(*inputs, out=out)


OTHER_DTYPES = ["int32", "uint8", "complex64", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_interop_other_dtypes_are_a_type_error(
    dtype: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    wrong = query.to(getattr(torch, dtype))
    text = f"query: dtype must be float16, bfloat16, float32 or float64; got {dtype}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        cpuattn.attention(wrong, key, value)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_interop_bfloat16_query_wants_a_bfloat16_key(
    library: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng)
    query = rounded(query, "bfloat16")
    if library != "numpy":
        query, key, value = (make(library, x) for x in (query, key, value))
    text = (
        "key: dtype must be bfloat16 like query's, or float16 or bfloat16 under a "
        "float32 query; got float32"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        cpuattn.attention(query, key, value)


def test_interop_bfloat16_of_another_byte_order_is_a_type_error(
    rng: np.random.Generator,
) -> None:
    query, key, value = (rounded(x, "bfloat16") for x in qkv(rng))
    swapped = query.view(query.dtype.newbyteorder())
    with pytest.raises(TypeError, match=r"^query: dtype must be .*; got "):
        cpuattn.attention(swapped, key, value)


def test_interop_bfloat16_needs_no_ml_dtypes() -> None:
    require("torch")
    out = expect_success(
        """
import sys
sys.modules["ml_dtypes"] = None
import torch
import cpuattn
x = torch.ones(1, 2, 4, 8, dtype=torch.bfloat16)
out, weights = cpuattn.attention(x, x, x, return_weights=True)
assert out.dtype == weights.dtype == torch.bfloat16
print(torch.equal(out, x))
"""
    )
    assert out.strip() == "True"


PLAIN = "must be a CPU tensor in plain memory; got <class 'torch.Tensor'>: "
ODD_TENSORS = {
    "sparse": PLAIN,
    "meta": PLAIN,
    "negative": "must hold its numbers, not their negatives; got torch's negative bit "
    "set, use .resolve_neg()",
    "fake": "must have its elements in memory; got a tensor without",
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("kind", "text"), ODD_TENSORS.items(), ids=ODD_TENSORS)
def test_interop_tensors_without_plain_memory_are_a_type_error(
    kind: str, text: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    query, key, value = (torch.from_numpy(x) for x in qkv(rng))
    odd = {
        "sparse": key.to_sparse,
        "meta": lambda: key.to("meta"),
        "negative": lambda: key.to(torch.complex64).conj().imag,
        "fake": lambda: torch._subclasses.FakeTensorMode().from_tensor(key),
    }[kind]()
    with pytest.raises(TypeError, match=f"^key: {re.escape(text)}"):
        cpuattn.attention(query, odd, value)


def test_interop_jax_tracer_is_a_type_error(rng: np.random.Generator) -> None:
    jax = require("jax")
    with pytest.raises(
        TypeError, match=r"^query: must be a CPU tensor in plain memory"
    ):
        jax.jit(cpuattn.attention)(*qkv(rng))


class Elsewhere:
    """A tensor that claims to lie on a CUDA device."""

    dtype = "float32"

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("must not be asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
def cuda_struct(_: Any, managed: Any) -> int:
    managed[0] = ctypes.addressof(ElsewhereInC.struct)
    return 0


class ElsewhereInC(Elsewhere):
    """The same with DLPack's C functions, as torch's tensors have them."""

    requires_grad = False
    # DLManagedTensorVersioned: version 1, no deleter, no flags, data, a CUDA device.
    struct = (ctypes.c_uint32 * 40)(1, *[0] * 7, 1, 0, 2)
    # DLPackExchangeAPI: version 1, three pointers, the function.
    functions = (ctypes.c_void_p * 8)(
        1, None, None, ctypes.cast(cuda_struct, ctypes.c_void_p).value
    )
    name = b"dlpack_exchange_api"
    __dlpack_c_exchange_api__ = capsule_of(functions, name)

    def is_neg(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [Elsewhere, ElsewhereInC])
def test_interop_other_devices_are_refused(
    kind: type[Elsewhere], rng: np.random.Generator
) -> None:
    query, _, value = qkv(rng)
    with pytest.raises(
        TypeError, match=r"^key: must be on the CPU; got DLPack device type 2$"
    ):
        cpuattn.attention(query, kind(), value)


class Foreign:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OldForeign(Foreign):
    """The same from before DLPack 1: no options, and no word on read-only arrays."""

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()

    def __iadd__(self, other: Any) -> Any:
        return NotImplemented


@pytest.mark.parametrize("kind", [Foreign, OldForeign])
def test_interop_any_dlpack_array_is_read(
    kind: type[Foreign], isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    expected = cpuattn.attention(*inputs)
    out = cpuattn.attention(*(kind(x) for x in inputs))
    assert type(out) is np.ndarray
    assert out.flags.writeable
    np.testing.assert_array_equal(out, expected)
    memory = np.zeros_like(expected)
    cpuattn.attention(*inputs, out=kind(memory))
    np.testing.assert_array_equal(memory, expected)


def test_interop_bfloat16_of_any_library_speaks_dlpack(
    isa: str, rng: np.random.Generator
) -> None:
    torch = require("torch")
    tensors = [make("torch", rounded(x, "bfloat16")) for x in qkv(rng)]
    out = cpuattn.attention(*(Foreign(x) for x in tensors))
    assert torch.equal(torch.from_dlpack(out), cpuattn.attention(*tensors))


def test_interop_foreign_dtype_without_a_name_is_a_type_error(
    rng: np.random.Generator,
) -> None:
    query, key, value = qkv(rng)
    with pytest.raises(TypeError, match=r"^key: dtype .*; got an unnamed dtype$"):
        cpuattn.attention(query, Foreign(key.astype(np.int8)), value)


class Capsule:
    """A tensor whose capsule holds something that is no DLPack 0 or 1 struct."""

    memory = (ctypes.c_uint32 * 40)(2)  # major version 2, no deleter

    def __init__(self, name: bytes) -> None:
        self.name = name

    def __dlpack__(self, **_: Any) -> Any:
        return capsule_of(self.memory, self.name)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("name", [b"dltensor_versioned", b"something_else"])
def test_interop_other_capsules_are_a_type_error(
    name: bytes, rng: np.random.Generator
) -> None:
    query, _, value = qkv(rng)
    text = "key: must speak DLPack 0 or 1; got another version"
    with pytest.raises(TypeError, match=f"^{text}$"):
        cpuattn.attention(query, Capsule(name), value)


def test_interop_torch_subclass_is_answered_as_a_tensor(
    isa: str, rng: np.random.Generator
) -> None:
    torch = require("torch")

    class Sub(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    class Old(torch.Tensor):  # type: ignore[misc, name-defined]
        __dlpack_c_exchange_api__ = None

    inputs = [make("torch", rounded(x, "bfloat16")) for x in qkv(rng)]
    expected = cpuattn.attention(*inputs)
    for kind in (Sub, Old):
        out = cpuattn.attention(*(x.as_subclass(kind) for x in inputs))
        assert type(out) is torch.Tensor
        assert torch.equal(out, expected)


def test_interop_torch_sizes_of_0_are_answered(isa: str) -> None:
    torch = require("torch")
    query, key = torch.ones(2, 4, 5, 16), torch.ones(2, 4, 0, 16)
    assert not cpuattn.attention(query, key, key).any()
    assert cpuattn.attention(key, query, query).shape == (2, 4, 0, 16)


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
