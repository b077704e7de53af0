# SPDX-License-Identifier: MIT
"""The mask function that transformers calls: ranges of keys where they do."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import masking_utils

from ._range_mask import RangeMask


class Pattern(NamedTuple):
    """How far a row sees to the left and to the right of its own position."""

    left: float
    right: float


def make_mask(**arguments: Any) -> torch.Tensor | None:
    """Make the mask of a model for `attention_forward`, as ranges where it has them.

    Parameters
    ----------
    **arguments
        Those of ``transformers.masking_utils.sdpa_mask``, which makes every other mask.

    Returns
    -------
    Tensor, bool, shape (batch_size, 1, q_length, kv_length), or None
        None where `attention_forward` does the same without a mask.
    """
    # Which older transformers give in place of q_length, q_offset and device.
    positions = arguments.get("cache_position")
    device = arguments.get("device", "cpu") if positions is None else positions.device
    pattern = None if _is_traced() else pattern_of(arguments.get("mask_function"))
    if pattern is None or torch.device(device).type != "cpu":
        return masking_utils.sdpa_mask(**arguments)
    if positions is not None:
        q_len, q_offset = len(positions), int(positions[0])
    else:
        q_len, q_offset = arguments["q_length"], int(arguments.get("q_offset", 0))
        arguments["q_offset"] = q_offset  # not the tensor, in which a cache counts on
    kv_len, kv_offset = arguments["kv_length"], int(arguments.get("kv_offset", 0))
    options = _ranges(pattern, q_offset - kv_offset, q_len, kv_len)
    attended = arguments.get("attention_mask")
    if attended is not None:
        options |= _padding(attended[:, kv_offset:], options, q_len, kv_len)
    if causal := pattern.right == 0:
        may_skip = arguments.get("allow_is_causal_skip", True)
    else:
        may_skip = arguments.get("allow_is_bidirectional_skip", False)
    if may_skip and options == ({"causal": 0} if causal and q_len > 1 else {}):
        return None
    arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return RangeMask.of(
        (arguments["batch_size"], 1, q_len, kv_len),
        options,
        partial(masking_utils.sdpa_mask, **arguments),
    )


def pattern_of(mask_function: Any) -> Pattern | None:
    """Return the range of keys that a mask function of transformers describes.

    Parameters
    ----------
    mask_function : callable, optional
        (batch_idx, head_idx, q_idx, kv_idx) to bool; causal by default.

    Returns
    -------
    Pattern or None
        None for a function that is not one of transformers' own ranges: of packed
        sequences, of chunks, of a user.
    """
    if mask_function in (masking_utils.causal_mask_function, None):
        return Pattern(inf, 0)
    if mask_function is _BIDIRECTIONAL:
        return Pattern(inf, inf)
    code = getattr(mask_function, "__code__", None)
    if code is _WINDOW:
        return Pattern(_closed_over(mask_function, "sliding_window") - 1, inf)
    if code is _WINDOW_BOTH:
        width = _closed_over(mask_function, "sliding_window")
        return Pattern(width, width)
    if code is _AND:
        parts = [pattern_of(f) for f in _closed_over(mask_function, "mask_functions")]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return Pattern(*map(min, zip(*known, strict=True)))
    return None


def _ranges(pattern: Pattern, offset: int, q_len: int, kv_len: int) -> dict[str, Any]:
    """Return the options of a pattern; row 0 has the position of key `offset`.

    The right side becomes the diagonal of `causal`, the left one a window from there.
    """
    options: dict[str, Any] = {}
    left, right = pattern.left, min(pattern.right, kv_len)
    hides_left = q_len - 1 + offset > left
    if hides_left or offset + right < kv_len - 1:
        options["causal"] = offset + right
    if hides_left:
        options["window"] = (left + right, None)
    return options


def _padding(
    attended: torch.Tensor, ranges: dict[str, Any], q_len: int, kv_len: int
) -> dict[str, Any]:
    """Return the option that hides padding, none if the ranges hide all there is."""
    seen = min(kv_len, q_len + ranges.get("causal", kv_len))
    if attended.shape[1] >= seen and attended[:, :seen].all():
        return {}
    attended = pad(attended, (0, max(0, kv_len - attended.shape[1])))
    return {"mask": attended[:, None, None, :kv_len]}


def _is_traced() -> bool:
    """Whether values must not be looked at."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())


def _closed_over(function: Any, name: str) -> Any:
    """Return a variable that a function closes over."""
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents


def _code(factory: str, *arguments: Any) -> Any:
    """Return the code that all functions made by a factory of transformers share.

    It tells them from the functions of others. None without such a factory.
    """
    make = getattr(masking_utils, factory, None)
    return make and make(*arguments).__code__


_AND = _code("and_masks")
_WINDOW = _code("sliding_window_overlay", 1)
_WINDOW_BOTH = _code("sliding_window_bidirectional_overlay", 1)
_BIDIRECTIONAL = getattr(masking_utils, "bidirectional_mask_function", object())
