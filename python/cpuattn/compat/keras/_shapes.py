# SPDX-License-Identifier: MIT
"""What Keras demands of the shapes of a layer's inputs."""

from __future__ import annotations

Shape = tuple[int | None, ...]


def feature_size(shape: Shape) -> int:
    """Return the last axis of an input, which must have 3."""
    if len(shape) < 3:
        raise IndexError(f"shape: must be (batch, length, features); got {shape}")
    if len(shape) > 3 or not isinstance(shape[2], int):
        raise ValueError(f"shape: must be (batch, length, features); got {shape}")
    return shape[2]


def output_shape(
    query_shape: Shape, value_shape: Shape, key_shape: Shape | None
) -> Shape:
    """Return the shape of the output, by the rules for symbolic inputs."""
    key_shape = value_shape if key_shape is None else key_shape
    if query_shape[-1] != value_shape[-1]:
        raise ValueError(
            "The last dimension of `query_shape` and `value_shape` must be equal, "
            f"but are {query_shape[-1]}, {value_shape[-1]}. Received: "
            f"query_shape={query_shape}, value_shape={value_shape}"
        )
    if value_shape[1:-1] != key_shape[1:-1]:
        raise ValueError(
            "All dimensions of `value` and `key`, except the last one, must be equal. "
            f"Received: value_shape={value_shape} and key_shape={key_shape}"
        )
    return query_shape
