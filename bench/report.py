# SPDX-License-Identifier: MIT
"""Regenerate what README.md shows of a run: the table between its marks, the plots.

``python bench/report.py results.json --readme README.md --figures docs/figures``
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from plot import OVERVIEW_CASES, draw_all
from table import caption, markdown

README_CASES = (
    *OVERVIEW_CASES,
    "decode_gqa_1024",
    "decode_gqa_32768",
    "decode_mha_1024_d128",
    "speculative_8_8192",
    "tiny_1x1x1x1x8",
)
MARKS = "<!-- bench {label} begin -->", "<!-- bench {label} end -->"


def replace_table(text: str, document: dict[str, Any], threads: int) -> str:
    """Put the tables of a thread count between their marks in a Markdown text.

    Parameters
    ----------
    text : str
        Holds ``<!-- bench 1 begin -->`` and ``<!-- bench 1 end -->`` where it wants
        the overview for 1 thread, ``<!-- bench all 1 begin -->`` ... for every case.
    document : dict
        The JSON of run.py.
    threads : int

    Returns
    -------
    str
        The text, unchanged if it has no such marks.
    """
    overview = [r for r in document["results"] if r["case"]["name"] in README_CASES]
    for label, results in (
        (f"{threads}", overview),
        (f"all {threads}", document["results"]),
    ):
        begin, end = (mark.format(label=label) for mark in MARKS)
        if begin not in text or end not in text:
            continue
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        part = {**document, "results": results}
        table = f"{markdown(part, threads)}\n\n{caption(part, threads)}"
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Regenerate README figures.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    document = json.loads(options.json.read_text())
    if options.readme is not None:
        text = options.readme.read_text()
        changed = text
        for threads in sorted({result["threads"] for result in document["results"]}):
            changed = replace_table(changed, document, threads)
        if changed == text:
            print(f"{options.readme}: nothing to change", file=sys.stderr)
        options.readme.write_text(changed)
    if options.figures is not None:
        for path in draw_all(document, options.figures):
            print(path)


if __name__ == "__main__":
    main()
