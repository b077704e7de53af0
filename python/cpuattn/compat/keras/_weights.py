# SPDX-License-Identifier: MIT
"""The weights of a layer: named arrays, and the seeds that dropout draws with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._random import default_seed, seed_state

Array = NDArray[Any]  # NumPy has no type for bfloat16


class Variable:
    """An array with a name, as ``keras.Variable``.

    Parameters
    ----------
    value : ndarray
        The first value; copied.
    path : str
        Names of the layer, the sub-layer and the weight, with "/" between them.
    trainable : bool
        Whether training changes it.
    regularizer, constraint : callable, optional
        Penalty of the value, and what makes a value admissible.
    """

    def __init__(
        self,
        value: Array,
        path: str,
        *,
        trainable: bool = True,
        regularizer: Callable[[Array], float] | None = None,
        constraint: Callable[[Array], Array] | None = None,
    ) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self.trainable = trainable
        self.regularizer = regularizer
        self.constraint = constraint
        self._set(np.array(value))

    def _set(self, value: Array) -> None:
        # A layer keeps what it derived from a value until there is another array.
        value.flags.writeable = False
        self._value = value

    @property
    def value(self) -> Array:
        """The array, read-only: `assign` changes it."""
        return self._value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._value.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._value.ndim

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return str(self._value.dtype)

    def numpy(self) -> Array:
        """Return a copy of the array."""
        return np.array(self._value)

    def assign(self, value: Any) -> None:
        """Replace the array by a copy of `value` in the dtype that it has.

        Raises
        ------
        ValueError
            The shapes differ.
        """
        array = np.array(value, dtype=self._value.dtype)
        if array.shape != self.shape:
            raise ValueError(
                "The shape of the target variable and the shape of the target value in "
                "`variable.assign(value)` must match. "
                f"variable.shape={self.shape}, Received: value.shape={array.shape}. "
                f"Target variable: {self}"
            )
        self._set(array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._value, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return (
            f"<Variable path={self.path}, shape={self.shape}, dtype={self.dtype}, "
            f"value={self._value}>"
        )


class SeedGenerator:
    """The seeds of successive draws, as ``keras.random.SeedGenerator`` has them.

    Parameters
    ----------
    seed : int, optional
        Drawn from Python's `random` where it is not given.
    path : str
        Path of the layer.
    """

    def __init__(self, seed: int | None, path: str) -> None:
        if not isinstance(seed, int | None):
            raise ValueError(
                f"Argument `seed` must be an integer. Received: seed={seed}"
            )
        self.state = Variable(
            seed_state(default_seed() if seed is None else seed),
            f"{path}/seed_generator/seed_generator_state",
            trainable=False,
        )

    def next(self) -> Array:
        """Return the seed of the next draw: [seed, number of draws before]."""
        seed = self.state.value
        self.state.assign(seed + np.array([0, 1], np.uint32))
        return seed


_BLOCK = 1 << 16  # draws that are float64 at one time


def drops(rate: float, shape: tuple[int, ...], seeds: SeedGenerator) -> dict[str, Any]:
    """Return the options of dropout: the draws of Keras's NumPy backend.

    Parameters
    ----------
    rate : float
        Fraction of the weights that is dropped.
    shape : tuple of int
        That of the weights.
    seeds : SeedGenerator
        Gives the seed; Keras asks for none if everything is dropped.
    """
    if rate == 1:
        return {"dropout_p": 1.0}
    generator = np.random.default_rng(seeds.next())
    keep = np.empty(shape, np.bool_)
    flat = keep.reshape(-1)
    for begin in range(0, flat.size, _BLOCK):
        block = flat[begin : begin + _BLOCK]
        np.less(generator.random(block.size), 1.0 - rate, out=block)
    return {"dropout_p": rate, "dropout_mask": keep}
