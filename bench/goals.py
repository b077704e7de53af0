# SPDX-License-Identifier: MIT
"""Compare a run with the project's speed goals, one line for each case and goal.

``python bench/goals.py results.json [--threads 1]``; the goals are percentages of the
machine's own limits and ratios to the fastest accurate peer, see README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cases import CASES
from results import Report, entry_of, load
from table import text_table

Results = dict[str, Report]

# cpuattn limited to the FMA of AVX-512.
FMA_PEER = "cpuattn-avx512"
# Error of the output scale that float32 "high" must stay below.
HIGH_ERROR = 1e-5


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
    amx : bool
        Whether the goal is only for CPUs with AMX.
    """

    name: str
    measure: Callable[[Report, Results], float | None]
    applies: Callable[[Report], bool]
    must: float
    aim: float
    amx: bool = False


def own(field: str, peer: str = "cpuattn") -> Callable[[Report, Results], float | None]:
    """Measure by one field of a peer's entry."""

    def measure(result: Report, _: Results) -> float | None:
        value = entry_of(result, peer).get(field)
        return None if value is None else float(value)

    return measure


def of_amx(result: Report, _: Results) -> float | None:
    """Measure the percentage of the AMX rate, whatever cpuattn computed with."""
    mine = entry_of(result, "cpuattn")
    roof = result["roofs"].get("bfloat16", {}).get("amx_bf16")
    if not mine or roof is None:
        return None
    return float(100 * mine["gflops"] * 1e9 / roof["median"])


def against(peer: str) -> Callable[[Report, Results], float | None]:
    """Measure how much faster cpuattn is than one peer."""

    def measure(result: Report, _: Results) -> float | None:
        mine, theirs = entry_of(result, "cpuattn"), entry_of(result, peer)
        if not mine or not theirs:
            return None
        return float(theirs["seconds"]["median"] / mine["seconds"]["median"])

    return measure


def high_speed(result: Report, results: Results) -> float | None:
    """Measure "high" against the FMA path; too large an error counts as no speed."""
    mine = entry_of(result, "cpuattn")
    if mine and mine["relative_error"] >= HIGH_ERROR:
        return 0.0
    return against(FMA_PEER)(result, results)


def against_twin(result: Report, results: Results) -> float | None:
    """Measure the speed relative to the same shape without mask or bias.

    Both times count in cycles of the FMA limit measured beside them, so that a change
    of the clock between the two cases cancels.
    """
    twin = results.get(result["case"].get("twin") or "")
    mine = entry_of(result, "cpuattn")
    plain = entry_of(twin, "cpuattn") if twin else {}
    if twin is None or "roof_percent" not in mine or "roof_percent" not in plain:
        return None
    work = twin["case"]["flops"] / result["case"]["flops"]
    return float(mine["roof_percent"] / plain["roof_percent"] * work)


def is_case(
    *groups: str,
    head_dim: int | None = None,
    kv_len: int | None = None,
    at_least: int = 0,
    dtypes: tuple[str, ...] = ("float32",),
) -> Callable[[Report], bool]:
    """Select cases by group and dtypes, and by head_dim and kv_len if given."""

    def applies(case: Report) -> bool:
        return (
            case["group"] in groups
            and head_dim in (None, case["head_dim"])
            and kv_len in (None, case["kv_len"])
            and case["kv_len"] >= at_least
            and case["dtypes"] in dtypes
        )

    return applies


def is_named(*names: str) -> Callable[[Report], bool]:
    """Select float32 cases by name."""
    return lambda case: case["id"] in names


def has_mask(*kinds: str) -> Callable[[Report], bool]:
    """Select cases by the kind of their mask."""
    return lambda case: case["mask"] in kinds


def prefill(dtypes: str, at_least: int, **sizes: int) -> Callable[[Report], bool]:
    """Select dense and causal cases of one dtype."""
    return is_case("dense", "causal", dtypes=(dtypes,), at_least=at_least, **sizes)


def bfloat16_cache(*groups: str) -> Callable[[Report], bool]:
    """Select decoding over a long cache in bfloat16, the query in any dtype."""
    return is_case(*groups, at_least=8192, dtypes=("bfloat16", "float32-bfloat16"))


SMALL = ("bert_128", "minilm_32", "vit_h_577", "cross_attention_77")

GOALS = (
    Goal("% of FMA", own("roof_percent"), is_case("dense", head_dim=64), 75, 86),
    Goal("% of FMA", own("roof_percent"), is_case("dense", head_dim=128), 80, 91),
    Goal(
        "% of AVX2 FMA",
        own("roof_percent", "cpuattn-avx2"),
        is_case("dense", head_dim=64),
        78,
        88,
    ),
    Goal(
        "% of AVX2 FMA",
        own("roof_percent", "cpuattn-avx2"),
        is_case("dense", head_dim=128),
        82,
        92,
    ),
    Goal("% of FMA", own("roof_percent"), is_case("causal", kv_len=512), 62, 80),
    Goal("% of FMA", own("roof_percent"), is_case("causal", kv_len=2048), 72, 86),
    Goal("x fastest peer", own("speedup"), is_case("dense"), 1.25, 1.6),
    Goal("x fastest peer", own("speedup"), is_case("causal"), 1.7, 2.5),
    Goal("x fastest peer", own("speedup"), is_named(*SMALL), 1.2, 2),
    Goal("x unmasked", against_twin, has_mask("random"), 0.90, 0.97),
    Goal("x dense", against_twin, has_mask("block", "block_shared"), 1.7, 1.95),
    Goal("% of reads", own("read_percent"), is_case("decode_gqa"), 85, 95),
    Goal("x torch", against("torch"), is_case("decode_gqa"), 2, 4),
    Goal("x fastest peer", own("speedup"), is_case("decode_mha"), 1.0, 1.0),
    Goal("% of reads", own("read_percent"), is_case("decode_mha"), 0, 97),
    Goal("x torch", against("torch"), is_case("speculative"), 3, 6),
    Goal("x torch", against("torch"), is_named("tiny_1x1x1x1x8"), 3, 7),
    Goal("% of AMX", of_amx, prefill("bfloat16", 1024, head_dim=64), 22, 45, amx=True),
    Goal("% of AMX", of_amx, prefill("bfloat16", 1024, head_dim=128), 30, 60, amx=True),
    Goal("x fastest peer", own("speedup"), prefill("bfloat16", 1024), 1.8, 3.5),
    Goal("x own FMA path", against(FMA_PEER), prefill("float32", 1024), 1, 1.4, True),
    Goal("x own FMA path", high_speed, prefill("float32-high", 1024), 1.7, 2.5, True),
    Goal("x OpenVINO", against("openvino"), prefill("float32-medium", 0), 1.3, 3),
    Goal("x torch", against("torch"), prefill("float16", 0), 2, 4),
    Goal(
        "% of reads",
        own("read_percent"),
        bfloat16_cache("decode_gqa", "decode_mha"),
        80,
        95,
    ),
    Goal("x torch", against("torch"), bfloat16_cache("decode_gqa"), 3, 5),
    Goal("x torch", against("torch"), is_case("dense", dtypes=("float64",)), 1.3, 1.6),
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
        result["case"]["id"]: result
        for result in document["results"]
        if result["threads"] == threads
    }
    has_amx = "amx_bf16" in document["machine"]["isa_flags"]
    rows = []
    for case in CASES:
        result = results.get(case.id)
        if result is None:
            continue
        for goal in GOALS:
            if not goal.applies(result["case"]):
                continue
            value = goal.measure(result, results)
            verdict = "not measured"
            if goal.amx and not has_amx:
                value, verdict = None, "open: no AMX here"
            elif value is not None:
                verdict = "missed" if value < goal.must else "reached"
                verdict = "aim reached" if value >= goal.aim else verdict
            shown = "-" if value is None else f"{value:.3g}"
            limits = [f"{goal.must:g}", f"{goal.aim:g}"]
            rows.append([case.id, goal.name, shown, *limits, verdict])
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare results with the goals.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    document = load(options.json)
    header = ["case", "measure", "measured", "must", "aim", "verdict"]
    print(text_table([header, *goal_rows(document, options.threads)]))


if __name__ == "__main__":
    main()
