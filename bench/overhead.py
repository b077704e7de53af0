# SPDX-License-Identifier: MIT
"""Measure what surrounds the arithmetic: tiny calls, import, size, scratch memory.

``python bench/overhead.py [--wheel cpuattn.whl] [--json out.json]``. Import and scratch
are measured in fresh processes, the packages taking turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cases import make_inputs, select_cases
from machine import describe
from measure import settle
from oracle import make_oracle
from peers import Peer, first_line
from registry import DEFAULT_PEERS, select_peers
from table import duration, text_table

MODULES = ("cpuattn", "torch", "onnxruntime", "openvino", "jax")
CALL_SECONDS = 0.02
SCRATCH_CASE = "dense_16384_d64"
WARM_CASE = "tiny_1x8x16x16x64"

# Time of one import after NumPy's, in a process of its own.
IMPORT_PROGRAM = """
import sys, time
import numpy
begin = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - begin)
"""

# Growth of resident memory during a call, beside the output, in a process of its own.
SCRATCH_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from overhead import scratch_bytes
print(scratch_bytes(*sys.argv[2:5], int(sys.argv[5])))
"""


def tiny_call_times(peers: list[Peer], threads: int, rounds: int) -> dict[str, Any]:
    """Time whole Python calls of the tiny cases, the peers taking turns.

    Parameters
    ----------
    peers : list of Peer
    threads : int
    rounds : int

    Returns
    -------
    dict
        Case name to peer name to median, quartiles and count, in seconds; or to the
        reason why there is none.
    """
    report: dict[str, Any] = {}
    for case in select_cases(["tiny"]):
        inputs = make_inputs(case)
        oracle = make_oracle(case, inputs)
        calls: dict[str, Any] = {}
        failures: dict[str, Any] = {}
        for peer in peers:
            reason = peer.available()
            if reason is None:
                try:
                    calls[peer.name] = peer.prepare(case, inputs, threads, oracle)
                except Exception as failure:
                    reason = first_line(failure)
            if reason is not None:
                failures[peer.name] = {"reason": reason}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in tqdm(range(rounds), desc=case.name, leave=False):
            for name, prepared in calls.items():
                settle()
                with prepared.scope():
                    batch = batch_timer(prepared.call)
                    times[name] += [batch() for _ in range(10)]
        report[case.name] = failures | {
            name: quartiles(values) for name, values in times.items()
        }
    return report


def batch_timer(
    call: Callable[[], object], seconds: float = CALL_SECONDS / 10
) -> Callable[[], float]:
    """Return a function that times a batch of a short call.

    Parameters
    ----------
    call : callable
    seconds : float
        How long a batch lasts, roughly.

    Returns
    -------
    callable
        Returns the seconds of one call, on average of a batch.
    """
    timer = timeit.Timer(call)  # which turns the garbage collector off
    once = timer.timeit(100) / 100
    number = max(1, int(seconds / once))
    return lambda: timer.timeit(number) / number


def quartiles(values: list[float]) -> dict[str, Any]:
    """Reduce samples to median, quartiles, minimum and count."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "median": float(median),
        "p25": float(low),
        "p75": float(high),
        "min": float(min(values)),
        "runs": len(values),
    }


def import_times(rounds: int) -> dict[str, Any]:
    """Time the import of each installed package beyond NumPy's own import."""
    modules = [name for name in MODULES if importlib.util.find_spec(name)]
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in tqdm(range(rounds), desc="import", leave=False):
        for name in modules:
            done = subprocess.run(
                [sys.executable, "-c", IMPORT_PROGRAM, name],
                capture_output=True,
                text=True,
                check=True,
            )
            times[name].append(float(done.stdout.split()[-1]))
    # The first round reads the files from disk.
    return {name: quartiles(values[1:] or values) for name, values in times.items()}


def installed_bytes(name: str) -> int | None:
    """Return the size of an installed package's own files, None if not installed."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


def status_kilobytes(field: str) -> int:
    """Return a field of /proc/self/status in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"status: has no field {field}")


def scratch_bytes(peer_name: str, warm: str, name: str, threads: int) -> int:
    """Return how much memory a first long call takes beside its output.

    Parameters
    ----------
    peer_name : str
    warm : str
        A small case called before, so that libraries are loaded.
    name : str
        The case to measure; nothing of its size was called before.
    threads : int

    Returns
    -------
    int
        Growth of the peak of resident memory in bytes, without the output.
    """
    (peer,) = select_peers([peer_name])
    for case_name in (warm, name):
        (case,) = select_cases([case_name])
        inputs = make_inputs(case)
        _, build = peer.variants(case)[0]
        prepared = build(case, inputs, threads)
        with prepared.scope():
            # Writing 5 resets the peak to the present size.
            Path("/proc/self/clear_refs").write_text("5")
            before = status_kilobytes("VmRSS")
            out = prepared.call()
            peak = status_kilobytes("VmHWM")
            del out
    return (peak - before) * 1024 - inputs.query.nbytes


def scratch(peers: list[Peer], threads: int) -> dict[str, Any]:
    """Measure the scratch memory of each peer in a process of its own (Linux)."""
    report: dict[str, Any] = {}
    for peer in tqdm(peers, desc="scratch", leave=False):
        reason = peer.available()
        if reason is not None:
            report[peer.name] = {"reason": reason}
            continue
        here = str(Path(__file__).parent)
        cases = [WARM_CASE, SCRATCH_CASE, str(threads)]
        done = subprocess.run(
            [sys.executable, "-c", SCRATCH_PROGRAM, here, peer.name, *cases],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no output"]
            report[peer.name] = {"reason": lines[-1]}
        else:
            report[peer.name] = {"bytes": int(done.stdout.split()[-1])}
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print everything that was measured."""
    rows = [["call", "median", "p25", "p75", "reason"]]
    for case_name, peers in report["tiny_calls"].items():
        for peer_name, entry in peers.items():
            shown = [
                duration(entry[field]) if field in entry else "-"
                for field in ("median", "p25", "p75")
            ]
            rows.append([f"{case_name} {peer_name}", *shown, entry.get("reason", "")])
    print(text_table(rows))
    print("\nimport beyond NumPy")
    for name, entry in report["import"].items():
        print(f"  {name:12} {duration(entry['median'])}")
    print("\nsize")
    for name, count in report["installed_bytes"].items():
        print(f"  {name:12} {count / 1e6:8.2f} MB installed")
    if report["wheel_bytes"] is not None:
        print(f"  {'cpuattn':12} {report['wheel_bytes'] / 1e6:8.2f} MB wheel")
    print(f"\nscratch beside the output, first call of {SCRATCH_CASE}")
    for name, entry in report["scratch"].items():
        size = f"{entry['bytes'] / 1e6:8.2f} MB" if "bytes" in entry else ""
        print(f"  {name:12} {size}{entry.get('reason', '')}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure calls, imports and sizes.")
    parser.add_argument("--peers", default=",".join(DEFAULT_PEERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--wheel", type=Path, help="a built wheel to weigh")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-scratch", action="store_true")
    options = parser.parse_args()
    try:
        peers = select_peers(options.peers.split(","))
    except ValueError as error:
        sys.exit(str(error))
    sizes = {name: installed_bytes(name) for name in (*MODULES, "numpy")}
    report = {
        "machine": describe(),
        "threads": options.threads,
        "import": import_times(options.rounds),
        "tiny_calls": tiny_call_times(peers, options.threads, options.rounds),
        "installed_bytes": {name: size for name, size in sizes.items() if size},
        "wheel_bytes": options.wheel.stat().st_size if options.wheel else None,
        "scratch": {} if options.no_scratch else scratch(peers, options.threads),
    }
    print_report(report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
