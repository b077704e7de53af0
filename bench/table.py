# SPDX-License-Identifier: MIT
"""Turn results into tables: plain text for the terminal, Markdown for README.md.

``python bench/table.py results.json [--threads 1]`` prints the Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from registry import is_own
from results import Report, load, of_dtypes

COLUMNS = {
    "torch": "torch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "naive": "NumPy",
}


def duration(seconds: float) -> str:
    """Show a time with three significant digits and a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def percent(value: float | None) -> str:
    """Show a percentage, or a dash."""
    return "-" if value is None else f"{value:.0f} %"


def short_error(entry: Report) -> str | None:
    """Show an error relative to the output scale, as 2e-7; None if not known."""
    if "relative_error" not in entry:
        return None
    mantissa, _, exponent = f"{entry['relative_error']:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mantissa != "0" else "0"


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
        f"{element} {isa} {roof['median'] / 1e9:.0f} GFLOP/s"
        for element in ("float32", "float64", "bfloat16")
        for isa, roof in result["roofs"].get(element, {}).items()
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
            "of the rate of",
            "KV GB/s",
            "of read",
            "of bound",
            "max error",
            "of scale",
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
                f"{percent(entry.get('roof_percent'))} {entry.get('roof', '')}",
                f"{entry['kv_gbytes_per_second']:.3g}",
                percent(entry.get("read_percent")),
                percent(entry.get("bound_percent")),
                f"{entry['max_error']:.1e}",
                short_error(entry) or "-",
                f"{entry['speedup']:.2f}x" if "speedup" in entry else "-",
            ]
        )
    title = f"{case['id']}  {case['shape']}  {result['threads']} threads"
    variants = [
        f"{name}: {entry['variant']}"
        for name, entry in result["peers"].items()
        if entry["status"] == "ok" and name in ("torch", "onnxruntime", "openvino")
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
        The JSON of run.py. With results of several dtypes the table names them.
    threads : int
        Which runs to show.

    Returns
    -------
    str
        The table, and below it why a library has no figures.
    """
    results = [r for r in document["results"] if r["threads"] == threads]
    several = len({result["case"]["dtypes"] for result in results}) > 1
    header = [
        "case",
        *(["dtype"] if several else []),
        "batch x heads[/kv] x q_len x kv_len x head_dim",
        "cpuattn",
        "of the machine's limit",
        *COLUMNS.values(),
        "against the fastest peer",
    ]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for result in results:
        case = result["case"]
        own = result["peers"].get("cpuattn", {"status": "absent"})
        cells = [
            case["name"],
            *([case["dtypes"]] if several else []),
            case["shape"],
            cell(own),
            limit_cell(case, own),
            *(
                cell(result["peers"].get(name, {"status": "absent"}))
                for name in COLUMNS
            ),
        ]
        speedup = own.get("speedup")
        text = "-" if speedup is None else f"{speedup:.2f}x"
        cells.append(f"**{text}**" if speedup is not None and speedup < 1 else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "".join(f"\n\n{line}" for line in refusals(results))


def refusals(results: list[Report]) -> list[str]:
    """Say which libraries have no figures in which dtype, and their reason."""
    lines = []
    for dtypes in dict.fromkeys(result["case"]["dtypes"] for result in results):
        cases = of_dtypes(results, dtypes)
        for name, title in COLUMNS.items():
            found: dict[str, list[str]] = {}
            for result in cases:
                entry = result["peers"].get(name, {"status": "ok"})
                if entry["status"] != "ok":
                    # The reason of each way to call it; the first one says enough.
                    reason = str(entry["reason"]).split("; ")[0].replace("|", "/")
                    found.setdefault(reason, []).append(result["case"]["name"])
            for reason, names in found.items():
                where = "" if len(names) == len(cases) else f" ({', '.join(names)})"
                lines.append(f"{title}, {dtypes}{where}: {reason}")
    return lines


def cell(entry: Report) -> str:
    """Show a peer's time, and its error if known, in a Markdown cell."""
    if entry["status"] == "ok":
        error = short_error(entry)
        time = duration(entry["seconds"]["median"])
        return time if error is None else f"{time} ({error})"
    return str(entry["status"]) if entry["status"] != "absent" else "-"


def limit_cell(case: Report, entry: Report) -> str:
    """Show how much a peer reaches of the limit that binds: read rate or products."""
    limits = []
    if case["memory_bound"] and "read_percent" in entry:
        limits.append((entry["read_percent"], "reads"))
    if case["group"] != "tiny" and "roof_percent" in entry:
        limits.append((entry["roof_percent"], entry["roof"]))
    return "{:.0f} % of {}".format(*max(limits)) if limits else "-"


def caption(document: Report, threads: int) -> str:
    """Say in one paragraph what the table was measured with."""
    machine, settings = document["machine"], document["settings"]
    cpu = machine["cpu"]
    if machine["cpu_signature"]:
        cpu += f" ({machine['cpu_signature']})"
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    results = [r for r in document["results"] if r["threads"] == threads]
    dtypes = dict.fromkeys(result["case"]["dtypes"] for result in results)
    errors = ""
    if any("out_scale" in result for result in results):
        errors = "in parentheses the largest error relative to the largest output; "
    runs = f"{settings['min_repeats']} runs"
    if fewest_runs(results) < settings["min_repeats"]:
        runs += f" ({fewest_runs(results)} where calls are slow)"
    return (
        f"{cpu}, {machine['cores']} cores, {threads} thread"
        f"{'s' * (threads > 1)}, {', '.join(dtypes)}; {errors}medians of at least "
        f"{runs} in {settings['rounds']} interleaved rounds "
        f"(governor: {machine['governor'] or 'not readable'}). {versions}."
    )


def fewest_runs(results: list[Report]) -> int:
    """Return the smallest number of runs behind any median."""
    return min(
        int(entry["seconds"]["runs"])
        for result in results
        for entry in result["peers"].values()
        if entry["status"] == "ok"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Print results as Markdown.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", help="comma-separated; default: all in the file")
    options = parser.parse_args()
    document = load(options.json)
    if options.dtypes:
        kept = of_dtypes(document["results"], *options.dtypes.split(","))
        document = {**document, "results": kept}
    print(markdown(document, options.threads))
    print()
    print(caption(document, options.threads))


if __name__ == "__main__":
    main()
