# SPDX-License-Identifier: MIT
"""``keras.regularizers`` for NumPy arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ._registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "serialize",
]

# Norms below it count as it, as keras.config.epsilon() has it.
_EPSILON = 1e-7


class Regularizer:
    """Base of all regularizers: a callable that gives an array's penalty."""

    def __call__(self, x: NDArray[Any]) -> float:
        """Compute the penalty.

        Parameters
        ----------
        x : ndarray, floating
            Computed with in its dtype; float16 and bfloat16 in float32.

        Returns
        -------
        float
        """
        return float(self._penalty(_wide(x)))

    def _penalty(self, x: NDArray[Any]) -> Any:
        return 0.0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make a regularizer like this one."""
        raise NotImplementedError(f"{self} does not implement get_config()")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a regularizer from its arguments."""
        return cls(**config)


class L1(Regularizer):
    """Sum of absolute values, as ``keras.regularizers.L1``.

    Parameters
    ----------
    l1 : float
        Factor of the sum; finite and at least 0. Rounded to float32, as in Keras.

    Raises
    ------
    ValueError
        The factor is another.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.keras import regularizers
    >>> regularizers.L1(0.5)(np.array([1.0, -3.0]))
    2.0
    """

    def __init__(self, l1: float | None = 0.01) -> None:
        self.l1 = float(np.float32(_factor(0.01 if l1 is None else l1, "l1")))

    def _penalty(self, x: NDArray[Any]) -> Any:
        return x.dtype.type(self.l1) * np.abs(x).sum()

    def get_config(self) -> dict[str, Any]:
        """Return ``{"l1": ...}``."""
        return {"l1": self.l1}


class L2(Regularizer):
    """Sum of squares, as ``keras.regularizers.L2``.

    Parameters
    ----------
    l2 : float
        Factor of the sum; finite and at least 0.

    Raises
    ------
    ValueError
        The factor is another.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.keras import regularizers
    >>> regularizers.get("l2")(np.array([10.0]))
    1.0
    """

    def __init__(self, l2: float | None = 0.01) -> None:
        self.l2 = _factor(0.01 if l2 is None else l2, "l2")

    def _penalty(self, x: NDArray[Any]) -> Any:
        return x.dtype.type(self.l2) * np.square(x).sum()

    def get_config(self) -> dict[str, Any]:
        """Return ``{"l2": ...}``."""
        return {"l2": self.l2}


class L1L2(Regularizer):
    """Sum of absolute values and sum of squares, as ``keras.regularizers.L1L2``.

    Parameters
    ----------
    l1, l2 : float
        Factors of the two sums; finite and at least 0.

    Raises
    ------
    ValueError
        A factor is another.
    """

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = _factor(0.0 if l1 is None else l1, "l1")
        self.l2 = _factor(0.0 if l2 is None else l2, "l2")

    def _penalty(self, x: NDArray[Any]) -> Any:
        penalty = x.dtype.type(0)
        # A factor of 0 must hide Inf, which it would make NaN.
        if self.l1 != 0.0:
            penalty += x.dtype.type(self.l1) * np.abs(x).sum()
        if self.l2 != 0.0:
            penalty += x.dtype.type(self.l2) * np.square(x).sum()
        return penalty

    def get_config(self) -> dict[str, Any]:
        """Return ``{"l1": ..., "l2": ...}``."""
        return {"l1": self.l1, "l2": self.l2}


class OrthogonalRegularizer(Regularizer):
    """Mean of the products of unit vectors, as ``keras.regularizers`` has it.

    Parameters
    ----------
    factor : float
        Factor of the mean; finite and at least 0. Rounded to float32, as in Keras.
    mode : {"rows", "columns"}
        What the vectors are.

    Raises
    ------
    ValueError
        An argument has another value, or, on a call, `x` is not a matrix.

    Notes
    -----
    Differences from Keras: an array and a variable give the same penalty; Keras
    divides the columns of an array by other columns' norms. One vector gives NaN.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = float(np.float32(_factor(factor, "factor")))
        if mode not in ("rows", "columns"):
            raise ValueError(
                "Invalid value for argument `mode`. Expected one of "
                f'{{"rows", "columns"}}. Received: mode={mode}'
            )
        self.mode = mode

    def _penalty(self, x: NDArray[Any]) -> Any:
        if x.ndim != 2:
            raise ValueError(
                "Inputs to OrthogonalRegularizer must have rank 2. Received: "
                f"inputs.shape={x.shape}"
            )
        vectors = x if self.mode == "rows" else x.T
        norms = np.sqrt(np.square(vectors).sum(1, keepdims=True))
        vectors = vectors / np.maximum(norms, _EPSILON)
        products = np.abs(vectors @ vectors.T)
        np.fill_diagonal(products, 0)
        pairs = len(vectors) * (len(vectors) - 1) / 2
        if pairs == 0:
            return math.nan
        return products.dtype.type(self.factor) / 2 * products.sum() / pairs

    def get_config(self) -> dict[str, Any]:
        """Return ``{"factor": ..., "mode": ...}``."""
        return {"factor": self.factor, "mode": self.mode}


l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer

_REGISTRY: Registry[Regularizer] = Registry(
    "regularizer",
    "keras.regularizers",
    [L1, L1L2, L2, OrthogonalRegularizer],
    aliases={"l1_l2": L1L2},
    elsewhere={Regularizer: "keras"},
)


def get(identifier: Any) -> Any:
    """Find a regularizer, as ``keras.regularizers.get``.

    Parameters
    ----------
    identifier : None, str, dict, type, Regularizer or callable
        A name ("l1", "l2", "l1_l2", "orthogonal_regularizer", or that of the class),
        a config, a class, an instance (also one of Keras's own), or a callable of an
        array.

    Returns
    -------
    Regularizer, callable or None
        None for None, the same object for a callable from elsewhere.

    Raises
    ------
    TypeError
        A config has arguments that the class has not, or names no module.
    ValueError
        The identifier means nothing.

    Notes
    -----
    Differences from Keras: "l1_l2", which Keras documents and refuses, has the factors
    that it documents: 0.01 and 0.01.

    Examples
    --------
    >>> from cpuattn.compat.keras import regularizers
    >>> regularizers.get("l2").get_config()
    {'l2': 0.01}
    """
    if isinstance(identifier, str) and identifier == "l1_l2":
        return L1L2(0.01, 0.01)
    return _REGISTRY.get(identifier, _as_it_is)


def serialize(regularizer: Any) -> Any:
    """Describe a regularizer, as ``keras.regularizers.serialize``.

    Parameters
    ----------
    regularizer : Regularizer, function, str or None

    Returns
    -------
    dict
        Equal to Keras's; a name and None are returned as they are.

    Raises
    ------
    TypeError
        It is a lambda, of which Keras saves the code.

    Examples
    --------
    >>> from cpuattn.compat.keras import regularizers
    >>> regularizers.serialize(regularizers.L2(0.5))["config"]
    {'l2': 0.5}
    """
    return _REGISTRY.serialize(regularizer)


def deserialize(
    config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Regularizer:
    """Make the regularizer that a config describes, as Keras's ``deserialize``.

    Parameters
    ----------
    config : dict
        What `serialize` returns.
    custom_objects : mapping, optional
        Classes that are not Keras's, by name.

    Returns
    -------
    Regularizer

    Raises
    ------
    TypeError
        The config has arguments that the class has not, or names no module.
    ValueError
        There is no such class.

    Examples
    --------
    >>> from cpuattn.compat.keras import regularizers
    >>> regularizers.deserialize({"class_name": "L2", "config": {"l2": 0.5}}).l2
    0.5
    """
    return _REGISTRY.deserialize(config, custom_objects)


def _as_it_is(function: Any) -> Any:
    return function


def _factor(value: Any, name: str) -> float:
    if not isinstance(value, float | int) or not 0 <= value < math.inf:
        raise ValueError(
            f"Invalid value for argument {name}: expected a non-negative float. "
            f"Received: {name}={value}"
        )
    return float(value)


def _wide(x: NDArray[Any]) -> NDArray[Any]:
    """Return float16 and bfloat16, whose sums overflow or stall, as float32."""
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
