# SPDX-License-Identifier: MIT
"""Promise: the C library has every option of `attention`, and gives the same bits."""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpuattn
from c_library import Problem, library, problem_of, shared_library
from dtypes import DTYPES, Dtypes, every_dtype
from options import OPTIONS, Sizes, combine
from support import Array, as_tuple, assert_same, rng_for

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(sys.platform != "linux", reason="linked as on Linux"),
]

OK, ERROR_VALUE = 0, 2


def make(names: tuple[str, ...], sizes: Sizes, **dtypes: Any) -> tuple[Any, ...]:
    """Return inputs, options and what `attention` makes of them, by name."""
    rng = rng_for(f"c {names}")
    options = combine(rng, sizes, *names)
    inputs = sizes.qkv(rng, options.get("layout", "bhsd"), **dtypes)
    named = ["out"]
    named += ["lse"] * bool(options.get("return_lse"))
    named += ["weights"] * bool(options.get("return_weights"))
    expected = as_tuple(cpuattn.attention(*inputs, **options))
    return inputs, options, dict(zip(named, expected, strict=True))


def run(problem: Problem, planned: bool) -> None:
    """Compute a problem, directly or by a plan."""
    if planned:
        plan = ctypes.c_void_p()
        status = library().cpuattn_plan_create(
            ctypes.byref(problem), ctypes.byref(plan)
        )
        assert status == OK, library().cpuattn_last_error()
        status = library().cpuattn_plan_run(plan, ctypes.byref(problem))
        library().cpuattn_plan_destroy(plan)
    else:
        status = library().cpuattn_attention(ctypes.byref(problem))
    assert status == OK, library().cpuattn_last_error()


def check(
    inputs: Any, options: dict[str, Any], expected: dict[str, Array], planned: bool
) -> None:
    """Assert that C fills the results that Python returned."""
    results = {name: np.full_like(array, 7) for name, array in expected.items()}
    run(problem_of(inputs, options, results), planned)
    for name, array in expected.items():
        assert_same(results[name], array)


@pytest.mark.parametrize("planned", [False, True], ids=["call", "plan"])
@pytest.mark.parametrize("q_len", [1, 70])
@pytest.mark.parametrize("name", OPTIONS)
def test_c_option_gives_the_bits_of_python(
    name: str, q_len: int, planned: bool
) -> None:
    if "window" in name or "causal" in name:
        names = (name, "return_lse")
    else:
        names = (name, "causal", "return_lse")
    if "dropout" in name:
        names += ("return_weights_after",)
    if name in ("fully_masked_mean", "fully_masked_nan"):
        names += ("mask_none_visible",)
    check(*make(names, Sizes(q_len=q_len, kv_len=90)), planned)


@every_dtype
def test_c_dtypes_give_the_bits_of_python(dtypes: Dtypes) -> None:
    inputs, options, expected = make(
        ("return_lse", "return_weights", "bias"), Sizes(q_len=70), dtypes=dtypes
    )
    options |= dtypes.options
    named = cpuattn.attention(*inputs, **options)
    check(inputs, options, dict(zip(expected, named, strict=True)), planned=False)


def test_c_options_tested_here_are_all_that_attention_has() -> None:
    rng = rng_for("all")
    made = set().union(*(maker(rng, Sizes()) for maker in OPTIONS.values()))
    dtypes = set().union(*(dtypes.options for dtypes in DTYPES.values()))
    given = {"query", "key", "value", "out"}
    assert made | dtypes | given == {*inspect.signature(cpuattn.attention).parameters}


CHOICES = {
    "layout": 1,
    "causal": 3,
    "dropout_broadcast": 15,
    "dropout_generator": 1,
    "fully_masked": 2,
    "precision": 2,
    "num_threads": 4096,
}


@pytest.mark.parametrize("wrong", ["below", "above"])
@pytest.mark.parametrize("name", CHOICES)
def test_c_choice_out_of_range_is_an_error(name: str, wrong: str) -> None:
    inputs, options, expected = make(("softcap",), Sizes())
    problem = problem_of(inputs, options, expected)
    value = -1 if wrong == "below" else CHOICES[name] + 1
    setattr(problem, name, value)
    assert library().cpuattn_attention(ctypes.byref(problem)) == ERROR_VALUE
    said = library().cpuattn_last_error().decode()
    assert said == f"{name}: must be between 0 and {CHOICES[name]}; got {value}"


def test_c_results_that_share_memory_are_an_error() -> None:
    inputs, options, expected = make(("return_weights",), Sizes(kv_len=16))
    expected["weights"] = expected["out"]  # of the same shape
    problem = problem_of(inputs, options, expected)
    assert library().cpuattn_attention(ctypes.byref(problem)) == ERROR_VALUE
    said = library().cpuattn_last_error()
    assert said == b"out: must not share memory with weights"


def test_c_call_starts_as_many_threads_as_it_may(tmp_path: Path) -> None:
    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    inputs, options, expected = make(("causal",), Sizes(q_len=600, kv_len=600))
    problem = problem_of(inputs, options, expected)
    fresh = shared_library(tmp_path)
    before = tasks()
    for threads in (1, 2, 4):
        problem.num_threads = threads
        assert fresh.cpuattn_attention(ctypes.byref(problem)) == OK
        assert tasks() == before + threads - 1
