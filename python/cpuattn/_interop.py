"""Arrays of other libraries: viewed through DLPack, answered in the query's kind."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core

_ARRAYS = (
    "query",
    "key",
    "value",
    "mask",
    "bias",
    "causal",
    "alibi_slopes",
    "sinks",
    "q_lengths",
    "kv_lengths",
    "q_segment_ids",
    "kv_segment_ids",
    "dropout_mask",
    "out",
)
_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost (pinned host memory)


def attention(**arguments: Any) -> Any:
    """Run `attention` on arrays that speak DLPack; called by the native function."""
    query, out = arguments["query"], arguments.get("out")
    result = _core.attention(**_viewed(arguments))
    if isinstance(query, np.ndarray):
        return result
    if not isinstance(result, tuple):
        return out if out is not None else _in_kind(result, query)
    first = out if out is not None else _in_kind(result[0], query)
    return (first, *(_in_kind(array, query) for array in result[1:]))


def explain(**arguments: Any) -> dict[str, Any]:
    """Run `explain` on arrays that speak DLPack; called by the native function."""
    plan: dict[str, Any] = _core.explain(**_viewed(arguments))
    return plan


def _viewed(arguments: dict[str, Any]) -> dict[str, Any]:
    views = dict(arguments)
    for name in _ARRAYS:
        array = views.get(name)
        if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
            views[name] = _view(name, array)
    return views


def _view(name: str, array: Any) -> np.ndarray[Any, Any]:
    if getattr(array, "requires_grad", False):
        torch = sys.modules["torch"]
        if torch.is_grad_enabled():
            raise TypeError(
                f"{name}: must not require grad, cpuattn has no backward pass; got "
                "requires_grad=True, use .detach() or torch.no_grad()"
            )
        array = array.detach()
    dtype = getattr(array, "dtype", "")
    if str(dtype).endswith("bfloat16"):  # which NumPy itself does not know
        raise TypeError(f"{name}: dtype must be float32; got {dtype}")
    try:
        device = array.__dlpack_device__()[0]
        if device not in _CPU_DEVICES:
            raise TypeError(f"must be on the CPU; got DLPack device type {device}")
        if type(array).__module__.partition(".")[0] == "torch":
            view: np.ndarray[Any, Any] = array.numpy()
            return view
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        text = str(error)
        if not text.startswith("must be on the CPU"):
            text = f"must be an array that NumPy can view; got {type(array)}: {text}"
        raise TypeError(f"{name}: {text}") from error


def _in_kind(result: np.ndarray[Any, Any], like: Any) -> Any:
    """Hand a NumPy result to the library that `like` comes from, without a copy."""
    root = type(like).__module__.partition(".")[0]
    module = sys.modules.get("jax.numpy" if root in ("jax", "jaxlib") else root)
    from_dlpack = getattr(module, "from_dlpack", None)
    return result if from_dlpack is None else from_dlpack(result)
