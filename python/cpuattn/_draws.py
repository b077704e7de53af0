# SPDX-License-Identifier: MIT
"""The random draws of dropout in NumPy: what docs/semantics.md says, for the oracle."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AXES = ("batch", "heads", "q_len", "kv_len")
_LOW = 0xFFFFFFFF


def kept_weights(
    shape: tuple[int, ...], p: float, seed: int, shared: Iterable[str], generator: str
) -> NDArray[np.bool_]:
    """Say which weights dropout keeps.

    Parameters
    ----------
    shape : tuple of int
        (batch, num_heads, q_len, kv_len).
    p, seed, shared, generator
        dropout_p, dropout_seed, dropout_broadcast and dropout_generator of `attention`.

    Returns
    -------
    ndarray of bool, of that shape
    """
    axes = zip(_AXES, shape, strict=True)
    sizes = [1 if name in shared else size for name, size in axes]
    if generator == "threefry":
        index = np.arange(math.prod(sizes), dtype=np.uint64).reshape(sizes)
        kept = threefry(seed, index) >> 9 < np.ceil(np.float32(1 - p) * 2.0**23)
    else:
        counters = (np.arange(n, dtype=np.uint64) for n in sizes)
        batch, head, row, column = np.ix_(*counters)
        words = philox(seed, column[..., ::4] // 4, row, head, batch)
        words = words.reshape(*words.shape[:-2], 4 * words.shape[-2])[..., : sizes[3]]
        kept = words >= round(p * 2**32)
    return np.broadcast_to(kept, shape)


def philox(seed: int, *counter: NDArray[Any]) -> NDArray[Any]:
    """Return the words (..., 4) of Philox4x32-10 (Salmon et al. 2011)."""
    c, k0, k1 = counter, seed & _LOW, seed >> 32
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = (b >> 32) ^ c[1] ^ k0, b & _LOW, (a >> 32) ^ c[3] ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return np.stack(np.broadcast_arrays(*c), -1)


def threefry(seed: int, index: NDArray[Any]) -> NDArray[Any]:
    """Return ``jax.random.bits`` at flat indices: Threefry2x32-20 (Salmon et al.)."""
    keys = [seed >> 32, seed & _LOW]
    keys.append(keys[0] ^ keys[1] ^ 0x1BD11BDA)
    high, low = ((index >> 32) + keys[0]) & _LOW, ((index & _LOW) + keys[1]) & _LOW
    for group in range(5):
        for left in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            high = (high + low) & _LOW
            low = ((low << left | low >> (32 - left)) & _LOW) ^ high
        high = (high + keys[(group + 1) % 3]) & _LOW
        low = (low + keys[(group + 2) % 3] + group + 1) & _LOW
    return high ^ low
