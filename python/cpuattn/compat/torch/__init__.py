# SPDX-License-Identifier: MIT
"""``scaled_dot_product_attention`` of torch and what is used with it, without torch."""

from .attention import scaled_dot_product_attention
from .backends import SDPBackend, sdpa_kernel
from .bias import CausalBias, CausalVariant, causal_lower_right, causal_upper_left

__all__ = [
    "CausalBias",
    "CausalVariant",
    "SDPBackend",
    "causal_lower_right",
    "causal_upper_left",
    "scaled_dot_product_attention",
    "sdpa_kernel",
]
