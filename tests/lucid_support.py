# SPDX-License-Identifier: MIT
"""lucid's attention: its formula in NumPy, and the package itself where it is there.

lucid-dl asks for a newer Python and for mlx, which attention on the CPU does not use:
``pip install --no-deps --ignore-requires-python lucid-dl==2.12.8``.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import sys
import types
import typing
from typing import Any

import numpy as np

from support import Array


@np.errstate(all="ignore")
def formula(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """Return out and weights by the formula of lucid 2.12, in the inputs' dtypes.

    A boolean mask is lucid 3's: 0 where it is True, -1e9 elsewhere.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = np.matmul(query, key.swapaxes(-1, -2)) * scale
    if is_causal:
        future = np.triu(np.ones(scores.shape[-2:], scores.dtype), k=1)
        scores = scores + future * -1e12
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = scores + np.where(attn_mask, 0.0, -1e9).astype(scores.dtype)
    elif attn_mask is not None:
        scores = scores + attn_mask
    powers = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    weights = powers / np.sum(powers, axis=-1, keepdims=True)
    if dropout_p > 0.0:
        kept = np.random.rand(*weights.shape) > dropout_p  # noqa: NPY002
        weights = weights * (kept.astype(weights.dtype) * (1.0 / (1.0 - dropout_p)))
    return np.matmul(weights, value), weights


def load() -> Any:
    """Import lucid.nn.functional, or return None where lucid is not installed."""
    finder = _Finder()
    if finder.find_spec("lucid", None) is None:
        return None
    typing.override = getattr(typing, "override", lambda method: method)
    if importlib.machinery.PathFinder.find_spec("mlx") is None:
        sys.modules["mlx"] = _Nothing("mlx")
        sys.modules["mlx.core"] = sys.modules["mlx"].core = _Nothing("mlx.core")
        sys.modules["mlx.nn"] = _Nothing("mlx.nn")
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("lucid.nn.functional")
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Find lucid's modules, whose annotations are not to be evaluated."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "lucid":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.origin and spec.origin.endswith(".py"):
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        """Compile the source, whatever an installer has compiled beside it."""
        source = self.get_data(self.path)
        return self.source_to_code(
            b"from __future__ import annotations\n" + source, self.path
        )


class _Kind(type):
    """A class whose attributes and instances are such classes."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kind(name, (), {})

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls


class _Nothing(types.ModuleType):
    """A module that has every name and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kind.__new__(_Kind, name, (), {})
