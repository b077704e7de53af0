# SPDX-License-Identifier: MIT
"""Keras models that use `cpuattn`: enable, disable, enabled."""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._core import attention
from ..compat._optional import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["disable", "enable", "enabled"]

_BACKENDS = ("numpy", "torch")
_FLOATS = ("float16", "bfloat16", "float32")


def enable() -> None:
    """Make Keras compute attention with `cpuattn`.

    From now on `keras.ops.dot_product_attention`, and with it the layers
    MultiHeadAttention and GroupQueryAttention without dropout and without returned
    scores, run on `cpuattn` in every thread of this process. Calling it again changes
    nothing.

    Raises
    ------
    ImportError
        Keras cannot be imported.
    RuntimeError
        The backend of Keras is not numpy or torch.

    Notes
    -----
    Keras computes as before whatever needs Keras: with ``flash_attention=True``, and on
    the torch backend wherever a gradient is wanted, inside ``torch.compile``,
    ``torch.export``, ``torch.jit.trace``, ``torch.func`` and autocast, with tensors
    that are not on the CPU, and with both a bias and a mask (an error there). So
    training goes on as it was; for inference call ``model.predict``, or the model
    inside ``torch.no_grad()``.

    Differences from Keras: on the numpy backend the keys may have any number of heads
    that divides the queries'; no array of scores or of a causal mask is made; a masked
    key reaches nothing even if its value is NaN; no keys at all give 0; a float16 row
    with no visible key is the mean of the values also on the torch backend.

    Examples
    --------
    >>> import cpuattn.integrations.keras as plugin
    >>> plugin.enable()  # doctest: +SKIP
    >>> model.predict(tokens)  # doctest: +SKIP
    """
    _switch.turn(always=True)


def disable() -> None:
    """Undo `enable`: Keras has its own function again.

    Inside a block of `enabled` that happens at the end of the block. Without `enable`
    nothing happens.

    Examples
    --------
    >>> import cpuattn.integrations.keras as plugin
    >>> plugin.disable()
    """
    _switch.turn(always=False)


@contextmanager
def enabled() -> Iterator[None]:
    """Make Keras compute attention with `cpuattn` inside a ``with`` block.

    The function of Keras belongs to the process: other threads use `cpuattn` too while
    one is inside a block. Blocks may be nested and may overlap.

    Yields
    ------
    None

    Raises
    ------
    ImportError
        Keras cannot be imported.
    RuntimeError
        The backend of Keras is not numpy or torch.

    Examples
    --------
    >>> import cpuattn.integrations.keras as plugin
    >>> with plugin.enabled():  # doctest: +SKIP
    ...     model.predict(tokens)
    """
    _switch.turn(blocks=1)
    try:
        yield
    finally:
        _switch.turn(blocks=-1)


class _Switch:
    """Who wants `cpuattn`, and the hook that is in place while anybody does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.always = False
        self.blocks = 0
        self.hook: _Hook | None = None

    def turn(self, always: bool | None = None, blocks: int = 0) -> None:
        with self.lock:
            always = self.always if always is None else always
            blocks += self.blocks
            if self.hook is None and (always or blocks):
                self.hook = _Hook()  # which may raise: nothing has changed yet
            elif self.hook is not None and not (always or blocks):
                self.hook.remove()
                self.hook = None
            self.always, self.blocks = always, blocks


class _Hook:
    """Our function in the place of that of Keras's backend."""

    def __init__(self) -> None:
        backend = require("keras.src.backend", "cpuattn.integrations.keras")
        if backend.backend() not in _BACKENDS:
            raise RuntimeError(
                "KERAS_BACKEND: must be numpy or torch, whose arrays cpuattn can read; "
                f"got {backend.backend()}"
            )
        self.module = backend.nn
        self.theirs = self.module.dot_product_attention
        self.active = True
        self.ours = _replacement(self, backend)
        self.module.dot_product_attention = self.ours

    def remove(self) -> None:
        # Who has wrapped our function since keeps it; it then only calls Keras's.
        self.active = False
        if self.module.dot_product_attention is self.ours:
            self.module.dot_product_attention = self.theirs


def _replacement(hook: _Hook, backend: Any) -> Callable[..., Any]:
    """Make the function that Keras calls."""
    torch = require("torch", "this backend") if backend.backend() == "torch" else None
    floats = {backend.convert_to_tensor([0.0], dtype=name).dtype for name in _FLOATS}

    @functools.wraps(hook.theirs)
    def dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        scale: Any = None,
        is_causal: bool = False,
        flash_attention: bool | None = None,
        **options: Any,
    ) -> Any:
        theirs = functools.partial(
            hook.theirs,
            *(query, key, value, bias, mask, scale, is_causal, flash_attention),
            **options,
        )
        special = any(option is not None for option in options.values())
        if not hook.active or flash_attention or special:
            return theirs()
        if torch is not None and _is_for_torch(torch, query, key, value, bias, mask):
            return theirs()
        inputs = _of_one_dtype(backend, floats, query, key, value)
        if inputs is None or any(x.ndim != 4 for x in inputs):
            return theirs()
        if bias is not None:
            bias = backend.convert_to_tensor(bias, dtype=inputs[0].dtype)
        if mask is not None:
            mask = backend.convert_to_tensor(mask, dtype="bool")
        # A row whose biases are all -inf is 0 in torch, and NaN in NumPy.
        mean = torch is None or bias is None
        try:
            return attention(
                *inputs,
                layout="bshd",
                mask=mask,
                bias=bias,
                causal="top_left" if is_causal else False,
                scale=scale,
                fully_masked="mean" if mean else "zero",
            )
        except TypeError:  # not in plain memory, as on a GPU and inside torch.vmap
            return theirs()

    return dot_product_attention


def _of_one_dtype(backend: Any, floats: set[Any], *arrays: Any) -> Sequence[Any] | None:
    """Return what Keras computes with, None if that has no floating dtype."""
    if all(backend.is_tensor(x) for x in arrays):
        dtype = arrays[0].dtype
        if dtype in floats and all(x.dtype == dtype for x in arrays):
            return arrays
    arrays = tuple(backend.convert_to_tensor(x) for x in arrays)
    common = backend.result_type(*(x.dtype for x in arrays))
    if common not in _FLOATS:
        return None
    return [backend.cast(x, common) for x in arrays]


def _is_for_torch(torch: Any, *arguments: Any) -> bool:
    """Whether torch must see the operations."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or (arguments[3] is not None and arguments[4] is not None)
    ):
        return True
    unpack = torch.autograd.forward_ad.unpack_dual
    graded = torch.is_grad_enabled()
    return any(
        type(x) not in (torch.Tensor, torch.nn.Parameter)
        or (graded and x.requires_grad)
        or unpack(x).tangent is not None
        for x in arguments
        if isinstance(x, torch.Tensor)
    )


_switch = _Switch()
