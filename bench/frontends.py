# SPDX-License-Identifier: MIT
"""Measure what the front ends add to a call of ``cpuattn.attention``.

``python bench/frontends.py [--names keras,torch] [--json out.json]``. A front end and
the native function compute the same tiny problem, taking turns; the goal is 3 us.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import cpuattn
from cases import make_inputs, select_cases
from machine import describe
from measure import settle
from overhead import batch_timer, quartiles
from peers import first_line
from table import duration, text_table

GOAL_SECONDS = 3e-6
# Shorter than a scheduler's slice, so that most batches are not interrupted.
BATCH_SECONDS = 2e-4
BATCHES = 20
CASE = "tiny_1x4x8x8x16"

# What the native function is told in each way; None stands for the mask array.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": "top_left"},
    "mask": {"mask": None},
}


@dataclass(frozen=True)
class FrontEnd:
    """Say how a front end is called.

    Attributes
    ----------
    name, module, function : str
    layout : {"bhsd", "bshd"}
        Of its arrays.
    ways : dict
        Way to its keyword arguments; None stands for the mask array. It lacks the ways
        that are not there.
    fixed : dict
        Keyword arguments of every way.
    tensors : bool
        Whether it gets tensors of torch in place of arrays.
    leading : int
        How many None it takes before query: of the module that calls it.
    """

    name: str
    module: str
    function: str
    layout: str
    ways: dict[str, dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    tensors: bool = False
    leading: int = 0


MASK = {"plain": {}, "mask": {"mask": None}}
JAX = MASK | {"causal": {"is_causal": True}}
TORCH = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": None},
}
SDPA = "scaled_dot_product_attention"
DPA = "dot_product_attention"

FRONT_ENDS = (
    FrontEnd("torch", "cpuattn.compat.torch", SDPA, "bhsd", TORCH),
    FrontEnd(
        "torch-tensors", "cpuattn.compat.torch", SDPA, "bhsd", TORCH, tensors=True
    ),
    FrontEnd("keras", "cpuattn.compat.keras.ops", DPA, "bshd", JAX),
    FrontEnd("linen", "cpuattn.compat.flax.linen", DPA, "bshd", MASK),
    FrontEnd("nnx", "cpuattn.compat.flax.nnx", DPA, "bshd", JAX),
    FrontEnd("jax", "cpuattn.compat.jax", DPA, "bshd", JAX),
    FrontEnd("lucid", "cpuattn.compat.lucid", SDPA, "bhsd", TORCH),
    FrontEnd(
        "onnx",
        "cpuattn.compat.onnx",
        "attention",
        "bhsd",
        TORCH | {"causal": {"is_causal": 1}},
    ),
    FrontEnd(
        "mlx",
        "cpuattn.compat.mlx",
        SDPA,
        "bhsd",
        MASK | {"causal": {"mask": "causal"}},
        fixed={"scale": 0.25},
    ),
    FrontEnd(
        "transformers",
        "cpuattn.integrations._transformers_attention",
        "attention_forward",
        "bhsd",
        {
            "plain": {"attention_mask": ..., "is_causal": False},
            "causal": {"attention_mask": ..., "is_causal": True},
            "mask": {"attention_mask": None},
        },
        tensors=True,
        leading=1,
    ),
)


@dataclass(frozen=True)
class Pair:
    """A call of a front end and the native call that does the same."""

    front_end: str
    way: str
    call: Callable[[], Any]
    floor: Callable[[], Any]


def arrays_of(front_end: FrontEnd) -> tuple[list[Any], Any]:
    """Return query, key and value in the layout of a front end, and a mask."""
    (case,) = select_cases([CASE])
    inputs = make_inputs(case)
    arrays = [inputs.query, inputs.key, inputs.value]
    if front_end.layout == "bshd":
        arrays = [np.ascontiguousarray(array.swapaxes(1, 2)) for array in arrays]
    mask = np.ones((case.batch, case.num_heads, case.q_len, case.kv_len), np.bool_)
    mask[..., 1:, 0] = False
    if front_end.tensors:
        import torch

        torch.set_grad_enabled(False)  # as in inference
        return [torch.from_numpy(array) for array in arrays], torch.from_numpy(mask)
    return arrays, mask


def given(options: dict[str, Any], mask: Any) -> dict[str, Any]:
    """Put the mask where an option says None, and None where it says ``...``."""
    places = {None: mask, ...: None}
    return {
        name: places[x] if x is None or x is ... else x for name, x in options.items()
    }


def pairs_of(front_end: FrontEnd) -> list[Pair]:
    """Return the calls of a front end, checked against the native ones.

    Raises
    ------
    ImportError
        The front end, or what it needs, is absent.
    ValueError
        The results differ.
    """
    function = getattr(importlib.import_module(front_end.module), front_end.function)
    arrays, mask = arrays_of(front_end)
    pairs = []
    for way, options in WAYS.items():
        if way not in front_end.ways:
            continue
        call = partial(
            function,
            *[None] * front_end.leading,
            *arrays,
            **given(front_end.ways[way], mask),
            **front_end.fixed,
        )
        floor = partial(
            cpuattn.attention,
            *arrays,
            layout=front_end.layout,
            **given(options, mask),
            **front_end.fixed,
        )
        ours, exact = call(), floor()
        if front_end.leading:
            ours = ours[0].transpose(1, 2)
        if not np.allclose(ours, exact, rtol=1e-5, atol=1e-6):
            raise ValueError(f"{way}: result differs from that of cpuattn.attention")
        pairs.append(Pair(front_end.name, way, call, floor))
    return pairs


def measure(pairs: list[Pair], rounds: int) -> list[dict[str, Any]]:
    """Time every pair once a round, the native call and the front end in turns.

    Returns
    -------
    list of dict
        For each pair the seconds of both calls, and of batches' differences in turn.
    """
    times: list[dict[str, list[float]]] = [
        {"floor": [], "call": [], "added": []} for _ in pairs
    ]
    for _ in tqdm(range(rounds), desc="front ends", leave=False):
        for pair, collected in zip(pairs, times, strict=True):
            settle()
            floor = batch_timer(pair.floor, BATCH_SECONDS)
            call = batch_timer(pair.call, BATCH_SECONDS)
            for _ in range(BATCHES):
                collected["floor"].append(floor())
                collected["call"].append(call())
    for collected in times:
        both = zip(collected["call"], collected["floor"], strict=True)
        collected["added"] = [call - floor for call, floor in both]
    return [
        {"front_end": pair.front_end, "way": pair.way}
        | {name: quartiles(values) for name, values in collected.items()}
        for pair, collected in zip(pairs, times, strict=True)
    ]


def microseconds(seconds: float) -> str:
    """Show a difference, which may be negative."""
    return f"{seconds * 1e6:+.2f} us"


def print_report(report: dict[str, Any]) -> None:
    """Print a table of what was measured, and who is absent."""
    rows = [["front end", "way", "attention", "front end", "added", "p25", "p75", ""]]
    for entry in report["results"]:
        added = entry["added"]
        rows.append(
            [
                entry["front_end"],
                entry["way"],
                duration(entry["floor"]["median"]),
                duration(entry["call"]["median"]),
                *(microseconds(added[name]) for name in ("median", "p25", "p75")),
                "" if added["median"] <= GOAL_SECONDS else "above the goal",
            ]
        )
    print(text_table(rows))
    for name, reason in report["absent"].items():
        print(f"{name}: {reason}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what front ends add.")
    names = [front_end.name for front_end in FRONT_ENDS]
    parser.add_argument("--names", default=",".join(names), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = options.names.split(",")
    if unknown := {*chosen} - {*names}:
        parser.error(f"--names: must be of {', '.join(names)}; got {sorted(unknown)}")
    cpuattn.set_num_threads(1)
    pairs: list[Pair] = []
    absent: dict[str, str] = {}
    for front_end in FRONT_ENDS:
        if front_end.name in chosen:
            try:
                pairs += pairs_of(front_end)
            except Exception as failure:
                absent[front_end.name] = first_line(failure)
    report = {
        "machine": describe(),
        "case": CASE,
        "rounds": options.rounds,
        "results": measure(pairs, options.rounds),
        "absent": absent,
    }
    print_report(report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
