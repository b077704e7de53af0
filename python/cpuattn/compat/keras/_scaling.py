# SPDX-License-Identifier: MIT
"""Initializers whose spread depends on the numbers of input and output units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._draws import RandomInitializer
from ._random import truncated_normal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._initializer import Axes, Shape
    from ._random import Seed

# The standard deviation of a standard normal distribution cut off at 2.
_TRUNCATED_STDDEV = 0.87962566103423978

_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")


class VarianceScaling(RandomInitializer):
    """Draw with the variance scale / n, as ``keras.initializers.VarianceScaling``.

    Parameters
    ----------
    scale : float
        Greater than 0.
    mode : {"fan_in", "fan_out", "fan_avg"}
        n is the number of input units, of output units, or their mean.
    distribution : {"truncated_normal", "untruncated_normal", "uniform"}
        "normal" is the first. The truncated one ends at two standard deviations of
        the normal distribution, and is made wider to have the variance.
    seed : int or SeedGenerator, optional
    input_axes, output_axes : sequence of int, optional
        Axes of the input and of the output units; those of the call without both.

    Raises
    ------
    ValueError
        An argument has another value.

    Examples
    --------
    A kernel of a query projection, (features, heads, head_dim):

    >>> from cpuattn.compat.keras.initializers import VarianceScaling
    >>> initializer = VarianceScaling(mode="fan_in", distribution="uniform", seed=1)
    >>> kernel = initializer((64, 8, 32), input_axes=[0], output_axes=[1, 2])
    >>> bool(abs(kernel).max() <= (3 / 64) ** 0.5)
    True
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: Seed = None,
        input_axes: Axes = None,
        output_axes: Axes = None,
    ) -> None:
        distribution = distribution.lower()
        if distribution == "normal":
            distribution = "truncated_normal"
        if not scale > 0.0:
            raise ValueError(
                f"Argument `scale` must be positive float. Received: scale={scale}"
            )
        if mode not in _MODES:
            raise ValueError(
                f"Invalid `mode` argument: {mode}. Please use one of {_MODES}"
            )
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(
                f"Invalid `distribution` argument: {distribution}. "
                f"Please use one of {_DISTRIBUTIONS}"
            )
        self.scale, self.mode, self.distribution = scale, mode, distribution
        self.input_axes, self.output_axes = input_axes, output_axes
        super().__init__(seed)

    def _values(
        self,
        shape: Shape,
        dtype: np.dtype[Any],
        axes: tuple[Axes, Axes],
        generator: np.random.Generator | None,
    ) -> NDArray[Any]:
        if self.input_axes is not None and self.output_axes is not None:
            axes = (self.input_axes, self.output_axes)
        fan_in, fan_out = compute_fans(shape, *axes)
        units = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2.0,
        }
        variance = self.scale / max(1.0, units[self.mode])
        draws = self._draws(generator)
        if self.distribution == "truncated_normal":
            stddev = math.sqrt(variance) / _TRUNCATED_STDDEV
            return truncated_normal(draws, shape, 0.0, stddev).astype(dtype)
        if self.distribution == "untruncated_normal":
            return draws.normal(0.0, math.sqrt(variance), shape).astype(dtype)
        limit = math.sqrt(3.0 * variance)
        return draws.uniform(-limit, limit, shape).astype(dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {
            "scale": self.scale,
            "mode": self.mode,
            "distribution": self.distribution,
            "input_axes": self.input_axes,
            "output_axes": self.output_axes,
        }


class _Named(VarianceScaling):
    """A `VarianceScaling` whose first three arguments are fixed."""

    _fixed: ClassVar[tuple[float, str, str]]

    def __init__(
        self, seed: Seed = None, input_axes: Axes = None, output_axes: Axes = None
    ) -> None:
        super().__init__(*self._fixed, seed, input_axes, output_axes)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        config = super().get_config()
        return {name: config[name] for name in ("seed", "input_axes", "output_axes")}


class GlorotUniform(_Named):
    """Draw evenly within sqrt(6 / (fan_in + fan_out)) of 0.

    As ``keras.initializers.GlorotUniform``; its arguments are the last three of
    `VarianceScaling`.

    References
    ----------
    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010.
    """

    _fixed = (1.0, "fan_avg", "uniform")


class GlorotNormal(_Named):
    """Draw a truncated normal distribution of variance 2 / (fan_in + fan_out).

    As ``keras.initializers.GlorotNormal``; its arguments are the last three of
    `VarianceScaling`.
    """

    _fixed = (1.0, "fan_avg", "truncated_normal")


class LecunUniform(_Named):
    """Draw evenly within sqrt(3 / fan_in) of 0.

    As ``keras.initializers.LecunUniform``; its arguments are the last three of
    `VarianceScaling`.
    """

    _fixed = (1.0, "fan_in", "uniform")


class LecunNormal(_Named):
    """Draw a truncated normal distribution of variance 1 / fan_in.

    As ``keras.initializers.LecunNormal``; its arguments are the last three of
    `VarianceScaling`.

    References
    ----------
    Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    """

    _fixed = (1.0, "fan_in", "truncated_normal")


class HeUniform(_Named):
    """Draw evenly within sqrt(6 / fan_in) of 0.

    As ``keras.initializers.HeUniform``; its arguments are the last three of
    `VarianceScaling`.

    References
    ----------
    He et al., "Delving Deep into Rectifiers", 2015.
    """

    _fixed = (2.0, "fan_in", "uniform")


class HeNormal(_Named):
    """Draw a truncated normal distribution of variance 2 / fan_in.

    As ``keras.initializers.HeNormal``; its arguments are the last three of
    `VarianceScaling`.
    """

    _fixed = (2.0, "fan_in", "truncated_normal")


def compute_fans(
    shape: Shape, input_axes: Axes = None, output_axes: Axes = None
) -> tuple[int, int]:
    """Count the input and output units of a kernel.

    With both kinds of axes their sizes count. Without, the last axis is the output
    and the one before it the input, each times the size of the axes before them: a
    convolution's kernel.
    """
    if input_axes is not None and output_axes is not None:
        fan_in, fan_out = (
            math.prod(shape[axis] for axis in axes)
            for axes in (input_axes, output_axes)
        )
        return fan_in, fan_out
    if len(shape) < 2:
        units = math.prod(shape)
        return units, units
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
