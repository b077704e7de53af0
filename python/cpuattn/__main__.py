"""Command line: ``python -m cpuattn info | selftest | bench``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import _core, attention, available_isas, info, reference

Array = np.ndarray[Any, Any]

# name, batch, num_heads, num_kv_heads, q_len, kv_len, head_dim, causal
BENCH_CASES = (
    ("bert_128", 4, 12, 12, 128, 128, 64, False),
    ("vit_h_577", 1, 16, 16, 577, 577, 80, False),
    ("dense_1024", 1, 12, 12, 1024, 1024, 64, False),
    ("causal_1024", 1, 12, 12, 1024, 1024, 64, True),
    ("decode_gqa_4096", 1, 32, 8, 1, 4096, 128, False),
    ("tiny", 1, 1, 1, 1, 1, 8, False),
)

# dtype, precision, largest error of values around 1; "medium" runs bfloat16 kernels
SELFTEST_LEVELS = (
    ("float32", "highest", 2e-5),
    ("float64", "highest", 2e-14),
    ("float16", "highest", 4e-3),
    ("float32", "high", 1e-4),
    ("float32", "medium", 0.1),
)


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; return the exit status.

    Parameters
    ----------
    argv : list of str, optional
        Arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        0 on success, 1 when `selftest` found an error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cpuattn",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # paths in one line
    )
    parser.add_argument(
        "--cmake-dir",
        action="version",
        version=str(Path(__file__).parent / "lib" / "cmake" / "cpuattn"),
        help="where find_package finds the C library that the wheel carries",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = commands.add_parser("info", help="CPU, instruction sets, threads")
    about.add_argument("--json", action="store_true", help="for bug reports")
    commands.add_parser("selftest", help="compare every usable ISA with float64")
    bench = commands.add_parser("bench", help="time a few shapes")
    bench.add_argument("--threads", type=int, default=None)
    bench.add_argument("--seconds", type=float, default=0.5, help="per case")
    bench.add_argument("--against", default="", help="comma list: numpy, torch")
    args = parser.parse_args(argv)
    if args.command == "info":
        return _info(args.json)
    if args.command == "selftest":
        return _selftest()
    return _bench(args.threads, args.seconds, args.against.split(","))


def _info(as_json: bool) -> int:
    report = info()
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    for key, value in report.items():
        if key != "isas":
            print(f"{key:15} {', '.join(value) if isinstance(value, list) else value}")
    for row in report["isas"]:
        state = "usable" if row["usable"] else row["reason"]
        print(f"{'isa ' + row['name']:15} {state}")
    if len(report["openmp"]) > 1:
        print("warning         several OpenMP runtimes are loaded in this process")
    return 0


def _selftest() -> int:
    """Compare every usable ISA with the float64 reference on mixed options."""
    failures = checks = 0
    for isa in available_isas():
        _core.set_isa(isa)
        for dtype, precision, limit in SELFTEST_LEVELS:
            for seed in range(10):
                error = _selftest_error(np.random.default_rng(seed), dtype, precision)
                checks += 1
                if not error < limit:
                    failures += 1
                    level = f"{isa} {dtype} {precision}"
                    print(f"FAIL {level} seed {seed}: error {error:.1e}")
        print(f"{isa}: {10 * len(SELFTEST_LEVELS)} cases")
    _core.set_isa(None)
    print(f"{checks - failures} passed, {failures} failed")
    return 1 if failures else 0


def _selftest_error(rng: np.random.Generator, dtype: str, precision: str) -> float:
    kv_heads, group = rng.integers(1, 4, 2)
    q_len, kv_len, head_dim, head_dim_v = rng.integers(1, 150, 4)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)

    arrays = (
        normal(2, kv_heads * group, q_len, head_dim),
        normal(2, kv_heads, kv_len, head_dim),
        normal(2, kv_heads, kv_len, head_dim_v),
    )
    options: dict[str, Any] = {
        "precision": precision,
        "causal": [False, True, "top_left"][rng.integers(3)],
        "mask": rng.random((q_len, kv_len)) < 0.8 if rng.random() < 0.5 else None,
        "bias": normal(q_len, kv_len) if rng.random() < 0.5 else None,
        "window": (40, None) if rng.random() < 0.3 else None,
        "softcap": 5.0 if rng.random() < 0.3 else None,
        "kv_lengths": rng.integers(0, kv_len + 1, 2) if rng.random() < 0.5 else None,
    }
    ours = attention(*arrays, **options)
    return float(np.max(np.abs(ours - reference.attention(*arrays, **options))))


def _bench(threads: int | None, seconds: float, against: list[str]) -> int:
    names = ["cpuattn", *(name for name in against if name)]
    print(f"{'case':17} {'GFLOP':>7}" + "".join(f" {n + ' us':>14}" for n in names))
    for name, batch, heads, kv_heads, q_len, kv_len, dim, causal in BENCH_CASES:
        rng = np.random.default_rng(0)
        query = rng.standard_normal((batch, heads, q_len, dim), dtype=np.float32)
        key, value = rng.standard_normal(
            (2, batch, kv_heads, kv_len, dim), dtype=np.float32
        )
        flops = 4 * batch * heads * q_len * kv_len * dim * (0.5 if causal else 1.0)
        row = f"{name:17} {flops / 1e9:7.3f}"
        for peer in names:
            call = _peer(peer, query, key, value, causal, threads)
            row += f" {_median(call, seconds) * 1e6:14.1f}"
        print(row)
    return 0


def _peer(
    name: str, query: Array, key: Array, value: Array, causal: bool, threads: int | None
) -> Callable[[], Any]:
    if name == "cpuattn":
        return lambda: attention(query, key, value, causal=causal, num_threads=threads)
    if name == "numpy":
        return lambda: reference.attention(
            query, key, value, causal=causal, dtype=np.float32
        )
    if name != "torch":
        sys.exit(f"--against: must name numpy or torch; got {name}")
    try:
        import torch
    except ImportError:
        sys.exit("--against torch: torch is not installed")
    if threads is not None:
        torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(x) for x in (query, key, value))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    return lambda: sdpa(q, k, v, is_causal=causal, enable_gqa=True)


def _median(call: Callable[[], Any], seconds: float) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or len(times) < 5:
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
