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
        row["name"] + ("" if row["usable"] else f" (not usable: {row['reason']})")
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


def case_of(item: pytest.Item) -> str:
    """Return the name of a test and its parameters, without the ISA."""
    parameters = getattr(item, "callspec", None)
    isa = parameters.params.get("isa") if parameters else None
    return item.nodeid.replace(f"[{isa}", "[isa", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each case on every ISA in a row: they are compared with the same results."""
    first: dict[str, int] = {}
    for n, item in enumerate(items):
        first.setdefault(case_of(item), n)
    items.sort(key=lambda item: first[case_of(item)])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if EMULATED and item.get_closest_marker("native"):
        pytest.skip("CPUATTN_TEST_PYTHON is set: the figures would be the emulator's")


@pytest.fixture(params=cpuattn.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every ISA that this build holds and this CPU can run, forced for one test."""
    cpuattn._core.set_isa(request.param)
    try:
        assert cpuattn._core.isa() == request.param
        yield request.param
    finally:
        cpuattn._core.set_isa(None)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator that depends on the test and its parameters, not the ISA."""
    return rng_for(case_of(request.node))
