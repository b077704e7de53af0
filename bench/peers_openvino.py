# SPDX-License-Identifier: MIT
"""Run a case on OpenVINO: its ScaledDotProductAttention operation as a whole graph.

Inputs are shared with NumPy without a copy; float32 is asked for explicitly, since some
machines would otherwise compute in bfloat16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from cases import Case, Inputs
from peers import Build, Peer, Prepared, missing


@cache
def core() -> Any:
    """Return the one OpenVINO core of this process."""
    import openvino

    return openvino.Core()


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
        """Name the ways to do a case."""
        if case.num_heads == case.num_kv_heads:
            return [("sdpa", build_plain)]
        ways: list[tuple[str, Build]] = [("sdpa, heads repeated", build_repeated)]
        if not case.causal and case.mask is None and case.bias is None:
            ways.insert(0, ("sdpa, group folded into rows", build_folded))
        return ways


def build_plain(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build the operation on the arrays as they are."""
    return build(case, inputs, threads, "sdpa", query=inputs.query, group=1)


def build_folded(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build the operation on the query heads of a group as rows of one head."""
    query = inputs.query.reshape(case.batch, case.num_kv_heads, -1, case.head_dim)
    variant = "sdpa, group folded into rows"
    return build(case, inputs, threads, variant, query=query, group=1)


def build_repeated(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build the operation behind a broadcast of the key and value heads."""
    group = case.num_heads // case.num_kv_heads
    variant = "sdpa, heads repeated in the graph"
    return build(case, inputs, threads, variant, query=inputs.query, group=group)


def build(
    case: Case, inputs: Inputs, threads: int, variant: str, *, query: Any, group: int
) -> Prepared:
    """Compile the graph and bind the inputs.

    Parameters
    ----------
    case : Case
    inputs : Inputs
    threads : int
    variant : str
    query : ndarray, shape (batch, heads, rows, head_dim), float32
    group : int
        How often key and value heads are repeated.

    Returns
    -------
    Prepared
    """
    import openvino
    from openvino import opset13 as ops

    arrays: list[Any] = [query, inputs.key, inputs.value]
    extra = inputs.mask if inputs.mask is not None else inputs.bias
    if extra is not None:
        arrays.append(extra)
    parameters = [ops.parameter(array.shape, array.dtype) for array in arrays]

    def repeat(node: Any) -> Any:
        if group == 1:
            return node
        batch, heads, length, head_dim = inputs.key.shape
        axis = ops.unsqueeze(node, ops.constant(np.array(2, np.int64)))
        shape = np.array([batch, heads, group, length, head_dim], np.int64)
        wide = ops.broadcast(axis, ops.constant(shape))
        merged = np.array([batch, heads * group, length, head_dim], np.int64)
        return ops.reshape(wide, ops.constant(merged), special_zero=False)

    nodes = [parameters[0], repeat(parameters[1]), repeat(parameters[2])]
    out = ops.scaled_dot_product_attention(*nodes, *parameters[3:], causal=case.causal)
    compiled = core().compile_model(
        openvino.Model([out], parameters, "attention"),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    tensors = [openvino.Tensor(array, shared_memory=True) for array in arrays]
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, tensor)

    # The default argument keeps the shared arrays alive.
    def call(_alive: list[Any] = arrays) -> None:
        request.infer()

    return Prepared(
        call,
        lambda _: np.array(request.get_output_tensor(0).data).reshape(
            inputs.query.shape
        ),
        variant,
    )
