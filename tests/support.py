# SPDX-License-Identifier: MIT
"""What several test files share: random inputs, the error criterion, subprocesses."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import cpuattn
from cpuattn import reference
from dtypes import BFLOAT16, FLOAT32, Dtypes

Array = NDArray[Any]

SEED = int(os.environ.get("CPUATTN_TEST_SEED", "20240229"))

# Set where the interpreter runs under an emulator: the words that start it.
EMULATED = "CPUATTN_TEST_PYTHON" in os.environ
SLOWER = 8 if EMULATED else 1
PATIENCE = float(os.environ.get("CPUATTN_TEST_PATIENCE", "1"))  # of sanitizers
PYTHON = shlex.split(os.environ.get("CPUATTN_TEST_PYTHON", sys.executable))

# The ISAs that this build holds, usable here or not, as rows of info()["isas"].
COMPILED_ISAS = [row for row in cpuattn.info()["isas"] if row["compiled"]]


def rng_for(name: str) -> np.random.Generator:
    """Return a generator that depends on CPUATTN_TEST_SEED and `name` alone."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    """Return normally distributed numbers that use every digit of the dtype."""
    if dtype == np.float64:
        return rng.standard_normal(shape)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


def qkv(
    rng: np.random.Generator,
    *,
    batch: tuple[int, ...] = (2,),
    heads: int = 4,
    kv_heads: int | None = None,
    q_len: int = 5,
    kv_len: int = 9,
    head_dim: int = 16,
    head_dim_v: int | None = None,
    layout: str = "bhsd",
    dtypes: Dtypes = FLOAT32,
) -> tuple[Array, Array, Array]:
    """Return random query, key and value of one problem."""
    kv_heads = heads if kv_heads is None else kv_heads
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    query = normal(rng, *batch, heads, q_len, head_dim, dtype=dtypes.query)
    key, value = (
        normal(rng, *batch, kv_heads, kv_len, width, dtype=dtypes.cache)
        for width in (head_dim, head_dim_v)
    )
    if layout == "bshd":
        query, key, value = (
            np.ascontiguousarray(x.swapaxes(-2, -3)) for x in (query, key, value)
        )
    return query, key, value


def as_tuple(returned: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    """Return what `attention` returned, as a tuple in every case."""
    return returned if isinstance(returned, tuple) else (returned,)


def assert_same(ours: Array, expected: Array) -> None:
    """Assert equal dtypes and equal numbers, NaN included, to the bit."""
    assert ours.dtype == expected.dtype
    # NumPy does not know NaN in arrays of bfloat16.
    np.testing.assert_array_equal(
        *(x.astype(np.float32) if x.dtype == BFLOAT16 else x for x in (ours, expected))
    )


def check(
    ours: Array,
    oracle: Array,
    naive: Array | Sequence[Array],
    scale: float | None = None,
) -> None:
    """Assert that `ours` is as good as the naive computation (see `allowance`)."""
    several = naive if isinstance(naive, (list, tuple)) else [naive]
    assert_within(ours, oracle, allowance(oracle, several, ours.dtype, scale))


def is_finite(oracle: Array, dtype: Any) -> Array:
    """Return where the oracle is a finite number of the dtype."""
    with np.errstate(over="ignore"):
        return np.isfinite(oracle.astype(dtype).astype(np.float64))


def allowance(
    oracle: Array,
    naive: Sequence[Array],
    dtype: Any,
    scale: float | None = None,
    floor: float = 0.0,
) -> float:
    """Return the greatest error that numbers of this dtype may have.

    It is twice the greatest error of the naive computation (of the worst, where several
    are given) plus `floor` plus one ulp of the output scale: the greatest output where
    `scale` does not say better. The ulp is that of the numbers computed with: rounding
    to 16 bits is in the naive error already.
    """
    finite = is_finite(oracle, dtype)
    if not finite.any():
        return 0.0
    exact = oracle[finite]
    errors = [np.abs(x[finite].astype(exact.dtype) - exact).max() for x in naive]
    computed = np.float64 if dtype == np.float64 else np.float32
    info = np.finfo(computed)
    ulp = info.eps * max(float(np.abs(exact).max()), scale or 0.0)
    return 2 * float(max(errors)) + float(max(ulp, info.smallest_subnormal)) + floor


def assert_within(ours: Array, oracle: Array, allowed: float) -> None:
    """Assert NaN and Inf where the oracle has them, and errors up to `allowed`."""
    assert ours.shape == oracle.shape
    finite = is_finite(oracle, ours.dtype)
    mine = ours.astype(oracle.dtype)
    with np.errstate(over="ignore"):
        expected = oracle.astype(ours.dtype).astype(oracle.dtype)
    np.testing.assert_array_equal(mine[~finite], expected[~finite])
    assert np.isfinite(mine[finite]).all(), "not finite where the oracle is"
    error = np.abs(mine[finite] - oracle[finite]).max(initial=0)
    assert error <= allowed, f"error {error:.3g} is above {allowed:.3g}"


# The exp2 of weights that are rounded to bfloat16 is a shorter polynomial: its relative
# error (cpp/kernels/vmath.inl.h) is that of a sum of weights, and the error of its
# logarithm; a weight divided by the sum may have twice as much.
SHORT_EXP2 = 2.8e-6
# Products of bfloat16 take denormal numbers and sums as 0 (docs/semantics.md).
SMALLEST = float(np.finfo(np.float32).tiny)


def to_bfloat16(array: Array) -> Array:
    """Return the nearest numbers of bfloat16, of which a finite one stays finite."""
    greatest = array.dtype.type(ml_dtypes.finfo(BFLOAT16).max)
    limited = np.where(np.isfinite(array), np.clip(array, -greatest, greatest), array)
    return limited.astype(BFLOAT16).astype(array.dtype)


def multiplied(
    products: str, left: Array, right: Array, axis: int
) -> tuple[Array, Array]:
    """Return numbers whose sum of products along -1 and `axis` is that of the kernels.

    "bfloat16 x3" has two terms for each number, and leaves out the lower two's product.
    """
    if not products.startswith("bfloat16"):
        return left, right
    a, b = to_bfloat16(left), to_bfloat16(right)
    if products == "bfloat16":
        return a, b
    c, d = to_bfloat16(left - a), to_bfloat16(right - b)
    return np.concatenate([a, a, c], -1), np.concatenate([b, d, b], axis)


def as_multiplied(array: Array, *inputs: Array, **options: Any) -> Array:
    """Return float32 or float64 numbers that a call with these arguments multiplies."""
    products = cpuattn.explain(*inputs, **options)["products"]
    wide = array.astype(np.float64 if products == "float64" else np.float32)
    return to_bfloat16(wide) if products == "bfloat16" else wide


def weighted(
    products: str, weights: Array, value: Array, factor: float, layout: str
) -> Array:
    """Return the weighted sums of the values, of weights rounded as `factor` times."""
    value = np.where(np.isfinite(value), value, 0)
    value = value.swapaxes(-2, -3) if layout == "bshd" else value
    a, b = multiplied(products, weights * value.dtype.type(factor), value, -2)
    b = b.repeat(weights.shape[-3] // max(value.shape[-3], 1), -3)
    out = (a @ b) / value.dtype.type(factor)
    return out.swapaxes(-2, -3) if layout == "bshd" else out


def naive_results(
    query: Array, key: Array, value: Array, *, count: int, products: str, **options: Any
) -> list[tuple[Array, ...]]:
    """Return `count` naive computations that differ in rounding alone.

    They compute in float32 (float64 for float64) with the products that the call has,
    and round out and weights to the query's dtype at the end.

    One alone is often right by luck where there are few elements. The first is the
    formula as it stands; the others put the scale and a factor into the query, sum
    head_dim backwards, sum fractions of the values, and round a multiple of the
    weights.
    """
    narrow = query.dtype
    dtype = np.float64 if narrow == np.float64 else np.float32
    query, key, value = (x.astype(dtype, copy=False) for x in (query, key, value))
    scale = options.pop("scale", None)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    layout = options.get("layout", "bhsd")
    query, key = multiplied(products, query, key, -1)
    variants = [(query, key, scale)]
    for n in range(1, count):
        step = -1 if n % 2 else 1
        factor = 0.63 + 0.37 * n
        folded = query * dtype(scale * factor)
        variants.append((folded[..., ::step], key[..., ::step], 1 / factor))
    shows_weights = bool(options.get("return_weights"))
    results = []
    for n, (q, k, c) in enumerate(variants):
        call = options | {"scale": c, "dtype": dtype}
        if products.startswith("bfloat16") and not shows_weights:
            call["return_weights"] = "after_dropout"
        # Sums of other numbers round otherwise, even where all scores are equal.
        shrunk = dtype(16 / (16 + n))
        out, *rest = as_tuple(reference.attention(q, k, value * shrunk, **call))
        if products.startswith("bfloat16"):
            kept = call | {"return_weights": "after_dropout"}
            weights = (
                reference.attention(q, k, value, **kept)[-1]
                if shows_weights
                else rest.pop()
            )
            # bfloat16 holds the factor: a weight of 1 stays exact.
            out = weighted(products, weights, value, 1 + n / 16, layout)
        else:
            out = out / shrunk
        if shows_weights:
            rest[-1] = rest[-1].astype(narrow, copy=False)
        with np.errstate(over="ignore"):
            results.append((out.astype(narrow, copy=False), *rest))
    return results


class Call:
    """The arguments of a call; calls of the same content are equal.

    A test makes the same call on every ISA: what it is compared with is kept.
    """

    def __init__(self, *inputs: Array, **options: Any) -> None:
        self.inputs, self.options = inputs, options
        digest = hashlib.blake2b()
        for x in (*inputs, *(y for item in sorted(options.items()) for y in item)):
            is_array = isinstance(x, np.ndarray)
            digest.update(f"{x.dtype}{x.shape}".encode() if is_array else b"")
            digest.update(x.tobytes() if is_array else repr(x).encode())
        self.digest = digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def results(self) -> list[str]:
        """Return the names of what the call returns."""
        asked = [
            name for name in ("lse", "weights") if self.options.get(f"return_{name}")
        ]
        return ["out", *asked]

    def dtype(self, result: str) -> Any:
        """Return the dtype of a result."""
        dtype = self.inputs[0].dtype
        return (
            np.dtype(np.float32) if result == "lse" and dtype != np.float64 else dtype
        )


@functools.lru_cache(maxsize=16)
def exact_results(call: Call) -> tuple[Array, ...]:
    """Return what the call should return, to more digits than it has."""
    wide = np.longdouble if call.inputs[0].dtype == np.float64 else np.float64
    return as_tuple(reference.attention(*call.inputs, **call.options, dtype=wide))


@functools.lru_cache(maxsize=16)
def allowances(call: Call, products: str) -> list[float]:
    """Return the greatest error that each result may have."""
    exact = exact_results(call)
    # Among many elements no naive computation is right by luck.
    count = 12 if exact[0].size < 2**11 else 3
    options = call.options | {"count": count, "products": products}
    naive = naive_results(*call.inputs, **options)
    scales = {"lse": 1.0, **rounding_scales(*call.inputs, **call.options)}
    floors = {}
    if products.startswith("bfloat16"):
        weight = 2 * SHORT_EXP2 * float(np.nan_to_num(exact[-1]).max(initial=0.0))
        floors = {"out": SMALLEST, "lse": SHORT_EXP2, "weights": weight}
    return [
        allowance(
            exact[n],
            [returned[n] for returned in naive],
            call.dtype(name),
            scales.get(name),
            floors.get(name, 0.0),
        )
        for n, name in enumerate(call.results())
    ]


def compare(
    query: Array, key: Array, value: Array, **options: Any
) -> tuple[Array, ...]:
    """Assert that everything `attention` returns agrees with the oracle; return it."""
    ours = as_tuple(cpuattn.attention(query, key, value, **options))
    products = cpuattn.explain(query, key, value, **options)["products"]
    unrelated = ("out", "num_threads")
    options = {name: x for name, x in options.items() if name not in unrelated}
    call = Call(query, key, value, **options)
    limits = allowances(call, products)
    for mine, exact, name, allowed in zip(
        ours, exact_results(call), call.results(), limits, strict=True
    ):
        assert mine.dtype == call.dtype(name)
        assert_within(mine, exact, allowed)
    return ours


def rounding_scales(
    query: Array, key: Array, value: Array, **options: Any
) -> dict[str, float]:
    """Return the scales that the rounding of out and of the weights depends on.

    Terms that cancel leave an output smaller than themselves, so it is the root of
    their summed squares (their sum for a few rows with a softcap: it makes scores
    equal, and equal scores have errors that do not cancel). A score is rounded before
    it becomes a weight, so that a score of 100 makes the error of its weight 100 times
    greater, and so does a sink above it.
    """
    options |= {"return_lse": True, "return_weights": "after_dropout"}
    _, lse, weights = reference.attention(query, key, value, **options)
    weights = np.nan_to_num(weights)
    largest = weights.max(-1, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.abs(lse + np.log(largest))
    size = np.maximum(np.where(np.isfinite(score), score, 0), 1)
    if options.get("sinks") is not None:
        sink = np.asarray(options["sinks"], np.float64)[:, None]
        size = np.where(sink > size, sink, size)
    power = 1 if options.get("softcap") and lse.size <= 16 else 2
    terms = (weights**power).sum(-1) ** (1 / power) * size
    value = value.astype(np.float64)
    greatest = np.abs(value[np.isfinite(value)]).max(initial=0.0)
    return {
        "out": float(greatest * terms.max(initial=0.0)),
        "weights": float((largest * size).max(initial=0.0)),
    }


def sees(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """Return which keys each row sees: bool (..., num_heads, q_len, kv_len)."""
    bias = options.pop("bias", None)
    if bias is not None:
        bias = np.where(np.isneginf(bias), -np.inf, 0)
    for name in ("return_lse", "fully_masked", "alibi_slopes", "sinks", "out"):
        options.pop(name, None)
    for name in [name for name in options if name.startswith("dropout")]:
        options.pop(name)
    options["return_weights"] = True
    zeros = (np.zeros_like(query), np.zeros_like(key), np.zeros_like(value))
    return np.asarray(reference.attention(*zeros, bias=bias, **options)[1] > 0)


def run_python(
    code: str, *, timeout: float = 120, args: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter; a variable of value None is removed."""
    return run_module(["-c", code, *args], timeout=timeout, **options)


def run_module(
    args: Sequence[str],
    *,
    timeout: float = 120,
    input: str | None = None,
    **env: str | None,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with `args`; a variable of value None is removed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CPUATTN_")}
    clean.pop("OMP_NUM_THREADS", None)
    merged = clean | {k: v for k, v in env.items() if v is not None}
    return subprocess.run(
        [*PYTHON, *args],
        env={k: v for k, v in merged.items() if env.get(k, "") is not None},
        capture_output=True,
        text=True,
        timeout=PATIENCE * timeout,
        input=input,
        check=False,
    )


def expect_success(code: str, **options: Any) -> str:
    """Run `code` in a new interpreter that must succeed; return what it prints."""
    done = run_python(code, **options)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
    return done.stdout
