# SPDX-License-Identifier: MIT
"""Measure cases on every peer in interleaved rounds, against the machine's own limits.

``python bench/run.py [case or group ...] [--dtypes all] [--threads 1,2] [--json out]``;
see README.md for the method. Saves after every case; ``--resume`` goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import roofline
from cases import DTYPES, Case, Inputs, make_inputs, select_cases
from machine import LoadMeter, describe
from measure import QuietRule, Samples, run_slice, take_slice
from oracle import Oracle, make_oracle
from peers import Peer, Prepared, UnsupportedCaseError, first_line
from registry import DEFAULT_PEERS, is_own, select_peers
from results import FORMAT, Report, load
from roofline import Roof
from table import case_table

ROOF_SLICE_SECONDS = 40e-3


@dataclass(frozen=True)
class Settings:
    """Hold what the command line decides about the measurement."""

    rounds: int
    min_repeats: int
    slice_seconds: float
    max_seconds: float
    alignment_offset: int
    roofs: bool
    other_load: float
    quiet_wait: float


@dataclass
class Contender:
    """Take part in the rounds of one case: a peer or one of the limits.

    Attributes
    ----------
    take : callable
        Takes one slice and returns its values: seconds, or rates of a limit.
    prepared : Prepared or None
        What a peer runs; None for a limit.
    roof : Roof or None
        The rate of products that limits a peer, or that this limit measures.
    """

    name: str
    take: Callable[[], list[float]]
    prepared: Prepared | None = None
    roof: Roof | None = None
    samples: Samples = field(default_factory=Samples)
    spent: float = 0.0
    failure: str | None = None


def peer_contender(
    peer: Peer,
    case: Case,
    inputs: Inputs,
    threads: int,
    settings: Settings,
    oracle: Oracle,
) -> Contender:
    """Make a peer ready and say what limits it."""
    prepared = peer.prepare(case, inputs, threads, oracle)
    runs = math.ceil(settings.min_repeats / settings.rounds)

    def take() -> list[float]:
        with prepared.scope():
            return run_slice(
                prepared.call,
                prepared.seconds,
                runs,
                settings.slice_seconds,
                settings.max_seconds / settings.rounds,
            )

    roof = None
    if settings.roofs:
        roof = roofline.roof_of(prepared.products, prepared.isa)
    return Contender(peer.name, take, prepared, roof)


def roof_contenders(
    case: Case, inputs: Inputs, threads: int, peers: list[Contender]
) -> list[Contender]:
    """Make the limits that the case is compared with take part in its rounds."""
    # Three products for one are limited by the rate of one.
    roofs = {replace(peer.roof, terms=1) for peer in peers if peer.roof is not None}
    contenders = [
        Contender(
            f"{roof.element} {roof.isa}",
            partial(roofline.product_rates, roof, threads, ROOF_SLICE_SECONDS),
            roof=roof,
        )
        for roof in sorted(roofs, key=astuple)
    ]
    if case.memory_bound:
        arrays = [inputs.key, inputs.value]
        contenders += [
            Contender(
                f"read {variant}",
                partial(
                    roofline.read_rates, arrays, variant, threads, ROOF_SLICE_SECONDS
                ),
            )
            for variant in roofline.READ_VARIANTS
        ]
    return contenders


def measure_case(
    case: Case,
    threads: int,
    peers: list[Peer],
    settings: Settings,
    step: Callable[[str], None],
) -> Report:
    """Measure one case on every peer.

    Parameters
    ----------
    case : Case
    threads : int
    peers : list of Peer
    settings : Settings
    step : callable
        Told the name of each round, for the progress bar.

    Returns
    -------
    dict
        The result as it goes into the JSON.
    """
    inputs = make_inputs(case, settings.alignment_offset)
    oracle = make_oracle(case, inputs)
    entries: dict[str, Report] = {}
    contenders: list[Contender] = []
    for peer in peers:
        reason = peer.available()
        if reason is not None:
            entries[peer.name] = {"status": "unavailable", "reason": reason}
            continue
        try:
            contenders.append(
                peer_contender(peer, case, inputs, threads, settings, oracle)
            )
        except UnsupportedCaseError as failure:
            entries[peer.name] = {"status": "unsupported", "reason": str(failure)}
        except Exception as failure:
            entries[peer.name] = {"status": "failed", "reason": first_line(failure)}
    if settings.roofs:
        contenders += roof_contenders(case, inputs, threads, contenders)

    meter = LoadMeter()
    run_rounds(case, contenders, threads, settings, step)
    roofs = summarize_roofs(contenders)
    for contender in contenders:
        if contender.prepared is not None:
            entry = summarize_peer(case, contender, roofs)
            if "max_error" in entry:
                entry["relative_error"] = entry["max_error"] / oracle.scale
            entries[contender.name] = entry
    add_ratios(entries)
    return {
        "case": asdict(case)
        | {
            "id": case.id,
            "dtypes": case.dtypes,
            "shape": case.shape,
            "flops": case.flops,
            "kv_bytes": case.kv_bytes,
            "memory_bound": case.memory_bound,
        },
        "threads": threads,
        "roofs": roofs,
        "out_scale": oracle.scale,
        "other_cores": meter.other_cores(),
        "peers": {peer.name: entries[peer.name] for peer in peers},
    }


def run_rounds(
    case: Case,
    contenders: list[Contender],
    threads: int,
    settings: Settings,
    step: Callable[[str], None],
) -> None:
    """Let every contender take one slice a round, in a new random order each round."""
    order = random.Random(case.id)
    rule = QuietRule(threads, settings.other_load, settings.quiet_wait)
    for _ in range(settings.rounds):
        shuffled = list(contenders)
        order.shuffle(shuffled)
        for contender in shuffled:
            if contender.failure or contender.spent > settings.max_seconds:
                continue
            try:
                contender.spent += take_slice(contender.samples, contender.take, rule)
            except Exception as failure:
                contender.failure = first_line(failure)
        step(f"{case.id} x{threads}")


def summarize_roofs(contenders: list[Contender]) -> Report:
    """Reduce the limits.

    Returns
    -------
    dict
        Element to ISA to FLOP/s, and "read" to bytes/s of the fastest way to read.
    """
    roofs: Report = {}
    for contender in contenders:
        if contender.prepared is not None or not contender.samples.runs:
            continue
        limit = contender.samples.summary()
        if contender.roof is not None:
            roofs.setdefault(contender.roof.element, {})[contender.roof.isa] = limit
        elif limit["median"] > roofs.get("read", {"median": 0.0})["median"]:
            variant = contender.name.removeprefix("read ")
            roofs["read"] = limit | {"variant": variant}
    return roofs


def summarize_peer(case: Case, contender: Contender, roofs: Report) -> Report:
    """Reduce a peer's runs to the figures of the report."""
    assert contender.prepared is not None
    if contender.failure or not contender.samples.runs:
        return {"status": "failed", "reason": contender.failure or "no run"}
    seconds = contender.samples.summary()
    median = seconds["median"]
    entry: Report = {
        "status": "ok",
        "variant": contender.prepared.variant,
        "notes": contender.prepared.notes,
        "products": contender.prepared.products,
        "max_error": contender.prepared.max_error,
        "seconds": seconds,
        "gflops": case.flops / median / 1e9,
        "kv_gbytes_per_second": case.kv_bytes / median / 1e9,
    }
    limit_seconds = []
    roof = contender.roof
    if roof is not None and roof.isa in roofs.get(roof.element, {}):
        rate = roofs[roof.element][roof.isa]["median"] / roof.terms
        entry["roof"] = str(roof)
        entry["roof_isa"] = roof.isa
        entry["roof_percent"] = 100 * case.flops / rate / median
        limit_seconds.append(case.flops / rate)
    if "read" in roofs:
        read_seconds = case.kv_bytes / roofs["read"]["median"]
        entry["read_percent"] = 100 * read_seconds / median
        limit_seconds.append(read_seconds)
    if limit_seconds:
        # The roofline model: neither limit can be passed, the slower one binds.
        entry["bound_percent"] = 100 * max(limit_seconds) / median
    return entry


def add_ratios(entries: dict[str, Report]) -> None:
    """Add to each peer how much faster it is than the fastest other peer."""
    rivals = {
        name: entry["seconds"]["median"]
        for name, entry in entries.items()
        if entry["status"] == "ok" and not is_own(name)
    }
    for name, entry in entries.items():
        others = {rival: s for rival, s in rivals.items() if rival != name}
        if entry["status"] == "ok" and others:
            fastest = min(others, key=lambda rival: others[rival])
            entry["fastest_peer"] = fastest
            entry["speedup"] = others[fastest] / entry["seconds"]["median"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure attention on the CPU: cpuattn and its peers, interleaved."
    )
    parser.add_argument(
        "cases",
        nargs="*",
        help="case or group names, or report: the cases of docs/benchmarks.md; "
        "none means all",
    )
    parser.add_argument(
        "--dtypes",
        default="float32",
        help=f"comma-separated, of {', '.join(DTYPES)}; or all",
    )
    parser.add_argument("--threads", default="1", help="comma-separated, e.g. 1,2")
    parser.add_argument(
        "--peers", default=",".join(DEFAULT_PEERS), help="comma-separated"
    )
    parser.add_argument("--rounds", type=int, help="default 10, quick 3")
    parser.add_argument(
        "--min-repeats", type=int, help="runs of a peer and case; default 30, quick 9"
    )
    parser.add_argument("--slice-seconds", type=float, help="default 0.1, quick 0.05")
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="per peer and case"
    )
    parser.add_argument("--json", type=Path, help="write results here after each case")
    parser.add_argument("--resume", action="store_true", help="go on with --json")
    parser.add_argument("--overwrite", action="store_true", help="replace --json")
    parser.add_argument(
        "--quick", action="store_true", help="only the short cases, fewer runs"
    )
    parser.add_argument(
        "--alignment-offset",
        type=int,
        default=0,
        help="bytes past a 64-byte boundary at which inputs start (NumPy: often 16)",
    )
    parser.add_argument("--no-roofs", action="store_true", help="leave out the limits")
    parser.add_argument(
        "--other-load",
        type=float,
        default=0.3,
        help="cores that others may use beyond the spare ones before a slice is redone",
    )
    parser.add_argument(
        "--quiet-wait",
        type=float,
        default=20.0,
        help="seconds to wait for a quiet machine, per slice; 0 keeps every slice",
    )
    return parser.parse_args(arguments)


def load_results(options: argparse.Namespace) -> list[Report]:
    """Return the results that --json already holds, if --resume is given."""
    path: Path | None = options.json
    if path is None or not path.exists() or options.overwrite:
        return []
    if not options.resume:
        sys.exit(f"--json: {path} exists; pass --resume or --overwrite")
    document = load(path)
    present = describe()
    for part in ("cpu", "versions"):
        if document["machine"][part] != present[part]:
            sys.exit(
                f"--resume: {path} must be from this machine and these versions; got "
                f"{part} {document['machine'][part]}, now {present[part]}"
            )
    results: list[Report] = document["results"]
    return results


def save(path: Path, settings: Settings, results: list[Report]) -> None:
    """Write the JSON in one step, so that a stopped run leaves a whole file."""
    document = {
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "settings": asdict(settings),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(rounded(document), indent=1) + "\n")
    partial.replace(path)


def rounded(value: Any) -> Any:
    """Round floats to 6 significant digits and make them valid JSON."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    try:
        dtypes = DTYPES if options.dtypes == "all" else options.dtypes.split(",")
        cases = select_cases(options.cases, quick=options.quick, dtypes=dtypes)
        peers = select_peers(options.peers.split(","))
        if not options.no_roofs:
            roofline.supported_isas()
    except (ValueError, roofline.RooflineError) as error:
        sys.exit(str(error))
    settings = Settings(
        rounds=options.rounds or (3 if options.quick else 10),
        min_repeats=options.min_repeats or (9 if options.quick else 30),
        slice_seconds=options.slice_seconds or (0.05 if options.quick else 0.1),
        max_seconds=options.max_seconds,
        alignment_offset=options.alignment_offset,
        roofs=not options.no_roofs,
        other_load=options.other_load,
        quiet_wait=options.quiet_wait,
    )
    results = load_results(options)
    done = {(result["case"]["id"], result["threads"]) for result in results}
    thread_counts = [int(text) for text in options.threads.split(",")]
    todo = [
        (threads, case)
        for threads in thread_counts
        for case in cases
        if (case.id, threads) not in done
    ]
    with tqdm(total=len(todo) * settings.rounds, unit="round") as progress:

        def step(label: str) -> None:
            progress.set_description(label)
            progress.update()

        for threads, case in todo:
            progress.set_description(f"{case.id} x{threads}")
            result = measure_case(case, threads, peers, settings, step)
            results.append(result)
            progress.write(case_table(result), file=sys.stdout)
            if options.json is not None:
                save(options.json, settings, results)


if __name__ == "__main__":
    main()
