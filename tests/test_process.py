# SPDX-License-Identifier: MIT
"""Promise 7: after fork, from many threads, beside torch, under the system's limits."""

from __future__ import annotations

import os
import sys

import pytest

import cpuattn
from support import expect_success, run_python

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
AFFINITY = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system cannot set CPU affinity"
)
TWO_CPUS = pytest.mark.skipif(
    len(getattr(os, "sched_getaffinity", lambda _: [0, 1])(0)) < 2,
    reason="only one CPU is left to this process",
)

# A problem that is large enough for threads, and its plan.
SETUP = """
import os, sys
import numpy as np
import cpuattn

rng = np.random.default_rng(0)
query, key, value = rng.standard_normal((3, 2, 4, 300, 64), np.float32)

def run(**options):
    return cpuattn.attention(query, key, value, causal=True, **options)

def planned(**options):
    x = np.broadcast_to(np.float32(0), (1, 8, 4096, 64))
    return cpuattn.explain(x, x, x, **options)["threads"]
"""

CHILD = """
def in_child(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if function() else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
"""


@FORK
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_process_fork_after_use_computes_the_same(threads: int) -> None:
    expect_success(
        f"""{SETUP}{CHILD}
expected = run(num_threads={threads})
assert in_child(lambda: np.array_equal(run(num_threads={threads}), expected)) == 0
assert np.array_equal(run(num_threads={threads}), expected)
""",
        timeout=60,
    )


@FORK
def test_process_fork_before_use_computes_the_same() -> None:
    expect_success(
        f"""{SETUP}{CHILD}
code = in_child(lambda: np.isfinite(run(num_threads=2)).all())
assert code == 0, code
assert np.isfinite(run(num_threads=2)).all()
""",
        timeout=60,
    )


@FORK
def test_process_fork_of_a_fork_computes_the_same() -> None:
    expect_success(
        f"""{SETUP}{CHILD}
expected = run(num_threads=2)
def grandchild():
    return in_child(lambda: np.array_equal(run(num_threads=2), expected)) == 0
assert in_child(grandchild) == 0
""",
        timeout=60,
    )


@FORK
def test_process_fork_while_threads_compute_computes_the_same() -> None:
    expect_success(
        f"""{SETUP}{CHILD}
import threading
expected = run(num_threads=2)
stop = threading.Event()
def work():
    while not stop.is_set():
        run(num_threads=2)
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
codes = [in_child(lambda: np.array_equal(run(), expected)) for _ in range(5)]
stop.set()
for worker in workers:
    worker.join()
assert codes == [0] * 5, codes
""",
        timeout=60,
    )


@FORK
def test_process_multiprocessing_pool_computes_the_same() -> None:
    expect_success(
        f"""{SETUP}
import multiprocessing
expected = run(num_threads=2)
def work(n):
    return np.array_equal(run(num_threads=2), expected)
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(pool.map(work, range(6)))
""",
        timeout=60,
    )


@FORK
def test_process_fork_is_explained() -> None:
    expect_success(
        f"""{SETUP}{CHILD}
run(num_threads=2)
def report():
    x = np.broadcast_to(np.float32(0), (1, 8, 4096, 64))
    plan = cpuattn.explain(x, x, x, num_threads=2)
    return plan["threads"] == 2 or any("fork" in note for note in plan["notes"])
assert in_child(report) == 0
""",
        timeout=60,
    )


@pytest.mark.parametrize("workers", [2, 8, 32])
def test_process_many_python_threads_compute_the_same(workers: int) -> None:
    expect_success(
        f"""{SETUP}
from concurrent.futures import ThreadPoolExecutor
sizes = [(1, 1, 1), (8, 1, 900), (2, 40, 70), (4, 300, 300), (1, 2, 5000)]
problems = []
for heads, q_len, kv_len in sizes:
    q = rng.standard_normal((1, heads, q_len, 32), np.float32)
    k, v = rng.standard_normal((2, 1, heads, kv_len, 32), np.float32)
    problems.append((q, k, v, cpuattn.attention(q, k, v)))
def work(n):
    q, k, v, expected = problems[n % len(problems)]
    return np.array_equal(cpuattn.attention(q, k, v, num_threads=n % 3 + 1), expected)
with ThreadPoolExecutor({workers}) as pool:
    assert all(pool.map(work, range(40 * {workers})))
""",
        timeout=100,
    )


def test_process_first_call_may_come_from_many_threads() -> None:
    expect_success(
        f"""{SETUP}
import threading
results = []
barrier = threading.Barrier(16)
def work():
    barrier.wait()
    results.append(run().tobytes())
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 16 and len(set(results)) == 1
"""
    )


@pytest.mark.native
@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="the system does not list threads"
)
def test_process_a_call_starts_as_many_threads_as_it_may() -> None:
    expect_success(
        f"""{SETUP}
def tasks():
    return len(os.listdir("/proc/self/task"))

before = tasks()
for threads in (1, 2, 4):
    run(num_threads=threads)
    assert tasks() == before + threads - 1
with cpuattn.threads(5):
    run()
assert tasks() == before + 4
"""
    )


@pytest.mark.native
def test_process_threads_end_without_leaving_their_scratch() -> None:
    expect_success(
        f"""{SETUP}
import threading
def resident():
    with open("/proc/self/status") as file:
        return int(next(x for x in file if x.startswith("VmRSS")).split()[1])
def once():
    thread = threading.Thread(target=lambda: run(num_threads=1))
    thread.start()
    thread.join()
if os.path.exists("/proc/self/status"):
    for _ in range(50):
        once()
    before = resident()
    for _ in range(300):
        once()
    assert resident() - before < 8 * 1024, resident() - before
"""
    )


def test_process_other_python_threads_run_during_a_long_call() -> None:
    expect_success(
        f"""{SETUP}
import threading, time
x = rng.standard_normal((1, 1, 6000, 64), np.float32)
running, ticks = True, 0
def tick():
    global ticks
    while running:
        ticks += 1
        time.sleep(0.001)
thread = threading.Thread(target=tick)
thread.start()
time.sleep(0.02)
before = ticks
for _ in range(3):
    cpuattn.attention(x, x, x, num_threads=1)
during = ticks - before
running = False
thread.join()
assert during > 5, during
"""
    )


TORCH = """
import torch
torch.set_num_threads(2)
def theirs():
    with torch.no_grad():
        arrays = [torch.from_numpy(x) for x in (query, key, value)]
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(*arrays, is_causal=True).numpy()
"""


@pytest.mark.parametrize("first", ["torch", "cpuattn", "cpuattn_used"])
def test_process_torch_in_the_same_process(first: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    before = {
        "torch": "import torch\ntorch.ones(300, 300) @ torch.ones(300, 300)\n" + SETUP,
        "cpuattn": SETUP,
        "cpuattn_used": SETUP + "run(num_threads=2)\n",
    }[first]
    expect_success(
        f"""{before}{TORCH}
alone = run(num_threads=1)
for _ in range(20):
    assert np.abs(theirs() - run(num_threads=2)).max() < 1e-5
assert np.array_equal(run(num_threads=2), alone)
assert torch.get_num_threads() == 2
""",
        timeout=120,
    )


@FORK
def test_process_fork_beside_torch_computes_the_same() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    expect_success(
        f"""{SETUP}{TORCH}{CHILD}
theirs()
expected = run(num_threads=2)
assert in_child(lambda: np.array_equal(run(num_threads=2), expected)) == 0
""",
        timeout=120,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("modules", ["torch, cpuattn", "cpuattn, torch"])
def test_process_maps_one_openmp_runtime_beside_torch(modules: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    expect_success(
        f"""
import {modules}
{SETUP}{TORCH}
theirs(), run(num_threads=2)
files = cpuattn.info()["thread_runtimes"]["OpenMP"]
assert len(files) == 1, files
""",
        timeout=120,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_alone_maps_no_openmp_runtime() -> None:
    expect_success(
        f"""{SETUP}
run(num_threads=2)
if cpuattn.info()["thread_backend"] != "openmp":
    assert "OpenMP" not in cpuattn.info()["thread_runtimes"]
"""
    )


def test_process_torch_and_cpuattn_from_threads_at_once() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    expect_success(
        f"""{SETUP}{TORCH}
from concurrent.futures import ThreadPoolExecutor
expected = run(num_threads=1)
def work(n):
    if n % 2:
        return np.array_equal(run(num_threads=2), expected)
    return np.abs(theirs() - expected).max() < 1e-5
with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(work, range(60)))
""",
        timeout=120,
    )


@AFFINITY
def test_process_affinity_of_one_cpu_gives_one_thread() -> None:
    expect_success(
        f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
{SETUP}
assert planned() == 1, planned()
assert cpuattn.info()["threads"] == 1
run()
"""
    )


@AFFINITY
@TWO_CPUS
def test_process_affinity_of_two_cpus_gives_two_threads_at_most() -> None:
    expect_success(
        f"""
import os
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
{SETUP}
assert planned() in (1, 2), planned()  # 1 where the cgroup's quota is one CPU
assert planned(num_threads=2) == 2
"""
    )


@AFFINITY
@TWO_CPUS
def test_process_affinity_set_after_import_counts() -> None:
    expect_success(
        f"""{SETUP}
run()
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
assert planned() == 1, planned()
run()
"""
    )


PRECEDENCE = {
    "omp": ({"OMP_NUM_THREADS": "3"}, "", 3),
    "cpuattn": ({"CPUATTN_NUM_THREADS": "3"}, "", 3),
    "cpuattn_before_omp": ({"CPUATTN_NUM_THREADS": "2", "OMP_NUM_THREADS": "5"}, "", 2),
    "omp_of_1": ({"OMP_NUM_THREADS": "1"}, "", 1),
    "set_before_environment": (
        {"CPUATTN_NUM_THREADS": "2", "OMP_NUM_THREADS": "5"},
        "cpuattn.set_num_threads(4)",
        4,
    ),
    "context_before_set": (
        {"CPUATTN_NUM_THREADS": "2"},
        "cpuattn.set_num_threads(4); context = cpuattn.threads(3); context.__enter__()",
        3,
    ),
    "set_none_returns_to_environment": (
        {"CPUATTN_NUM_THREADS": "2"},
        "cpuattn.set_num_threads(4); cpuattn.set_num_threads(None)",
        2,
    ),
}


@pytest.mark.parametrize(
    ("env", "code", "threads"), PRECEDENCE.values(), ids=PRECEDENCE
)
def test_process_threads_precedence(
    env: dict[str, str], code: str, threads: int
) -> None:
    expect_success(
        f"""{SETUP}
{code}
assert planned() == {threads}, planned()
assert cpuattn.info()["threads"] == {threads}
assert planned(num_threads=6) == 6
run()
""",
        **env,
    )


@pytest.mark.parametrize("text", ["", "0", "-3"])
@pytest.mark.parametrize("name", ["CPUATTN_NUM_THREADS", "OMP_NUM_THREADS"])
def test_process_threads_of_no_number_are_the_default(name: str, text: str) -> None:
    default = expect_success(f"{SETUP}print(planned())")
    assert expect_success(f"{SETUP}print(planned())", **{name: text}) == default


def test_process_omp_nested_list_counts_its_first() -> None:
    # The OpenMP specification allows a list: one number for each nesting level.
    out = expect_success(f"{SETUP}print(planned())", OMP_NUM_THREADS="3,2")
    assert out.strip() == "3"


def test_process_context_is_of_one_python_thread() -> None:
    expect_success(
        f"""{SETUP}
import threading
cpuattn.set_num_threads(4)
seen = []
with cpuattn.threads(2):
    thread = threading.Thread(target=lambda: seen.append(planned()))
    thread.start()
    thread.join()
    seen.append(planned())
    with cpuattn.threads(3):
        seen.append(planned())
    seen.append(planned())
seen.append(planned())
assert seen == [4, 2, 3, 2, 4], seen
"""
    )


def test_process_context_is_of_one_asyncio_task() -> None:
    expect_success(
        f"""{SETUP}
import asyncio
cpuattn.set_num_threads(4)
async def one(n):
    with cpuattn.threads(n):
        await asyncio.sleep(0.01)
        return planned()
async def main():
    return await asyncio.gather(one(2), one(3), one(1))
assert asyncio.run(main()) == [2, 3, 1]
assert planned() == 4
"""
    )


def test_process_context_ends_with_an_exception() -> None:
    expect_success(
        f"""{SETUP}
before = planned()
try:
    with cpuattn.threads(7):
        raise KeyError
except KeyError:
    pass
assert planned() == before
"""
    )


@pytest.mark.parametrize("name", cpuattn.available_isas())
def test_process_isa_of_the_environment_is_used(name: str) -> None:
    out = expect_success(
        f"""{SETUP}
x = np.broadcast_to(np.float32(0), (1, 8, 4096, 64))
print(cpuattn.explain(x, x, x)["isa"], cpuattn.info()["isa"])
run()
""",
        CPUATTN_ISA=name,
    )
    assert out.split() == [name, name]


BAD_ISAS = ["bogus", "AVX2", "sse9,avx2"]
BAD_ISAS += sorted({"neon", "avx2"} - {*cpuattn.available_isas()})


@pytest.mark.parametrize("name", BAD_ISAS)
def test_process_bad_isa_raises_at_first_use_and_lists_the_usable(name: str) -> None:
    done = run_python(SETUP + "print('imported')\nrun()", CPUATTN_ISA=name)
    assert done.returncode != 0
    assert done.stdout.strip() == "imported"
    line = done.stderr.strip().splitlines()[-1]
    usable = ", ".join(cpuattn.available_isas())
    assert line == (
        f"RuntimeError: CPUATTN_ISA: must be one of {usable} on this machine; "
        f"got {name}"
    )


def test_process_bad_isa_is_told_by_info_and_explain() -> None:
    out = expect_success(
        f"""{SETUP}
for call in (planned, run):
    try:
        call()
    except RuntimeError as error:
        print(error)
assert "bogus" in cpuattn.info()["isa"]
assert cpuattn.available_isas()
""",
        CPUATTN_ISA="bogus",
    )
    assert out.count("CPUATTN_ISA: must be one of") == 2


def test_process_empty_isa_is_the_default() -> None:
    code = f"{SETUP}print(cpuattn.info()['isa'])"
    assert expect_success(code, CPUATTN_ISA="") == expect_success(code)


def test_process_library_prints_nothing_and_changes_no_state() -> None:
    done = run_python(
        f"""
import os, signal, sys
import numpy as np
environment = dict(os.environ)
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGSEGV)]
{SETUP}
tiny = np.float32(1e-40)
run(num_threads=2)
assert dict(os.environ) == environment
assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGSEGV)]
# Denormals still count: neither flush-to-zero nor denormals-are-zero was set.
assert (np.full(64, tiny) * np.float32(0.5)).all()
try:
    cpuattn.attention(query, key, value[:, :, :3])
except ValueError:
    pass
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_process_import_brings_in_numpy_only() -> None:
    out = expect_success(
        """
import sys
import numpy
before = {name.partition(".")[0] for name in sys.modules}
import cpuattn
x = numpy.ones((1, 1, 4, 8), numpy.float32)
cpuattn.attention(x, x, x)
cpuattn.info()
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted((after - before) - set(sys.stdlib_module_names)))
"""
    )
    assert out.split() == ["cpuattn"]


def test_process_exit_with_an_open_context_is_clean() -> None:
    done = run_python(f"{SETUP}cpuattn.threads(2).__enter__()\nrun()", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_process_exit_while_a_daemon_thread_computes_is_clean() -> None:
    # The thread asks for the GIL when the interpreter is gone: no abort, no hang.
    done = run_python(
        f"""{SETUP}
import threading
x = rng.standard_normal((1, 1, 600, 64), np.float32)
def work():
    while True:
        cpuattn.attention(x, x, x, num_threads=1)
        started.set()
started = threading.Event()
threading.Thread(target=work, daemon=True).start()
started.wait()
""",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.native
def test_process_idle_threads_do_not_spin() -> None:
    out = expect_success(
        f"""{SETUP}
import time
run(num_threads=2)
time.sleep(0.3)
before = time.process_time()
time.sleep(0.7)
print(time.process_time() - before)
"""
    )
    assert float(out) < 0.1
