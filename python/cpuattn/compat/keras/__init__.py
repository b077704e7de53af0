# SPDX-License-Identifier: MIT
"""Drop-ins for ``keras.ops`` and ``keras.layers``."""

from typing import TYPE_CHECKING, Any

from .ops import dot_product_attention

if TYPE_CHECKING:
    from .layer import GroupedQueryAttention
    from .layer import GroupedQueryAttention as GroupQueryAttention

__all__ = ["GroupQueryAttention", "GroupedQueryAttention", "dot_product_attention"]


def __getattr__(name: str) -> Any:
    """Import the layer when it is asked for."""
    if name in ("GroupQueryAttention", "GroupedQueryAttention"):
        from .layer import GroupedQueryAttention

        return GroupedQueryAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
