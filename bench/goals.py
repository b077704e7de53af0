# SPDX-License-Identifier: MIT
"""Compare a run with the project's speed goals, one line for each case and goal.

``python bench/goals.py results.json [--threads 1]``; the goals are percentages of the
machine's own limits and ratios to the fastest accurate peer, see README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import CASES
from table import text_table

Report = dict[str, Any]
Results = dict[str, Report]


@dataclass(frozen=True)
class Goal:
    """Set one measure of one set of cases.

    Attributes
    ----------
    name : str
    measure : callable
        Given the result of a case and all results by name, returns the figure or None.
    applies : callable
        Given the case, says whether the goal is for it.
    must, aim : float
    """

    name: str
    measure: Callable[[Report, Results], float | None]
    applies: Callable[[Report], bool]
    must: float
    aim: float


def entry_of(result: Report, peer: str) -> Report:
    """Return a peer's entry, empty if it has no figures."""
    entry: Report = result["peers"].get(peer, {})
    return entry if entry.get("status") == "ok" else {}


def own(field: str, peer: str = "cpuattn") -> Callable[[Report, Results], float | None]:
    """Measure by one field of a peer's entry."""

    def measure(result: Report, _: Results) -> float | None:
        value = entry_of(result, peer).get(field)
        return None if value is None else float(value)

    return measure


def against(peer: str) -> Callable[[Report, Results], float | None]:
    """Measure how much faster cpuattn is than one peer."""

    def measure(result: Report, _: Results) -> float | None:
        mine, theirs = entry_of(result, "cpuattn"), entry_of(result, peer)
        if not mine or not theirs:
            return None
        return float(theirs["seconds"]["median"] / mine["seconds"]["median"])

    return measure


def against_twin(result: Report, results: Results) -> float | None:
    """Measure the speed relative to the same shape without mask or bias.

    Both times count in cycles of the FMA limit measured beside them, so that a change
    of the clock between the two cases cancels.
    """
    twin = results.get(result["case"].get("twin") or "")
    mine = entry_of(result, "cpuattn")
    plain = entry_of(twin, "cpuattn") if twin else {}
    if twin is None or "fma_percent" not in mine or "fma_percent" not in plain:
        return None
    work = twin["case"]["flops"] / result["case"]["flops"]
    return float(mine["fma_percent"] / plain["fma_percent"] * work)


def is_case(
    group: str, head_dim: int | None = None, kv_len: int | None = None
) -> Callable[[Report], bool]:
    """Select cases by group, and by head_dim and kv_len if given."""

    def applies(case: Report) -> bool:
        return (
            case["group"] == group
            and head_dim in (None, case["head_dim"])
            and kv_len in (None, case["kv_len"])
        )

    return applies


def has_mask(*kinds: str) -> Callable[[Report], bool]:
    """Select cases by the kind of their mask."""
    return lambda case: case["mask"] in kinds


SMALL = ("bert_128", "minilm_32", "vit_h_577", "cross_attention_77")

GOALS = (
    Goal("% of FMA", own("fma_percent"), is_case("dense", 64), 75, 86),
    Goal("% of FMA", own("fma_percent"), is_case("dense", 128), 80, 91),
    Goal(
        "% of AVX2 FMA",
        own("fma_percent", "cpuattn-avx2"),
        is_case("dense", 64),
        78,
        88,
    ),
    Goal(
        "% of AVX2 FMA",
        own("fma_percent", "cpuattn-avx2"),
        is_case("dense", 128),
        82,
        92,
    ),
    Goal("% of FMA", own("fma_percent"), is_case("causal", kv_len=512), 62, 80),
    Goal("% of FMA", own("fma_percent"), is_case("causal", kv_len=2048), 72, 86),
    Goal("x fastest peer", own("speedup"), is_case("dense"), 1.25, 1.6),
    Goal("x fastest peer", own("speedup"), is_case("causal"), 1.7, 2.5),
    Goal("x fastest peer", own("speedup"), lambda case: case["name"] in SMALL, 1.2, 2),
    Goal("x unmasked", against_twin, has_mask("random"), 0.90, 0.97),
    Goal("x dense", against_twin, has_mask("block", "block_shared"), 1.7, 1.95),
    Goal("% of reads", own("read_percent"), is_case("decode_gqa"), 85, 95),
    Goal("x torch", against("torch"), is_case("decode_gqa"), 2, 4),
    Goal("x fastest peer", own("speedup"), is_case("decode_mha"), 1.0, 1.0),
    Goal("% of reads", own("read_percent"), is_case("decode_mha"), 0, 97),
    Goal("x torch", against("torch"), is_case("speculative"), 3, 6),
    Goal(
        "x torch", against("torch"), lambda case: case["name"] == "tiny_1x1x1x1x8", 3, 7
    ),
)


def goal_rows(document: Report, threads: int) -> list[list[str]]:
    """Compare every measured case with its goals.

    Parameters
    ----------
    document : dict
        The JSON of run.py.
    threads : int

    Returns
    -------
    list of list of str
        Case, measure, measured, must, aim, verdict.
    """
    results = {
        result["case"]["name"]: result
        for result in document["results"]
        if result["threads"] == threads
    }
    rows = []
    for case in CASES:
        result = results.get(case.name)
        if result is None:
            continue
        for goal in GOALS:
            if not goal.applies(result["case"]):
                continue
            value = goal.measure(result, results)
            verdict = "not measured"
            if value is not None:
                verdict = "missed" if value < goal.must else "reached"
                verdict = "aim reached" if value >= goal.aim else verdict
            shown = "-" if value is None else f"{value:.3g}"
            limits = [f"{goal.must:g}", f"{goal.aim:g}"]
            rows.append([case.name, goal.name, shown, *limits, verdict])
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare results with the goals.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    document = json.loads(options.json.read_text())
    header = ["case", "measure", "measured", "must", "aim", "verdict"]
    print(text_table([header, *goal_rows(document, options.threads)]))


if __name__ == "__main__":
    main()
