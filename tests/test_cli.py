# SPDX-License-Identifier: MIT
"""The command line: what it prints and writes, its exit status, its errors."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import _core, runtime
from cpuattn.__main__ import main
from cpuattn._cli import bench, cases, peers, report, selftest
from support import EMULATED, PYTHON, run_module


def test_cli_info_prints_what_a_report_needs() -> None:
    done = run_module(["-m", "cpuattn", "info"])
    assert done.returncode == 0, done.stderr
    for word in (cpuattn.__version__, "isa", "threads", *cpuattn.available_isas()):
        assert word in done.stdout


def test_cli_info_says_of_each_isa_that_it_is_active_usable_or_why_not() -> None:
    found = cpuattn.info()
    lines = report.as_text(found).splitlines()
    states = {line.split()[0]: line[13:].strip() for line in lines}
    for row in found["isas"]:
        usable = "active" if row["name"] == found["isa"] else "usable"
        assert states[row["name"]] == (usable if row["usable"] else row["reason"])
        assert bool(row["reason"]) is not row["usable"]


def test_cli_info_prints_json() -> None:
    done = run_module(["-m", "cpuattn", "info", "--json"])
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    expected = cpuattn.info()
    assert printed.keys() == expected.keys()
    for key in ("version", "isas", "features", "affinity", "cgroup_cpus", "cpu"):
        assert printed[key] == expected[key]


def test_cli_info_with_a_bad_isa_says_so() -> None:
    done = run_module(["-m", "cpuattn", "info"], CPUATTN_ISA="bogus")
    assert done.returncode == 0, done.stderr
    assert "warning       CPUATTN_ISA: must be one of" in done.stdout


@pytest.mark.parametrize("name", ["CPUATTN_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("text", ["many", "-2", "0", "3.5x", "4,2", "+2"])
def test_info_warns_of_a_thread_count_that_is_ignored(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    warned = [line for line in cpuattn.info()["warnings"] if line.startswith(name)]
    # atoi reads a leading number: "3.5x" is 3.
    ignored = text in ("many", "-2", "0")
    expected = f"{name}: must be a positive integer, is ignored; got {text}"
    assert warned == [expected] * ignored


def test_info_warns_of_more_threads_than_cpus() -> None:
    many = cpuattn.info()["affinity"] + 1
    with cpuattn.threads(many):
        warnings = cpuattn.info()["warnings"]
    assert any(
        line.startswith(f"{many} threads, from threads(), ") for line in warnings
    )
    with cpuattn.threads(1):
        warnings = cpuattn.info()["warnings"]
    assert not any("threads, from" in line for line in warnings)


def test_info_counts_openmp_runtimes_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = [
        "7f00-7f10 r-xp 00000000 08:01 12  /venv/torch/lib/libgomp.so.1",
        "7f10-7f20 r--p 00001000 08:01 12  /venv/torch/lib/libgomp.so.1",
        "7f20-7f30 r-xp 00000000 08:01 13  /venv/x.libs/libgomp-e985bcbb.so.1.0.0",
        "7f30-7f40 r-xp 00000000 08:01 14  /venv/mkl/libiomp5.so",
        "7f40-7f50 r-xp 00000000 08:01 15  /venv/numpy.libs/libscipy_openblas64_-1.so",
        "7f50-7f60 r-xp 00000000 08:01 16  /opt/libtbb.so.12",
        "7f60-7f70 r-xp 00000000 08:01 17  /home/me/libgomp/libother.so",
        "7f70-7f80 rw-p 00000000 00:00 0",
    ]
    lines = {"/proc/self/maps": maps}
    monkeypatch.setattr(runtime, "_lines", lambda path: lines.get(path, []))
    found = cpuattn.info()
    assert found["thread_runtimes"] == {
        "OpenMP": [
            "/venv/mkl/libiomp5.so",
            "/venv/torch/lib/libgomp.so.1",
            "/venv/x.libs/libgomp-e985bcbb.so.1.0.0",
        ],
        "TBB": ["/opt/libtbb.so.12"],
        "OpenBLAS": ["/venv/numpy.libs/libscipy_openblas64_-1.so"],
    }
    assert any(line.startswith("3 OpenMP runtimes") for line in found["warnings"])


def test_info_names_an_arm_cpu_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["processor : 0", "CPU implementer : 0x41", "CPU part : 0xd0c"]
    monkeypatch.setattr(runtime, "_lines", lambda _: lines)
    assert cpuattn.info()["cpu"] == "CPU implementer 0x41, CPU part 0xd0c"


def test_cli_cmake_dir_is_one_line_on_a_narrow_terminal() -> None:
    done = run_module(["-m", "cpuattn", "--cmake-dir"], COLUMNS="20")
    assert done.returncode == 0, done.stderr
    package = Path(cpuattn.__file__).parent
    assert done.stdout == f"{package / 'lib' / 'cmake' / 'cpuattn'}\n"


def test_cli_selftest_succeeds_on_every_isa() -> None:
    done = run_module(["-m", "cpuattn", "selftest"], timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in cpuattn.available_isas())
    assert " 0 failed" in done.stdout


def test_cli_selftest_runs_the_isa_that_is_forced_and_no_other() -> None:
    done = run_module(["-m", "cpuattn", "selftest"], CPUATTN_ISA="scalar")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == ["scalar"]


def test_cli_selftest_of_an_unusable_isa_says_so() -> None:
    done = run_module(["-m", "cpuattn", "selftest"], CPUATTN_ISA="bogus")
    assert done.returncode == 1
    assert done.stderr.startswith("selftest: CPUATTN_ISA: must be one of")


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")
def test_cli_output_may_be_cut_off() -> None:
    python = shlex.join(PYTHON)
    command = f"{python} -m cpuattn info --json | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_cli_selftest_finds_a_wrong_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isa = _core.isa()

    def wrong(*arrays: Any, **options: Any) -> Any:
        # 1 % off in float64 on one ISA.
        off = _core.isa() == isa and arrays[0].dtype == np.float64
        return cpuattn.attention(*arrays, **options) * (1.01 if off else 1)

    monkeypatch.setattr(selftest, "attention", wrong)
    assert main(["selftest"]) == 1
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if line.startswith("  FAILED")]
    assert len(failed) == selftest.PROBLEMS
    assert all("float64 highest" in line for line in failed)
    assert _core.isa() == isa


def test_cli_selftest_finds_that_threads_change_the_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arrays: Any, num_threads: int = 1, **options: Any) -> Any:
        scale = np.float32(1 + 1e-6) if num_threads == 2 else 1
        return cpuattn.attention(*arrays, **options) * scale

    monkeypatch.setattr(selftest, "attention", wrong)
    assert main(["selftest"]) == 1
    assert "1 and 2 threads differ" in capsys.readouterr().out


QUICK = ["bench", "tiny", "bert_128", "--seconds", "0.001"]
NATIVE = pytest.mark.skipif(EMULATED, reason="CPUATTN_TEST_PYTHON is set: too slow")


@NATIVE
def test_cli_bench_times_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "shape", "cpuattn", "GFLOP/s"]
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["tiny", "1x1x1x1x8"],
        ["bert_128", "4x12x128x128x64"],
    ]


@NATIVE
@pytest.mark.parametrize("peer", [name for name in peers.PEERS if name != "cpuattn"])
def test_cli_bench_against_another_library(
    peer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in {"onnxruntime": ["onnxruntime", "onnx"]}.get(peer, [peer]):
        pytest.importorskip(package, reason=f"{package} is not installed")
    file = tmp_path / "figures.json"
    assert main([*QUICK, "--against", peer, "--json", str(file)]) == 0
    assert peer in capsys.readouterr().out.splitlines()[0]
    result = json.loads(file.read_text())
    assert [row["case"] for row in result["cases"]] == ["tiny", "bert_128"]
    for row in result["cases"]:
        for name in ("cpuattn", peer):
            figures = row["peers"][name]
            assert 0 < figures["p25"] <= figures["median"] <= figures["p75"]
            assert figures["runs"] >= 3 * bench.ROUNDS


@NATIVE
@pytest.mark.parametrize("case", cases.CASES, ids=[c.name for c in cases.CASES])
def test_cli_bench_peers_agree_on_every_case(case: cases.Case) -> None:
    small = cases.Case(
        case.name,
        case.batch,
        case.num_heads,
        case.num_kv_heads,
        min(case.q_len, 40),
        min(case.kv_len, 40 if case.q_len > 1 else 300),
        case.head_dim,
        case.causal,
    )
    arrays = small.arrays("float32")
    expected = cpuattn.attention(*arrays, causal=case.causal)
    checked = 0
    for name, peer in peers.PEERS.items():
        try:
            peer.version()
        except cases.PeerError:
            continue
        for prepare in peer.ways(small, arrays, None):
            call, to_array = prepare()
            error = bench.largest_error(to_array(call()), expected)
            assert error < bench.TOLERANCES["float32"], name
            checked += 1
    assert checked >= 2


@NATIVE
def test_cli_bench_tells_what_a_library_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(peers.NumPy):
        def prepare(self, *_: Any) -> peers.Prepared:
            raise NotImplementedError("no such shape")

    class Wrong(peers.NumPy):
        def prepare(self, *arguments: Any) -> peers.Prepared:
            right = super().prepare(*arguments)
            return peers.Prepared(lambda: 2 * right.call())

    monkeypatch.setitem(peers.PEERS, "numpy", Refusing())
    monkeypatch.setitem(peers.PEERS, "torch", Wrong())
    assert main([*QUICK, "--against", "numpy,torch"]) == 0
    out = capsys.readouterr().out
    assert "numpy, tiny: NotImplementedError: no such shape" in out
    assert "torch, tiny: differs from cpuattn by 1e+00 of the largest number" in out


@NATIVE
def test_cli_bench_draws_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / "figures.svg"
    assert main([*QUICK, "--plot", str(file)]) == 0
    assert "<svg" in file.read_text()


@pytest.mark.parametrize(
    ("module", "words", "text"),
    [
        ("matplotlib", ["--plot", "x.svg"], "matplotlib is not installed"),
        ("torch", ["--against", "torch"], "torch is not installed"),
        ("onnx", ["--against", "onnxruntime"], "onnx is not installed"),
        ("ml_dtypes", ["--dtype", "bfloat16"], "--dtype bfloat16 needs ml_dtypes"),
        (
            "threadpoolctl",
            ["--against", "numpy", "--threads", "1"],
            "threadpoolctl is not installed",
        ),
    ],
)
def test_cli_bench_names_what_is_not_installed(
    module: str, words: list[str], text: str, tmp_path: Path
) -> None:
    # A module of that name that cannot be imported, and no such distribution.
    hide = (
        "import importlib.metadata as m, importlib.util as u, sys\n"
        f"sys.modules[{module!r}] = None\n"
        "find, version = u.find_spec, m.version\n"
        f"u.find_spec = lambda name: None if name == {module!r} else find(name)\n"
        "def absent(name):\n"
        f"    if name == {module!r}: raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = absent\n"
        "from cpuattn.__main__ import main\n"
        f"sys.exit(main({['bench', 'tiny', '--seconds', '0.001', *words]!r}))\n"
    )
    done = run_module(["-c", hide])
    assert done.returncode == 1
    assert done.stderr.strip().startswith("bench: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["info", "--no-such-option"],
        ["bench", "no_such_case"],
        ["bench", "--against", "nobody"],
        ["bench", "--threads", "0"],
        ["bench", "--dtype", "int8"],
    ],
)
def test_cli_errors_exit_with_2(words: list[str]) -> None:
    done = run_module(["-m", "cpuattn", *words])
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert "Traceback" not in done.stderr
