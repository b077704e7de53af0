"""Tensors of other libraries: their DLPack capsules, and results in their kind.

The native functions call these two.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost (pinned host memory)
_REFUSALS = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


def capsule(name: str, tensor: Any) -> Any:
    """Return the DLPack capsule of a CPU tensor."""
    if getattr(tensor, "requires_grad", False):
        if sys.modules["torch"].is_grad_enabled():
            raise TypeError(
                f"{name}: must not require grad, cpuattn has no backward pass; got "
                "requires_grad=True, use .detach() or torch.no_grad()"
            )
        tensor = tensor.detach()
    if hasattr(tensor, "is_neg") and tensor.is_neg():  # which DLPack would lose
        raise TypeError(
            f"{name}: must hold its numbers, not their negatives; got torch's negative "
            "bit set, use .resolve_neg()"
        )
    try:
        device = tensor.__dlpack_device__()[0]
        if device in _CPU_DEVICES:
            return _dlpack(tensor)
    except _REFUSALS as error:
        raise TypeError(
            f"{name}: must be a CPU tensor in plain memory; got {type(tensor)}: {error}"
        ) from error
    raise TypeError(f"{name}: must be on the CPU; got DLPack device type {int(device)}")


def in_kind(result: Any, like: Any) -> Any:
    """Hand a result to the library that `like` comes from, without a copy."""
    for kind in type(like).__mro__:
        root = kind.__module__.partition(".")[0]
        module = sys.modules.get("jax.numpy" if root in ("jax", "jaxlib") else root)
        if module is not None and hasattr(module, "from_dlpack"):
            return module.from_dlpack(result)
    try:
        return np.from_dlpack(result)
    except (BufferError, RuntimeError):  # bfloat16, which NumPy does not know
        return result


def _dlpack(tensor: Any) -> Any:
    try:
        return tensor.__dlpack__(max_version=(1, 0))
    except TypeError:  # the argument is younger than the library
        return tensor.__dlpack__()
