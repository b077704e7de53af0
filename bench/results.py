# SPDX-License-Identifier: MIT
"""Read the JSON that run.py wrote, of this or of the previous format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]

FORMAT = 2


def load(path: Path) -> Report:
    """Read a file of results.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        In the present format, whatever the format of the file.
    """
    document: Report = json.loads(path.read_text())
    if document["format"] == 1:
        for result in document["results"]:
            upgrade(result)
        document["format"] = FORMAT
    return document


def upgrade(result: Report) -> None:
    """Say of a result of format 1 what went without saying: all was float32."""
    case = result["case"]
    case |= {"id": case["name"], "dtypes": "float32", "precision": "highest"}
    case |= {"dtype": "float32", "kv_dtype": "float32"}
    roofs = result["roofs"]
    if "fma" in roofs:
        roofs["float32"] = roofs.pop("fma")
    for entry in result["peers"].values():
        if "fma_percent" in entry:
            entry["products"] = "float32"
            entry["roof"] = "FMA"
            entry["roof_isa"] = entry.pop("fma_isa")
            entry["roof_percent"] = entry.pop("fma_percent")


def entry_of(result: Report, peer: str) -> Report:
    """Return a peer's entry, empty if it has no figures."""
    entry: Report = result["peers"].get(peer, {})
    return entry if entry.get("status") == "ok" else {}


def of_dtypes(results: list[Report], *dtypes: str) -> list[Report]:
    """Return the results in the given dtypes."""
    return [result for result in results if result["case"]["dtypes"] in dtypes]
