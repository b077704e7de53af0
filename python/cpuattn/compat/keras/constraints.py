# SPDX-License-Identifier: MIT
"""``keras.constraints`` for NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ._registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Axis = int | Sequence[int]

__all__ = [
    "Constraint",
    "MaxNorm",
    "MinMaxNorm",
    "NonNeg",
    "UnitNorm",
    "deserialize",
    "get",
    "max_norm",
    "min_max_norm",
    "non_neg",
    "serialize",
    "unit_norm",
]

# Keeps norms of 0 from dividing, as keras.config.epsilon() does.
_EPSILON = 1e-7


class Constraint:
    """Base of all constraints: a callable that moves a weight to where it may be.

    Notes
    -----
    Differences from Keras: float64 stays float64, of which Keras makes float32.
    """

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        """Return the nearest weight that is allowed.

        Parameters
        ----------
        w : ndarray, floating

        Returns
        -------
        ndarray, shape and dtype of w
        """
        return np.asarray(self._projected(w))

    def _projected(self, w: NDArray[Any]) -> Any:
        return w

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make a constraint like this one."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a constraint from its arguments."""
        return cls(**config)


class NonNeg(Constraint):
    """Raise negative weights to 0, as ``keras.constraints.NonNeg``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.keras import constraints
    >>> constraints.NonNeg()(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def _projected(self, w: NDArray[Any]) -> Any:
        return np.maximum(w, w.dtype.type(0))


class MinMaxNorm(Constraint):
    """Limit norms from both sides, as ``keras.constraints.MinMaxNorm``.

    Parameters
    ----------
    min_value, max_value : float
    rate : float
        Share of the way to the limit that one call goes; 1 goes all the way.
    axis : int or sequence of int
        Axes of the vectors that have the norms.
    """

    def __init__(
        self,
        min_value: float = 0.0,
        max_value: float = 1.0,
        rate: float = 1.0,
        axis: Axis = 0,
    ) -> None:
        self.min_value, self.max_value = min_value, max_value
        self.rate, self.axis = rate, axis

    def _projected(self, w: NDArray[Any]) -> Any:
        norms = _norms(w, self.axis)
        limited = np.clip(norms, self.min_value, self.max_value).astype(norms.dtype)
        desired = self.rate * limited + (1 - self.rate) * norms
        return w * (desired / (_EPSILON + norms))

    def get_config(self) -> dict[str, Any]:
        """Return the four arguments."""
        return {
            "min_value": self.min_value,
            "max_value": self.max_value,
            "rate": self.rate,
            "axis": self.axis,
        }


class MaxNorm(Constraint):
    """Limit norms from above, as ``keras.constraints.MaxNorm``.

    Parameters
    ----------
    max_value : float
    axis : int or sequence of int
        Axes of the vectors that have the norms.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.keras import constraints
    >>> constraints.MaxNorm(1)(np.array([[3.0], [4.0]])).round(3).tolist()
    [[0.6], [0.8]]
    """

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        self.max_value, self.axis = max_value, axis

    def _projected(self, w: NDArray[Any]) -> Any:
        norms = _norms(w, self.axis)
        desired = np.clip(norms, 0, self.max_value).astype(norms.dtype)
        return w * (desired / (_EPSILON + norms))

    def get_config(self) -> dict[str, Any]:
        """Return both arguments."""
        return {"max_value": self.max_value, "axis": self.axis}


class UnitNorm(Constraint):
    """Divide by norms, as ``keras.constraints.UnitNorm``.

    Parameters
    ----------
    axis : int or sequence of int
        Axes of the vectors that have the norms.
    """

    def __init__(self, axis: Axis = 0) -> None:
        self.axis = axis

    def _projected(self, w: NDArray[Any]) -> Any:
        return w / (_EPSILON + _norms(w, self.axis))

    def get_config(self) -> dict[str, Any]:
        """Return ``{"axis": ...}``."""
        return {"axis": self.axis}


max_norm, min_max_norm, non_neg, unit_norm = MaxNorm, MinMaxNorm, NonNeg, UnitNorm

_REGISTRY: Registry[Constraint] = Registry(
    "constraint",
    "keras.constraints",
    [Constraint, MaxNorm, MinMaxNorm, NonNeg, UnitNorm],
)


def get(identifier: Any) -> Any:
    """Find a constraint, as ``keras.constraints.get``.

    Parameters
    ----------
    identifier : None, str, dict, type, Constraint or callable
        A name ("max_norm" or "MaxNorm"), a config, a class, an instance (also one of
        Keras's own), or a callable of an array.

    Returns
    -------
    Constraint, callable or None
        None for None, the same object for a callable from elsewhere.

    Raises
    ------
    TypeError
        A config has arguments that the class has not, or names no module.
    ValueError
        The identifier means nothing.

    Examples
    --------
    >>> from cpuattn.compat.keras import constraints
    >>> constraints.get("unit_norm").get_config()
    {'axis': 0}
    """
    return _REGISTRY.get(identifier, _as_it_is)


def serialize(constraint: Any) -> Any:
    """Describe a constraint, as ``keras.constraints.serialize``.

    Parameters
    ----------
    constraint : Constraint, function, str or None

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
    >>> from cpuattn.compat.keras import constraints
    >>> constraints.serialize(constraints.MaxNorm(3))["config"]
    {'max_value': 3, 'axis': 0}
    """
    return _REGISTRY.serialize(constraint)


def deserialize(
    config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Constraint:
    """Make the constraint that a config describes, as Keras's ``deserialize``.

    Parameters
    ----------
    config : dict
        What `serialize` returns.
    custom_objects : mapping, optional
        Classes that are not Keras's, by name.

    Returns
    -------
    Constraint

    Raises
    ------
    TypeError
        The config has arguments that the class has not, or names no module.
    ValueError
        There is no such class.

    Examples
    --------
    >>> from cpuattn.compat.keras import constraints
    >>> config = {"class_name": "MaxNorm", "config": {"axis": 1}}
    >>> constraints.deserialize(config).axis
    1
    """
    return _REGISTRY.deserialize(config, custom_objects)


def _as_it_is(function: Any) -> Any:
    return function


def _norms(w: NDArray[Any], axis: Axis) -> NDArray[Any]:
    axes = axis if isinstance(axis, int) else tuple(axis)
    return np.asarray(np.sqrt(np.square(w).sum(axes, keepdims=True)))
