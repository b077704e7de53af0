# SPDX-License-Identifier: MIT
"""Initializers that draw random numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._initializer import Initializer
from ._random import SeedGenerator, default_seed, seed_state, truncated_normal
from ._registry import to_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._initializer import Shape
    from ._random import Seed


class RandomInitializer(Initializer):
    """Base of the initializers that draw from a seed.

    Parameters
    ----------
    seed : int or SeedGenerator, optional
        An integer gives the same numbers at each call, and those of Keras's NumPy
        backend; a `SeedGenerator` others at each call. Without one Python's `random`
        gives the integer, once.

    Raises
    ------
    OverflowError
        On a call: the seed is not between 0 and 2**32 - 1.
    ValueError
        The seed is of another type.
    """

    def __init__(self, seed: Seed = None) -> None:
        self._init_seed = seed
        self.seed: int | SeedGenerator
        if seed is None:
            self.seed = default_seed()
        elif isinstance(seed, dict):
            self.seed = SeedGenerator.from_config(seed["config"])
        elif isinstance(seed, int | SeedGenerator):
            self.seed = seed
        else:
            raise ValueError(
                "`seed` argument should be an instance of "
                "`keras.random.SeedGenerator()` or an integer. "
                f"Received: seed={seed}"
            )

    def _draws(self, generator: np.random.Generator | None) -> np.random.Generator:
        if generator is not None:
            return generator
        return np.random.default_rng(seed_state(self.seed))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, of which one is the seed as it was given."""
        return {"seed": to_plain(self._init_seed)}


class RandomNormal(RandomInitializer):
    """Draw from a normal distribution, as ``keras.initializers.RandomNormal``.

    Parameters
    ----------
    mean, stddev : float
    seed : int or SeedGenerator, optional
    """

    def __init__(
        self, mean: float = 0.0, stddev: float = 0.05, seed: Seed = None
    ) -> None:
        self.mean, self.stddev = mean, stddev
        super().__init__(seed)

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: Any,
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        numbers = self._draws(generator).normal(self.mean, self.stddev, shape)
        return numbers.astype(dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"mean": self.mean, "stddev": self.stddev}


class TruncatedNormal(RandomNormal):
    """Draw within 2 `stddev` of `mean`, as ``keras.initializers.TruncatedNormal``.

    Parameters
    ----------
    mean, stddev : float
        Of the normal distribution before it is cut off.
    seed : int or SeedGenerator, optional
    """

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: Any,
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        draws = self._draws(generator)
        return truncated_normal(draws, shape, self.mean, self.stddev).astype(dtype)


class RandomUniform(RandomInitializer):
    """Draw evenly from [minval, maxval), as ``keras.initializers.RandomUniform``.

    Parameters
    ----------
    minval, maxval : float
    seed : int or SeedGenerator, optional
    """

    def __init__(
        self, minval: float = -0.05, maxval: float = 0.05, seed: Seed = None
    ) -> None:
        self.minval, self.maxval = minval, maxval
        super().__init__(seed)

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: Any,
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        numbers = self._draws(generator).uniform(self.minval, self.maxval, shape)
        return numbers.astype(dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"minval": self.minval, "maxval": self.maxval}


class Orthogonal(RandomInitializer):
    """Make an orthogonal matrix, as ``keras.initializers.Orthogonal``.

    All axes but the last together are the rows: rows or columns, whichever are fewer,
    are orthogonal unit vectors.

    Parameters
    ----------
    gain : float
        Factor of the matrix.
    seed : int or SeedGenerator, optional

    Raises
    ------
    ValueError
        On a call: the shape has less than 2 axes.

    Notes
    -----
    Differences from Keras: float64 is orthogonal to all its digits, where Keras returns
    float32; float16 and bfloat16, in which LAPACK has no factorization, are rounded
    from a float32 matrix.

    References
    ----------
    Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", 2014.
    """

    def __init__(self, gain: float = 1.0, seed: Seed = None) -> None:
        self.gain = gain
        super().__init__(seed)

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: Any,
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        if len(shape) < 2:
            raise ValueError(
                "The tensor to initialize must be at least two-dimensional. Received: "
                f"shape={shape} of rank {len(shape)}."
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        size = (max(rows, columns), min(rows, columns))
        numbers: NDArray[Any] = self._draws(generator).normal(size=size)
        if dtype != np.float64:
            numbers = numbers.astype(np.float32)
        # The signs make the distribution uniform over all such matrices.
        q, r = np.linalg.qr(numbers)
        q = q * np.sign(np.diag(r))
        matrix = q.T if rows < columns else q
        return (self.gain * matrix.reshape(shape)).astype(dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"gain": self.gain}
