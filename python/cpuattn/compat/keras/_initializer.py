# SPDX-License-Identifier: MIT
"""What all initializers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ._registry import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    Axes = Sequence[int] | None
    Shape = tuple[int, ...]


class Initializer:
    """Base of all initializers: a callable that fills an array of a shape.

    A subclass overrides `__call__`, as in Keras; ``(shape, dtype)`` are parameters
    enough.

    Examples
    --------
    >>> from cpuattn.compat.keras import initializers
    >>> initializers.get("glorot_uniform")((64, 8, 32)).shape
    (64, 8, 32)
    """

    def __call__(
        self,
        shape: Sequence[int],
        dtype: DTypeLike | None = np.float32,
        *,
        input_axes: Axes = None,
        output_axes: Axes = None,
        generator: np.random.Generator | None = None,
    ) -> NDArray[Any]:
        """Make an array.

        Parameters
        ----------
        shape : sequence of int
        dtype : dtype, optional
            None is float32; "bfloat16" needs ml_dtypes.
        input_axes, output_axes : sequence of int, optional
            Axes of the input and of the output units, where the initializer asks for
            their numbers and has no axes of its own. Without them the last axis is
            the output and the one before it the input, as in a convolution.
        generator : numpy.random.Generator, optional
            Source of the draws, in place of the seed.

        Returns
        -------
        ndarray of the shape and dtype

        Raises
        ------
        NotImplementedError
            The class does not say how.
        ValueError
            The initializer cannot fill an array of this shape.
        """
        axes = (input_axes, output_axes)
        return self._values(tuple(shape), numpy_dtype(dtype), axes, generator)

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: tuple[Axes, Axes],
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        raise NotImplementedError(
            "Initializer subclasses must implement the `__call__()` method."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an initializer like this one."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an initializer from its arguments."""
        return cls(**config)

    def clone(self) -> Initializer:
        """Make an initializer from the config of this one.

        With an integer seed it draws the same numbers, without one others.
        """
        return type(self).from_config(self.get_config())
