# SPDX-License-Identifier: MIT
"""``keras.initializers`` for NumPy arrays."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from ._constants import STFT, Constant, Identity, Ones, Zeros
from ._draws import (
    Orthogonal,
    RandomInitializer,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
)
from ._initializer import Initializer
from ._random import SeedGenerator
from ._registry import Registry, numpy_dtype
from ._scaling import (
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LecunNormal,
    LecunUniform,
    VarianceScaling,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from ._initializer import Axes

__all__ = [
    "STFT",
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "IdentityInitializer",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "OrthogonalInitializer",
    "RandomInitializer",
    "RandomNormal",
    "RandomUniform",
    "STFTInitializer",
    "SeedGenerator",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
    "constant",
    "deserialize",
    "get",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "serialize",
    "stft",
    "truncated_normal",
    "variance_scaling",
    "zeros",
]

# Keras has each class by this name too.
constant, zeros, ones, identity, stft = Constant, Zeros, Ones, Identity, STFT
random_normal, random_uniform = RandomNormal, RandomUniform
truncated_normal, variance_scaling = TruncatedNormal, VarianceScaling
glorot_normal, glorot_uniform = GlorotNormal, GlorotUniform
lecun_normal, lecun_uniform = LecunNormal, LecunUniform
he_normal, he_uniform = HeNormal, HeUniform
orthogonal = OrthogonalInitializer = Orthogonal
IdentityInitializer, STFTInitializer = Identity, STFT

_REGISTRY: Registry[Initializer] = Registry(
    "initializer",
    "keras.initializers",
    [
        Constant,
        GlorotNormal,
        GlorotUniform,
        HeNormal,
        HeUniform,
        Identity,
        LecunNormal,
        LecunUniform,
        Ones,
        Orthogonal,
        RandomNormal,
        RandomUniform,
        STFT,
        TruncatedNormal,
        VarianceScaling,
        Zeros,
    ],
    aliases={
        "IdentityInitializer": Identity,
        "OrthogonalInitializer": Orthogonal,
        "STFTInitializer": STFT,
        "normal": RandomNormal,
        "one": Ones,
        "uniform": RandomUniform,
        "zero": Zeros,
    },
    elsewhere={Initializer: "keras"},
)


def get(identifier: Any) -> Initializer | None:
    """Find an initializer, as ``keras.initializers.get``.

    Parameters
    ----------
    identifier : None, str, dict, type, Initializer, callable or ndarray
        A name ("glorot_uniform" or "GlorotUniform"), a config, a class, an instance
        (also one of Keras's own), a callable of ``(shape, dtype)``, or the values.

    Returns
    -------
    Initializer or None
        None for None.

    Raises
    ------
    TypeError
        A config has arguments that the class has not, or names no module.
    ValueError
        The identifier means nothing.

    Notes
    -----
    Differences from Keras: a plain callable, and values, come back as an
    `Initializer`, which can be cloned; "constant" alone is 0, an error there.

    Examples
    --------
    >>> from cpuattn.compat.keras import initializers
    >>> initializers.get({"class_name": "HeNormal", "config": {"seed": 3}}).seed
    3
    """
    if isinstance(identifier, np.ndarray | np.generic):
        identifier = _filler(identifier)
    return _REGISTRY.get(identifier, _adapt)


def serialize(initializer: Any) -> Any:
    """Describe an initializer, as ``keras.initializers.serialize``.

    Parameters
    ----------
    initializer : Initializer, function, str or None

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
    >>> from cpuattn.compat.keras import initializers
    >>> initializers.serialize(initializers.Ones())["class_name"]
    'Ones'
    """
    if isinstance(initializer, _Adapted):
        initializer = initializer.function
    return _REGISTRY.serialize(initializer)


def deserialize(
    config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Initializer:
    """Make the initializer that a config describes, as Keras's ``deserialize``.

    Parameters
    ----------
    config : dict
        What `serialize` returns.
    custom_objects : mapping, optional
        Classes that are not Keras's, by name.

    Returns
    -------
    Initializer

    Raises
    ------
    TypeError
        The config has arguments that the class has not, or names no module.
    ValueError
        There is no such class.

    Examples
    --------
    >>> from cpuattn.compat.keras import initializers
    >>> config = initializers.serialize(initializers.Constant(3.0))
    >>> float(initializers.deserialize(config)(()))
    3.0
    """
    return _REGISTRY.deserialize(config, custom_objects)


class _Adapted(Initializer):
    """A callable of (shape, dtype) alone, with the interface of an initializer."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(
        self,
        shape: Sequence[int],
        dtype: DTypeLike | None = np.float32,
        *,
        input_axes: Axes = None,
        output_axes: Axes = None,
        generator: np.random.Generator | None = None,
    ) -> NDArray[Any]:
        dtype = numpy_dtype(dtype)
        # Keras passes the name of the dtype.
        values = self.function(tuple(shape), dtype=dtype.name)
        return np.asarray(values).astype(dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.function.get_config()
        return config

    def clone(self) -> Initializer:
        """Clone what has a config; a plain function is its own clone."""
        if not hasattr(self.function, "get_config"):
            return self
        cls = type(self.function)
        return _Adapted(cls.from_config(self.function.get_config()))


def _adapt(function: Any) -> Initializer:
    """Return an initializer that takes all arguments of `Initializer`."""
    takes = inspect.signature(function).parameters
    if isinstance(function, Initializer) and "input_axes" in takes:
        return function
    return _Adapted(function)


def _filler(values: Any) -> Any:
    """Return a function that gives these values, of the only shape that fits."""

    def initialize_fn(shape: tuple[int, ...], dtype: Any = None) -> Any:
        if tuple(shape) != values.shape:
            raise ValueError(
                f"Expected `shape` to be {values.shape} for direct tensor as "
                f"initializer. Received shape={shape}"
            )
        return values

    return initialize_fn
