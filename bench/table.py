# SPDX-License-Identifier: MIT
"""Turn results into tables: plain text for the terminal, Markdown for README.md.

``python bench/table.py results.json [--threads 1]`` prints the Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from registry import is_own

Report = dict[str, Any]


def duration(seconds: float) -> str:
    """Show a time with three significant digits and a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def percent(value: float | None) -> str:
    """Show a percentage, or a dash."""
    return "-" if value is None else f"{value:.0f} %"


def spread_percent(seconds: Report) -> float:
    """Return half of the interquartile range in percent of the median."""
    half = (seconds["p75"] - seconds["p25"]) / 2
    return float(100 * half / seconds["median"])


def text_table(rows: list[list[str]]) -> str:
    """Align columns: the first one to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def roof_line(result: Report) -> str:
    """Show the limits measured with a case."""
    parts = [
        f"FMA {isa} {roof['median'] / 1e9:.0f} GFLOP/s"
        for isa, roof in result["roofs"].get("fma", {}).items()
    ]
    read = result["roofs"].get("read")
    if read:
        parts.append(f"read {read['median'] / 1e9:.1f} GB/s ({read['variant']})")
    others = result.get("other_cores")
    if others is not None:
        parts.append(f"others used {others:.2f} cores")
    return "; ".join(parts)


def case_table(result: Report) -> str:
    """Show one case, every peer with its figures or the reason why it has none.

    Parameters
    ----------
    result : dict
        One element of ``results`` of the JSON.

    Returns
    -------
    str
    """
    case = result["case"]
    rows = [
        [
            "peer",
            "median",
            "spread",
            "runs",
            "GFLOP/s",
            "of FMA",
            "KV GB/s",
            "of read",
            "of bound",
            "max error",
            "vs best peer",
        ]
    ]
    failures = []
    for name, entry in result["peers"].items():
        if entry["status"] != "ok":
            failures.append(f"{name}: {entry['status']}: {entry['reason']}")
            continue
        seconds = entry["seconds"]
        flag = "*" * bool(seconds["disturbed_slices"])
        rows.append(
            [
                name,
                duration(seconds["median"]),
                f"{spread_percent(seconds):.1f} %{flag}",
                str(seconds["runs"]),
                f"{entry['gflops']:.4g}",
                percent(entry.get("fma_percent")),
                f"{entry['kv_gbytes_per_second']:.3g}",
                percent(entry.get("read_percent")),
                percent(entry.get("bound_percent")),
                f"{entry['max_error']:.1e}",
                f"{entry['speedup']:.2f}x" if "speedup" in entry else "-",
            ]
        )
    title = f"{case['name']}  {case['shape']}  {result['threads']} threads"
    variants = [
        f"{name}: {entry['variant']}"
        for name, entry in result["peers"].items()
        if entry["status"] == "ok" and name in ("onnxruntime", "openvino")
    ]
    return "\n".join(
        ["", title, roof_line(result), text_table(rows), *variants, *failures]
    )


def fastest(result: Report) -> tuple[str, Report] | None:
    """Return the fastest peer that cpuattn was compared with."""
    own = result["peers"].get("cpuattn", {})
    if "fastest_peer" in own:
        name = own["fastest_peer"]
        return name, result["peers"][name]
    rivals = [
        (name, entry)
        for name, entry in result["peers"].items()
        if entry["status"] == "ok" and not is_own(name)
    ]
    return min(rivals, key=lambda pair: pair[1]["seconds"]["median"], default=None)


def markdown(document: Report, threads: int) -> str:
    """Make the Markdown table of README.md: one row a case, losses in bold.

    Parameters
    ----------
    document : dict
        The JSON of run.py.
    threads : int
        Which runs to show.

    Returns
    -------
    str
    """
    lines = [
        "| case | batch x heads[/kv] x q_len x kv_len x head_dim | cpuattn | of the "
        "machine's limit | torch | ONNX Runtime | OpenVINO | NumPy | against the "
        "fastest peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in document["results"]:
        if result["threads"] != threads:
            continue
        case = result["case"]
        own = result["peers"].get("cpuattn", {"status": "absent"})
        cells = [case["name"], case["shape"], cell(own), limit_cell(case, own)]
        for name in ("torch", "onnxruntime", "openvino", "naive"):
            cells.append(cell(result["peers"].get(name, {"status": "absent"})))
        speedup = own.get("speedup")
        text = "-" if speedup is None else f"{speedup:.2f}x"
        cells.append(f"**{text}**" if speedup is not None and speedup < 1 else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(entry: Report) -> str:
    """Show a peer's time in a Markdown cell."""
    if entry["status"] == "ok":
        return duration(entry["seconds"]["median"])
    return str(entry["status"]) if entry["status"] != "absent" else "-"


def limit_cell(case: Report, entry: Report) -> str:
    """Show how much of the limit a peer reaches: of the read rate or of FMA."""
    if case["memory_bound"] and "read_percent" in entry:
        return f"{entry['read_percent']:.0f} % of reads"
    if case["group"] != "tiny" and "fma_percent" in entry:
        return f"{entry['fma_percent']:.0f} % of FMA"
    return "-"


def caption(document: Report, threads: int) -> str:
    """Say in one paragraph what the table was measured with."""
    machine, settings = document["machine"], document["settings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {threads} thread"
        f"{'s' * (threads > 1)}, float32; medians of at least "
        f"{settings['min_repeats']} runs in {settings['rounds']} interleaved rounds "
        f"(governor: {machine['governor'] or 'not readable'}). {versions}."
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Print results as Markdown.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    document = json.loads(options.json.read_text())
    print(markdown(document, options.threads))
    print()
    print(caption(document, options.threads))


if __name__ == "__main__":
    main()
