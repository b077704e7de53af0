# SPDX-License-Identifier: MIT
"""The mask function that transformers calls: ranges of keys where it wants no others."""

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


def make_mask(
    *,
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    q_length: int = 1,
    q_offset: Any = 0,
    cache_position: torch.Tensor | None = None,
    mask_function: Any = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: Any = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """Make the mask of a model for `attention_forward`, as ranges where it has them.

    Parameters
    ----------
    batch_size : int
    kv_length : int
    kv_offset : int
        Position of the first key.
    q_length : int
    q_offset : int, or Tensor of one integer
        Position of the first query row.
    cache_position : Tensor, shape (q_length,), optional
        Positions of the query rows: what older transformers give in place of both.
    mask_function : callable
        (batch_idx, head_idx, q_idx, kv_idx) to bool.
    attention_mask : Tensor, bool, shape (batch_size, length), optional
        False = padding, and so is what is missing up to `kv_length`.
    device : torch.device or str
    **kwargs
        See ``transformers.masking_utils.sdpa_mask``, which makes every other mask.

    Returns
    -------
    Tensor, bool, shape (batch_size, 1, q_length, kv_length), or None
        None where `attention_forward` does the same without a mask.
    """
    make = partial(
        masking_utils.sdpa_mask,
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )
    if cache_position is None:
        make = partial(make, q_length=q_length, q_offset=q_offset, device=device)
    else:
        make = partial(make, cache_position=cache_position)
        device, q_length = cache_position.device, len(cache_position)
        q_offset = cache_position[0]
    pattern = pattern_of(mask_function)
    if pattern is None or torch.device(device).type != "cpu" or _is_traced():
        return make()
    if cache_position is None:  # a cache counts on in its own tensor
        make = partial(make, q_offset=int(q_offset))
    options = _ranges(pattern, int(q_offset) - kv_offset, q_length, kv_length)
    if attention_mask is not None:
        options |= _padding(attention_mask[:, kv_offset:], options, q_length, kv_length)
    if causal := pattern.right == 0:
        may_skip = kwargs.get("allow_is_causal_skip", True)
    else:
        may_skip = kwargs.get("allow_is_bidirectional_skip", False)
    if may_skip and options == ({"causal": 0} if causal and q_length > 1 else {}):
        return None
    make = partial(make, allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return RangeMask.of((batch_size, 1, q_length, kv_length), options, make)


def pattern_of(mask_function: Any) -> Pattern | None:
    """Return the range of keys that a mask function of transformers describes.

    Parameters
    ----------
    mask_function : callable
        (batch_idx, head_idx, q_idx, kv_idx) to bool.

    Returns
    -------
    Pattern or None
        None for a function that is not one of transformers' own ranges: of packed
        sequences, of chunks, of a user.
    """
    if mask_function is masking_utils.causal_mask_function:
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
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _closed_over(function: Any, name: str) -> Any:
    """Return a variable that a function closes over."""
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents


def _code(factory: str, *arguments: Any) -> Any:
    """Return the code that all functions made by a factory of transformers share.

    It tells them from the functions of others. None if this version has no such factory.
    """
    make = getattr(masking_utils, factory, None)
    return make and make(*arguments).__code__


_AND = _code("and_masks")
_WINDOW = _code("sliding_window_overlay", 1)
_WINDOW_BOTH = _code("sliding_window_bidirectional_overlay", 1)
_BIDIRECTIONAL = getattr(masking_utils, "bidirectional_mask_function", object())
