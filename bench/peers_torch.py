# SPDX-License-Identifier: MIT
"""Run a case on torch: its scaled_dot_product_attention in every way it can be asked.

Tensors share the memory of the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from cases import Case, FloatArray, Inputs, numpy_dtype
from peers import Build, Peer, Prepared, UnsupportedCaseError, missing


def to_tensor(array: Any) -> Any:
    """Wrap an array without a copy; torch cannot read ml_dtypes."""
    import torch

    if array.dtype == numpy_dtype("bfloat16"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Any) -> FloatArray:
    """Wrap a tensor without a copy."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    array: FloatArray = tensor.numpy()
    return array


@contextmanager
def torch_scope(
    threads: int, precision: str = "highest", *, math: bool = False
) -> Iterator[None]:
    """Set torch's threads, inference mode, precision of float32 products and kernel."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        with (
            torch.inference_mode(),
            sdpa_kernel(SDPBackend.MATH) if math else nullcontext(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


class TorchPeer(Peer):
    """Call torch.nn.functional.scaled_dot_product_attention.

    The ways are torch's own choice of kernel and its "math" path (matrix products and a
    softmax), grouped heads by ``enable_gqa`` and by repeating key and value, float32
    products as exact as the case wants and as exact as can be, and, where only key and
    value have 16 bits, the query rounded to them or them converted to its dtype.
    """

    name = "torch"

    def available(self) -> str | None:
        """Return None if torch is installed, else the reason."""
        return missing("torch")

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name every way."""
        grouped = case.num_heads != case.num_kv_heads
        ways = product(
            ("sdpa", "sdpa, math"),
            (", enable_gqa", ", heads repeated") if grouped else ("",),
            ("", f", {case.precision}") if case.precision != "highest" else ("",),
            (", query rounded", ", cache converted")
            if case.kv_dtype != case.dtype
            else ("",),
        )
        return [("".join(way), partial(self.build, "".join(way))) for way in ways]

    @staticmethod
    def build(name: str, case: Case, inputs: Inputs, threads: int) -> Prepared:
        """Wrap the arrays and put what the way needs around the call."""
        import torch

        sdpa = torch.nn.functional.scaled_dot_product_attention
        query, key, value = map(to_tensor, (inputs.query, inputs.key, inputs.value))
        extra = inputs.mask if inputs.mask is not None else inputs.bias
        options: dict[str, Any] = {}
        if extra is not None:
            options["attn_mask"] = torch.from_numpy(extra)
        if case.causal:
            options["is_causal"] = True
        if "enable_gqa" in name:
            options["enable_gqa"] = True
        group = case.num_heads // case.num_kv_heads

        def call() -> Any:
            one, many, values = query, key, value
            if "query rounded" in name:
                one = query.to(key.dtype)
            if "cache converted" in name:
                many, values = key.to(query.dtype), value.to(query.dtype)
            if "heads repeated" in name:
                many = many.repeat_interleave(group, 1)
                values = values.repeat_interleave(group, 1)
            return sdpa(one, many, values, **options).to(query.dtype)

        plain: Callable[[], Any] = partial(sdpa, query, key, value, **options)
        converts = "rounded" in name or "converted" in name or "repeated" in name
        asked = case.precision if name.endswith(case.precision) else "highest"
        return Prepared(
            call if converts else plain,
            to_array,
            name + ", is_causal" * case.causal + ", attn_mask" * (extra is not None),
            partial(torch_scope, threads, asked, math="math" in name),
            products="bfloat16"
            if "query rounded" in name or asked == "medium"
            else case.dtype,
        )


class TorchFoldedPeer(TorchPeer):
    """Call torch with the query heads of a group laid out as rows of one head.

    Exact without causal or mask; what an expert may do by hand for grouped decoding.
    Not part of the default set, since it is not what ``enable_gqa`` does.
    """

    name = "torch-folded"

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the one way."""
        if case.causal or case.mask or case.bias or case.num_heads == case.num_kv_heads:
            raise UnsupportedCaseError("only for grouped heads without mask and bias")
        if case.kv_dtype != case.dtype:
            raise UnsupportedCaseError("query and key must have one dtype")
        return [("sdpa, group folded into rows", self.build_folded)]

    @staticmethod
    def build_folded(case: Case, inputs: Inputs, threads: int) -> Prepared:
        """Reshape the query; key and value stay as they are."""
        import torch

        sdpa = torch.nn.functional.scaled_dot_product_attention
        folded = (case.batch, case.num_kv_heads, -1, case.head_dim)
        query = to_tensor(inputs.query.reshape(folded))
        key, value = to_tensor(inputs.key), to_tensor(inputs.value)
        return Prepared(
            partial(sdpa, query, key, value),
            lambda out: to_array(out).reshape(inputs.query.shape),
            "sdpa, group folded into rows",
            partial(torch_scope, threads),
        )
