"""Exact attention on CPUs, compiled ahead of time: NumPy in, NumPy out."""

from ._core import __version__, attention, explain
from .compat.keras.ops import dot_product_attention
from .compat.torch import scaled_dot_product_attention
from .runtime import available_isas, info, set_num_threads, threads

__all__ = [
    "__version__",
    "attention",
    "available_isas",
    "dot_product_attention",
    "explain",
    "info",
    "scaled_dot_product_attention",
    "set_num_threads",
    "threads",
]
