# SPDX-License-Identifier: MIT
"""Initializers that draw nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._optional import require
from ._initializer import Initializer
from ._registry import from_plain, to_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._initializer import Shape

# Windows that are sums of cosines: the coefficients.
_COSINES = {
    "boxcar": (1.0,),
    "hann": (0.5, 0.5),
    "hamming": (0.54, 0.46),
    "blackman": (0.42, 0.50, 0.08),
}


class Constant(Initializer):
    """Fill with one value, as ``keras.initializers.Constant``.

    Parameters
    ----------
    value : scalar, or array that broadcasts to the shape
    """

    def __init__(self, value: Any = 0.0) -> None:
        self.value = value

    def _values(self, shape: Shape, dtype: np.dtype[Any], *_: Any) -> NDArray[Any]:
        return np.full(shape, self.value, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return ``{"value": ...}``."""
        return {"value": to_plain(self.value)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the initializer; without a value, which Keras refuses, it is 0."""
        return cls(**{name: from_plain(value) for name, value in config.items()})


class Zeros(Initializer):
    """Fill with 0, as ``keras.initializers.Zeros``."""

    def _values(self, shape: Shape, dtype: np.dtype[Any], *_: Any) -> NDArray[Any]:
        return np.zeros(shape, dtype)


class Ones(Initializer):
    """Fill with 1, as ``keras.initializers.Ones``."""

    def _values(self, shape: Shape, dtype: np.dtype[Any], *_: Any) -> NDArray[Any]:
        return np.ones(shape, dtype)


class Identity(Initializer):
    """Make an identity matrix, as ``keras.initializers.Identity``.

    Parameters
    ----------
    gain : float
        Factor of the matrix.

    Notes
    -----
    Differences from Keras: the config has a gain other than 1, which Keras forgets
    whenever it clones or saves the initializer.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def _values(self, shape: Shape, dtype: np.dtype[Any], *_: Any) -> NDArray[Any]:
        if len(shape) != 2:
            raise ValueError(
                "Identity matrix initializer can only be used for 2D matrices. "
                f"Received: shape={shape} of rank {len(shape)}."
            )
        return np.asarray(self.gain * np.eye(*shape, dtype=dtype))

    def get_config(self) -> dict[str, Any]:
        """Return ``{}``, or ``{"gain": ...}`` where it is not 1."""
        return {} if self.gain == 1.0 else {"gain": self.gain}


class STFT(Initializer):
    """Make kernels of a short-time Fourier transform, as ``keras.initializers.STFT``.

    Parameters
    ----------
    side : {"real", "imag"}
    window : str, array_like or None
        "hann", "hamming", "blackman", "boxcar", another name that SciPy has (then it
        must be installed), or the values.
    scaling : {"density", "spectrum"} or None
        Division by the L2 norm or the sum of the window.
    periodic : bool
        A periodic window in place of a symmetric one.

    Raises
    ------
    ImportError
        The window needs SciPy, and it is not installed.
    ValueError
        An argument has another value, or, on a call, the shape is not
        (window length, 1, bands).
    """

    def __init__(
        self,
        side: str = "real",
        window: Any = "hann",
        scaling: str | None = "density",
        periodic: bool = False,
    ) -> None:
        if side not in ("real", "imag"):
            raise ValueError(f"side should be 'real' or 'imag', not {side}")
        if scaling not in (None, "density", "spectrum"):
            raise ValueError(
                "Scaling is invalid, it must be `None`, 'density' or 'spectrum'. "
                f"Received scaling={scaling}"
            )
        self.side, self.window = side, window
        self.scaling, self.periodic = scaling, periodic
        if isinstance(window, str):  # an unknown name is an error here
            _window(window, 1, periodic)

    def _values(self, shape: Shape, dtype: np.dtype[Any], *_: Any) -> NDArray[Any]:
        length, _channels, bands = shape
        time = np.arange(length, dtype=dtype).reshape(length, 1, 1)
        # As one division and two products, in this order, to be Keras's to the bit.
        freq = np.arange(bands, dtype=dtype) / dtype.type((bands - 1) * 2)
        angles = dtype.type(-2) * time * freq * np.arccos(dtype.type(-1))
        wave = np.cos if self.side == "real" else np.sin
        kernel: NDArray[Any] = wave(angles)
        if self.window is None:
            return kernel
        window: Any = self.window
        if isinstance(window, str):
            window = _window(window, length, self.periodic)
        window = np.asarray(window, dtype)
        if window.shape != (length,):
            raise ValueError(
                "The shape of `window` must be equal to [frame_length]. "
                f"Received: window shape={window.shape}"
            )
        scale = dtype.type(1)
        if self.scaling == "density":
            scale = np.sqrt(np.square(window).sum())
        elif self.scaling == "spectrum":
            scale = np.abs(window).sum()
        return np.asarray(kernel * window[:, None, None] / scale)

    def get_config(self) -> dict[str, Any]:
        """Return the four arguments."""
        return {
            "side": self.side,
            "window": self.window,
            "periodic": self.periodic,
            "scaling": self.scaling,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the initializer, also from a window saved as numbers."""
        return cls(**{name: from_plain(value) for name, value in config.items()})


def _window(name: str, length: int, periodic: bool) -> NDArray[np.float64]:
    """Compute a window as ``scipy.signal.get_window``."""
    if name not in _COSINES:
        signal = require("scipy.signal", f"window {name!r}")
        return np.asarray(signal.get_window(name, length, periodic))
    if length <= 1:
        return np.ones(length)
    angles = np.linspace(-np.pi, np.pi, length + periodic)[:length]
    terms = [a * np.cos(k * angles) for k, a in enumerate(_COSINES[name])]
    return np.asarray(sum(terms))
