# SPDX-License-Identifier: MIT
"""What is installed: public names, docstrings, stub, types, command line."""

from __future__ import annotations

import ast
import doctest
import importlib.metadata
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import cpuattn
from cpuattn import _core
from support import run_module, run_python

PACKAGE = Path(cpuattn.__file__).parent
PUBLIC = {
    "attention",
    "available_isas",
    "dot_product_attention",
    "explain",
    "info",
    "scaled_dot_product_attention",
    "set_num_threads",
    "threads",
}
FUNCTIONS = sorted(
    name for name in cpuattn.__all__ if callable(getattr(cpuattn, name, None))
)


def test_package_has_its_public_names() -> None:
    assert {*cpuattn.__all__} >= PUBLIC | {"__version__"}
    assert list(cpuattn.__all__) == sorted(cpuattn.__all__)
    assert all(hasattr(cpuattn, name) for name in cpuattn.__all__)


def test_package_version_is_the_installed_one() -> None:
    assert cpuattn.__version__ == importlib.metadata.version("cpuattn")
    assert re.match(r"^\d+\.\d+\.\d+", cpuattn.__version__)
    assert cpuattn.info()["version"] == cpuattn.__version__


def sections(doc: str) -> dict[str, str]:
    """Return the numpydoc sections of a docstring."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(doc), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(section: str) -> set[str]:
    """Return the names that a Parameters section documents."""
    heads = [line for line in section.splitlines() if line[:1].strip()]
    names = [head.partition(" : ")[0].partition(":")[0] for head in heads]
    return {name.strip() for line in names for name in line.split(",")}


def parameters(name: str) -> set[str]:
    return {*inspect.signature(getattr(cpuattn, name)).parameters}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_package_summary_is_one_imperative_line(name: str) -> None:
    summary, _, rest = inspect.cleandoc(getattr(cpuattn, name).__doc__).partition("\n")
    assert len(summary) <= 79
    assert summary.endswith(".")
    assert not summary.split()[0].endswith("s")
    assert rest.startswith("\n")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_package_docstring_has_its_sections(name: str) -> None:
    found = sections(getattr(cpuattn, name).__doc__)
    wanted = {"Examples"}
    wanted |= {"Parameters"} if parameters(name) else set()
    if name != "set_num_threads":
        wanted |= {"Yields"} if name == "threads" else {"Returns"}
    if parameters(name):
        wanted |= {"Raises"}
    assert not wanted - {*found}


@pytest.mark.parametrize("name", sorted(PUBLIC - {"explain"}))
def test_package_docstring_documents_every_parameter(name: str) -> None:
    text = sections(getattr(cpuattn, name).__doc__).get("Parameters", "")
    assert documented(text) - {""} == parameters(name)


def test_package_explain_has_the_signature_of_attention() -> None:
    assert inspect.signature(cpuattn.explain) == inspect.signature(cpuattn.attention)


DEFAULTS = {
    "layout": "bhsd",
    "mask": None,
    "bias": None,
    "causal": False,
    "window": None,
    "scale": None,
    "softcap": None,
    "alibi_slopes": None,
    "sinks": None,
    "q_lengths": None,
    "kv_lengths": None,
    "q_segment_ids": None,
    "kv_segment_ids": None,
    "dropout_p": 0.0,
    "dropout_seed": None,
    "dropout_mask": None,
    "dropout_broadcast": (),
    "dropout_generator": "philox",
    "fully_masked": "zero",
    "precision": "highest",
    "return_lse": False,
    "return_weights": False,
    "out": None,
    "num_threads": None,
}


def test_package_attention_has_the_documented_signature() -> None:
    signature = inspect.signature(cpuattn.attention).parameters
    required = [n for n, p in signature.items() if p.default is p.empty]
    keywords = {n: p.default for n, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    assert required == ["query", "key", "value"]
    assert keywords == DEFAULTS
    assert list(keywords) == list(DEFAULTS)


def test_package_reference_has_the_signature_of_attention() -> None:
    from cpuattn import reference

    ours = inspect.signature(reference.attention).parameters
    plain = {n: p.default for n, p in ours.items() if n != "dtype"}
    native = inspect.signature(cpuattn.attention).parameters
    assert plain == {n: p.default for n, p in native.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_package_examples_run(name: str) -> None:
    function = getattr(cpuattn, name)
    tests = doctest.DocTestFinder(recurse=False).find(
        function, name, module=False, globs={}
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert sum(len(test.examples) for test in tests) > 0


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_core.pyi").exists()


def installed_files() -> set[str]:
    """Return what the distribution put into the package, by its path there."""
    distribution = importlib.metadata.distribution("cpuattn")
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        pytest.skip("an editable install has its files elsewhere")
    files = {path.as_posix() for path in distribution.files or ()}
    inside = {
        name.removeprefix("cpuattn/") for name in files if "/__pycache__/" not in name
    }
    return {name for name in inside if name not in files}


def test_package_installs_the_c_library_types_and_nothing_else() -> None:
    library = "cpuattn_static.lib" if sys.platform == "win32" else "libcpuattn.a"
    config = {"Config", "ConfigVersion", "_targets", "_targets-release"}
    assert {name for name in installed_files() if not name.endswith(".py")} == {
        "_core.pyi",
        Path(_core.__file__).name,
        "py.typed",
        "include/cpuattn/cpuattn.h",
        "include/cpuattn/version.h",
        f"lib/{library}",
        "lib/pkgconfig/cpuattn.pc",
        *(f"lib/cmake/cpuattn/cpuattn{part}.cmake" for part in config),
    }


def test_package_installs_no_tests() -> None:
    modules = {name for name in installed_files() if name.endswith(".py")}
    assert "reference.py" in modules
    assert not {name for name in modules if "test" in Path(name).stem.split("_")}


def test_package_c_library_names_nothing_of_the_build_machine() -> None:
    installed_files()
    texts = [path.read_text() for path in (PACKAGE / "lib").rglob("cpuattn*.cmake")]
    texts.append((PACKAGE / "lib" / "pkgconfig" / "cpuattn.pc").read_text())
    assert len(texts) == 5
    for text in texts:
        assert not re.search(r"[\s;]/[\w.]+/[^;\s]*lib[^;\s]*\.(a|so)", text), text


def stub() -> ast.Module:
    return ast.parse((PACKAGE / "_core.pyi").read_text())


def test_package_stub_lists_the_names_of_the_module() -> None:
    names: set[str] = set()
    for node in stub().body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    special = {
        "__name__",
        "__doc__",
        "__package__",
        "__loader__",
        "__spec__",
        "__file__",
    }
    assert names == {*dir(_core)} - special


def test_package_stub_has_the_signature_of_attention() -> None:
    node = next(
        node
        for node in stub().body
        if isinstance(node, ast.FunctionDef) and node.name == "attention"
    )
    defaults = [ast.literal_eval(x) for x in node.args.kw_defaults if x is not None]
    assert [a.arg for a in node.args.args] == ["query", "key", "value"]
    keywords = [a.arg for a in node.args.kwonlyargs]
    assert dict(zip(keywords, defaults, strict=True)) == DEFAULTS


def test_package_keeps_private_names_private() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    done = run_python("from cpuattn import *; print(*dir())")
    public = {name for name in done.stdout.split() if not name.startswith("__")}
    assert public == {*cpuattn.__all__} - {"__version__"}
    assert "reference" in files


def test_package_command_info_prints_what_a_report_needs() -> None:
    done = run_module(["-m", "cpuattn", "info"])
    assert done.returncode == 0, done.stderr
    for word in (cpuattn.__version__, "isa", "threads", *cpuattn.available_isas()):
        assert word in done.stdout


def test_package_command_info_prints_json() -> None:
    done = run_module(["-m", "cpuattn", "info", "--json"])
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["version"] == cpuattn.__version__
    assert report["isas"] == cpuattn.info()["isas"]


def test_package_command_selftest_succeeds_on_every_isa() -> None:
    done = run_module(["-m", "cpuattn", "selftest"], timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in cpuattn.available_isas())


def test_package_command_bench_times_its_cases() -> None:
    done = run_module(["-m", "cpuattn", "bench", "--seconds", "0.01"], timeout=180)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_package_command_cmake_dir_prints_one_line() -> None:
    done = run_module(["-m", "cpuattn", "--cmake-dir"], COLUMNS="20")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{PACKAGE / 'lib' / 'cmake' / 'cpuattn'}\n"


@pytest.mark.parametrize("words", [["no-such-command"], ["info", "--no-such-option"]])
def test_package_command_line_errors_exit_with_2(words: list[str]) -> None:
    done = run_module(["-m", "cpuattn", *words])
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_package_command_with_a_bad_isa_says_so() -> None:
    done = run_module(["-m", "cpuattn", "info"], CPUATTN_ISA="bogus")
    assert done.returncode == 0, done.stderr
    assert "CPUATTN_ISA: must be one of" in done.stdout
