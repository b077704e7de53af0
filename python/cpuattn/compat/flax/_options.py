# SPDX-License-Identifier: MIT
"""Dropout keys and precisions of JAX as options of the native function."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# What jax.lax.Precision and the presets that XLA has on CPUs promise at least. Flax
# computes all of them in full on CPUs, so a lower one runs only where its name says so.
_LEVELS = {
    "highest": "highest",
    "float32": "highest",
    "default": "highest",
    "DEFAULT": "highest",
    "F64_F64_F64": "highest",
    "F32_F32_F32": "highest",
    "BF16_BF16_F32_X6": "highest",
    "high": "high",
    "bfloat16_3x": "high",
    "tensorfloat32": "high",
    "F16_F16_F16": "high",
    "BF16_BF16_F32_X3": "high",
    "bfloat16": "medium",
    "fastest": "medium",
    "BF16_BF16_F32": "medium",
}
_ORDER = ("highest", "high", "medium")


def level(precision: Any) -> str:
    """Return the native precision for a value that Flax accepts.

    Parameters
    ----------
    precision : None, str, jax.lax.Precision, jax.lax.DotAlgorithmPreset or 2-tuple
        Of a pair, one for each operand, the more accurate one counts.

    Raises
    ------
    ValueError
        Flax has no such precision.
    """
    if precision is None:
        return "highest"
    if isinstance(precision, tuple) and len(precision) == 2 and None not in precision:
        first, second = precision
        if type(first) is type(second):
            return min(level(first), level(second), key=_ORDER.index)
    name = precision
    kind = type(precision).__name__  # JAX need not be there to be recognized
    if kind == "Precision":
        name = precision.name.lower()
    elif kind == "DotAlgorithmPreset":
        name = precision.name
    if not isinstance(name, str) or name not in _LEVELS:
        raise ValueError(
            "precision: must be None, a name of jax.lax.Precision or a pair of them "
            f"({', '.join(x for x in _LEVELS if x.islower())}); got {precision!r}"
        )
    return _LEVELS[name]


def dropout(rate: Any, rng: Any, shared: bool) -> dict[str, Any]:
    """Return the native options that make Flax's draws; `rate` is above 0.

    Flax keeps nothing from a rate of 1 on; what it multiplies by is in `vanish`.
    """
    options: dict[str, Any] = {
        "dropout_p": min(float(rate), 1.0),
        "dropout_seed": seed(rng),
        "dropout_generator": "threefry",
    }
    if shared:
        options["dropout_broadcast"] = ("batch", "heads")
    return options


def vanish(result: Any) -> Any:
    """Return NaN: a rate of 1 keeps nothing and divides it by 0, as Flax does."""
    return (result * np.nan).astype(result.dtype)


def seed(rng: Any) -> int:
    """Return the native seed that stands for a key of JAX.

    Parameters
    ----------
    rng : typed key, array of uint32 of shape (2,), int or numpy.random.Generator
        An int stands for the key ``jax.random.PRNGKey`` makes of it; a generator gives
        its next 64 bits.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        It holds several keys.
    NotImplementedError
        It is a key of another generator than threefry2x32.
    """
    dtype = getattr(rng, "dtype", None)
    if dtype == np.uint32 and rng.shape[-1:] == (2,):
        pass
    elif isinstance(rng, (int, np.integer)):
        return int(rng) & 0xFFFFFFFF
    elif isinstance(rng, np.random.Generator):
        return int(rng.integers(2**64, dtype=np.uint64))
    elif str(dtype).startswith("key<"):
        rng = _key_data(rng)
    else:
        kind = type(rng) if dtype is None else f"{type(rng)} of {dtype} {rng.shape}"
        raise TypeError(f"unexpected PRNG key type {kind}")
    if rng.ndim != 1:
        raise ValueError(
            "dropout_rng: must be a single key; got an array of keys of shape "
            f"{tuple(rng.shape[:-1])}"
        )
    high, low = np.asarray(rng).tolist()
    return int(high << 32 | low)


def _key_data(key: Any) -> Any:
    """Return the words of a typed key; only JAX makes one, so JAX is imported."""
    if str(key.dtype) != "key<fry>":
        raise NotImplementedError(
            "dropout_rng: must be a threefry2x32 key, as jax.random.key makes by "
            f"default; got {key.dtype}"
        )
    return sys.modules["jax"].random.key_data(key)
