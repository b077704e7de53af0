"""Types of the native module."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[Any]  # NumPy has no type for bfloat16

__version__: str

def attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    *,
    layout: Literal["bhsd", "bshd"] = "bhsd",
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    causal: bool
    | Literal["top_left", "bottom_right"]
    | int
    | NDArray[np.integer[Any]] = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    q_segment_ids: ArrayLike | None = None,
    kv_segment_ids: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    dropout_mask: NDArray[np.bool_] | None = None,
    dropout_broadcast: Sequence[Literal["batch", "heads", "q_len", "kv_len"]] = (),
    dropout_generator: Literal["philox", "threefry"] = "philox",
    fully_masked: Literal["zero", "mean", "nan"] = "zero",
    precision: Literal["highest", "high", "medium"] = "highest",
    return_lse: bool = False,
    return_weights: bool | Literal["before_dropout", "after_dropout"] = False,
    out: FloatArray | None = None,
    num_threads: int | None = None,
) -> Any: ...
def explain(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    **options: Any,
) -> dict[str, Any]: ...
def isa_table() -> list[dict[str, Any]]: ...
def features() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str | None) -> None: ...
def set_num_threads(threads: int) -> None: ...
def num_threads() -> int: ...
def num_threads_source() -> str: ...
def cgroup_cpus() -> float | None: ...
def can_run_parallel() -> bool: ...
def thread_backend() -> str: ...
def use_threads_variable(variable: ContextVar[int | None]) -> None: ...
