# SPDX-License-Identifier: MIT
"""Hugging Face transformers on the CPU: ``attn_implementation="cpuattn"``."""

from __future__ import annotations


def register(name: str = "cpuattn") -> None:
    """Make cpuattn an attention implementation of Hugging Face transformers.

    Afterwards ``from_pretrained(..., attn_implementation=name)`` and
    ``model.set_attn_implementation(name)`` select it, for every model that takes its
    attention from ``transformers.AttentionInterface``.

    Parameters
    ----------
    name : str
        The name to select it by.

    Raises
    ------
    ImportError
        torch, or transformers 4.53 or later, is not installed.

    Notes
    -----
    Computed natively, without an array of (q_len, kv_len): causal and sliding-window
    masks at any offset of any cache, padding, grouped heads, the soft cap of Gemma 2,
    the sinks of gpt-oss, the position bias of T5, dropout. Weights come back where
    ``output_attentions=True`` asks for them. Tensors are read in place and results are
    written in the order that transformers wants: no copies. float32, float16, bfloat16
    and float64.

    The mask that a model makes is the range of keys that each row sees. It becomes an
    array only if something else than cpuattn touches it. Masks that are no such range
    (packed sequences, chunks, functions of a user) stay boolean arrays.

    cpuattn has no backward pass. Where gradients are recorded, where tensors are not on
    the CPU and in ``torch.jit.trace``, transformers' own ``"sdpa"`` function runs
    instead; with softcap or sinks, which it does not have, NotImplementedError says so.
    Outside of training mode a warning tells that gradients are recorded: use
    ``torch.no_grad()`` (``generate`` does).

    The number of threads is cpuattn's own (`cpuattn.set_num_threads`), not torch's.

    Differences from "eager": a row with no visible key is 0, as in "sdpa", not the
    mean of the values; only padding has such rows. Softmax and sums are in float32 for
    16-bit models too.

    References
    ----------
    Hugging Face transformers 5, "Attention Interface".

    Examples
    --------
    >>> import torch, transformers
    >>> from cpuattn.integrations.transformers import register
    >>> register()
    >>> config = transformers.LlamaConfig(
    ...     hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    ... )
    >>> model = transformers.AutoModel.from_config(
    ...     config, attn_implementation="cpuattn"
    ... )
    >>> with torch.no_grad():
    ...     model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
    torch.Size([1, 3, 32])
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        from ._transformers_attention import attention_forward
        from ._transformers_masks import make_mask
    except ImportError as error:
        raise ImportError(
            "cpuattn.integrations.transformers: needs torch and transformers 4.53 or "
            f"later; got {error}, try pip install torch 'transformers>=4.53'"
        ) from error
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, make_mask)
