"""What `bench` compares: each library gets the arrays as it likes them, untimed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, attention
from .cases import Array, Arrays, Case, PeerError


class Prepared(NamedTuple):
    """A case made ready: what is timed, and how what it returns becomes an array."""

    call: Callable[[], Any]
    to_array: Callable[[Any], Array] = np.asarray


Way = Callable[[], Prepared]


class Peer:
    """Give a library a common face. `package` is its name on PyPI."""

    package = ""

    def version(self) -> str:
        """Return the installed version; raise PeerError without one."""
        return installed(self.package)

    def ways(self, case: Case, arrays: Arrays, threads: int | None) -> list[Way]:
        """List the ways to do a case; results have query's shape.

        A way may fail when it is made or first called, with any exception.
        """
        return [partial(self.prepare, case, arrays, threads)]

    def prepare(self, case: Case, arrays: Arrays, threads: int | None) -> Prepared:
        """Make a case ready, where there is one way."""
        raise NotImplementedError


def installed(package: str) -> str:
    """Return the version of a package; raise PeerError if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise PeerError(f"{package} is not installed; pip install {package}") from None


class Cpuattn(Peer):
    """Call `cpuattn.attention`."""

    def version(self) -> str:
        """Return the version of the module itself."""
        return __version__

    def prepare(self, case: Case, arrays: Arrays, threads: int | None) -> Prepared:
        """Pass the arrays as they are."""
        options: dict[str, Any] = {"causal": case.causal}
        if threads is not None:
            options["num_threads"] = threads
        return Prepared(partial(attention, *arrays, **options))


class NumPy(Peer):
    """Compute two products and a softmax between them, as one would by hand."""

    package = "numpy"

    def prepare(self, case: Case, arrays: Arrays, threads: int | None) -> Prepared:
        """Fold the query heads of a group into rows; 16 bits become float32."""
        if threads is not None:
            installed("threadpoolctl")
            from threadpoolctl import threadpool_limits

            threadpool_limits(threads, user_api="blas")
        dtype: Any = np.float64 if arrays[0].dtype == np.float64 else np.float32
        folded = (case.batch, case.num_kv_heads, -1, case.head_dim)
        rows = (case.batch, case.num_heads, case.q_len, case.kv_len)
        hidden = ~np.tri(case.q_len, case.kv_len, dtype=np.bool_)
        scale = dtype(case.head_dim**-0.5)

        def call() -> Array:
            query, key, value = (x.astype(dtype, copy=False) for x in arrays)
            scores = (query.reshape(folded) * scale) @ key.swapaxes(-1, -2)
            if case.causal:
                np.copyto(scores.reshape(rows), -np.inf, where=hidden)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            out = scores @ value
            out /= scores.sum(axis=-1, keepdims=True)
            result: Array = out.reshape(query.shape)
            return result

        return Prepared(call)


class Torch(Peer):
    """Call torch.nn.functional.scaled_dot_product_attention."""

    package = "torch"

    def prepare(self, case: Case, arrays: Arrays, threads: int | None) -> Prepared:
        """Share the memory of the arrays."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)

        def tensor(array: Array) -> Any:
            if array.dtype.name != "bfloat16":
                return torch.from_numpy(array)
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

        query, key, value = map(tensor, arrays)
        options = {"is_causal": case.causal, "enable_gqa": case.grouped}
        sdpa = torch.nn.functional.scaled_dot_product_attention
        call = partial(sdpa, query, key, value, **options)
        return Prepared(call, lambda out: out.double().numpy())


class OnnxRuntime(Peer):
    """Run models of one node on ONNX Runtime: its own operators and the standard one.

    Inputs and outputs are bound beforehand, so that a run copies nothing. `onnx` writes
    the models.
    """

    package = "onnxruntime"

    def version(self) -> str:
        """Return the version of the runtime, if onnx is there as well."""
        installed("onnx")
        return installed(self.package)

    def ways(self, case: Case, arrays: Arrays, threads: int | None) -> list[Way]:
        """Use the operators that have what a case needs."""
        names = ("query", "key", "value")
        packed = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]
        own = [x.reshape(*x.shape[:2], -1) for x in packed]
        run = partial(run_node, case=case, threads=threads)
        ways: list[Way] = []
        if not case.grouped:
            feeds = dict(zip(names, own, strict=True))
            ways.append(partial(run, "MultiHeadAttention", feeds))
        elif case.causal:
            ways.append(partial(run, "GroupQueryAttention", with_cache(case, own)))
        feeds = dict(zip(names, arrays, strict=True))
        return [*ways, partial(run, "Attention", feeds)]


def with_cache(case: Case, packed: list[Array]) -> dict[str, Array]:
    """Return the inputs of GroupQueryAttention over a prompt: its cache is empty."""
    query, key, value = packed
    empty = np.empty((case.batch, case.num_kv_heads, 0, case.head_dim), key.dtype)
    return {
        "query": query,
        "key": key,
        "value": value,
        "past_key": empty,
        "past_value": empty.copy(),
        "seqlens_k": np.full(case.batch, case.kv_len - 1, np.int32),
        "total_sequence_length": np.array(case.kv_len, np.int32),
    }


def make_model(operator: str, feeds: dict[str, Array], case: Case) -> bytes:
    """Write the model of one node."""
    from onnx import helper

    outputs = ["out"]
    options: dict[str, Any] = {"is_causal": int(case.causal)}
    if operator == "MultiHeadAttention":
        options = {"num_heads": case.num_heads, "unidirectional": int(case.causal)}
    elif operator == "GroupQueryAttention":
        outputs += ["present_key", "present_value"]
        options = {"num_heads": case.num_heads, "kv_num_heads": case.num_kv_heads}
    domain = "" if operator == "Attention" else "com.microsoft"
    types = {n: helper.np_dtype_to_tensor_dtype(x.dtype) for n, x in feeds.items()}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, list(feeds), outputs, domain=domain, **options)],
        "attention",
        [info(name, types[name], x.shape) for name, x in feeds.items()],
        [info(name, types["query"], None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def run_node(
    operator: str, feeds: dict[str, Array], *, case: Case, threads: int | None
) -> Prepared:
    """Make a session of one node and bind its inputs and outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
    options.log_severity_level = 3
    model = make_model(operator, feeds, case)
    session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def to_array(_: object) -> Array:
        out: Array = binding.copy_outputs_to_cpu()[0]
        if out.ndim == 4:
            return out
        return out.reshape(*out.shape[:2], case.num_heads, -1).swapaxes(1, 2)

    return Prepared(partial(session.run_with_iobinding, binding), to_array)


PEERS: dict[str, Peer] = {
    "cpuattn": Cpuattn(),
    "numpy": NumPy(),
    "torch": Torch(),
    "onnxruntime": OnnxRuntime(),
}
