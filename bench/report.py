# SPDX-License-Identifier: MIT
"""Regenerate what the documents show of a run: tables between marks, and the plots.

``python bench/report.py`` does README.md, docs/benchmarks.md and docs/figures from
bench/results/results.json; ``--measure`` makes that file anew before (half an hour).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from plot import OVERVIEW_CASES, draw_all
from results import Report, load, of_dtypes
from table import caption, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "results.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
FIGURES = ROOT / "docs" / "figures"
# What run.py is asked for, one run after the other into the same file.
MEASUREMENTS = (
    ("report", "--dtypes", "all", "--threads", "1", "--overwrite"),
    (
        "dense_2048_d128",
        "causal_2048_d64",
        "bert_128",
        "cross_attention_77",
        "decode_gqa_8192",
        "decode_mha_1024_d128",
        "--threads",
        "2",
        "--resume",
    ),
)
README_CASES = (
    *OVERVIEW_CASES,
    "decode_gqa_1024",
    "decode_gqa_32768",
    "decode_mha_1024_d128",
    "speculative_8_8192",
    "tiny_1x1x1x1x8",
)
# What README.md shows of the dtypes other than float32.
README_DTYPE_CASES = (
    "dense_2048_d128-float32-high",
    "dense_2048_d128-float32-medium",
    "dense_2048_d64-bfloat16",
    "dense_2048_d128-bfloat16",
    "causal_2048_d128-bfloat16",
    "bert_128-bfloat16",
    "decode_gqa_8192-bfloat16",
    "decode_gqa_32768-bfloat16",
    "decode_gqa_8192-float32-bfloat16",
    "dense_2048_d128-float16",
    "causal_2048_d128-float16",
    "decode_gqa_8192-float16",
    "dense_2048_d64-float64",
)
MARKS = "<!-- bench {label} begin -->", "<!-- bench {label} end -->"


def replace_tables(text: str, document: Report, threads: int) -> str:
    """Put the tables of a thread count between their marks in a Markdown text.

    Parameters
    ----------
    text : str
        Holds ``<!-- bench 1 begin -->`` and ``<!-- bench 1 end -->`` where it wants
        the float32 overview for 1 thread, ``<!-- bench dtypes 1 begin -->`` ... for
        that of the other dtypes, ``<!-- bench all 1 begin -->`` ... for every case, a
        table for each dtype.
    document : dict
        The JSON of run.py.
    threads : int

    Returns
    -------
    str
        The text, unchanged if it has no such marks.
    """
    results = [r for r in document["results"] if r["threads"] == threads]
    for label, names in (
        (f"{threads}", README_CASES),
        (f"dtypes {threads}", README_DTYPE_CASES),
    ):
        chosen = [result for result in results if result["case"]["id"] in names]
        text = replace_between(text, label, table_of(document, chosen, threads))
    every = [
        f"### {dtypes}\n\n{table_of(document, of_dtypes(results, dtypes), threads)}"
        for dtypes in dict.fromkeys(result["case"]["dtypes"] for result in results)
    ]
    return replace_between(text, f"all {threads}", "\n\n".join(every))


def table_of(document: Report, results: list[Report], threads: int) -> str:
    """Make a table with its caption, empty without results."""
    part = {**document, "results": results}
    if not results:
        return ""
    return f"{markdown(part, threads)}\n\n{caption(part, threads)}"


def replace_between(text: str, label: str, table: str) -> str:
    """Put a table between the marks of a label, if there are both."""
    begin, end = (mark.format(label=label) for mark in MARKS)
    if not table or begin not in text or end not in text:
        return text
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    return f"{head}{begin}\n{table}\n{end}{tail}"


def measure(path: Path) -> None:
    """Measure everything that the tables and plots show, into a JSON file."""
    for words in MEASUREMENTS:
        settings = ["--rounds", "3", "--max-seconds", "2", "--json", str(path)]
        script = Path(__file__).with_name("run.py")
        subprocess.run([sys.executable, script, *words, *settings], check=True)


def update_page(page: Path, document: Report) -> None:
    """Replace the tables of a page."""
    text = changed = page.read_text()
    for threads in sorted({result["threads"] for result in document["results"]}):
        changed = replace_tables(changed, document, threads)
    if changed == text:
        print(f"{page}: nothing to change", file=sys.stderr)
    page.write_text(changed)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Regenerate tables and figures.")
    parser.add_argument("json", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--measure", action="store_true", help="make the JSON first")
    parser.add_argument(
        "--readme", type=Path, action="append", help="only this page, repeatable"
    )
    parser.add_argument("--figures", type=Path, help="only figures, to a directory")
    options = parser.parse_args()
    if options.measure:
        measure(options.json)
    document = load(options.json)
    everything = options.readme is None and options.figures is None
    for page in PAGES if everything else options.readme or ():
        update_page(page, document)
    if everything or options.figures is not None:
        for path in draw_all(document, options.figures or FIGURES):
            print(path)


if __name__ == "__main__":
    main()
