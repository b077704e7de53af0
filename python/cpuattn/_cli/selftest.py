"""``python -m cpuattn selftest``: every usable ISA against float64, in seconds."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _core, attention, available_isas, reference

Array = np.ndarray[Any, Any]

PROBLEMS = 10

# dtype, precision, largest error of values around 1; "medium" runs bfloat16 kernels
LEVELS = (
    ("float32", "highest", 2e-5),
    ("float64", "highest", 2e-14),
    ("float16", "highest", 4e-3),
    ("float32", "high", 1e-4),
    ("float32", "medium", 0.1),
)


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    command = commands.add_parser(
        "selftest", help="compare every usable instruction set with float64, in seconds"
    )
    command.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print a line for each ISA, or that of CPUATTN_ISA; return 1 if any is wrong."""
    begin = time.perf_counter()
    checks = failures = 0
    forced = os.environ.get("CPUATTN_ISA")
    for isa in [forced] if forced else available_isas():
        try:
            _core.set_isa(isa)
        except RuntimeError as error:
            sys.exit(f"selftest: {error}")
        try:
            found = list(checked())
        finally:
            _core.set_isa(None)
        wrong = [text for text, right in found if not right]
        print(f"{isa:13} {len(found) - len(wrong)} of {len(found)} passed")
        for text in wrong:
            print(f"  FAILED: {text}")
        checks += len(found)
        failures += len(wrong)
    seconds = time.perf_counter() - begin
    print(f"{checks - failures} passed, {failures} failed in {seconds:.1f} s")
    return 1 if failures else 0


def checked() -> Iterator[tuple[str, bool]]:
    """Check the ISA that is forced: say what each check found, and if it is right."""
    for dtype, precision, limit in LEVELS:
        for seed in range(PROBLEMS):
            arrays, options, expected = problem(seed, dtype)
            ours = attention(*arrays, **options | {"precision": precision})
            error = np.max(np.abs(ours - expected))
            text = f"{dtype} {precision}, problem {seed}: error {error:.1e}"
            yield f"{text}, limit {limit:.0e}", bool(error < limit)
    for heads, q_len, kv_len in ((4, 256, 256), (2, 1, 20000)):
        rng = np.random.default_rng(0)
        query = rng.standard_normal((heads, q_len, 64), np.float32)
        key, value = rng.standard_normal((2, heads, kv_len, 64), np.float32)
        one, two = (attention(query, key, value, num_threads=n) for n in (1, 2))
        text = f"{q_len} x {kv_len}: 1 and 2 threads differ"
        yield text, one.tobytes() == two.tobytes()


@functools.cache
def problem(
    seed: int, dtype: str
) -> tuple[tuple[Array, Array, Array], dict[str, Any], Array]:
    """Return arrays of random shapes, random options, and the result in float64."""
    rng = np.random.default_rng(seed)
    kv_heads, group = rng.integers(1, 4, 2)
    q_len, kv_len, head_dim, head_dim_v = rng.integers(1, 150, 4)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)

    arrays = (
        draw(2, kv_heads * group, q_len, head_dim),
        draw(2, kv_heads, kv_len, head_dim),
        draw(2, kv_heads, kv_len, head_dim_v),
    )
    options: dict[str, Any] = {
        "causal": [False, True, "top_left"][rng.integers(3)],
        "mask": rng.random((q_len, kv_len)) < 0.8 if rng.random() < 0.5 else None,
        "bias": draw(q_len, kv_len) if rng.random() < 0.5 else None,
        "window": (40, None) if rng.random() < 0.3 else None,
        "softcap": 5.0 if rng.random() < 0.3 else None,
        "kv_lengths": rng.integers(0, kv_len + 1, 2) if rng.random() < 0.5 else None,
    }
    return arrays, options, reference.attention(*arrays, **options)
