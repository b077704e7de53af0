# SPDX-License-Identifier: MIT
"""What every layer has: a name, dtypes, weights, losses and a config."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import _policy, saving

if TYPE_CHECKING:
    import os

    from ._weights import Array, Variable

_names: Counter[str] = Counter()


def auto_name(class_name: str) -> str:
    """Return the class name in snake case, with a number from the second one on."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()
    number = _names[name]
    _names[name] += 1
    return f"{name}_{number}" if number else name


class Layer:
    """A function with weights, as ``keras.layers.Layer``.

    A subclass fills `_variables` when it is built, and `_losses` when it is called.

    Parameters
    ----------
    name : str, optional
        Made from the name of the class where it is not given.
    trainable : bool
        Whether `trainable_weights` lists the weights.
    dtype : str, dtype, config dict or policy, optional
        float32, float16, bfloat16, float64, mixed_float16 or mixed_bfloat16.
    **kwargs
        Nothing else is known.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ValueError(
                "Unrecognized keyword arguments passed to "
                f"{type(self).__name__}: {kwargs}"
            )
        if name is None:
            name = auto_name(type(self).__name__)
        if not isinstance(name, str) or "/" in name:
            raise ValueError(
                "Argument `name` must be a string and cannot contain character `/`. "
                f"Received: name={name} (of type {type(name)})"
            )
        if not isinstance(trainable, bool):
            raise ValueError(
                "Expected `trainable` to be a boolean. "
                f"Received: trainable={trainable} (of type {type(trainable)})"
            )
        self.name = name
        self.built = False
        self.dtype_policy = _policy.get(dtype)
        self._trainable = trainable
        self._variables: list[Variable] = []
        self._losses: list[float] = []

    @property
    def dtype(self) -> str:
        """Dtype of the weights."""
        return self.variable_dtype

    @property
    def variable_dtype(self) -> str:
        """Dtype of the weights."""
        return self.dtype_policy.variable_dtype

    @property
    def compute_dtype(self) -> str:
        """Dtype that inputs are cast to, and of the outputs."""
        return self.dtype_policy.compute_dtype

    @property
    def trainable(self) -> bool:
        """Whether `trainable_weights` lists the weights."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for weight in self.weights:
            weight.trainable = self._trainable

    @property
    def variables(self) -> list[Variable]:
        """The weights and the state of random generators."""
        return [*self._variables]

    @property
    def weights(self) -> list[Variable]:
        """The kernels and biases, in the order of `get_weights`."""
        return [v for v in self._variables if v.name != "seed_generator_state"]

    @property
    def trainable_variables(self) -> list[Variable]:
        """What training changes; nothing if the layer is not trainable."""
        return [v for v in self._variables if self._trainable and v.trainable]

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The variables that training does not change."""
        return [v for v in self._variables if not (self._trainable and v.trainable)]

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights that training changes."""
        return [w for w in self.weights if self._trainable and w.trainable]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The weights that training does not change."""
        return [w for w in self.weights if not (self._trainable and w.trainable)]

    @property
    def losses(self) -> list[float]:
        """Penalties: of the last call's activity, then of the trainable weights."""
        penalties = [
            float(weight.regularizer(weight.value))
            for weight in self.trainable_weights
            if weight.regularizer is not None
        ]
        return [*self._losses, *penalties]

    def get_weights(self) -> list[Array]:
        """Return copies of the weights as a list of arrays."""
        return [weight.numpy() for weight in self.weights]

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Set the weights from a list of arrays, which may come from Keras.

        Raises
        ------
        ValueError
            Their number or a shape differs; nothing is set then.
        """
        ours = self.weights
        if len(ours) != len(weights):
            raise ValueError(
                f"You called `set_weights(weights)` on layer '{self.name}' with a "
                f"weight list of length {len(weights)}, but the layer was expecting "
                f"{len(ours)} weights."
            )
        for weight, value in zip(ours, weights, strict=True):
            if weight.shape != np.shape(value):
                raise ValueError(
                    f"Layer {self.name} weight shape {weight.shape} is not compatible "
                    f"with provided weight shape {np.shape(value)}."
                )
        for weight, value in zip(ours, weights, strict=True):
            weight.assign(value)

    def apply_constraints(self) -> None:
        """Make every weight admissible, as an optimizer of Keras does after a step."""
        for weight in self.weights:
            if weight.constraint is not None:
                weight.assign(weight.constraint(weight.value))

    def count_params(self) -> int:
        """Return the number of elements of all weights.

        Raises
        ------
        ValueError
            The layer has no weights yet.
        """
        if not self.built:
            raise ValueError(
                f"You tried to call `count_params` on layer '{self.name}', but the "
                "layer isn't built. You can build it manually via: "
                "`layer.build(input_shape)`."
            )
        return sum(math.prod(weight.shape) for weight in self.weights)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all variables to a .npz file."""
        saving.save_npz(_State(self), path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read all variables from a .npz file that `save` wrote.

        Raises
        ------
        ValueError
            Names or shapes are not those of the layer; nothing is set then.
        """
        saving.load_npz(_State(self), path)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the layer again, as Keras writes them."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": _policy.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a layer from a config of `get_config`, Keras's or ours."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"


class _State:
    """The variables of a layer, the seed of dropout included, as weights to save."""

    def __init__(self, layer: Layer) -> None:
        self.weights = layer.variables

    def set_weights(self, values: Sequence[Array]) -> None:
        for variable, value in zip(self.weights, values, strict=True):
            variable.assign(value)
