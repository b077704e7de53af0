# SPDX-License-Identifier: MIT
"""The attention function that transformers calls."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import is_autocast_enabled, is_grad_enabled
from torch.jit import is_tracing
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .._core import attention
from ._range_mask import RangeMask, dense

# Arguments that change the result and that attention_forward does not know: paged
# caches, keys selected by index, sinks of each row, factors of whole heads.
_REFUSED = frozenset({"cache", "indices", "block_indices", "sinks", "head_mask"})


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention for a module of transformers.

    Parameters
    ----------
    module : torch.nn.Module
        Its ``is_causal`` counts where there is neither mask nor argument `is_causal`.
    query : Tensor, shape (batch, num_heads, q_len, head_dim)
        float32, float16, bfloat16 or float64.
    key : Tensor, shape (batch, num_kv_heads, kv_len, head_dim), dtype of query
    value : Tensor, shape (batch, num_kv_heads, kv_len, head_dim_v), dtype of query
    attention_mask : Tensor, bool or floating, optional
        True = attend, or added to the scores; broadcasts to (batch, num_heads, q_len,
        kv_len). None means top-left causal if the module is causal and q_len > 1.
    dropout : float
        Applied whenever it is greater than 0; the seed comes from torch's generator.
    scaling : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    is_causal : bool, optional
        In place of the module's.
    softcap : float, optional
        Scores become softcap * tanh(score / softcap).
    s_aux : Tensor, shape (num_heads,), floating, optional
        Attention sinks.
    position_bias : Tensor, floating, optional
        Added to the scores; broadcasts like `attention_mask`.
    output_attentions : bool
        Also return the weights.
    **kwargs
        What other implementations take.

    Returns
    -------
    out : Tensor, shape (batch, q_len, num_heads, head_dim_v), dtype of query
    weights : Tensor, shape (batch, num_heads, q_len, kv_len), dtype of query, or None

    Raises
    ------
    NotImplementedError
        An argument is not supported, or torch has to take over and does not support it.
    TypeError, ValueError
        See `cpuattn.attention`.
    """
    if not _REFUSED.isdisjoint(kwargs):
        _refuse(kwargs)
    if (
        (is_grad_enabled() and _require_grad(query, key, value, s_aux, position_bias))
        or not query.is_cpu
        or is_tracing()
    ):
        _check_torch_can(module, query, softcap=softcap, s_aux=s_aux)
        kwargs |= {
            "position_bias": position_bias,
            "output_attentions": output_attentions,
        }
        mask = dense(attention_mask)
        result: Any = sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, is_causal, **kwargs
        )
        return result  # type: ignore[no-any-return]
    batch, heads, q_len, _ = query.shape
    options: dict[str, Any] = {}
    if attention_mask is not None:
        options = _mask_options(attention_mask, key.shape[2])
    elif q_len > 1:
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        if is_causal:
            options["causal"] = "top_left"
    if softcap is not None:
        options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = s_aux
    if position_bias is not None:
        bias = options.get("bias")
        options["bias"] = position_bias if bias is None else position_bias + bias
    if dropout > 0:
        options["dropout_p"] = dropout
        options["dropout_seed"] = torch.randint(2**63 - 1, ()).item()
    if output_attentions:
        options["return_weights"] = "after_dropout"
    if is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if q_len > 1:  # else either order of the axes is the same memory
        batch = max(batch, key.shape[0])
        out = query.new_empty((batch, q_len, heads, value.shape[3]))
        options["out"] = out.transpose(1, 2)
    result = attention(query, key, value, scale=scaling, **options)
    weights = None
    if output_attentions:
        result, weights = result
    return (out if q_len > 1 else result.transpose(1, 2)), weights


def _mask_options(mask: torch.Tensor, kv_len: int) -> dict[str, Any]:
    """Return what a mask is for `attention`, in a new dictionary."""
    length = mask.shape[-1]
    if type(mask) is RangeMask and length == kv_len:
        return dict(mask.options)
    if length > kv_len:  # made for a cache that is longer than the keys
        mask = mask[..., :kv_len]
    return {"mask" if mask.dtype == torch.bool else "bias": dense(mask)}


def _refuse(kwargs: dict[str, Any]) -> None:
    for name in _REFUSED & kwargs.keys():
        if kwargs[name] is not None:
            raise NotImplementedError(
                f"{name}: must be None; got {type(kwargs[name])}, use "
                "model.set_attn_implementation('sdpa') or 'eager'"
            )


def _require_grad(*tensors: torch.Tensor | None) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _check_torch_can(module: Any, query: torch.Tensor, **options: Any) -> None:
    """Raise if transformers' "sdpa" would drop an option; warn if it is a surprise."""
    for name, option in options.items():
        if option is not None:
            raise NotImplementedError(
                f"{name}: must be None where gradients are recorded, where tensors are "
                f"not on the CPU and in torch.jit.trace; got {type(option)}, use "
                "torch.no_grad() for inference, else "
                "model.set_attn_implementation('eager')"
            )
    if query.is_cpu and not module.training and not is_tracing():
        warnings.warn(
            "gradients are recorded, so transformers' sdpa runs in place of cpuattn; "
            "use torch.no_grad() for inference",
            stacklevel=3,
        )
