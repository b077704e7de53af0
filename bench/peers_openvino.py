# SPDX-License-Identifier: MIT
"""Run a case on OpenVINO: its ScaledDotProductAttention operation as a whole graph.

Inputs are shared with NumPy without a copy. The precision of the products is asked for
explicitly: some machines would otherwise compute float32 in bfloat16.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from cases import Case, FloatArray, Inputs, numpy_dtype
from peers import Build, Peer, Prepared, missing


@cache
def core() -> Any:
    """Return the one OpenVINO core of this process."""
    import openvino

    return openvino.Core()


def precision_hints(case: Case) -> tuple[str, ...]:
    """Name the precisions that could give a right result; each is tried."""
    if case.precision == "medium":
        return ("bf16", "f16", "f32")
    if case.dtype == "float16":
        return ("f16", "f32")
    return ("bf16", "f32") if case.kv_dtype == "bfloat16" else ("f32",)


def to_tensor(array: Any) -> Any:
    """Share an array with OpenVINO, which cannot read ml_dtypes."""
    import openvino

    if array.dtype == numpy_dtype("bfloat16"):
        bits = array.view(np.uint16)
        return openvino.Tensor(bits, bits.shape, openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


@cache
def bfloat16_capable() -> bool:
    """Return whether OpenVINO multiplies bfloat16 on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoPeer(Peer):
    """Call OpenVINO's CPU plugin.

    The operation has no grouped heads, so these are either folded into rows (exact
    without causal or a mask) or the key and value heads are repeated inside the graph.
    """

    name = "openvino"

    def available(self) -> str | None:
        """Return None if openvino is installed, else the reason."""
        return missing("openvino")

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the ways to do a case, each in every precision that may do."""
        ways = ["sdpa"]
        if case.num_heads != case.num_kv_heads:
            ways = ["sdpa, heads repeated in the graph"]
            if not case.causal and case.mask is None and case.bias is None:
                ways.insert(0, "sdpa, group folded into rows")
        return [
            (f"{way}, {hint}", partial(build, f"{way}, {hint}", hint))
            for way in ways
            for hint in precision_hints(case)
        ]


def build(
    variant: str, hint: str, case: Case, inputs: Inputs, threads: int
) -> Prepared:
    """Compile the graph and bind the inputs.

    Parameters
    ----------
    variant : str
        What becomes of grouped heads, and the hint.
    hint : str
        The precision of the products: "f32", "bf16" or "f16".
    case : Case
    inputs : Inputs
    threads : int

    Returns
    -------
    Prepared
    """
    import openvino
    from openvino import opset13 as ops

    group = case.num_heads // case.num_kv_heads if "repeated" in variant else 1
    query = inputs.query
    if "folded" in variant:
        query = query.reshape(case.batch, case.num_kv_heads, -1, case.head_dim)
    arrays: list[Any] = [query, inputs.key, inputs.value]
    extra = inputs.mask if inputs.mask is not None else inputs.bias
    if extra is not None:
        arrays.append(extra)
    tensors = [to_tensor(array) for array in arrays]
    parameters = [ops.parameter(one.shape, one.element_type) for one in tensors]

    def repeat(node: Any) -> Any:
        if group == 1:
            return node
        batch, heads, length, head_dim = inputs.key.shape
        axis = ops.unsqueeze(node, ops.constant(np.array(2, np.int64)))
        shape = np.array([batch, heads, group, length, head_dim], np.int64)
        wide = ops.broadcast(axis, ops.constant(shape))
        merged = np.array([batch, heads * group, length, head_dim], np.int64)
        return ops.reshape(wide, ops.constant(merged), special_zero=False)

    rows: Any = parameters[0]
    if case.kv_dtype != case.dtype:
        rows = ops.convert(rows, tensors[1].element_type)
    nodes = [rows, repeat(parameters[1]), repeat(parameters[2])]
    out = ops.scaled_dot_product_attention(*nodes, *parameters[3:], causal=case.causal)
    if case.kv_dtype != case.dtype:
        out = ops.convert(out, tensors[0].element_type)
    compiled = core().compile_model(
        openvino.Model([out], parameters, "attention"),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, tensor)

    # The default argument keeps the shared arrays alive.
    def call(_alive: list[Any] = arrays) -> None:
        request.infer()

    def to_numpy(_: object) -> FloatArray:
        data: FloatArray = np.array(request.get_output_tensor(0).data)
        return data.view(inputs.query.dtype).reshape(inputs.query.shape)

    low = hint != "f32" or case.kv_dtype == "bfloat16"
    return Prepared(
        call,
        to_numpy,
        variant,
        products="bfloat16" if low and bfloat16_capable() else "float32",
    )
