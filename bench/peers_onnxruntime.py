# SPDX-License-Identifier: MIT
"""Run a case on ONNX Runtime: the standard operator and its two contributed ones.

Every model is one node; inputs and outputs are bound beforehand, so that a run makes no
copy. The fastest operator of each case counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cases import Case, FloatArray, Inputs
from peers import Build, Peer, Prepared, UnsupportedCaseError, missing

CONTRIB = "com.microsoft"
ANY_ARRAY = npt.NDArray[Any]


class OnnxRuntimePeer(Peer):
    """Call ONNX Runtime's CPU provider through one-node models."""

    name = "onnxruntime"

    def available(self) -> str | None:
        """Return None if onnxruntime and onnx are installed, else the reason."""
        return missing("onnxruntime", "onnx")

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the operators that can do a case."""
        ways: list[tuple[str, Build]] = [
            ("Attention-24", partial(build_attention, opset=24)),
            ("Attention-23", partial(build_attention, opset=23)),
        ]
        grouped = case.num_heads != case.num_kv_heads
        per_element_mask = case.mask is not None and case.mask != "padding"
        if not grouped and not per_element_mask:
            ways.append(("MultiHeadAttention", build_multi_head))
        if case.q_len == 1 and case.mask is None and case.bias is None:
            ways.append(("GroupQueryAttention", build_group_query_decode))
        if case.causal and case.mask is None and case.bias is None:
            ways.append(("GroupQueryAttention", build_group_query_prefill))
        return ways


def make_session(
    node: Any,
    feeds: dict[str, ANY_ARRAY],
    outputs: dict[str, ANY_ARRAY],
    threads: int,
    opset: int = 21,
) -> Any:
    """Make a session of one node whose inputs have the shapes of `feeds`.

    Parameters
    ----------
    node : onnx.NodeProto
    feeds, outputs : dict of str to ndarray
    threads : int
    opset : int
        Version of the standard operator set.

    Returns
    -------
    onnxruntime.InferenceSession
    """
    import onnxruntime
    from onnx import helper

    def info(name: str, array: ANY_ARRAY, shape: list[int] | None) -> Any:
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, element, shape)

    graph = helper.make_graph(
        [node],
        "attention",
        [info(name, array, list(array.shape)) for name, array in feeds.items()],
        [info(name, array, None) for name, array in outputs.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(CONTRIB, 1),
        ],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Spinning is the default and ORT's best (without it, or with force_spinning_stop,
    # calls below a millisecond take up to twice the time on two threads). The wait
    # between slices keeps it from the other contenders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def bind(
    session: Any, feeds: dict[str, ANY_ARRAY], outputs: dict[str, ANY_ARRAY]
) -> tuple[Any, list[Any]]:
    """Bind arrays to a session without a copy.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    feeds, outputs : dict of str to ndarray
        An array may be both, which shares the buffer.

    Returns
    -------
    tuple
        The binding, and what must stay alive as long as it.
    """
    import onnxruntime

    binding = session.io_binding()
    alive: list[Any] = []
    values: dict[int, Any] = {}
    for bound, arrays in (("input", feeds), ("output", outputs)):
        for name, array in arrays.items():
            value = values.get(id(array))
            if value is None:
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
                values[id(array)] = value
            alive += [value, array]
            getattr(binding, f"bind_ortvalue_{bound}")(name, value)
    return binding, alive


def prepared(
    node: Any,
    feeds: dict[str, ANY_ARRAY],
    out: FloatArray,
    case: Case,
    threads: int,
    *,
    opset: int = 21,
    presents: dict[str, ANY_ARRAY] | None = None,
    variant: str,
) -> Prepared:
    """Build a session, bind it and wrap a run of it.

    `out` is (batch, num_heads, q_len, head_dim), or (batch, q_len, num_heads *
    head_dim) as the contributed operators give it.
    """
    outputs: dict[str, ANY_ARRAY] = {"out": out, **(presents or {})}
    session = make_session(node, feeds, outputs, threads, opset)
    binding, alive = bind(session, feeds, outputs)
    run = session.run_with_iobinding
    heads_first = (0, 2, 1, 3)

    def to_numpy(_: object) -> FloatArray:
        result: FloatArray = binding.get_outputs()[0].numpy()
        if result.ndim == 3:
            split = (case.batch, case.q_len, case.num_heads, case.head_dim)
            return result.reshape(split).transpose(heads_first)
        return result

    # The default argument keeps the bound arrays alive.
    def call(_alive: list[Any] = alive) -> None:
        run(binding)

    return Prepared(call, to_numpy, variant)


def hidden_layout(array: FloatArray) -> FloatArray:
    """Copy (batch, heads, len, head_dim) to (batch, len, heads * head_dim)."""
    batch, heads, length, head_dim = array.shape
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(
        batch, length, heads * head_dim
    )


def build_attention(case: Case, inputs: Inputs, threads: int, opset: int) -> Prepared:
    """Build the standard Attention operator; it takes the arrays as they are."""
    from onnx import helper

    feeds: dict[str, ANY_ARRAY] = {
        "query": inputs.query,
        "key": inputs.key,
        "value": inputs.value,
    }
    if inputs.mask is not None:
        # (q_len, kv_len) must be spelled out; the other axes broadcast.
        shape = (*inputs.mask.shape[:2], case.q_len, case.kv_len)
        feeds["attn_mask"] = np.ascontiguousarray(np.broadcast_to(inputs.mask, shape))
    elif inputs.bias is not None:
        feeds["attn_mask"] = inputs.bias
    node = helper.make_node(
        "Attention", list(feeds), ["out"], is_causal=int(case.causal)
    )
    return prepared(
        node,
        feeds,
        np.empty_like(inputs.query),
        case,
        threads,
        opset=opset,
        variant=f"Attention-{opset}",
    )


def build_multi_head(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build the contributed MultiHeadAttention in its own layout."""
    from onnx import helper

    feeds: dict[str, ANY_ARRAY] = {
        "query": hidden_layout(inputs.query),
        "key": hidden_layout(inputs.key),
        "value": hidden_layout(inputs.value),
    }
    names = ["query", "key", "value", "", "", ""]
    if inputs.mask is not None:
        feeds["key_padding_mask"] = inputs.mask[:, 0, 0, :].astype(np.int32)
        names[4] = "key_padding_mask"
    if inputs.bias is not None:
        feeds["attention_bias"] = inputs.bias
        names[5] = "attention_bias"
    node = helper.make_node(
        "MultiHeadAttention",
        names,
        ["out"],
        domain=CONTRIB,
        num_heads=case.num_heads,
        unidirectional=int(case.causal),
    )
    out = np.empty_like(feeds["query"])
    return prepared(node, feeds, out, case, threads, variant="MultiHeadAttention")


def build_group_query_prefill(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build the contributed GroupQueryAttention over a prompt; always causal."""
    if case.q_len != case.kv_len:
        raise UnsupportedCaseError("only for q_len equal to kv_len")
    past = np.empty((case.batch, case.num_kv_heads, 0, case.head_dim), inputs.key.dtype)
    feeds: dict[str, ANY_ARRAY] = {
        "query": hidden_layout(inputs.query),
        "key": hidden_layout(inputs.key),
        "value": hidden_layout(inputs.value),
        "past_key": past,
        "past_value": past.copy(),
    }
    presents: dict[str, ANY_ARRAY] = {
        "present_key": np.empty_like(inputs.key),
        "present_value": np.empty_like(inputs.value),
    }
    return group_query(case, feeds, presents, threads)


def build_group_query_decode(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Build GroupQueryAttention over a cache that it appends the last key to.

    Past and present share one buffer, so a run writes one row and copies nothing.
    """
    cache_key, cache_value = inputs.key.copy(), inputs.value.copy()
    feeds: dict[str, ANY_ARRAY] = {
        "query": hidden_layout(inputs.query),
        "key": hidden_layout(inputs.key[:, :, -1:]),
        "value": hidden_layout(inputs.value[:, :, -1:]),
        "past_key": cache_key,
        "past_value": cache_value,
    }
    presents: dict[str, ANY_ARRAY] = {
        "present_key": cache_key,
        "present_value": cache_value,
    }
    return group_query(case, feeds, presents, threads)


def group_query(
    case: Case,
    feeds: dict[str, ANY_ARRAY],
    presents: dict[str, ANY_ARRAY],
    threads: int,
) -> Prepared:
    """Build the GroupQueryAttention node over the given query, key, value and cache."""
    from onnx import helper

    feeds["seqlens_k"] = np.full((case.batch,), case.kv_len - 1, np.int32)
    feeds["total_sequence_length"] = np.array(case.kv_len, np.int32)
    node = helper.make_node(
        "GroupQueryAttention",
        list(feeds),
        ["out", *presents],
        domain=CONTRIB,
        num_heads=case.num_heads,
        kv_num_heads=case.num_kv_heads,
    )
    out = np.empty_like(feeds["query"])
    return prepared(
        node,
        feeds,
        out,
        case,
        threads,
        presents=presents,
        variant="GroupQueryAttention",
    )
