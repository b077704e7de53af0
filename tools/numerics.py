# SPDX-License-Identifier: MIT
"""Measure the errors of every usable ISA against float64; write docs/numerics.md.

``python tools/numerics.py [--cpu NAME] [--emulated]`` measures this machine's ISAs into
docs/numerics.json, keeps what other machines measured, and puts all of it between the
marks of docs/numerics.md. ``--table`` writes the table alone. ``--cpu`` names the CPU
where the system cannot, ``--emulated`` says that an emulator of it ran.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cpuattn
from cpuattn import reference

Array = NDArray[Any]
Report = dict[str, Any]

DOCS = Path(__file__).parents[1] / "docs"
MARKS = "<!-- numerics begin -->", "<!-- numerics end -->"
# Products of long double take a microsecond where it is emulated.
LONG_DOUBLE_ROWS = 32
# dtype of query, dtype of key and value, precision
LEVELS = (
    ("float64", "float64", "highest"),
    ("float32", "float32", "highest"),
    ("float32", "float32", "high"),
    ("float32", "float32", "medium"),
    ("float32", "float16", "highest"),
    ("float32", "bfloat16", "highest"),
    ("float16", "float16", "highest"),
    ("bfloat16", "bfloat16", "highest"),
)


@dataclass(frozen=True)
class Shape:
    """Hold one problem: sizes, options, and the standard deviation of the query."""

    name: str
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    spread: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


SHAPES = (
    Shape("128 x 128 x 64", 4, 4, 128, 128, 64),
    Shape("577 x 577 x 80", 2, 2, 577, 577, 80),
    Shape("512 x 512 x 128, causal", 4, 1, 512, 512, 128, 1.0, {"causal": True}),
    Shape("1 x 65536 x 128", 4, 1, 1, 65536, 128),
    Shape("128 x 8192 x 64", 1, 1, 128, 8192, 64),
    Shape("256 x 256 x 64, scores near 30", 4, 4, 256, 256, 64, 8.0),
)


def inputs(shape: Shape, query_dtype: Any, cache_dtype: Any) -> tuple[Array, ...]:
    """Return normally distributed arrays, the same on every machine."""
    rng = np.random.default_rng(sum(shape.name.encode()))
    sizes = (
        (shape.heads, shape.q_len),
        (shape.kv_heads, shape.kv_len),
        (shape.kv_heads, shape.kv_len),
    )
    query, key, value = (rng.standard_normal((*n, shape.head_dim)) for n in sizes)
    return (
        (query * shape.spread).astype(query_dtype),
        key.astype(cache_dtype),
        value.astype(cache_dtype),
    )


def numpy_dtype(name: str) -> Any:
    """Return a dtype by its name, bfloat16 included."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def relative_error(result: Array, exact: Array) -> float:
    """Return the largest error, relative to the largest element of the exact result."""
    worst = np.abs(result.astype(exact.dtype) - exact).max()
    return float(worst / np.abs(exact).max())


def measure_level(query: str, cache: str, precision: str, isas: list[str]) -> Report:
    """Return the errors of one level on every shape: naive's, and each ISA's."""
    wide = np.longdouble if query == "float64" else np.float64
    naive_dtype = np.float64 if query == "float64" else np.float32
    errors: Report = {isa: [] for isa in ("naive", *isas)}
    products: dict[str, set[str]] = {isa: set() for isa in isas}
    for shape in SHAPES:
        arrays = inputs(shape, numpy_dtype(query), numpy_dtype(cache))
        # Bottom-right causal masks let the last rows see what they see among all.
        rows = slice(-LONG_DOUBLE_ROWS if wide is np.longdouble else None, None)
        query_rows = arrays[0][..., rows, :]
        exact = reference.attention(
            query_rows, *arrays[1:], **shape.options, dtype=wide
        )
        naive = reference.attention(*arrays, **shape.options, dtype=naive_dtype)
        naive = naive[..., rows, :].astype(arrays[0].dtype)
        errors["naive"].append(relative_error(naive, exact))
        for isa in isas:
            cpuattn._core.set_isa(isa)
            options = shape.options | {"precision": precision}
            products[isa].add(cpuattn.explain(*arrays, **options)["products"])
            out = cpuattn.attention(*arrays, **options)
            errors[isa].append(relative_error(out[..., rows, :], exact))
    cpuattn._core.set_isa(None)
    return {"errors": errors, "products": products}


def measure(isas: list[str], cpu: str, emulated: bool) -> Report:
    """Return what these ISAs give on this machine, by ISA."""
    found: Report = {
        isa: {
            "cpu": cpu,
            "emulated": emulated,
            "version": cpuattn.__version__,
            "numpy": np.__version__,
            "rows": [],
        }
        for isa in isas
    }
    for level in LEVELS:
        if level[0] == "float64" and np.finfo(np.longdouble).eps == np.finfo(float).eps:
            print("float64: long double is no wider here", file=sys.stderr)
            continue
        report = measure_level(*level, isas)
        for isa in isas:
            found[isa]["rows"].append(
                {
                    "query": level[0],
                    "cache": level[1],
                    "precision": level[2],
                    "products": ", ".join(sorted(report["products"][isa])),
                    "errors": rounded(report["errors"][isa]),
                    "naive": rounded(report["errors"]["naive"]),
                }
            )
        print(*level, file=sys.stderr)
    return found


def rounded(errors: list[float]) -> dict[str, float]:
    """Return the errors of the shapes by name, with three digits."""
    return {s.name: float(f"{e:.2e}") for s, e in zip(SHAPES, errors, strict=True)}


def table(document: Report) -> str:
    """Return the Markdown of all rows: levels in order, best ISA first.

    A level that multiplies float32 as "highest" does is the same computation and has no
    line; ISAs of the same figures share one.
    """
    names = [shape.name for shape in SHAPES]
    lines = [
        "| query / cache, precision | ISA | products | " + " | ".join(names) + " |",
        "|" + "---|" * (3 + len(names)),
    ]
    best_first = [row["name"] for row in cpuattn.info()["isas"]]
    isas = [isa for isa in best_first if isa in document["isas"]]
    for level in LEVELS:
        shared: dict[str, list[str]] = {}
        for isa in isas:
            entry = document["isas"][isa]
            for row in entry["rows"]:
                same = (row["query"], row["cache"], row["precision"]) == level
                if same and (level[2] == "highest" or row["products"] != "float32"):
                    name = isa + ("\\*" if entry["emulated"] else "")
                    shared.setdefault(figures(row, names), []).append(name)
        lines += [
            f"| {label(*level)} | {', '.join(found)} | {cells} |"
            for cells, found in shared.items()
        ]
    machines = [
        f"- {isa}: {entry['cpu']}; cpuattn {entry['version']}, NumPy {entry['numpy']}"
        for isa, entry in ((isa, document["isas"][isa]) for isa in isas)
    ]
    head = "Measured on (\\* stands for an emulated CPU):"
    return "\n".join([*lines, "", head, "", *machines])


def label(query: str, cache: str, precision: str) -> str:
    """Return the name of a level."""
    arrays = query if query == cache else f"{query} / {cache}"
    return arrays if precision == "highest" else f'{arrays}, "{precision}"'


def figures(row: Report, names: list[str]) -> str:
    """Return products and errors, with how many times the naive one's each is."""
    cells = [row["products"]]
    for name in names:
        ours, naive = row["errors"][name], row["naive"][name]
        error = f"{ours:.1e}".replace("e-0", "e-")
        cells.append(f"{error} ({float(f'{ours / naive:.2g}'):g}x)")
    return " | ".join(cells)


def replace_table(text: str, document: Report) -> str:
    """Return the page with the table between its marks."""
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    return f"{head}{MARKS[0]}\n{table(document)}\n{MARKS[1]}{tail}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure errors against float64.")
    parser.add_argument("--cpu", help="name of the CPU, where the system does not say")
    parser.add_argument("--emulated", action="store_true", help="an emulator runs this")
    parser.add_argument("--isas", help="comma-separated; all that are usable")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the files are")
    options = parser.parse_args()
    data, page = options.docs / "numerics.json", options.docs / "numerics.md"
    document = json.loads(data.read_text()) if data.exists() else {"isas": {}}
    if not options.table:
        cpu = options.cpu or cpuattn.info()["cpu"]
        usable = list(cpuattn.available_isas())
        isas = options.isas.split(",") if options.isas else usable
        document["isas"] |= measure(isas, cpu, options.emulated)
        data.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    page.write_text(replace_table(page.read_text(), document))


if __name__ == "__main__":
    main()
