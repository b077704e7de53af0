# SPDX-License-Identifier: MIT
"""Dtype policies: the dtypes that a layer keeps its weights and computes in."""

from __future__ import annotations

from typing import Any

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_MIXED = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}


class DTypePolicy:
    """The dtypes of a layer, by name.

    Parameters
    ----------
    name : str
        float32, float16, bfloat16 or float64 for weights and computation alike;
        mixed_float16 or mixed_bfloat16 for float32 weights.

    Raises
    ------
    TypeError
        The name is not a string.
    ValueError
        There is no such policy.
    """

    def __init__(self, name: str = "float32") -> None:
        if not isinstance(name, str):
            raise TypeError(
                "'name' must be a string, such as 'mixed_float16'. "
                f"Received: name={name} (of type {type(name)})"
            )
        self.name = name
        self.compute_dtype = _MIXED.get(name, name)
        self.variable_dtype = "float32" if name in _MIXED else name
        if self.compute_dtype not in _FLOATS:
            raise ValueError(
                f"Cannot convert '{name}' to a mixed precision DTypePolicy. Valid "
                "policies include 'mixed_float16', 'mixed_bfloat16', and the name of "
                "any float dtype such as 'float32'."
            )

    def get_config(self) -> dict[str, Any]:
        """Return what makes the policy again."""
        return {"name": self.name}

    def __repr__(self) -> str:
        return f'<DTypePolicy "{self.name}">'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTypePolicy) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def get(identifier: Any) -> DTypePolicy:
    """Return a policy from None, a name, a dtype, a Keras policy or a config dict."""
    if identifier is None:
        return DTypePolicy()
    if isinstance(identifier, DTypePolicy):
        return identifier
    if isinstance(identifier, dict):
        return DTypePolicy(identifier.get("config", {}).get("name"))
    if isinstance(identifier, str):
        return DTypePolicy(identifier)
    if identifier is float:
        return DTypePolicy("float32")
    for attribute in ("name", "__name__"):
        if isinstance(name := getattr(identifier, attribute, None), str):
            return DTypePolicy(name)
    raise ValueError(
        "Cannot interpret `dtype` argument. Expected a string or an instance of "
        f"DTypePolicy. Received: dtype={identifier}"
    )


def serialize(policy: DTypePolicy) -> dict[str, Any]:
    """Return the dict that Keras keeps a policy as."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": policy.get_config(),
        "registered_name": None,
    }
