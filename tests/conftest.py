# SPDX-License-Identifier: MIT
"""Fixtures: the forced ISA, the seeded generator, and the seed printed on failure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import cpuattn
from support import COMPILED_ISAS, EMULATED, SEED, rng_for


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "native: measures the process itself, so it is skipped in an emulator",
    )


def pytest_report_header() -> list[str]:
    names = ", ".join(
        row["name"] + ("" if row["usable"] else " (not usable)")
        for row in COMPILED_ISAS
    )
    return [f"CPUATTN_TEST_SEED={SEED}", f"compiled ISAs: {names}"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"CPUATTN_TEST_SEED={SEED}"))
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if EMULATED and item.get_closest_marker("native"):
        pytest.skip("CPUATTN_TEST_PYTHON is set: the figures would be the emulator's")


def force(name: str) -> Iterator[str]:
    """Force an ISA for the time of one test, or skip with the reason it cannot run."""
    row = next(row for row in COMPILED_ISAS if row["name"] == name)
    if not row["usable"]:
        pytest.skip(f"{name}: {row['reason']}")
    cpuattn._core.set_isa(name)
    try:
        assert cpuattn._core.isa() == name
        yield name
    finally:
        cpuattn._core.set_isa(None)


@pytest.fixture(params=[row["name"] for row in COMPILED_ISAS])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every ISA that this build holds, forced one after the other."""
    yield from force(request.param)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator that depends on the test and its parameters, not the ISA."""
    name = request.node.nodeid
    if "isa" in request.fixturenames:
        name = name.replace(str(request.getfixturevalue("isa")), "isa")
    return rng_for(name)
