# SPDX-License-Identifier: MIT
"""The projections of a layer: ``EinsumDense`` as one matrix product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._policy import DTypePolicy
from ._registry import numpy_dtype
from ._weights import Array, Variable


class Projection:
    """Contract the last axes of an array with a kernel, and add a bias.

    Parameters
    ----------
    path : str
        Path of the layer and name of the projection.
    inputs, outputs : tuple of int
        Sizes of the axes that go in and come out: the kernel is (*inputs, *outputs).
    policy : DTypePolicy
        Dtypes of the layer.
    kernel_initializer, bias_initializer
        The bias is left out where its initializer is None.
    options : mapping
        kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint.

    Notes
    -----
    The product is in float32 for 16-bit policies, with a float32 copy of the weights
    that is kept until they change: NumPy has no fast product of 16-bit numbers.
    """

    def __init__(
        self,
        path: str,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        policy: DTypePolicy,
        kernel_initializer: Any,
        bias_initializer: Any,
        **options: Any,
    ) -> None:
        self.name = path.rpartition("/")[2]
        self.inputs, self.outputs = inputs, outputs
        self._compute = numpy_dtype(policy.compute_dtype)
        self._wide = wide_dtype(policy)
        dtype = numpy_dtype(policy.variable_dtype)
        split, rank = len(inputs), len(inputs) + len(outputs)
        value = kernel_initializer(
            (*inputs, *outputs),
            dtype,
            input_axes=[*range(split)],
            output_axes=[*range(split, rank)],
        )
        self.kernel = Variable(
            value,
            f"{path}/kernel",
            regularizer=options.get("kernel_regularizer"),
            constraint=options.get("kernel_constraint"),
        )
        self.bias: Variable | None = None
        if bias_initializer is not None:
            self.bias = Variable(
                bias_initializer(outputs, dtype),
                f"{path}/bias",
                regularizer=options.get("bias_regularizer"),
                constraint=options.get("bias_constraint"),
            )
        self._source: tuple[Array | None, ...] = (None, None)
        self._product: tuple[Array, Array | None] = (np.empty((0, 0)), None)

    @property
    def weights(self) -> list[Variable]:
        """The kernel, and the bias if there is one."""
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]

    def _matrices(self) -> tuple[Array, Array | None]:
        """Return kernel and bias as they are multiplied and added."""
        kernel = self.kernel.value
        bias = None if self.bias is None else self.bias.value
        if kernel is not self._source[0] or bias is not self._source[1]:
            rows, columns = math.prod(self.inputs), math.prod(self.outputs)
            self._source = kernel, bias
            self._product = (
                self._widened(kernel).reshape(rows, columns),
                None if bias is None else self._widened(bias).reshape(columns),
            )
        return self._product

    def _widened(self, weight: Array) -> Array:
        narrow = weight.astype(self._compute, copy=False)
        return narrow.astype(self._wide, copy=False)

    def __call__(self, x: Array) -> Array:
        """Project `x`, of shape (batch, length, *inputs), to (batch, length, *outputs).

        Both are in the wide dtype of the policy.
        """
        batch, length, *inputs = x.shape
        if tuple(inputs) != self.inputs:
            raise ValueError(
                f"{self.name}: input must be (batch, length, "
                f"{', '.join(map(str, self.inputs))}), as built; got shape {x.shape}"
            )
        kernel, bias = self._matrices()
        out: Array = x.reshape(batch * length, len(kernel)) @ kernel
        if bias is not None:
            out += bias
        return out.reshape(batch, length, *self.outputs)


def wide_dtype(policy: DTypePolicy) -> np.dtype[Any]:
    """Return the dtype that products of a policy are computed in."""
    return np.dtype("float64" if policy.compute_dtype == "float64" else "float32")


def sigmoid(x: Array) -> Array:
    """Replace `x` by 1 / (1 + exp(-x)), which is 0 where exp overflows."""
    with np.errstate(over="ignore"):
        np.exp(np.negative(x, out=x), out=x)
    x += 1
    return np.reciprocal(x, out=x)
