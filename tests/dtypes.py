# SPDX-License-Identifier: MIT
"""The dtypes that every test may run in, and how cases are shared out among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Dtypes:
    """Dtype of the query, dtype of key and value, and the precision asked for."""

    query: np.dtype[Any]
    cache: np.dtype[Any]
    precision: str = "highest"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that ask for the precision."""
        return {} if self.precision == "highest" else {"precision": self.precision}

    @property
    def lse(self) -> np.dtype[Any]:
        """The dtype of lse, and of what the kernels compute with."""
        return np.dtype(np.float64 if self.query == np.float64 else np.float32)

    @property
    def epsilon(self) -> float:
        """The relative distance of neighbours in the dtype of the output."""
        return float(ml_dtypes.finfo(self.query).eps)


def pair(query: Any, cache: Any = None, precision: str = "highest") -> Dtypes:
    """Return the Dtypes of a query and a cache of two dtypes, or of one."""
    return Dtypes(
        np.dtype(query), np.dtype(query if cache is None else cache), precision
    )


FLOAT32 = pair(np.float32)

DTYPES: dict[str, Dtypes] = {
    "float32": FLOAT32,
    "float64": pair(np.float64),
    "float16": pair(np.float16),
    "bfloat16": pair(BFLOAT16),
    "float32+float16": pair(np.float32, np.float16),
    "float32+bfloat16": pair(np.float32, BFLOAT16),
    "float32-medium": pair(np.float32, precision="medium"),
}

OTHERS = [name for name in DTYPES if name != "float32"]

# Every dtype, for tests of few cases.
every_dtype = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)

# Those with one dtype for all three arrays.
UNIFORM = {name: x for name, x in DTYPES.items() if x.query == x.cache}
uniform_dtype = pytest.mark.parametrize("dtypes", UNIFORM.values(), ids=UNIFORM)


def sampled(*axes: Iterable[Any]) -> list[Any]:
    """Return each combination of the axes in float32 and in one other dtype, in turn.

    The turns make a Latin square: with six entries on one axis, every entry of another
    axis meets every dtype. An axis is a dict of ids and values, or a list of both.
    """
    items = [
        list(axis.items()) if isinstance(axis, dict) else [(str(x), x) for x in axis]
        for axis in axes
    ]
    params = []
    for indices in itertools.product(*(range(len(axis)) for axis in items)):
        chosen = [axis[n] for axis, n in zip(items, indices, strict=True)]
        ids, values = zip(*chosen, strict=True)
        for name in ("float32", OTHERS[sum(indices) % len(OTHERS)]):
            params.append(
                pytest.param(*values, DTYPES[name], id="-".join((*ids, name)))
            )
    return params
