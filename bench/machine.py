# SPDX-License-Identifier: MIT
"""Describe the machine and the software that a measurement was taken with.

Also tells how much of the machine other processes used meanwhile, which on a shared
host decides whether a figure can be trusted.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path

DISTRIBUTIONS = (
    "numpy",
    "cpuattn",
    "torch",
    "onnxruntime",
    "onnx",
    "openvino",
    "jax",
)
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ISA_PREFIXES = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm", "neon")


def read_text(path: Path) -> str | None:
    """Return the stripped text of a file, or None if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def cpu_fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, empty elsewhere."""
    text = read_text(Path("/proc/cpuinfo")) or ""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def versions() -> dict[str, str]:
    """Return the version of each installed library that is measured."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, object]:
    """Describe the machine: CPU, cores, governor, memory pages, system, versions.

    Returns
    -------
    dict
        Ready for JSON; what cannot be read is None.
    """
    fields = cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    pages = re.search(r"\[(\w+)\]", read_text(HUGE_PAGES) or "")
    signature = [fields.get(name) for name in ("vendor_id", "cpu family", "model")]
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_signature": " ".join(part for part in signature if part) or None,
        "isa_flags": [flag for flag in flags if flag.startswith(ISA_PREFIXES)],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "governor": read_text(GOVERNOR),
        "transparent_huge_pages": pages.group(1) if pages else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python_build": sys.version.split("\n")[0],
        "versions": versions(),
        "environment": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("OMP_", "MKL_", "OPENBLAS_", "CPUATTN_", "GOMP_"))
        },
    }


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LoadMeter:
    """Measure how many cores other processes and other guests used since the start."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self.seconds = 0.0
        self._own = time.process_time()
        self._busy = self._read()

    @staticmethod
    def _read() -> float | None:
        text = read_text(Path("/proc/stat"))
        if text is None:
            return None
        # user nice system idle iowait irq softirq steal guest guest_nice
        ticks = [int(word) for word in text.splitlines()[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]
        return busy / float(os.sysconf("SC_CLK_TCK"))

    def other_cores(self) -> float | None:
        """Return the average number of cores used by others, None if unknown."""
        busy = self._read()
        self.seconds = wall = time.perf_counter() - self._wall
        if busy is None or self._busy is None or wall <= 0:
            return None
        own = time.process_time() - self._own
        return max(0.0, (busy - self._busy - own) / wall)
