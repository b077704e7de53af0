# SPDX-License-Identifier: MIT
"""Measure whole models before and after: transformers and a Keras layer.

``python bench/models.py [cases] [--threads 1,2] [--dtypes float32,bfloat16] [--json
out.json]``. Weights are random: they do not change the time. The implementations share
them and take turns in rounds, as the libraries do in ``run.py``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import cpuattn
from machine import describe
from measure import QuietRule, Samples, estimate, run_slice, take_slice
from peers import first_line
from run import rounded
from table import duration, spread_percent, text_table

# The first two are the "before" of transformers.
IMPLEMENTATIONS = ("sdpa", "eager", "cpuattn")
OWN = "cpuattn"
PACKAGES = ("transformers", "keras")
# How far a result may be from the first implementation's, relative to its largest
# element: float32 rounding through the layers, or that of 16 bits.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}

LLAMA = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
}
GEMMA2 = LLAMA | {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 512}
BERT_BASE = {"vocab_size": 1000}  # 12 layers of 768, 12 heads
TINY = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}


@dataclass(frozen=True)
class ModelCase:
    """Describe one forward pass of one model.

    Attributes
    ----------
    name : str
    kind : {"Bert", "Llama", "Gemma2", "keras"}
        Whose configuration of transformers `sizes` are for, or the Keras layer.
    sizes : dict
    batch, length : int
        Tokens of the pass.
    cached : int
        Tokens already in the key-value cache.
    padded : bool
        Whether sequences have a half to all of the length, padded on the right.
    """

    name: str
    kind: str
    sizes: dict[str, Any]
    batch: int
    length: int
    cached: int = 0
    padded: bool = False


LAYER = {"head_dim": 64, "num_query_heads": 12, "num_key_value_heads": 4}

CASES = (
    ModelCase("tiny", "Llama", TINY, 1, 32),
    ModelCase("tiny_decode", "Llama", TINY, 1, 1, cached=32),
    ModelCase("bert_128", "Bert", BERT_BASE, 4, 128),
    ModelCase("bert_512", "Bert", BERT_BASE, 4, 512),
    ModelCase("bert_512_padded", "Bert", BERT_BASE, 4, 512, padded=True),
    ModelCase("llama_prefill_1024", "Llama", LLAMA, 1, 1024),
    ModelCase("llama_prefill_4096", "Llama", LLAMA, 1, 4096),
    ModelCase("llama_decode_1024", "Llama", LLAMA, 1, 1, cached=1024),
    ModelCase("llama_decode_4096", "Llama", LLAMA, 1, 1, cached=4096),
    ModelCase("gemma2_prefill_1024", "Gemma2", GEMMA2, 1, 1024),
    ModelCase("gemma2_prefill_4096", "Gemma2", GEMMA2, 1, 4096),
    ModelCase("keras_layer_128", "keras", LAYER, 4, 128),
    ModelCase("keras_layer_512", "keras", LAYER, 4, 512),
)


@dataclass
class Contender:
    """One implementation: how it is entered and called, and what it took."""

    name: str
    call: Callable[[], Any]
    enter: Callable[[], None] = lambda: None
    samples: Samples = field(default_factory=Samples)
    expected: float = 0.0
    difference: float = 0.0


@contextmanager
def threads_of_all(threads: int) -> Iterator[None]:
    """Give cpuattn, torch and the BLAS of NumPy as many threads."""
    import torch
    from threadpoolctl import threadpool_limits

    cpuattn.set_num_threads(threads)
    torch.set_num_threads(threads)
    with threadpool_limits(threads), torch.inference_mode():
        yield


def transformers_contenders(
    case: ModelCase, dtype: str
) -> list[tuple[str, Callable[[], Contender]]]:
    """Name the implementations of a model, each with what builds its contender."""
    import torch
    import transformers

    from cpuattn.integrations.transformers import register

    register(OWN)
    config = getattr(transformers, f"{case.kind}Config")(**case.sizes)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, dtype=getattr(torch, dtype))
    model.eval()
    inputs = tokens_of(case)

    def build(name: str) -> Contender:
        enter = partial(model.set_attn_implementation, name)
        enter()
        if not case.cached:
            return Contender(name, lambda: model(**inputs).last_hidden_state, enter)
        before = torch.zeros(case.batch, case.cached, dtype=torch.long)
        cache = model(before).past_key_values

        def decode() -> Any:
            hidden = model(**inputs, past_key_values=cache).last_hidden_state
            cache.crop(-case.length)  # a view: the next call finds the same cache
            return hidden

        return Contender(name, decode, enter)

    return [(name, partial(build, name)) for name in IMPLEMENTATIONS]


def tokens_of(case: ModelCase) -> dict[str, Any]:
    """Return the inputs of a model."""
    import torch

    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, case.length)
    inputs = {"input_ids": torch.randint(1, 999, shape, generator=generator)}
    if case.padded:
        lengths = torch.linspace(case.length // 2, case.length, case.batch).long()
        inputs["attention_mask"] = (torch.arange(case.length) < lengths[:, None]).long()
    return inputs


def keras_contenders(
    case: ModelCase, dtype: str
) -> list[tuple[str, Callable[[], Contender]]]:
    """Name Keras's layer on its NumPy backend, and ours with the same weights."""
    os.environ["KERAS_BACKEND"] = "numpy"
    import keras

    if keras.backend.backend() != "numpy":
        raise RuntimeError(f"keras: backend must be numpy; got {keras.backend}")
    width = case.sizes["head_dim"] * case.sizes["num_query_heads"]
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((case.batch, case.length, width), dtype=np.float32)
    layer = keras.layers.GroupQueryAttention(**case.sizes, dtype=dtype)
    layer.build(hidden.shape, hidden.shape)

    def before() -> Contender:
        return Contender("keras", partial(layer, hidden, hidden, use_causal_mask=True))

    def after() -> Contender:
        from cpuattn.compat.keras import GroupQueryAttention

        ours = GroupQueryAttention(**case.sizes, dtype=dtype)
        ours.build(hidden.shape, hidden.shape)
        ours.set_weights([np.asarray(weight) for weight in layer.get_weights()])
        return Contender(OWN, partial(ours, hidden, hidden, use_causal_mask=True))

    return [("keras", before), (OWN, after)]


def as_float32(result: Any) -> Any:
    """Return a result as an array to compare."""
    return np.asarray(result.float() if hasattr(result, "float") else result)


def build_contenders(
    case: ModelCase, dtype: str
) -> tuple[list[Contender], dict[str, str]]:
    """Build the implementations that give one result, and say why others are absent.

    The first that works is what the others are compared with.
    """
    named = keras_contenders if case.kind == "keras" else transformers_contenders
    contenders: list[Contender] = []
    absent: dict[str, str] = {}
    reference: Any = None
    for name, build in named(case, dtype):
        try:
            contender = build()
            result = as_float32(contender.call())
            contender.expected = estimate(contender.call)
        except Exception as failure:
            absent[name] = first_line(failure)
            continue
        if case.padded:
            result = result[tokens_of(case)["attention_mask"].numpy() > 0]
        reference = result if reference is None else reference
        contender.difference = float(
            np.abs(result - reference).max() / np.abs(reference).max()
        )
        if contender.difference > TOLERANCES[dtype]:
            absent[name] = f"differs by {contender.difference:.1e} of the largest"
            continue
        contenders.append(contender)
    return contenders, absent


def measure_case(
    case: ModelCase, dtype: str, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Let every implementation of a case take one slice a round, in random order."""
    order = random.Random(case.name)
    rule = QuietRule(threads, options.other_load, options.quiet_wait)
    with threads_of_all(threads):
        contenders, absent = build_contenders(case, dtype)
        for _ in range(options.rounds):
            order.shuffle(contenders)
            for contender in contenders:
                contender.enter()
                take = partial(
                    run_slice,
                    contender.call,
                    contender.expected,
                    options.min_runs,
                    options.slice_seconds,
                    options.max_seconds,
                )
                take_slice(contender.samples, take, rule)
    return {
        "case": case.name,
        "dtype": dtype,
        "threads": threads,
        "absent": absent,
        "implementations": {
            contender.name: {
                "seconds": contender.samples.summary(),
                "difference": contender.difference,
            }
            for contender in contenders
        },
    }


def result_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table of one case."""
    entries = result["implementations"]
    rows = []
    order = (*IMPLEMENTATIONS[:2], "keras", OWN)
    for name in sorted(entries, key=order.index):
        seconds = entries[name]["seconds"]
        ratio = "-"
        if name != OWN and OWN in entries:
            own = entries[OWN]["seconds"]["median"]
            ratio = f"{seconds['median'] / own:.2f}x"
        flag = "*" * bool(seconds["disturbed_slices"])
        rows.append(
            [
                f"{result['case']} {result['dtype']} x{result['threads']} {name}",
                duration(seconds["median"]),
                f"{spread_percent(seconds):.1f} %{flag}",
                str(seconds["runs"]),
                f"{entries[name]['difference']:.0e}",
                ratio,
            ]
        )
    return rows


def print_results(results: list[dict[str, Any]]) -> None:
    """Print a table of everything, and below it who is absent and why."""
    rows = [["case", "median", "spread", "runs", "difference", "time / cpuattn"]]
    for result in results:
        rows += result_rows(result)
    print(text_table(rows))
    for result in results:
        for name, reason in result["absent"].items():
            print(f"{result['case']} {result['dtype']} {name}: {reason}")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages whose models are measured."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure models before and after.")
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument(
        "--dtypes", default="float32", help=f"comma-separated, of {[*TOLERANCES]}"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-runs", type=int, default=3, help="of a slice")
    parser.add_argument("--slice-seconds", type=float, default=0.1)
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of a slice")
    parser.add_argument("--other-load", type=float, default=0.3, help="as of run.py")
    parser.add_argument("--quiet-wait", type=float, default=20.0, help="as of run.py")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.threads = [int(text) for text in options.threads.split(",")]
    options.dtypes = options.dtypes.split(",")
    for argument, given, known in (
        ("cases", options.cases, names),
        ("--dtypes", options.dtypes, TOLERANCES),
    ):
        if unknown := {*given} - {*known}:
            parser.error(f"{argument}: must be of {[*known]}; got {sorted(unknown)}")
    options.cases = [case for case in CASES if case.name in (options.cases or names)]
    return options


def main() -> None:
    """Run the command line."""
    options = parse_arguments()
    todo = [
        (case, dtype, threads)
        for case in options.cases
        for dtype in options.dtypes
        for threads in options.threads
    ]
    results = []
    with tqdm(todo, file=sys.stderr) as progress:
        for case, dtype, threads in progress:
            progress.set_description(f"{case.name} {dtype} x{threads}")
            results.append(measure_case(case, dtype, threads, options))
    print_results(results)
    if options.json is not None:
        document = {
            "machine": describe(),
            "packages": package_versions(),
            "settings": {
                name: getattr(options, name)
                for name in ("rounds", "min_runs", "slice_seconds", "max_seconds")
            },
            "results": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rounded(document), indent=1) + "\n")


if __name__ == "__main__":
    main()
