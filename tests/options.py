# SPDX-License-Identifier: MIT
"""One example of every option of `attention`, for a problem of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtypes import FLOAT32, Dtypes
from support import Array, normal, qkv


@dataclass(frozen=True)
class Sizes:
    """The sizes of one problem."""

    batch: tuple[int, ...] = (2,)
    heads: int = 4
    kv_heads: int = 2
    q_len: int = 5
    kv_len: int = 9
    head_dim: int = 16
    head_dim_v: int = 16

    @property
    def scores(self) -> tuple[int, ...]:
        """The shape of the scores: what mask and bias broadcast to."""
        return (*self.batch, self.heads, self.q_len, self.kv_len)

    def qkv(
        self,
        rng: np.random.Generator,
        layout: str = "bhsd",
        dtypes: Dtypes = FLOAT32,
    ) -> tuple[Array, Array, Array]:
        """Random query, key and value of these sizes."""
        return qkv(rng, layout=layout, dtypes=dtypes, **self.__dict__)


def block_mask(rng: np.random.Generator, s: Sizes, block: int = 32) -> Array:
    """Return a mask of whole blocks, so that many tiles are empty and many full."""
    rows, columns = -(-s.q_len // block), -(-s.kv_len // block)
    blocks = rng.random((rows, columns)) < 0.5
    mask = np.repeat(np.repeat(blocks, block, 0), block, 1)
    return np.ascontiguousarray(mask[: s.q_len, : s.kv_len])


def holed_bias(rng: np.random.Generator, s: Sizes) -> Array:
    """Return a bias with -inf in a third of its places."""
    bias = normal(rng, *s.scores)
    bias[rng.random(s.scores) < 0.33] = -np.inf
    return bias


def lengths(rng: np.random.Generator, s: Sizes, longest: int) -> Array:
    """Lengths from 0 to the longest, both included where there are two elements."""
    drawn = rng.integers(0, longest + 1, s.batch)
    if drawn.size > 1:
        drawn.flat[0], drawn.flat[-1] = longest, 0
    return drawn


def segments(rng: np.random.Generator, s: Sizes, n: int) -> Array:
    """Ids of packed documents: sorted, about four of them."""
    return np.sort(rng.integers(0, 4, (*s.batch, n)), -1)


Maker = Callable[[np.random.Generator, Sizes], dict[str, Any]]

# Each alone is a valid call; any two that do not name the same argument combine.
OPTIONS: dict[str, Maker] = {
    "mask": lambda rng, s: {"mask": rng.random(s.scores) < 0.6},
    "mask_blocks": lambda rng, s: {"mask": block_mask(rng, s)},
    "mask_none_visible": lambda rng, s: {"mask": np.zeros(s.scores[-2:], bool)},
    "mask_padding": lambda rng, s: {
        "mask": (np.arange(s.kv_len) < 0.7 * s.kv_len)[None, None]
    },
    "bias": lambda rng, s: {"bias": normal(rng, *s.scores)},
    "bias_row": lambda rng, s: {"bias": normal(rng, s.heads, 1, s.kv_len)},
    "bias_minus_inf": lambda rng, s: {"bias": holed_bias(rng, s)},
    "causal": lambda rng, s: {"causal": True},
    "causal_top_left": lambda rng, s: {"causal": "top_left"},
    "causal_bottom_right": lambda rng, s: {"causal": "bottom_right"},
    "causal_zero": lambda rng, s: {"causal": 0},
    "causal_offset": lambda rng, s: {"causal": s.kv_len // 3},
    "causal_negative_offset": lambda rng, s: {"causal": -2},
    "causal_offsets": lambda rng, s: {
        "causal": rng.integers(-3, s.kv_len + 1, s.batch)
    },
    "window": lambda rng, s: {"window": (s.kv_len // 4, 2)},
    "window_left": lambda rng, s: {"window": (3, None)},
    "window_right": lambda rng, s: {"window": (-1, 1)},
    "window_wide": lambda rng, s: {"window": (2**40, 2**40)},
    "window_none": lambda rng, s: {"window": (None, -1)},
    "scale": lambda rng, s: {"scale": 0.37},
    "scale_zero": lambda rng, s: {"scale": 0.0},
    "scale_negative": lambda rng, s: {"scale": -0.2},
    "softcap": lambda rng, s: {"softcap": 0.8},
    "alibi_slopes": lambda rng, s: {
        "alibi_slopes": 2.0 ** -np.arange(1, s.heads + 1, dtype=np.float32)
    },
    "alibi_slopes_per_batch": lambda rng, s: {
        "alibi_slopes": rng.random((*s.batch, s.heads), np.float32)
    },
    "sinks": lambda rng, s: {"sinks": normal(rng, s.heads)},
    "q_lengths": lambda rng, s: {"q_lengths": lengths(rng, s, s.q_len)},
    "kv_lengths": lambda rng, s: {"kv_lengths": lengths(rng, s, s.kv_len)},
    "kv_lengths_int32": lambda rng, s: {
        "kv_lengths": lengths(rng, s, s.kv_len).astype(np.int32)
    },
    "segments": lambda rng, s: {
        "q_segment_ids": segments(rng, s, s.q_len),
        "kv_segment_ids": segments(rng, s, s.kv_len),
    },
    "segments_shared": lambda rng, s: {
        "q_segment_ids": np.arange(s.q_len, dtype=np.int32) // 3,
        "kv_segment_ids": np.arange(s.kv_len, dtype=np.int32) // 3,
    },
    "dropout": lambda rng, s: {"dropout_p": 0.3, "dropout_seed": 1234567890123},
    "dropout_broadcast": lambda rng, s: {
        "dropout_p": 0.5,
        "dropout_seed": 5,
        "dropout_broadcast": ("batch", "q_len"),
    },
    "dropout_threefry": lambda rng, s: {
        "dropout_p": 0.5,
        "dropout_seed": 2**63 + 5,
        "dropout_broadcast": ("heads",),
        "dropout_generator": "threefry",
    },
    "dropout_mask": lambda rng, s: {
        "dropout_p": 0.25,
        "dropout_mask": rng.random(s.scores) < 0.75,
    },
    "dropout_one": lambda rng, s: {"dropout_p": 1.0},
    "fully_masked_mean": lambda rng, s: {"fully_masked": "mean"},
    "fully_masked_nan": lambda rng, s: {"fully_masked": "nan"},
    "return_lse": lambda rng, s: {"return_lse": True},
    "return_weights": lambda rng, s: {"return_weights": True},
    "return_weights_after": lambda rng, s: {"return_weights": "after_dropout"},
    "layout": lambda rng, s: {"layout": "bshd"},
    "num_threads": lambda rng, s: {"num_threads": 2},
}

# The options of one argument each: pairs of these are all tested together.
REPRESENTATIVES = (
    "mask",
    "bias_minus_inf",
    "causal",
    "causal_offsets",
    "window",
    "scale",
    "softcap",
    "alibi_slopes",
    "sinks",
    "q_lengths",
    "kv_lengths",
    "segments",
    "dropout",
    "dropout_mask",
    "fully_masked_mean",
    "fully_masked_nan",
    "return_lse",
    "return_weights",
    "return_weights_after",
    "layout",
)


def combine(rng: np.random.Generator, s: Sizes, *names: str) -> dict[str, Any]:
    """Return the keyword arguments of several options together."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= OPTIONS[name](rng, s)
    return merged
