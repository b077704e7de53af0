# SPDX-License-Identifier: MIT
"""A pytest plugin for emulated CPUs: `-p sample_tests --sample N` runs fewer tests.

Of each parametrized test it keeps the first case on each ISA and, by a hash of their
names, one in N of the others. Tests without parameters all run.
"""

import zlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --sample."""
    parser.addoption("--sample", type=int, default=1, metavar="N", help="run 1 in N")


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
