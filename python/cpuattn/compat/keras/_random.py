# SPDX-License-Identifier: MIT
"""Random numbers as Keras draws them on its NumPy backend, to the bit."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Seed: TypeAlias = "int | dict[str, Any] | SeedGenerator | None"


class SeedGenerator:
    """Give another seed each time, as ``keras.random.SeedGenerator``.

    Parameters
    ----------
    seed : int, optional
        Between 0 and 2**32 - 1; without one, Python's `random` gives it.
    name : str, optional
        Name that the config has.

    Attributes
    ----------
    state : ndarray, shape (2,), uint32
        The seed, and how many were taken.

    Raises
    ------
    OverflowError
        `seed` is not between 0 and 2**32 - 1.
    ValueError
        `seed` is not an integer.

    Examples
    --------
    >>> from cpuattn.compat.keras.initializers import RandomNormal, SeedGenerator
    >>> initializer = RandomNormal(seed=SeedGenerator(7))
    >>> bool((initializer((3,)) == initializer((3,))).any())
    False
    """

    def __init__(self, seed: int | None = None, name: str | None = None) -> None:
        if not isinstance(seed, int | None):
            raise ValueError(
                f"Argument `seed` must be an integer. Received: seed={seed}"
            )
        self.name = "seed_generator" if name is None else name
        self._initial_seed = seed
        self.state = seed_state(default_seed() if seed is None else seed)

    def next(self) -> NDArray[np.uint32]:
        """Return the state, and count one more."""
        state = self.state.copy()
        self.state[1] += 1
        return state

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this generator."""
        return {"seed": self._initial_seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SeedGenerator:
        """Make a generator from its arguments."""
        return cls(**config)


def default_seed() -> int:
    """Draw a seed from Python's own generator, as Keras does."""
    return random.randint(1, int(1e9))


def seed_state(seed: int | SeedGenerator) -> NDArray[np.uint32]:
    """Return what `numpy.random.default_rng` is seeded with."""
    if isinstance(seed, SeedGenerator):
        return seed.next()
    return np.array([seed, 0], np.uint32)


def truncated_normal(
    draws: np.random.Generator, shape: tuple[int, ...], mean: float, stddev: float
) -> NDArray[np.float64]:
    """Draw normally distributed numbers, of which none is 2 stddev off the mean.

    Whole batches of the size wanted are drawn until enough numbers were kept. That
    takes more than needed, but in this order they are Keras's numbers.
    """
    if math.isnan(mean + stddev):
        raise ValueError(f"stddev: must be a number; got {stddev} (mean {mean})")
    count = math.prod(shape)
    kept: list[NDArray[np.float64]] = []
    while sum(map(len, kept)) < count:
        batch = draws.normal(mean, stddev, count)
        low, high = mean - 2 * stddev, mean + 2 * stddev
        kept.append(batch[(low <= batch) & (batch <= high)])
    return np.concatenate([*kept, np.empty(0)])[:count].reshape(shape)
