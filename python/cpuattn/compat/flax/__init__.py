# SPDX-License-Identifier: MIT
"""Drop-ins for ``flax.linen``, whose names stand here, and ``flax.nnx``."""

from .linen import (
    combine_masks,
    dot_product_attention,
    dot_product_attention_weights,
    make_attention_mask,
    make_causal_mask,
)

__all__ = [
    "combine_masks",
    "dot_product_attention",
    "dot_product_attention_weights",
    "make_attention_mask",
    "make_causal_mask",
]
