# SPDX-License-Identifier: MIT
"""Run a case on each library: one class per peer, cpuattn among them.

A peer turns the arrays of a case into what its library likes best, outside of the
timing, and hands back a callable. Peers with several ways to do a case keep the fastest
one that is right. The fair and the unfair of each choice is in README.md.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cases import Case, FloatArray, Inputs, aligned_empty
from measure import estimate
from oracle import Oracle
from roofline import vector_isa

# The first call of a variant tells its time if it takes longer than this.
COLD_SECONDS = 0.2
MAX_NAIVE_BYTES = 6 << 30


class UnsupportedCaseError(RuntimeError):
    """Raised when a library has no way to do a case, with the reason."""


@dataclass
class Prepared:
    """Hold a case made ready for one library.

    Attributes
    ----------
    call : callable
        The timed call; takes nothing.
    to_numpy : callable
        Turns what `call` returned into an array (batch, num_heads, q_len, head_dim).
    variant : str
        What exactly is called.
    scope : callable
        Gives a context in which `call` must run (threads, ISA, modes); not timed.
    notes : list of str
        Variants that failed and why.
    products : str
        Of what elements the products are, as `cpuattn.explain` says it; empty means of
        the dtype of the case.
    isa : str or None
        The ISA the products are limited to, None for the best of the machine.
    seconds, max_error : float
        What a call takes, roughly, and how wrong it is; set by `Peer.prepare`.
    """

    call: Callable[[], Any]
    to_numpy: Callable[[Any], FloatArray]
    variant: str
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    notes: list[str] = field(default_factory=list)
    products: str = ""
    isa: str | None = None
    seconds: float = math.inf
    max_error: float = math.inf


Build = Callable[[Case, Inputs, int], Prepared]


class Peer:
    """Give a library a common face.

    Attributes
    ----------
    name : str
        Name on the command line and in the reports.
    """

    name = ""

    def available(self) -> str | None:
        """Return None if the peer can run here, else the reason why not."""
        raise NotImplementedError

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the ways this library can do a case.

        Raises
        ------
        UnsupportedCaseError
            If there is none.
        """
        raise NotImplementedError

    def prepare(
        self, case: Case, inputs: Inputs, threads: int, oracle: Oracle
    ) -> Prepared:
        """Build the fastest variant that gives the right result.

        Parameters
        ----------
        case : Case
        inputs : Inputs
        threads : int
        oracle : Oracle
            A variant whose error exceeds the tolerance of the case is not used.

        Returns
        -------
        Prepared

        Raises
        ------
        UnsupportedCaseError
            If no variant works; the text tells why for each.
        """
        fastest: Prepared | None = None
        notes: list[str] = []
        for name, build in self.variants(case):
            try:
                prepared = build(case, inputs, threads)
                with prepared.scope():
                    begin = time.perf_counter()
                    returned = prepared.call()
                    prepared.seconds = time.perf_counter() - begin
                    prepared.max_error = oracle.max_error(prepared.to_numpy(returned))
                    error = prepared.max_error / oracle.scale
                    if error > case.tolerance:
                        limit = f"above {case.tolerance:.0e} of the output scale"
                        notes.append(f"{name}: error {error:.1e}, {limit}")
                        continue
                    if prepared.seconds < COLD_SECONDS:
                        prepared.seconds = estimate(prepared.call)
            except Exception as failure:
                # Whatever a library raises is a result to report, not a crash.
                notes.append(f"{name}: {first_line(failure)}")
                continue
            if fastest is None or prepared.seconds < fastest.seconds:
                fastest = prepared
        if fastest is None:
            raise UnsupportedCaseError("; ".join(dict.fromkeys(notes)))
        fastest.notes = notes
        fastest.products = fastest.products or case.dtype
        return fastest


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error's text, cut to 160 characters.

    An `UnsupportedCaseError` needs no type: its text is the reason.
    """
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UnsupportedCaseError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def missing(*modules: str) -> str | None:
    """Return None if all modules can be imported, else which one is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


class NaivePeer(Peer):
    """Compute attention in plain NumPy: two products and a softmax between them.

    The rows of all query heads that share a kv head are one matrix, and the softmax
    works in place. NumPy multiplies float16 a hundred times slower than float32, so
    arrays of 16 bits become float32 in each call.
    """

    name = "naive"

    def available(self) -> str | None:
        """Return None if NumPy's BLAS threads can be set, else the reason."""
        return missing("threadpoolctl")

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the one way, unless its score matrix would be huge."""
        itemsize = 8 if case.dtype == "float64" else 4
        scores = itemsize * case.batch * case.num_heads * case.q_len * case.kv_len
        if scores > MAX_NAIVE_BYTES:
            raise UnsupportedCaseError(f"scores would take {scores / 2**30:.0f} GiB")
        return [("matmul", self.build)]

    def build(self, case: Case, inputs: Inputs, threads: int) -> Prepared:
        """Fold the query heads of a group into rows; build the mask beforehand."""
        from threadpoolctl import threadpool_limits

        group = case.num_heads // case.num_kv_heads
        grouped = (case.batch, case.num_kv_heads, group, case.q_len, case.kv_len)
        folded = (case.batch, case.num_kv_heads, group * case.q_len, case.head_dim)
        work = np.dtype(np.float64 if case.dtype == "float64" else np.float32)
        scale = work.type(1.0 / np.sqrt(case.head_dim))
        mask = inputs.mask
        if case.causal:
            mask = np.tri(case.q_len, case.kv_len, dtype=np.bool_)[None, None]

        def full(array: Any) -> Any:
            # A view: (batch, num_kv_heads, group, q_len, kv_len) by strides.
            heads = (case.batch, case.num_heads, case.q_len, case.kv_len)
            if array.shape[1] == 1:
                return np.broadcast_to(array[:, :, None], grouped)
            return np.broadcast_to(array, heads).reshape(grouped)

        hidden = None if mask is None else full(~mask)
        bias = None if inputs.bias is None else full(inputs.bias)

        def call() -> Any:
            query = inputs.query.reshape(folded).astype(work, copy=False)
            key = inputs.key.astype(work, copy=False)
            value = inputs.value.astype(work, copy=False)
            scores = (query * scale) @ key.swapaxes(-1, -2)
            if hidden is not None or bias is not None:
                whole = scores.reshape(grouped)
                if bias is not None:
                    whole += bias
                if hidden is not None:
                    np.copyto(whole, work.type(-np.inf), where=hidden)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            out = scores @ value
            out /= scores.sum(axis=-1, keepdims=True)
            return out.astype(inputs.query.dtype, copy=False)

        return Prepared(
            call,
            lambda out: out.reshape(inputs.query.shape),
            "numpy matmul, in-place softmax",
            lambda: threadpool_limits(limits=threads, user_api="blas"),
            products=work.name,
        )


class JaxPeer(Peer):
    """Call jax.nn.dot_product_attention, jitted. Its layout is (batch, len, head)."""

    name = "jax"
    _threads: int | None = None

    def available(self) -> str | None:
        """Return None if jax is installed, else the reason."""
        return missing("jax")

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the one way."""
        return [("dot_product_attention", self.build)]

    def build(self, case: Case, inputs: Inputs, threads: int) -> Prepared:
        """Transpose and move the arrays to JAX; compile."""
        # XLA reads these when it starts and never again.
        if JaxPeer._threads is None:
            single = "false" if threads == 1 else "true"
            flags = f"--xla_cpu_multi_thread_eigen={single}"
            flags += f" intra_op_parallelism_threads={threads}"
            old = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{old} {flags}".strip()
            JaxPeer._threads = threads
        if JaxPeer._threads != threads:
            raise UnsupportedCaseError(
                f"jax started with {JaxPeer._threads} threads; run the other counts "
                "on their own"
            )
        import jax

        if case.dtype == "float64":
            jax.config.update("jax_enable_x64", True)

        def move(array: Any) -> Any:
            return jax.device_put(np.ascontiguousarray(array.swapaxes(1, 2)))

        if case.kv_dtype != case.dtype:
            raise UnsupportedCaseError("query and key must have one dtype")
        query, key, value = (
            move(array) for array in (inputs.query, inputs.key, inputs.value)
        )
        mask = None if inputs.mask is None else jax.device_put(inputs.mask)
        bias = None if inputs.bias is None else jax.device_put(inputs.bias)
        compiled = jax.jit(
            lambda q, k, v, m, b: jax.nn.dot_product_attention(
                q, k, v, b, m, is_causal=case.causal
            )
        )
        return Prepared(
            lambda: compiled(query, key, value, mask, bias).block_until_ready(),
            lambda out: np.asarray(out).swapaxes(1, 2),
            "jit(dot_product_attention)",
        )


class CpuattnPeer(Peer):
    """Call cpuattn.attention, with the ISA it chooses or one that is forced.

    Parameters
    ----------
    isa : str or None
        The ISA to force, None for cpuattn's own choice.
    reuse_out : bool
        Give it an output array instead of letting it make a new one.
    """

    def __init__(self, isa: str | None = None, reuse_out: bool = False) -> None:
        self.name = "cpuattn" + (f"-{isa}" if isa else "") + ("-out" * reuse_out)
        self._forced = isa
        self._reuse_out = reuse_out

    def available(self) -> str | None:
        """Return None if cpuattn can run with this ISA, else the reason."""
        reason = missing("cpuattn")
        if reason is not None:
            return reason
        try:
            with self.scope(threads=1):
                pass
        except Exception as failure:
            return first_line(failure)
        return None

    def variants(self, case: Case) -> list[tuple[str, Build]]:
        """Name the one way."""
        return [("attention", self.build)]

    @contextmanager
    def scope(self, threads: int) -> Iterator[None]:
        """Set threads, force the ISA, and put cpuattn's own choice back afterwards."""
        import cpuattn

        cpuattn.set_num_threads(threads)
        if self._forced is None:
            yield
            return
        cpuattn._core.set_isa(self._forced)
        try:
            yield
        finally:
            cpuattn._core.set_isa(os.environ.get("CPUATTN_ISA") or None)

    def build(self, case: Case, inputs: Inputs, threads: int) -> Prepared:
        """Pass the arrays as they are; only the options that the case needs."""
        import cpuattn

        query, key, value = inputs.query, inputs.key, inputs.value
        options: dict[str, Any] = {}
        if inputs.mask is not None:
            options["mask"] = inputs.mask
        if inputs.bias is not None:
            options["bias"] = inputs.bias
        if case.causal:
            options["causal"] = True
        if case.precision != "highest":
            options["precision"] = case.precision
        if self._reuse_out:
            options["out"] = aligned_empty(query.shape, case.dtype)
        chosen = cpuattn.explain(query, key, value, **options)
        with self.scope(threads):
            details = cpuattn.explain(query, key, value, **options)
        isa = details["isa"]
        products = details["products"]
        if (
            isa != chosen["isa"]
            and isa == vector_isa(chosen["isa"])
            and products == chosen["products"]
        ):
            raise UnsupportedCaseError(f"the same products as with {chosen['isa']}")
        return Prepared(
            partial(cpuattn.attention, query, key, value, **options),
            lambda out: np.asarray(out),
            " ".join(str(details).split())[:400],
            partial(self.scope, threads),
            products=products,
            isa=isa,
        )
