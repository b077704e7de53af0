# SPDX-License-Identifier: MIT
"""Draw results: GFLOP/s against the rate of the products, GB/s against the read limit.

``python bench/plot.py results.json --out directory`` writes an SVG and a PNG of each
figure for each thread count in the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results import Report, entry_of, load, of_dtypes

COLORS = {
    "cpuattn": "#c1121f",
    "cpuattn-avx512": "#7d1d24",
    "cpuattn-avx2": "#ee8a8f",
    "onnxruntime": "#33658a",
    "openvino": "#86bbd8",
    "torch": "#f6ae2d",
    "jax": "#6a994e",
    "naive": "#b5b5b5",
}
LABELS = {
    "cpuattn-avx512": "cpuattn, AVX-512 FMA only",
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
# Cases that are drawn in every dtype.
DTYPE_CASES = ("dense_2048_d64", "causal_2048_d128", "bert_128")
DTYPE_MEMORY_CASES = ("decode_gqa_8192", "decode_gqa_32768", "decode_mha_1024_d128")
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


def by(
    field: str, results: list[Report], values: tuple[str, ...]
) -> dict[str, list[Report]]:
    """Sort results by a field of their case; a value without results is left out."""
    chosen = {
        value: [result for result in results if result["case"][field] == value]
        for value in values
    }
    return {value: found for value, found in chosen.items() if found}


def case_label(case: Report, panel: str) -> str:
    """Name a case in a panel, which names a group or the case itself."""
    return str(case["dtypes"] if panel == case["name"] else case["id"])


def product_limit(result: Report) -> tuple[float, str] | None:
    """Return the FLOP/s that limit cpuattn in a case, and what they are of."""
    own = entry_of(result, "cpuattn")
    if "roof_percent" not in own:
        return None
    return 1e9 * own["gflops"] / (own["roof_percent"] / 100), own["roof"]


def draw_bars(axes: Axes, panel: str, results: list[Report], peers: list[str]) -> None:
    """Draw one panel of compute-bound cases as grouped horizontal bars."""
    height = 0.8 / len(peers)
    for index, name in enumerate(peers):
        positions, values = [], []
        for row, result in enumerate(results):
            entry = entry_of(result, name)
            if entry:
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
        limit = product_limit(result)
        if limit is not None:
            axes.vlines(
                limit[0] / 1e9,
                row - 0.45,
                row + 0.45,
                color="#222222",
                linewidth=1.4,
                label="limit of cpuattn's products here" if row == 0 else "_nolegend_",
            )
    axes.set_yticks(range(len(results)))
    cases = [result["case"] for result in results]
    axes.set_yticklabels(
        [f"{case_label(case, panel)}\n{case['shape']}" for case in cases]
    )
    axes.set_ylim(len(results) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def draw_compute(
    chosen: dict[str, list[Report]], peers: list[str], threads: int
) -> Figure | None:
    """Draw GFLOP/s against the rate of the products.

    Parameters
    ----------
    chosen : dict
        Panel to elements of ``results`` of the JSON.
    peers : list of str
        Whom to show.
    threads : int

    Returns
    -------
    Figure or None
        None if there is nothing to show.
    """
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
    for axes, (panel, found) in zip(all_axes[:, 0], chosen.items(), strict=True):
        draw_bars(axes, panel, found, peers)
        axes.set_title(TITLES.get(panel, panel), loc="left", fontweight="bold")
    all_axes[-1, 0].set_xlabel(f"useful GFLOP/s, {thread_text(threads)}")
    add_legend(figure, all_axes[0, 0])
    return figure


def draw_memory(
    chosen: dict[str, list[Report]], peers: list[str], threads: int
) -> Figure | None:
    """Draw GB/s of key and value against the read limit; `chosen`: see draw_compute."""
    if not chosen or not peers:
        return None
    figure, all_axes = plt.subplots(
        1,
        len(chosen),
        figsize=(4.6 * len(chosen), 4.2),
        squeeze=False,
        layout="constrained",
    )
    for axes, (panel, found) in zip(all_axes[0], chosen.items(), strict=True):
        draw_rates(axes, panel, found, peers)
        title = TITLES.get(panel, panel)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=9)
    all_axes[0, 0].set_ylabel(f"GB/s of key and value, {thread_text(threads)}")
    add_legend(figure, all_axes[0, 0])
    return figure


def draw_rates(axes: Axes, panel: str, results: list[Report], peers: list[str]) -> None:
    """Draw one panel of memory-bound cases, one column for each case."""
    ordered = sorted(results, key=lambda result: result["case"]["kv_bytes"])
    columns = list(range(len(ordered)))
    width = 0.8 / len(peers)
    for index, name in enumerate(peers):
        places, values = [], []
        for column, result in enumerate(ordered):
            entry = entry_of(result, name)
            if entry:
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
            f"{case_label(case, panel)}\n{case['kv_bytes'] / 1e6:.0f} MB"
            for case in (result["case"] for result in ordered)
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
        cases in float32, ``dtypes`` and ``dtypes-memory`` with some cases in every
        dtype, each with the number of threads.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for threads in sorted({result["threads"] for result in document["results"]}):
        results = [r for r in document["results"] if r["threads"] == threads]
        with plt.rc_context(STYLE):
            for name, figure in figures(results, threads).items():
                if figure is not None:
                    written += save(figure, directory / f"{name}-{threads}")
                    plt.close(figure)
    return written


def figures(results: list[Report], threads: int) -> dict[str, Figure | None]:
    """Draw every figure of one thread count, by name."""
    plain = of_dtypes(results, "float32")
    peers = [name for name in measured_peers(plain) if name != "cpuattn-avx512"]
    few = [name for name in peers if name != "cpuattn-avx2"]
    overview = [r for r in plain if r["case"]["name"] in OVERVIEW_CASES]
    drawn = {
        "overview": draw_compute(by("group", overview, COMPUTE_GROUPS), few, threads),
        "memory": draw_memory(by("group", plain, MEMORY_GROUPS), few, threads),
    }
    for group, found in by("group", plain, COMPUTE_GROUPS).items():
        drawn[group] = draw_compute({group: found}, peers, threads)
    if len(plain) < len(results):
        every = [name for name in measured_peers(results) if name != "cpuattn-avx2"]
        for name, draw, names in (
            ("dtypes", draw_compute, DTYPE_CASES),
            ("dtypes-memory", draw_memory, DTYPE_MEMORY_CASES),
        ):
            drawn[name] = draw(by("name", results, names), every, threads)
    return drawn


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
    for path in draw_all(load(options.json), options.out):
        print(path)


if __name__ == "__main__":
    main()
