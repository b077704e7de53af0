# SPDX-License-Identifier: MIT
"""A pytest plugin for emulated CPUs: `-p sample_tests --sample N --numeric`.

Of each parametrized test it keeps the first case on each ISA and, by a hash of their
names, one in N of the others. Tests without parameters all run. `--numeric` leaves out
the files whose results do not depend on the CPU.
"""

import zlib
from fnmatch import fnmatch
from pathlib import Path

import pytest

# Error texts, processes, packaging, documents and front ends are tested natively.
NOT_NUMERIC = (
    "cli",
    "compat_*",
    "docs*",
    "errors",
    "explain",
    "free_threading",
    "integrations_*",
    "interrupt",
    "keras",
    "limits",
    "package",
    "process",
    "reference",
    "symbols",
    "torch",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.addoption("--sample", type=int, default=1, metavar="N", help="run 1 in N")
    parser.addoption("--numeric", action="store_true", help="what depends on the CPU")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that are not numeric."""
    name = collection_path.stem.removeprefix("test_")
    left_out = any(fnmatch(name, pattern) for pattern in NOT_NUMERIC)
    return True if config.getoption("numeric") and left_out else None


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Drop the cases that are not in the sample."""
    sample = config.getoption("sample")
    seen: set[tuple[str, object]] = set()
    kept, dropped = [], []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        group = (item.nodeid.partition("[")[0], parameters.get("isa"))
        drawn = zlib.crc32(item.nodeid.encode()) % sample == 0
        (kept if drawn or group not in seen else dropped).append(item)
        seen.add(group)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
