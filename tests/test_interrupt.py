# SPDX-License-Identifier: MIT
"""Signals end a long call by what their handlers raise, within a second, on any ISA."""

from __future__ import annotations

import signal
import sys

import pytest

import cpuattn
from support import expect_success

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals are sent by os.kill"),
    pytest.mark.native,
]

# Calls of many seconds on arrays that take next to no memory.
SETUP = """
import os, signal, sys, threading, time
import numpy as np
import cpuattn

def numbers(*shape):
    return np.broadcast_to(np.float32(0.01), shape)

def long_call(q_shape, kv_shape, **options):
    query, key = numbers(*q_shape), numbers(*kv_shape)
    return cpuattn.attention(query, key, key, **options)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
sent = []
def send(delay, count=1):
    def work():
        for _ in range(count):
            time.sleep(delay)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=work, daemon=True).start()

rng = np.random.default_rng(0)
small = rng.standard_normal((3, 1, 4, 300, 64), np.float32)
expected = cpuattn.attention(*small, num_threads=1)
def check_next(threads):
    for _ in range(3):
        assert np.array_equal(cpuattn.attention(*small, num_threads=threads), expected)
"""

CALLS = {
    "one_item": "long_call((1, 1, 1024, 64), (1, 1, 2**25, 64), **options)",
    "decode": "long_call((1, 1, 1, 64), (1, 1, 2**35, 64), **options)",
    "many_items": "long_call((2**26, 1, 1, 8), (2**26, 1, 1, 8), **options)",
    "hidden": """long_call(
        (1, 1, 4, 64), (1, 1, 2**38, 64), mask=np.broadcast_to(False, 2**38), **options
    )""",
    "mean_values": """long_call(
        (1, 1, 1024, 64), (1, 1, 2**22, 64), fully_masked="mean",
        bias=np.broadcast_to(np.float32(-np.inf), (1024, 2**22)), **options
    )""",
    "weights": """long_call(
        (1, 8, 512, 2048), (1, 8, 2**17, 2048), return_weights=True, **options
    )""",
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", cpuattn.available_isas())
def test_interrupt_ends_a_long_call(name: str, call: str, threads: int) -> None:
    if call == CALLS["many_items"] and threads > 1:
        pytest.skip("2 GB of results once are enough")
    out = expect_success(
        f"""{SETUP}
options = {{"num_threads": {threads}}}
send(0.3)
try:
    {call}
except KeyboardInterrupt:
    print(time.monotonic() - sent[0])
else:
    raise AssertionError("the call ended by itself")
check_next({threads})
""",
        timeout=120,
        CPUATTN_ISA=name,
    )
    # It takes about 0.05 s; other processes may keep the CPUs busy.
    assert float(out) < 5.0


def test_interrupt_raises_what_the_handler_raises() -> None:
    expect_success(
        f"""{SETUP}
class Enough(Exception):
    pass
def handler(number, frame):
    raise Enough(number)
signal.signal(signal.SIGINT, handler)
send(0.2)
try:
    long_call((1, 1, 1024, 64), (1, 1, 2**25, 64))
except Enough as error:
    assert error.args == (signal.SIGINT,)
else:
    raise AssertionError("the call ended by itself")
check_next(2)
""",
        timeout=60,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "calls_attention"])
def test_interrupt_handler_that_returns_lets_the_call_go_on(
    nested: bool, threads: int
) -> None:
    body = f"same.append(not {nested} or np.array_equal(compute(small), expected))"
    expect_success(
        f"""{SETUP}
def compute(arrays):
    return cpuattn.attention(*arrays, num_threads={threads})
same = []
def handler(number, frame):
    {body}
signal.signal(signal.SIGINT, handler)
query, key, value = rng.standard_normal((3, 1, 1, 8192, 64), np.float32)
large = query[:, :, :1024], key.repeat(32, axis=2), value.repeat(32, axis=2)
undisturbed = compute(large)
send(0.1, count=3)
while len(sent) < 3:
    assert np.array_equal(compute(large), undisturbed)
compute(large)
assert same and all(same), same
""",
        timeout=120,
    )


def test_interrupt_leaves_calls_of_other_threads_alone() -> None:
    expect_success(
        f"""{SETUP}
results = []
def work():
    for _ in range(20):
        results.append(np.array_equal(cpuattn.attention(*small), expected))
thread = threading.Thread(target=work)
send(0.05)
thread.start()
try:
    time.sleep(10)
except KeyboardInterrupt:
    while len(results) < 20:
        time.sleep(0.01)
else:
    raise AssertionError("no interrupt")
assert results == [True] * 20
""",
        timeout=60,
    )


def test_interrupt_keeps_the_handler_of_the_process() -> None:
    before = signal.getsignal(signal.SIGINT)
    expect_success(
        f"""{SETUP}
before = signal.getsignal(signal.SIGINT)
check_next(2)
assert signal.getsignal(signal.SIGINT) is before
"""
    )
    assert signal.getsignal(signal.SIGINT) is before
