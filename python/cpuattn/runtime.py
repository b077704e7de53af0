"""What runs where: instruction sets, threads, and a report for bug reports."""

from __future__ import annotations

import math
import os
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

_threads: ContextVar[int | None] = ContextVar("cpuattn_threads", default=None)


def available_isas() -> tuple[str, ...]:
    """Name the instruction sets that can run here, best first.

    Returns
    -------
    tuple of str
        Values that the environment variable CPUATTN_ISA accepts on this machine.

    Examples
    --------
    >>> import cpuattn
    >>> "scalar" in cpuattn.available_isas()
    True
    """
    return tuple(row["name"] for row in _core.isa_table() if row["usable"])


def set_num_threads(num_threads: int | None) -> None:
    """Set the default number of threads of this process.

    Parameters
    ----------
    num_threads : int or None
        At least 1; None returns to CPUATTN_NUM_THREADS, OMP_NUM_THREADS or the CPUs
        that affinity and the cgroup quota leave.

    Raises
    ------
    TypeError
        `num_threads` is not an integer.
    ValueError
        `num_threads` is less than 1.

    Examples
    --------
    >>> import cpuattn
    >>> cpuattn.set_num_threads(None)
    """
    _core.set_num_threads(0 if num_threads is None else _checked(num_threads))


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Set the number of threads inside a ``with`` block, for this context only.

    Parameters
    ----------
    num_threads : int
        At least 1. Other threads and asyncio tasks are not affected.

    Yields
    ------
    None

    Raises
    ------
    TypeError
        `num_threads` is not an integer.
    ValueError
        `num_threads` is less than 1.

    Examples
    --------
    >>> import numpy as np, cpuattn
    >>> x = np.ones((1, 2, 4, 8), np.float32)
    >>> with cpuattn.threads(1):
    ...     out = cpuattn.attention(x, x, x)
    """
    token = _threads.set(_checked(num_threads))
    _core.use_threads_variable(_threads)
    try:
        yield
    finally:
        _threads.reset(token)


def _checked(num_threads: int) -> int:
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(
            "num_threads: must be an integer from 1 to 4096; "
            f"got {type(num_threads).__name__}"
        )
    if not 1 <= num_threads <= 4096:
        raise ValueError(
            f"num_threads: must be an integer from 1 to 4096; got {num_threads}"
        )
    return int(num_threads)


def info() -> dict[str, Any]:
    """Report version, CPU, instruction sets, threads and loaded thread runtimes.

    Returns
    -------
    dict
        Ready for JSON. Keys: version, python, numpy, platform, cpu, features, isa
        (the active one, or the error text of a wrong CPUATTN_ISA), isas (name,
        compiled, usable, reason), threads, threads_from, thread_backend, cpus (of the
        machine), affinity (CPUs that this process may use), cgroup_cpus (its quota,
        None without one), thread_runtimes (kind: files mapped into this process;
        empty where the system does not tell), warnings.

    Examples
    --------
    >>> import cpuattn
    >>> cpuattn.info()["version"] == cpuattn.__version__
    True
    """
    import platform  # takes longer than all of this package

    try:
        isa = _core.isa()
    except RuntimeError as error:
        isa = str(error)
    report = {
        "version": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": _cpu_model() or platform.processor() or platform.machine(),
        "features": _core.features(),
        "isa": isa,
        "isas": _core.isa_table(),
        "threads": _threads.get() or _core.num_threads(),
        "threads_from": "threads()" if _threads.get() else _core.num_threads_source(),
        "thread_backend": _core.thread_backend(),
        "cpus": os.cpu_count(),
        "affinity": _affinity(),
        "cgroup_cpus": _core.cgroup_cpus(),
        "thread_runtimes": _thread_runtimes(),
    }
    return report | {"warnings": list(_warnings(report))}


def _warnings(report: dict[str, Any]) -> Iterator[str]:
    """Name what is set up in a way that costs speed, or does not do what it says."""
    if report["isa"].startswith("CPUATTN_ISA:"):
        yield report["isa"]
    for name in ("CPUATTN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text and not re.match(r"\s*\+?0*[1-9]", text):
            yield f"{name}: must be a positive integer, is ignored; got {text}"
    openmp = report["thread_runtimes"].get("OpenMP", [])
    if len(openmp) > 1:
        yield (
            f"{len(openmp)} OpenMP runtimes are loaded, each with threads of its own; "
            f"cpuattn's are of kind {report['thread_backend']}"
        )
    quota = report["cgroup_cpus"] or report["affinity"]
    allowed = min(report["affinity"], math.ceil(quota))
    if report["threads"] > allowed:
        yield (
            f"{report['threads']} threads, from {report['threads_from']}, share "
            f"{allowed} CPU{'s' * (allowed > 1)}"
        )


def _cpu_model() -> str:
    """Return what Linux calls the CPU; arm64 names its designer and part by number."""
    facts: dict[str, str] = {}
    for line in _lines("/proc/cpuinfo"):
        name, _, fact = line.partition(":")
        facts.setdefault(name.strip(), fact.strip())
    names = ("CPU implementer", "CPU part")
    numbers = ", ".join(f"{name} {facts[name]}" for name in names if name in facts)
    return facts.get("model name") or numbers


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Libraries with threads of their own that wait for work by spinning.
_RUNTIMES = {
    "OpenMP": r"lib(gomp|i?omp5?)\b",
    "TBB": r"libtbb\b",
    "OpenBLAS": r"lib(scipy_)?openblas",
}


def _thread_runtimes() -> dict[str, list[str]]:
    files = {line.split()[-1] for line in _lines("/proc/self/maps") if "/" in line}
    found = {
        kind: sorted(file for file in files if re.search(name, os.path.basename(file)))
        for kind, name in _RUNTIMES.items()
    }
    return {kind: paths for kind, paths in found.items() if paths}


def _lines(path: str) -> list[str]:
    """Read a file of the system, empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
