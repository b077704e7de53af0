# SPDX-License-Identifier: MIT
"""Promise: no instruction reaches a CPU that lacks it by way of the linker.

tools/check_symbols.py finds each kind of fault, and none in the build at hand.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "check_symbols.py"
NEEDED = ("g++", "nm", "readelf", "objdump")

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in NEEDED)
        or platform.machine() != "x86_64",
        reason=f"needs {', '.join(NEEDED)} on x86-64",
    ),
]

TABLE = "namespace cpuattn { extern const int kernels_avx2 = 1; }"
FAULTY = {
    "weak": (
        f"{TABLE} inline int shared() {{ return 1; }} int (*use)() = shared;",
        "weak or unique symbol: shared()",
    ),
    "second_symbol": (f"{TABLE} int leaked() {{ return 1; }}", "leaked()"),
    "misnamed": ("int other = 1;", "must define one external symbol"),
    "initializer": (
        f"{TABLE} int now(); namespace {{ int start = now(); }}"
        " namespace cpuattn { static int keep() { return start; }"
        " static int (*volatile use)() = keep; }",
        "static initializer in section .init_array",
    ),
}


@pytest.fixture(scope="module")
def check_symbols() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("check_symbols", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_object(source: str, path: Path, *flags: str) -> None:
    """Compile C++ text to an object file, with directories as CMake makes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["g++", "-std=c++20", "-O2", *flags, "-x", "c++", "-", "-c", "-o", path]
    subprocess.run(command, input=source, text=True, check=True)


def newest_release_build() -> Path | None:
    """Return the folder of build/ whose kernels were compiled last."""
    objects = [
        path
        for path in (ROOT / "build").rglob("cpp/kernels/isa/scalar.cpp.o")
        if not {"arm64", "asan", "dev", "tsan"} & set(path.parts)
    ]
    newest = max(objects, key=lambda path: path.stat().st_mtime, default=None)
    return newest and ROOT / "build" / newest.relative_to(ROOT / "build").parts[0]


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Return a build directory without faults."""
    compile_object("int core() { return 1; }", tmp_path / "cpp/core/core.cpp.o")
    compile_object(TABLE, tmp_path / "cpp/kernels/isa/avx2.cpp.o", "-mavx2")
    return tmp_path


def test_check_clean_build_finds_nothing(
    check_symbols: ModuleType, build: Path
) -> None:
    assert check_symbols.check(build) == []


@pytest.mark.parametrize("fault", FAULTY)
def test_check_faulty_kernel_object_reports_it(
    fault: str, check_symbols: ModuleType, build: Path
) -> None:
    source, message = FAULTY[fault]
    compile_object(source, build / "cpp/kernels/isa/avx2.cpp.o", "-mavx2")

    assert message in "\n".join(check_symbols.check(build))


def test_check_avx_in_baseline_object_reports_it(
    check_symbols: ModuleType, build: Path
) -> None:
    source = "void add(float* x) { for (int i = 0; i < 64; ++i) x[i] += 1; }"
    compile_object(source, build / "cpp/core/core.cpp.o", "-mavx2", "-O3")

    (fault,) = check_symbols.check(build)

    assert "core.cpp.o: AVX instruction: v" in fault


def test_check_without_objects_reports_it(
    check_symbols: ModuleType, tmp_path: Path
) -> None:
    assert "no objects" in check_symbols.check(tmp_path)[0]


def test_build_at_hand_has_no_faults(check_symbols: ModuleType) -> None:
    build = os.environ.get("CPUATTN_BUILD_DIR") or newest_release_build()
    if build is None:
        pytest.skip("needs a release build below build/, or CPUATTN_BUILD_DIR")

    assert check_symbols.check(Path(build)) == []
