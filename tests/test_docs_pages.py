# SPDX-License-Identifier: MIT
"""Promise: the documents agree with the project: files, links, names, figures."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cpuattn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its data classes look their module up.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MyST give to the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_docs_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_docs_figures_are_all_shown() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text(encoding="utf-8"))
    }
    figures = {path.resolve() for path in (DOCS / "figures" / "masks").iterdir()}
    assert figures <= shown, figures - shown


def test_docs_pages_are_all_in_the_site() -> None:
    toctrees = re.findall(
        r"```\{toctree\}\n(.*?)```",
        "".join((DOCS / name).read_text() for name in ("index.md", "api/index.md")),
        re.DOTALL,
    )
    lines = [line for text in toctrees for line in text.splitlines()]
    listed = {Path(line.strip(">").rpartition("<")[2]).name for line in lines}
    pages = {path.stem for kind in ("*.md", "*.rst") for path in DOCS.rglob(kind)}
    assert pages - {"index"} <= listed, pages - listed


def test_docs_mask_pictures_are_those_that_are_drawn(isa: str) -> None:
    drawn = load(DOCS / "draw_masks.py").draw_all()
    kept = {path.stem: path.read_text() for path in DOCS.glob("figures/masks/*.svg")}
    assert {*drawn} == {*kept}
    for name, text in drawn.items():
        assert text == kept[name], f"{name}: run python docs/draw_masks.py"


def numerics() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "numerics.json").read_text())["isas"]
    return found


def test_docs_numerics_table_is_that_of_its_data() -> None:
    page = (DOCS / "numerics.md").read_text()
    assert (
        load(ROOT / "tools" / "numerics.py").replace_table(page, {"isas": numerics()})
        == page
    ), "run python tools/numerics.py --table"


# What docs/semantics.md promises of the products, relative to the largest output of
# scores of ordinary size; where results are 16-bit, their rounding comes on top.
PROMISES = {"float32": 1e-6, "bfloat16 x3": 2e-5, "bfloat16": 1e-2, "float64": 1e-14}
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def test_docs_numerics_keep_what_the_semantics_promise() -> None:
    ordinary = [
        s.name for s in load(ROOT / "tools/numerics.py").SHAPES if s.spread == 1
    ]
    assert numerics()
    for isa, entry in numerics().items():
        assert entry["rows"]
        for row in entry["rows"]:
            limit = max(PROMISES[name] for name in row["products"].split(", "))
            limit += ROUNDING.get(row["query"], 0.0)
            worst = max(row["errors"][name] for name in ordinary)
            assert worst <= limit, (isa, row)


def public_names() -> list[str]:
    """Return module.name of everything in an __all__ of a public module."""
    found = pkgutil.walk_packages(cpuattn.__path__, "cpuattn.")
    modules = ["cpuattn", *(m.name for m in found if "._" not in m.name)]
    return [
        f"{module}.{name}"
        for module in modules
        if module != "cpuattn.__main__"
        for name in getattr(importlib.import_module(module), "__all__", ())
    ]


def test_docs_reference_has_every_public_name() -> None:
    listed, whole = set(), set()
    for path in (DOCS / "api").glob("*.rst"):
        module = ""
        for line in path.read_text().splitlines():
            kind, _, name = line.partition(":: ")
            if kind == ".. currentmodule":
                module = name
            elif kind == ".. automodule":
                whole.add(name)
            elif kind.startswith((".. auto", ".. data")):
                listed.add(f"{module}.{name}")
    missing = [
        name
        for name in public_names()
        if name not in listed
        and name.rpartition(".")[0] not in whole
        # flax's package holds the names of its module linen.
        and name.replace("flax.linen", "flax").rpartition(".")[0] not in whole
    ]
    assert not missing


def test_docs_c_interface_shows_the_whole_header() -> None:
    header = (ROOT / "cpp/include/cpuattn/cpuattn.h").read_text()
    page = (DOCS / "api" / "c.md").read_text()
    starts = re.findall(r'^:start-at: "(.*)"$', page, re.MULTILINE)
    ends = re.findall(r'^:end-before: "(.*)"$', page, re.MULTILINE)
    assert ends[:-1] == starts[1:]
    assert all(header.count(mark) == 1 for mark in [*starts, ends[-1]])
    shown = header.partition(starts[0])[2].partition(ends[-1])[0]
    assert {*re.findall(r"cpuattn_\w+(?=\()", header)} <= {
        *re.findall(r"cpuattn_\w+(?=\()", shown)
    }


def test_docs_c_interface_has_every_keyword_and_field() -> None:
    page = (DOCS / "api" / "c.md").read_text().partition("## Status")[0]
    words = {*re.findall(r"`(\w+)`", page)}
    struct = (ROOT / "cpp/include/cpuattn/cpuattn.h").read_text()
    struct = struct.partition("typedef struct cpuattn_problem {")[2].partition("}")[0]
    struct = re.sub(r"/\*.*?\*/", "", struct, flags=re.DOTALL)
    fields = {*re.findall(r"(\w+)(?=[;,])", struct)} - {"size", "reserved"}
    keywords = {*inspect.signature(cpuattn.attention).parameters}
    assert fields <= words, fields - words
    assert keywords <= words, keywords - words


def test_docs_design_places_every_source_file() -> None:
    text = (DOCS / "design.md").read_text().partition("## Every file")[2]
    tables = text.partition("## Decisions")[0]
    patterns: list[str] = []
    for line in tables.splitlines():
        folder = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else ""):
            folder = str(Path(name).parent) if "/" in name else folder
            patterns.append(f"{folder}/{Path(name).name}")
    patterns += re.findall(r"`(parallel_\w+\.cpp)`", tables)
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("cpp", "python")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix not in (".pyc", ".so")
    }
    placed = {
        match.relative_to(ROOT).as_posix() for p in patterns for match in matches(p)
    }
    assert not files - placed, files - placed


def matches(pattern: str) -> list[Path]:
    """Return the files of a pattern, with the .cpp of a .h; there must be one."""
    found = [*ROOT.glob(pattern if "/" in pattern else f"cpp/core/{pattern}")]
    assert found, f"{pattern}: no such file"
    twins = [path.with_suffix(".cpp") for path in found if path.suffix == ".h"]
    return found + [path for path in twins if path.exists()]


CONSTANTS = (
    "kLanes",
    "kMicroRows",
    "kMicroVecs",
    "kTileVecs",
    "kDotRows",
    "kDecodeRows",
)


def test_docs_constants_of_the_vectors_are_those_of_the_headers() -> None:
    page = (DOCS / "adding-an-isa.md").read_text()
    rows = re.findall(r"^\| (`k\w+`.*) \|$", page, re.MULTILINE)
    shown = {name: cells for name, cells in map(constant_row, rows)}
    for n, isa in enumerate(("avx2", "avx512", "neon", "scalar")):
        header = (ROOT / f"cpp/kernels/simd/vec_{isa}.h").read_text()
        values = {
            name: re.search(rf"constexpr int {name} = (\d+);", header)[1]  # type: ignore[index]
            for name in CONSTANTS
        }
        micro = f"{values.pop('kMicroRows')} x {values.pop('kMicroVecs')}"
        assert {name: cells[n] for name, cells in shown.items()} == {
            **values,
            "kMicroRows": micro,
        }


def constant_row(row: str) -> tuple[str, list[str]]:
    """Return a constant and its values."""
    cells = row.split(" | ")
    name = re.search(r"`(\w+)`", cells[0])
    assert name is not None
    return name[1], cells[2:]
