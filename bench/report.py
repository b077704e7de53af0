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

from plot import draw_all
from table import caption, markdown

BEGIN = "<!-- bench {threads} begin -->"
END = "<!-- bench {threads} end -->"


def replace_table(text: str, document: dict[str, Any], threads: int) -> str:
    """Put the table of a thread count between its marks in a Markdown text.

    Parameters
    ----------
    text : str
        Holds ``<!-- bench 1 begin -->`` and ``<!-- bench 1 end -->`` (1 thread) if it
        wants the table.
    document : dict
        The JSON of run.py.
    threads : int

    Returns
    -------
    str
        The text, unchanged if it has no such marks.
    """
    begin, end = BEGIN.format(threads=threads), END.format(threads=threads)
    if begin not in text or end not in text:
        return text
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    table = f"{markdown(document, threads)}\n\n{caption(document, threads)}"
    return f"{head}{begin}\n{table}\n{end}{tail}"


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
