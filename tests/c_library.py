# SPDX-License-Identifier: MIT
"""The C library that the wheel carries, called by ctypes as `attention` is called."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import BFLOAT16
from support import Array

ELEMENTS = [np.float32, np.float64, np.float16, BFLOAT16, bool, np.int32]
ELEMENT_CODES = {np.dtype(t): code for code, t in enumerate([*ELEMENTS, np.int64])}
CHOICES = {
    "layout": ("bhsd", "bshd"),
    "dropout_generator": ("philox", "threefry"),
    "fully_masked": ("zero", "mean", "nan"),
    "precision": ("highest", "high", "medium"),
}
CAUSAL = {False: 0, True: 1, "bottom_right": 1, "top_left": 2}
AXES = ("batch", "heads", "q_len", "kv_len")
OUTPUTS = ("out", "lse", "weights")
ARRAYS = (
    *("query", "key", "value", *OUTPUTS, "mask", "bias", "dropout_mask"),
    *("alibi_slopes", "sinks", "q_lengths", "kv_lengths", "causal_offsets"),
    *("q_segment_ids", "kv_segment_ids"),
)
DOUBLES = ("scale", "softcap", "dropout_p")
INT64S = ("causal_offset", "window_left", "window_right")
INT32S = (
    *("has_scale", "layout", "causal", "dropout_broadcast", "dropout_generator"),
    *("fully_masked", "precision", "weights_after_dropout", "num_threads", "reserved"),
)
POINTERS = ("executor", "cancelled", "cancelled_context")


class CArray(ctypes.Structure):
    """`cpuattn_array`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class Problem(ctypes.Structure):
    """`cpuattn_problem`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, CArray) for name in ARRAYS),
        *((name, ctypes.c_double) for name in DOUBLES),
        ("dropout_seed", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in INT64S),
        *((name, ctypes.c_int32) for name in INT32S),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


def compiler() -> str:
    """Return the C compiler; skip the test where there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler")
    return found


def static_library() -> Path | None:
    """Return the C library that the wheel carries, where it is installed."""
    found = Path(cpuattn.__file__).parent / "lib" / "libcpuattn.a"
    return found if found.exists() else None


def shared_library(directory: Path) -> ctypes.CDLL:
    """Link the static library into a shared one of its own state, and load it."""
    archive = static_library()
    if archive is None:
        pytest.skip("the C library is not installed")
    path = directory / "libcpuattn.so"
    whole = ["-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"]
    libraries = ["-lstdc++", "-lm", "-lpthread"]
    subprocess.run([compiler(), "-shared", "-o", path, *whole, *libraries], check=True)
    library = ctypes.CDLL(str(path))
    library.cpuattn_last_error.restype = ctypes.c_char_p
    return library


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library that all tests of a process share."""
    with tempfile.TemporaryDirectory() as directory:  # a loaded file may go
        return shared_library(Path(directory))


def c_array(array: Array) -> CArray:
    """Describe an array, which must outlive the description."""
    sizes = ctypes.c_int64 * array.ndim
    code = ELEMENT_CODES[array.dtype]
    return CArray(
        array.ctypes.data, sizes(*array.shape), sizes(*array.strides), array.ndim, code
    )


def problem_of(
    inputs: tuple[Array, ...], options: dict[str, Any], results: dict[str, Array]
) -> Problem:
    """Return the struct of `attention(*inputs, **options)`, which fills `results`."""
    problem = Problem(size=ctypes.sizeof(Problem), window_left=-1, window_right=-1)
    arrays = dict(zip(("query", "key", "value"), inputs, strict=True)) | results
    for name, value in options.items():
        if name == "causal":
            set_causal(problem, value, arrays)
        elif name == "window":
            problem.window_left, problem.window_right = (
                -1 if width is None else width for width in value
            )
        elif name == "dropout_broadcast":
            problem.dropout_broadcast = sum(1 << AXES.index(axis) for axis in value)
        elif name == "return_weights":
            problem.weights_after_dropout = value == "after_dropout"
        elif name in CHOICES:
            setattr(problem, name, CHOICES[name].index(value))
        elif name in ARRAYS:
            arrays[name] = value
        elif name != "return_lse":
            setattr(problem, name, value)
    problem.has_scale = "scale" in options
    for name, array in arrays.items():
        setattr(problem, name, c_array(array))
    problem.arrays = arrays  # its pointers keep nothing alive
    return problem


def set_causal(problem: Problem, causal: Any, arrays: dict[str, Array]) -> None:
    """Set what the argument `causal` means."""
    if isinstance(causal, bool | str):
        problem.causal = CAUSAL[causal]
        return
    problem.causal = 3
    if isinstance(causal, np.ndarray):
        arrays["causal_offsets"] = causal
    else:
        problem.causal_offset = causal
