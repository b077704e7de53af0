# SPDX-License-Identifier: MIT
"""What several test files share: random inputs, the error criterion, subprocesses."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cpuattn
from cpuattn import reference

Array = NDArray[Any]

SEED = int(os.environ.get("CPUATTN_TEST_SEED", "20240229"))

# Set where the interpreter runs under an emulator: the words that start it.
EMULATED = "CPUATTN_TEST_PYTHON" in os.environ
PYTHON = shlex.split(os.environ.get("CPUATTN_TEST_PYTHON", sys.executable))

# The ISAs that this build holds, usable here or not, as rows of info()["isas"].
COMPILED_ISAS = [row for row in cpuattn.info()["isas"] if row["compiled"]]


def rng_for(name: str) -> np.random.Generator:
    """Return a generator that depends on CPUATTN_TEST_SEED and `name` alone."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Return float32 numbers, normally distributed."""
    return rng.standard_normal(shape, dtype=np.float32)


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
) -> tuple[Array, Array, Array]:
    """Return random query, key and value of one problem."""
    kv_heads = heads if kv_heads is None else kv_heads
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    shapes = (heads, q_len, head_dim), (kv_heads, kv_len, head_dim)
    query, key, value = (
        normal(rng, *batch, *shape)
        for shape in (*shapes, (kv_heads, kv_len, head_dim_v))
    )
    if layout == "bshd":
        query, key, value = (
            np.ascontiguousarray(x.swapaxes(-2, -3)) for x in (query, key, value)
        )
    return query, key, value


def as_tuple(returned: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    """Return what `attention` returned, as a tuple in every case."""
    return returned if isinstance(returned, tuple) else (returned,)


def check(
    ours: Array,
    oracle: Array,
    naive: Array | Sequence[Array],
    scale: float | None = None,
) -> None:
    """Assert that `ours` is as good as the naive computation in its own dtype.

    NaN and Inf lie where the oracle has them. Elsewhere the greatest error is at most
    twice that of the naive computation (of the worst, where several are given) plus one
    ulp of the output scale: the greatest output where `scale` does not say better.
    """
    assert ours.shape == oracle.shape
    finite = np.isfinite(oracle)
    np.testing.assert_array_equal(ours[~finite], oracle[~finite].astype(ours.dtype))
    assert np.isfinite(ours[finite]).all(), "not finite where the oracle is"
    if not finite.any():
        return
    exact = oracle[finite]
    several = naive if isinstance(naive, (list, tuple)) else [naive]
    naive_error = max(np.abs(x[finite] - exact).max() for x in several)
    scale = max(np.abs(exact).max(), scale or 0.0)
    allowed = 2 * naive_error + np.finfo(ours.dtype).eps * scale
    error = np.abs(ours[finite] - exact).max()
    assert error <= allowed, f"error {error:.3g} is above {allowed:.3g}"


def naive_results(
    query: Array, key: Array, value: Array, *, count: int, **options: Any
) -> list[tuple[Array, ...]]:
    """Return `count` naive float32 computations that differ in rounding alone.

    One alone is often right by luck where there are few elements. The first is the
    formula as it stands; the others put the scale and a factor into the query and sum
    head_dim backwards.
    """
    scale = options.pop("scale", None)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    variants = [(query, key, scale)]
    for n in range(1, count):
        step = -1 if n % 2 else 1
        factor = 0.63 + 0.37 * n
        folded = query * np.float32(scale * factor)
        variants.append((folded[..., ::step], key[..., ::step], 1 / factor))
    return [
        as_tuple(reference.attention(q, k, value, scale=c, dtype=np.float32, **options))
        for q, k, c in variants
    ]


def compare(
    query: Array, key: Array, value: Array, **options: Any
) -> tuple[Array, ...]:
    """Assert that everything `attention` returns agrees with the oracle; return it."""
    ours = as_tuple(cpuattn.attention(query, key, value, **options))
    options.pop("out", None)
    oracle = as_tuple(reference.attention(query, key, value, **options))
    few = query.size * key.size < 2**27
    naive = naive_results(query, key, value, count=12 if few else 3, **options)
    out_scale, weight_scale = None, None
    if few:
        out_scale, weight_scale = rounding_scales(query, key, value, **options)
    scales = [out_scale]
    scales += [1.0] if options.get("return_lse") else []
    scales += [weight_scale] if options.get("return_weights") else []
    assert len(ours) == len(oracle) == len(scales)
    for n, (mine, exact) in enumerate(zip(ours, oracle, strict=True)):
        assert mine.dtype == np.float32
        check(mine, exact, [returned[n] for returned in naive], scales[n])
    return ours


def rounding_scales(
    query: Array, key: Array, value: Array, **options: Any
) -> tuple[float, float]:
    """Return the scales that the rounding of out and of the weights depends on.

    Terms that cancel leave an output smaller than themselves, so it is the root of
    their summed squares; and a score is rounded before it becomes a weight, so that a
    score of 100 makes the error of its weight 100 times greater.
    """
    options |= {"return_lse": True, "return_weights": "after_dropout"}
    _, lse, weights = reference.attention(query, key, value, **options)
    weights = np.nan_to_num(weights)
    largest = weights.max(-1, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.abs(lse + np.log(largest))
    size = np.maximum(np.where(np.isfinite(score), score, 0), 1)
    terms = np.sqrt((weights**2).sum(-1)) * size
    greatest = np.abs(value[np.isfinite(value)]).max(initial=0.0)
    return (
        float(greatest * terms.max(initial=0.0)),
        float((largest * size).max(initial=0.0)),
    )


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
    code: str, *, timeout: float = 120, args: Sequence[str] = (), **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter; a variable of value None is removed."""
    return run_module(["-c", code, *args], timeout=timeout, **env)


def run_module(
    args: Sequence[str], *, timeout: float = 120, **env: str | None
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
        timeout=timeout,
        check=False,
    )


def expect_success(code: str, **options: Any) -> str:
    """Run `code` in a new interpreter that must succeed; return what it prints."""
    done = run_python(code, **options)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
    return done.stdout
