# SPDX-License-Identifier: MIT
"""Promise: what the documents show runs. Python, doctests, shell commands and C.

A page is a program: its blocks run in order, in one namespace, in a process of its own.
One that needs a framework which is not installed is skipped.
"""

from __future__ import annotations

import doctest
import importlib
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import cpuattn
from c_library import compiler, static_library
from support import run_module, run_python

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OPTIONAL = (
    "flax|h5py|jax|keras|lucid|matplotlib|ml_dtypes|mlx|onnx|onnxruntime"
    "|threadpoolctl|torch|tqdm|transformers"
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs the blocks of a page, whose JSON is on stdin; tracebacks name page and line.
RUNNER = """
import doctest as _doctest, json as _json, sys as _sys
_page, _tests = _sys.argv[1:]
if "lucid" in _page:
    _sys.path.append(_tests)
    __import__("lucid_support").load()  # which makes it run on older Pythons
for _line, _kind, _text in _json.load(_sys.stdin):
    if _kind == "python":
        exec(compile("\\n" * _line + _text, _page, "exec"), globals())
    else:
        _parser = _doctest.DocTestParser()
        _test = _parser.get_doctest(_text, {}, _page, _page, _line)
        _test.globs = globals()
        _runner = _doctest.DocTestRunner(optionflags=_doctest.ELLIPSIS)
        if _runner.run(_test, clear_globs=False).failed:
            _sys.exit(1)
"""


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> list[tuple[int, str, str]]:
    """Return line, kind and text of a page's blocks of these kinds."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start(2)), found[1], found[2])
        for found in BLOCK.finditer(text)
        if found[1] in kinds
    ]


def pages_with(*kinds: str) -> list[Any]:
    found = [page for page in PAGES if blocks(page, *kinds)]
    return [pytest.param(page, id=page_name(page)) for page in found]


def skip_without_framework(output: str) -> None:
    """Skip where a traceback says that a framework is missing."""
    missing = re.search(
        rf"^\s*ModuleNotFoundError: No module named '({OPTIONAL})\b.*",
        output,
        re.MULTILINE,
    )
    if missing:
        pytest.skip(f"not installed: {missing[0].strip()}")


@pytest.mark.native
@pytest.mark.parametrize("page", pages_with("python", "pycon"))
def test_docs_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    done = run_python(
        f"import os, sys; os.chdir({str(tmp_path)!r})\n{RUNNER}",
        args=[page_name(page), str(Path(__file__).parent)],
        input=json.dumps(blocks(page, "python", "pycon")),
        timeout=600,
        KERAS_BACKEND="numpy",
    )
    if done.returncode:
        skip_without_framework(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def test_docs_blocks_are_of_known_kinds() -> None:
    known = {"python", "pycon", "sh", "c", "cmake", "{toctree}", ""}
    kinds = {
        (page_name(page), found[1])
        for page in PAGES
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    }
    assert {kind for _, kind in kinds} <= known, kinds


def modules_with_examples() -> list[str]:
    """Return the modules of the package whose docstrings have examples."""
    package = Path(cpuattn.__file__).parent
    return sorted(
        path.relative_to(package.parent).with_suffix("").as_posix().replace("/", ".")
        for path in package.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    )


def run_doctests(thing: Any, name: str, module: Any) -> None:
    """Run the examples of a module or function, of which there must be some."""
    tests = doctest.DocTestFinder().find(thing, name, module=module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.tries > 0
    if runner.failures:
        skip_without_framework("".join(report))
    assert runner.failures == 0, "".join(report)


@pytest.mark.native
@pytest.mark.parametrize("name", modules_with_examples())
def test_docs_examples_of_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    run_doctests(module, name, module)


@pytest.mark.native
@pytest.mark.parametrize("name", ["attention", "explain"])
def test_docs_examples_of_native_functions_run(name: str) -> None:
    run_doctests(getattr(cpuattn, name), name, False)


def commands(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks, comments and && taken apart."""
    text = "\n".join(text for _, _, text in blocks(page, "sh"))
    text = re.sub(r"\\\n\s*", " ", text)
    lines = [re.sub(r"\s+#.*", "", line) for line in text.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


SHELL = [
    pytest.param(command, id=f"{page_name(page)}: {command}")
    for page in PAGES
    for command in dict.fromkeys(commands(page))
]
OURS = re.compile(r"(?:\w+=\S+ )*python3? -m cpuattn (.*)")
SCRIPT = re.compile(
    r"(?:\w+=\S+ )*(?:python3? )?((?:\.ci|bench|docs|examples|tools)/\S+)(.*)"
)
OTHERS = re.compile(
    r"(?:\w+=\S+ )*(?:python3? -m (?:venv|pytest|pip)|sphinx-build|pip|pre-commit"
    r"|cmake|ctest|source|\.) "
)


@pytest.mark.native
@pytest.mark.parametrize("command", SHELL)
def test_docs_shell_command_is_one_that_exists(command: str, tmp_path: Path) -> None:
    for name in re.findall(r"\b(CPUATTN_[A-Z_]+)", command):
        assert name in sources(), f"{name} is read nowhere"
    for extras in re.findall(r'pip install .*"\.\[(.*?)\]"', command):
        assert {*extras.split(",")} <= {*project()["optional-dependencies"]}
    for preset in re.findall(r"--preset (\w+)", command):
        assert f'"name": "{preset}"' in (ROOT / "CMakePresets.json").read_text()
    if ours := OURS.match(command):
        run_command_line(re.sub(r"\S+\.svg", str(tmp_path / "plot.svg"), ours[1]))
    elif script := SCRIPT.match(command):
        path = ROOT / script[1]
        assert path.exists()
        for option in re.findall(r"(--[\w-]+)", script[2]):
            assert option in path.read_text(encoding="utf-8"), option
    else:
        assert OTHERS.match(command + " "), "no command of this project"


def run_command_line(words: str) -> None:
    """Run ``python -m cpuattn`` in less time than a user would give it."""
    args = words.split()
    if args[0] == "bench":
        args += ["--seconds", "0.01"]
    done = run_module(["-m", "cpuattn", *args], timeout=300)
    if done.returncode and re.search(rf"({OPTIONAL}) is not installed", done.stderr):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sources() -> str:
    """Return all that may read a variable of the environment or of CMake."""
    folders = ("cpp", "cmake", "python", "tests", "tools")
    files = [path for name in folders for path in (ROOT / name).rglob("*.*")]
    texts = [
        path.read_text(encoding="utf-8")
        for path in [ROOT / "CMakeLists.txt", *files]
        if path.suffix in {".cpp", ".h", ".cmake", ".txt", ".py", ".sh"}
        and path.name != Path(__file__).name
    ]
    return "\n".join(texts)


@pytest.mark.native
@pytest.mark.parametrize("page", pages_with("c"))
def test_docs_c_of_a_page_compiles_and_runs(page: Path, tmp_path: Path) -> None:
    c_compiler = compiler()
    include = ROOT / "cpp" / "include"
    for n, (_, _, text) in enumerate(blocks(page, "c")):
        source = tmp_path / f"block{n}.c"
        source.write_text(text)
        options = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
        program = tmp_path / f"block{n}"
        library = static_library()
        link = ["-fsyntax-only"]
        if library is not None:
            link = [str(library), "-lstdc++", "-lm", "-lpthread", "-o", str(program)]
        done = subprocess.run(
            [c_compiler, *options, str(source), *link],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if library is not None:
            subprocess.run([program], check=True, timeout=60)
