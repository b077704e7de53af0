# SPDX-License-Identifier: MIT
"""Time callables in interleaved slices and reduce the samples to figures.

A slice is a short spell of one contender. Between slices the process waits until its
threads have stopped spinning, so that no contender pays for the one before it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from machine import LoadMeter, usable_cores

# A timed run lasts at least this long; shorter calls are timed in batches.
MIN_RUN_SECONDS = 50e-6
# Before timing a slice, calls run untimed this long (never a call that is longer).
WARM_SECONDS = 5e-3
SETTLE_STEP_SECONDS = 2e-3
SETTLE_LIMIT_SECONDS = 0.5
SETTLE_BUSY_FRACTION = 0.05
QUIET_STEP_SECONDS = 0.25
MAX_ATTEMPTS = 8
TICK_ERROR_SECONDS = 15e-3


@dataclass
class Samples:
    """Collect the runs of one contender, round by round.

    Attributes
    ----------
    rounds : list of list of float
        Values of the slices that were kept.
    repeated : int
        Slices thrown away and taken again, because others used the cores.
    disturbed : int
        Slices kept although others used the cores.
    """

    rounds: list[list[float]] = field(default_factory=list)
    repeated: int = 0
    disturbed: int = 0

    @property
    def runs(self) -> int:
        """Number of timed runs."""
        return sum(len(values) for values in self.rounds)

    def flat(self) -> list[float]:
        """All values of all rounds."""
        return [value for values in self.rounds for value in values]

    def summary(self) -> dict[str, Any]:
        """Reduce to median, quartiles, extremes, count and the median of each round.

        Returns
        -------
        dict
            Ready for JSON, in the unit of the samples.
        """
        values = np.array(self.flat())
        low, median, high = np.percentile(values, [25, 50, 75])
        return {
            "median": float(median),
            "p25": float(low),
            "p75": float(high),
            "min": float(values.min()),
            "max": float(values.max()),
            "runs": len(values),
            "repeated_slices": self.repeated,
            "disturbed_slices": self.disturbed,
            "round_medians": [float(np.median(values)) for values in self.rounds],
        }


def settle() -> None:
    """Sleep until this process uses no CPU, so that spinning workers are asleep."""
    deadline = time.perf_counter() + SETTLE_LIMIT_SECONDS
    while time.perf_counter() < deadline:
        begin, used = time.perf_counter(), time.process_time()
        time.sleep(SETTLE_STEP_SECONDS)
        used = time.process_time() - used
        if used < SETTLE_BUSY_FRACTION * (time.perf_counter() - begin):
            return


def time_once(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def estimate(call: Callable[[], object]) -> float:
    """Return roughly the seconds of a warm call: the best of a few."""
    best = time_once(call)
    spent = best
    while spent < 20e-3:
        seconds = time_once(call)
        best, spent = min(best, seconds), spent + seconds
    return best


def run_slice(
    call: Callable[[], object],
    expected: float,
    min_runs: int,
    slice_seconds: float,
    max_seconds: float,
) -> list[float]:
    """Time one slice of a contender.

    Parameters
    ----------
    call : callable
    expected : float
        Seconds a call takes, roughly.
    min_runs : int
        Runs to take, unless `max_seconds` have passed.
    slice_seconds : float
        Go on at least this long.
    max_seconds : float
        Stop after the run that passes this.

    Returns
    -------
    list of float
        Seconds per call of each run; a run is a batch if a call is very short.
    """
    batch = max(1, int(MIN_RUN_SECONDS / max(expected, 1e-9)))
    if expected < 4 * WARM_SECONDS:
        warm_until = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < warm_until:
            call()
    runs: list[float] = []
    clock = time.perf_counter
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        while True:
            if batch == 1:
                begin = clock()
                call()
                now = clock()
            else:
                begin = clock()
                for _ in repeat(None, batch):
                    call()
                now = clock()
            runs.append((now - begin) / batch)
            spent = now - start
            if spent >= max_seconds:
                break
            if len(runs) >= min_runs and spent >= slice_seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return runs


@dataclass(frozen=True)
class QuietRule:
    """Say when a slice is disturbed by other processes, and how long to wait for quiet.

    Attributes
    ----------
    threads : int
        Cores that the measurement itself needs.
    tolerance : float
        Cores that others may use beyond those left over.
    wait_seconds : float
        Wait at most this long for each slice; 0 keeps every slice.
    """

    threads: int
    tolerance: float
    wait_seconds: float

    def disturbed(self, meter: LoadMeter) -> bool:
        """Return whether others used more cores than were left over."""
        others = meter.other_cores()
        if others is None:
            return False
        spare = max(0, usable_cores() - self.threads)
        # The system counts CPU time in ticks, which blurs short slices.
        blur = TICK_ERROR_SECONDS / max(meter.seconds, 1e-3)
        return others > spare + self.tolerance + blur


def take_slice(
    samples: Samples, take: Callable[[], list[float]], rule: QuietRule
) -> float:
    """Take one slice, again if others disturbed it, and keep the last one.

    What is thrown away depends on the load of the machine alone, never on the times.

    Parameters
    ----------
    samples : Samples
        Receives the values.
    take : callable
        Takes the slice.
    rule : QuietRule

    Returns
    -------
    float
        Seconds that the kept slice took.
    """
    waited = 0.0
    for attempt in range(MAX_ATTEMPTS):
        settle()
        meter = LoadMeter()
        begin = time.perf_counter()
        values = take()
        seconds = time.perf_counter() - begin
        disturbed = rule.disturbed(meter)
        last = attempt == MAX_ATTEMPTS - 1 or waited >= rule.wait_seconds
        if not disturbed or last:
            samples.rounds.append(values)
            samples.disturbed += disturbed
            return seconds
        samples.repeated += 1
        while waited < rule.wait_seconds:
            meter = LoadMeter()
            time.sleep(QUIET_STEP_SECONDS)
            waited += QUIET_STEP_SECONDS
            if not rule.disturbed(meter):
                break
    raise AssertionError("unreachable")
