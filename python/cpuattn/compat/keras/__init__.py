# SPDX-License-Identifier: MIT
"""Drop-ins for ``keras.ops`` and ``keras.layers``."""

from .ops import dot_product_attention

__all__ = ["dot_product_attention"]
