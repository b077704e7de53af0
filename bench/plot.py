# SPDX-License-Identifier: MIT
"""Draw results: GFLOP/s against the FMA limit, GB/s against the read limit.

``python bench/plot.py results.json --out directory`` writes an SVG and a PNG of each
figure for each thread count in the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Report = dict[str, Any]

COLORS = {
    "cpuattn": "#c1121f",
    "cpuattn-avx2": "#ee8a8f",
    "onnxruntime": "#33658a",
    "openvino": "#86bbd8",
    "torch": "#f6ae2d",
    "jax": "#6a994e",
    "naive": "#b5b5b5",
}
LABELS = {
    "cpuattn-avx2": "cpuattn, AVX2 only",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "torch SDPA",
    "jax": "JAX",
    "naive": "NumPy",
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # The same input gives the same file.
    "svg.hashsalt": "cpuattn",
}
COMPUTE_GROUPS = ("dense", "causal", "small", "masked")
MEMORY_GROUPS = ("decode_gqa", "decode_mha", "speculative")
# What README.md shows of the compute-bound cases.
OVERVIEW_CASES = (
    "dense_512_d64",
    "dense_2048_d128",
    "causal_512_d64",
    "causal_2048_d128",
    "bert_128",
    "minilm_32",
    "cross_attention_77",
    "mask_1024_d64",
    "block_1024_d64",
)
TITLES = {
    "dense": "Dense prefill",
    "causal": "Causal prefill (useful FLOPs: half)",
    "small": "Small and odd shapes",
    "masked": "Masks and bias",
    "decode_gqa": "Decode, 32 query heads on 8 kv heads",
    "decode_mha": "Decode, a kv head for each query head",
    "speculative": "4 and 8 query rows against a long cache, 32/8 heads",
}


def measured_peers(results: list[Report]) -> list[str]:
    """Return the peers that have a figure in any of the results, in fixed order."""
    found = {
        name
        for result in results
        for name, entry in result["peers"].items()
        if entry["status"] == "ok"
    }
    return [name for name in COLORS if name in found]


def by_group(results: list[Report], groups: tuple[str, ...]) -> dict[str, list[Report]]:
    """Sort results into the given groups; a group without results is left out."""
    chosen = {
        group: [result for result in results if result["case"]["group"] == group]
        for group in groups
    }
    return {group: found for group, found in chosen.items() if found}


def case_label(case: Report) -> str:
    """Name a case and its shape on two lines."""
    return f"{case['name']}\n{case['shape']}"


def draw_bars(axes: Axes, results: list[Report], peers: list[str]) -> None:
    """Draw one group of compute-bound cases as grouped horizontal bars."""
    height = 0.8 / len(peers)
    for index, name in enumerate(peers):
        positions, values = [], []
        for row, result in enumerate(results):
            entry = result["peers"].get(name, {})
            if entry.get("status") == "ok":
                positions.append(row - 0.4 + (index + 0.5) * height)
                values.append(entry["gflops"])
        axes.barh(
            positions,
            values,
            height=height * 0.92,
            color=COLORS[name],
            label=LABELS.get(name, name),
        )
    for row, result in enumerate(results):
        roofs = result["roofs"].get("fma", {})
        if roofs:
            limit = max(roof["median"] for roof in roofs.values()) / 1e9
            axes.vlines(
                limit,
                row - 0.45,
                row + 0.45,
                color="#222222",
                linewidth=1.4,
                label="FMA limit of this machine" if row == 0 else "_nolegend_",
            )
    axes.set_yticks(range(len(results)))
    axes.set_yticklabels([case_label(result["case"]) for result in results])
    axes.set_ylim(len(results) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def draw_compute(
    results: list[Report], peers: list[str], threads: int
) -> Figure | None:
    """Draw GFLOP/s of compute-bound cases against the FMA limit, a panel a group.

    Parameters
    ----------
    results : list of dict
        Elements of ``results`` of the JSON; other groups are left out.
    peers : list of str
        Whom to show.
    threads : int

    Returns
    -------
    Figure or None
        None if there is nothing to show.
    """
    chosen = by_group(results, COMPUTE_GROUPS)
    if not chosen or not peers:
        return None
    heights = [len(found) for found in chosen.values()]
    case_inches = 0.13 * (len(peers) + 1)
    figure, all_axes = plt.subplots(
        len(chosen),
        1,
        figsize=(8.5, sum(heights) * case_inches + 0.45 * len(chosen) + 0.8),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (group, found) in zip(all_axes[:, 0], chosen.items(), strict=True):
        draw_bars(axes, found, peers)
        axes.set_title(TITLES[group], loc="left", fontweight="bold")
    all_axes[-1, 0].set_xlabel(f"useful GFLOP/s, float32, {thread_text(threads)}")
    add_legend(figure, all_axes[0, 0])
    return figure


def draw_memory(results: list[Report], peers: list[str], threads: int) -> Figure | None:
    """Draw GB/s of key and value of memory-bound cases against the read limit."""
    chosen = by_group(results, MEMORY_GROUPS)
    if not chosen or not peers:
        return None
    figure, all_axes = plt.subplots(
        1,
        len(chosen),
        figsize=(4.6 * len(chosen), 4.2),
        squeeze=False,
        layout="constrained",
    )
    for axes, (group, found) in zip(all_axes[0], chosen.items(), strict=True):
        draw_rates(axes, found, peers)
        axes.set_title(TITLES[group], loc="left", fontweight="bold", fontsize=9)
    all_axes[0, 0].set_ylabel(f"GB/s of key and value, {thread_text(threads)}")
    add_legend(figure, all_axes[0, 0])
    return figure


def draw_rates(axes: Axes, results: list[Report], peers: list[str]) -> None:
    """Draw one group of memory-bound cases, one column for each case."""
    ordered = sorted(results, key=lambda result: result["case"]["kv_bytes"])
    columns = list(range(len(ordered)))
    width = 0.8 / len(peers)
    for index, name in enumerate(peers):
        places, values = [], []
        for column, result in enumerate(ordered):
            entry = result["peers"].get(name, {})
            if entry.get("status") == "ok":
                places.append(column - 0.4 + (index + 0.5) * width)
                values.append(entry["kv_gbytes_per_second"])
        axes.bar(
            places,
            values,
            width=width * 0.92,
            color=COLORS[name],
            label=LABELS.get(name, name),
        )
    for column, result in enumerate(ordered):
        read = result["roofs"].get("read")
        if read:
            axes.hlines(
                read["median"] / 1e9,
                column - 0.45,
                column + 0.45,
                color="#222222",
                linewidth=1.4,
                label="read limit at this size" if column == 0 else "_nolegend_",
            )
    axes.set_xticks(columns)
    axes.set_xticklabels(
        [
            f"{result['case']['name']}\n{result['case']['kv_bytes'] / 1e6:.0f} MB"
            for result in ordered
        ],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
        fontsize=7.5,
    )
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)


def thread_text(threads: int) -> str:
    """Say how many threads."""
    return f"{threads} thread" + ("s" if threads > 1 else "")


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put one legend above the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels))
    )


def draw_all(document: Report, directory: Path) -> list[Path]:
    """Write every figure as SVG and PNG.

    Parameters
    ----------
    document : dict
        The JSON of run.py.
    directory : Path

    Returns
    -------
    list of Path
        The files: ``overview``, ``memory`` and one for each group of compute-bound
        cases, each with the number of threads.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for threads in sorted({result["threads"] for result in document["results"]}):
        results = [r for r in document["results"] if r["threads"] == threads]
        peers = measured_peers(results)
        few = [name for name in peers if name != "cpuattn-avx2"]
        overview = [r for r in results if r["case"]["name"] in OVERVIEW_CASES]
        with plt.rc_context(STYLE):
            figures = {
                "overview": draw_compute(overview, few, threads),
                "memory": draw_memory(results, few, threads),
            }
            for group, found in by_group(results, COMPUTE_GROUPS).items():
                figures[group] = draw_compute(found, peers, threads)
            for name, figure in figures.items():
                if figure is not None:
                    written += save(figure, directory / f"{name}-{threads}")
                    plt.close(figure)
    return written


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG and PNG, without a date so that it only changes with it."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=130)
    return paths


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw results as SVG and PNG.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    for path in draw_all(json.loads(options.json.read_text()), options.out):
        print(path)


if __name__ == "__main__":
    main()
