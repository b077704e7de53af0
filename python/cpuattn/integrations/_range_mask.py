# SPDX-License-Identifier: MIT
"""A mask that is a range of keys for each row, and an array only if touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map


class RangeMask(torch.Tensor):  # type: ignore[misc]
    """A boolean mask that holds options of `cpuattn.attention` and no elements.

    To torch it is a tensor of shape (batch, 1, q_len, kv_len). The first operation on
    it makes the elements, so whatever does not know it computes the right thing.

    Attributes
    ----------
    options : dict
        What `cpuattn.attention` gets in place of the array.
    """

    options: dict[str, Any]
    _make: Callable[[], torch.Tensor]
    _elements: torch.Tensor | None

    # Every operation arrives at __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(
        shape: tuple[int, ...],
        options: dict[str, Any],
        make: Callable[[], torch.Tensor],
    ) -> RangeMask:
        """Return the mask; `make` returns its elements."""
        mask: RangeMask = torch.Tensor._make_wrapper_subclass(
            RangeMask, shape, dtype=torch.bool
        )
        mask.options, mask._make, mask._elements = options, make, None
        return mask

    def elements(self) -> torch.Tensor:
        """Return the mask as an array, made once."""
        if self._elements is None:
            self._elements = self._make()
        return self._elements

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, **_: Any) -> str:
        return f"RangeMask(shape={tuple(self.shape)}, options={self.options})"


def dense(value: Any) -> Any:
    """Return a RangeMask as an array, anything else as it is."""
    return value.elements() if type(value) is RangeMask else value
