"""``python -m cpuattn bench``: how fast it is here, beside other libraries.

The repository's bench/ does this at length: more shapes, limits of the machine, and the
best of several ways of calling each library. This is the short form, in every wheel.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import info
from .cases import CASES, Array, Case, PeerError
from .peers import PEERS, Prepared, installed

# How far two right results may be apart, relative to the largest number.
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05, "float64": 1e-12}
ROUNDS = 5
# A run of very short calls is timed as one.
RUN_SECONDS = 50e-6
NAMES = ", ".join(case.name for case in CASES)

Row = dict[str, Any]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    command = commands.add_parser("bench", help="time some shapes, beside others")
    command.add_argument(
        "cases", nargs="*", type=case_named, metavar="case", help=f"of {NAMES} (all)"
    )
    command.add_argument(
        "--against",
        type=listed(tuple(PEERS)),
        default=(),
        metavar="NAMES",
        help=f"other libraries, comma-separated: {', '.join(PEERS)}",
    )
    command.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    command.add_argument("--threads", type=positive, help="the default of each library")
    command.add_argument(
        "--seconds", type=float, default=0.5, help="for each case and library (0.5)"
    )
    command.add_argument("--json", metavar="FILE", help="write the figures")
    command.add_argument("--plot", metavar="FILE", help="draw them (.svg, .png, ...)")
    command.set_defaults(run=run)


def case_named(name: str) -> Case:
    """Read the name of a case."""
    for case in CASES:
        if case.name == name:
            return case
    raise argparse.ArgumentTypeError(f"must be of {NAMES}; got {name}")


def listed(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of comma-separated names of `known`."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name for name in text.split(",") if name))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"must be of {', '.join(known)}; got {name}"
                )
        return names

    return read


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Time the cases, print the table, write what was asked for."""
    names = ("cpuattn", *(name for name in options.against if name != "cpuattn"))
    try:
        # What is missing is told before minutes of timing, not after.
        versions = {name: PEERS[name].version() for name in names}
        if options.plot:
            installed("matplotlib")
        rows = [
            measured(case, names, options)
            for case in progress(options.cases or CASES, quiet=not sys.stderr.isatty())
        ]
    except PeerError as error:
        sys.exit(f"bench: {error}")
    found = info()
    machine = {key: found[key] for key in ("cpu", "isa", "version", "numpy", "python")}
    result = {
        **machine,
        "threads": options.threads or found["threads"],
        "dtype": options.dtype,
        "libraries": versions,
        "cases": rows,
    }
    print(as_text(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        from .plot import draw

        draw(result, options.plot)
    return 0


def progress(cases: Iterable[Case], *, quiet: bool) -> Iterator[Case]:
    """Pass the cases on, with tqdm's progress bar where somebody looks at it."""
    if quiet:
        return iter(cases)
    try:
        from tqdm import tqdm
    except ImportError:
        print("(pip install 'cpuattn[cli]' for a progress bar)", file=sys.stderr)
        return iter(cases)
    bar = tqdm(cases, unit="case", leave=False)
    return (bar.set_postfix_str(case.name) or case for case in bar)


def measured(case: Case, names: tuple[str, ...], options: argparse.Namespace) -> Row:
    """Time one case on every library, in turns.

    Parameters
    ----------
    case : Case
    names : tuple of str
        cpuattn first.
    options : argparse.Namespace

    Returns
    -------
    dict
        The case, its shape, and by library the median and quartiles of a call in
        seconds, or the reason why there are none.
    """
    arrays = case.arrays(options.dtype)
    limit = TOLERANCES[options.dtype]
    calls: dict[str, Callable[[], Any]] = {}
    peers: Row = {}
    expected: Array | None = None
    for name in names:
        ways = PEERS[name].ways(case, arrays, options.threads)
        try:
            calls[name], result = fastest(ways, expected, limit)
        except LookupError as reason:
            peers[name] = {"reason": str(reason)}
            continue
        expected = result if expected is None else expected
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            settle()
            runs[name] += timed(call, options.seconds / ROUNDS)
    for name, seconds in runs.items():
        low, median, high = map(float, np.percentile(seconds, [25, 50, 75]))
        peers[name] = {"median": median, "p25": low, "p75": high, "runs": len(seconds)}
    return {"case": case.name, "shape": case.shape, "flops": case.flops, "peers": peers}


def fastest(
    ways: Iterable[Callable[[], Prepared]], expected: Array | None, limit: float
) -> tuple[Callable[[], Any], Array]:
    """Choose the fastest way that gives what is expected.

    Returns
    -------
    call : callable
    result : ndarray
        What it gave, in float64.

    Raises
    ------
    LookupError
        No way works; the text says why, for each.
    """
    found: list[tuple[float, Callable[[], Any], Array]] = []
    reasons: list[str] = []
    for prepare in ways:
        try:
            call, to_array = prepare()
            result = to_array(call()).astype(np.float64)
        except PeerError:
            raise
        except Exception as raised:  # whatever a library raises is a reason, no crash
            reasons.append(f"{type(raised).__name__}: {raised}".splitlines()[0][:160])
            continue
        error = 0.0 if expected is None else largest_error(result, expected)
        if error < limit:
            found.append((min(timed(call, 0.0)), call, result))
        else:
            reasons.append(f"differs from cpuattn by {error:.0e} of the largest number")
    if not found:
        raise LookupError("; ".join(dict.fromkeys(reasons)))
    _, call, result = min(found, key=lambda way: way[0])
    return call, result


def largest_error(result: Array, expected: Array) -> float:
    """Return the largest difference relative to the largest number expected."""
    return float(np.max(np.abs(result - expected)) / np.max(np.abs(expected)))


def settle(limit: float = 0.2) -> None:
    """Sleep until this process is idle: workers spin for a while after their work."""
    end = time.perf_counter() + limit
    while (begin := time.perf_counter()) < end:
        used = time.process_time()
        time.sleep(2e-3)
        if time.process_time() - used < 0.05 * (time.perf_counter() - begin):
            return


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Call for some seconds, at least thrice; return the seconds of each call."""
    clock = time.perf_counter
    begin = clock()
    call()
    batch = max(1, int(RUN_SECONDS / max(clock() - begin, 1e-9)))
    runs: list[float] = []
    end = clock() + seconds
    while (begin := clock()) < end or len(runs) < 3:
        for _ in range(batch):
            call()
        runs.append((clock() - begin) / batch)
    return runs


def as_text(result: Row) -> str:
    """Write the figures as a table, with what they were measured on below it."""
    names = list(result["libraries"])
    others = names[1:]
    table = [["case", "shape", "cpuattn", "GFLOP/s", *others]]
    notes: list[str] = []
    for row in result["cases"]:
        own = row["peers"]["cpuattn"]["median"]
        cells = [row["case"], row["shape"], duration(own)]
        cells.append(f"{row['flops'] / own / 1e9:.1f}")
        for name in others:
            peer = row["peers"][name]
            if "reason" in peer:
                notes.append(f"{name}, {row['case']}: {peer['reason']}")
                cells.append("-")
            else:
                seconds = peer["median"]
                cells.append(f"{duration(seconds)} ({seconds / own:.2f}x)")
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]
    versions = ", ".join(f"{k} {v}" for k, v in result["libraries"].items())
    plural = "s" * (result["threads"] > 1)
    lines += ["", *notes, *([""] if notes else [])]
    lines += [
        f"{result['cpu']}, {result['isa']}, {result['threads']} thread{plural}, "
        f"{result['dtype']}; medians. {versions}",
        "shape: batch x num_heads[/num_kv_heads] x q_len x kv_len x head_dim; "
        "in parentheses: times as long as cpuattn",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Write seconds with three digits and a unit."""
    for unit, factor in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
