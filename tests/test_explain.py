# SPDX-License-Identifier: MIT
"""Promise 6: explain says what a call would do; no silent slow path, copy or cast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import BFLOAT16, Dtypes, every_dtype
from options import OPTIONS, Sizes
from support import COMPILED_ISAS, Array, qkv

KEYS: dict[str, type] = {
    "isa": str,
    "kernel": str,
    "products": str,
    "lanes": int,
    "row_tile": int,
    "row_block": int,
    "kv_block": int,
    "kv_splits": int,
    "items": int,
    "threads": int,
    "workspace_bytes": int,
    "copies": list,
    "notes": list,
}


def virtual(*shape: int) -> Array:
    """Return an array of any size that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def plan_of(
    q_len: int = 64,
    kv_len: int = 64,
    heads: int = 8,
    kv_heads: int = 8,
    batch: int = 1,
    head_dim: int = 64,
    **options: Any,
) -> dict[str, Any]:
    key = virtual(batch, kv_heads, kv_len, head_dim)
    return cpuattn.explain(virtual(batch, heads, q_len, head_dim), key, key, **options)


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 9000), (512, 512), (0, 0)])
def test_explain_has_every_key(q_len: int, kv_len: int, isa: str) -> None:
    plan = plan_of(q_len, kv_len)
    wrong = {name for name, kind in KEYS.items() if type(plan.get(name)) is not kind}
    assert not wrong
    assert all(isinstance(text, str) for text in plan["copies"] + plan["notes"])


def test_explain_names_the_active_isa(isa: str) -> None:
    plan = plan_of()
    assert plan["isa"] == isa == cpuattn._core.isa()
    assert plan["lanes"] in (1, 2, 4, 8, 16)
    assert isa != "avx512" or plan["lanes"] == 16


@pytest.mark.parametrize(
    ("q_len", "heads", "kv_heads", "kernel"),
    [
        pytest.param(1, 8, 8, "decode", id="one_row"),
        pytest.param(512, 8, 8, "prefill", id="many_rows"),
        pytest.param(100, 32, 8, "prefill", id="many_rows_of_groups"),
    ],
)
def test_explain_kernel_follows_the_number_of_rows(
    q_len: int, heads: int, kv_heads: int, kernel: str, isa: str
) -> None:
    assert plan_of(q_len, 4096, heads, kv_heads)["kernel"] == kernel


@pytest.mark.parametrize("q_len", [1, 4, 600])
@pytest.mark.parametrize("kv_len", [1, 700, 5000, 40000])
def test_explain_splits_depend_on_lengths_alone(
    kv_len: int, q_len: int, isa: str
) -> None:
    splits = {
        plan_of(q_len, kv_len, batch=batch, num_threads=threads)["kv_splits"]
        for batch in (1, 2, 64)
        for threads in (1, 2, 8)
    }
    assert len(splits) == 1
    assert splits.pop() >= 1


def test_explain_long_decode_is_split(isa: str) -> None:
    assert plan_of(1, 32768, 32, 8, head_dim=128)["kv_splits"] > 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_explain_threads_follow_num_threads(threads: int, isa: str) -> None:
    assert plan_of(2048, 2048, num_threads=threads)["threads"] == threads


@pytest.mark.parametrize("q_len", [1, 8])
def test_explain_tiny_call_is_serial(q_len: int, isa: str) -> None:
    assert plan_of(q_len, 8, heads=1, kv_heads=1, num_threads=4)["threads"] == 1


def test_explain_threads_follow_the_context(isa: str) -> None:
    with cpuattn.threads(3):
        inside = plan_of(2048, 2048)["threads"]
        argument = plan_of(2048, 2048, num_threads=2)["threads"]
    assert (inside, argument) == (3, 2)


def test_explain_default_follows_set_num_threads(isa: str) -> None:
    cpuattn.set_num_threads(5)
    try:
        inside = plan_of(2048, 2048)["threads"]
        with cpuattn.threads(2):
            context = plan_of(2048, 2048)["threads"]
    finally:
        cpuattn.set_num_threads(None)
    assert (inside, context) == (5, 2)
    assert plan_of(2048, 2048)["threads"] == cpuattn.info()["threads"]


def test_explain_covers_every_row_and_key(isa: str) -> None:
    plan = plan_of(1000, 700, batch=2)
    rows = plan["items"] // plan["kv_splits"] * plan["row_block"]
    assert rows >= 2 * 8 * 1000
    assert 0 < plan["row_tile"] <= plan["row_block"]
    assert plan["kv_block"] > 0


def test_explain_computes_nothing(isa: str, rng: np.random.Generator) -> None:
    # A call of these sizes would take hours; its inputs and output would be terabytes.
    plan = plan_of(2**22, 2**22, heads=64, kv_heads=64, batch=4)
    assert plan["items"] > 0
    inputs = qkv(rng)
    out = np.full((2, 4, 5, 16), -7, np.float32)
    cpuattn.explain(*inputs, out=out)
    assert (out == -7).all()


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(q_len=1, kv_len=300)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_explain_takes_every_option(
    name: str, sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    options = OPTIONS[name](rng, sizes)
    plan = cpuattn.explain(*sizes.qkv(rng, options.get("layout", "bhsd")), **options)
    assert plan["isa"] == isa


IN_PLACE = {
    "contiguous": lambda x: np.ascontiguousarray(x),
    "bshd_view": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "negative_rows": lambda x: x[:, :, ::-1],
    "cache_view": lambda x: np.concatenate([x, x], 2)[:, :, : x.shape[2]],
}


@pytest.mark.parametrize("q_len", [1, 200])
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_explain_usual_layouts_are_read_in_place(
    change: Any, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=500, head_dim=64)
    plan = cpuattn.explain(query, change(key), change(value))
    assert plan["copies"] == []


COPIED = {
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
    "every_other_column": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "negative_columns": lambda x: x[..., ::-1],
}


@pytest.mark.parametrize("q_len", [1, 200])
@pytest.mark.parametrize("index", [1, 2], ids=["key", "value"])
@pytest.mark.parametrize("change", COPIED.values(), ids=COPIED)
def test_explain_names_what_is_copied_and_why(
    change: Any, index: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = list(qkv(rng, q_len=q_len, kv_len=500, head_dim=64))
    inputs[index] = change(inputs[index])
    plan = cpuattn.explain(*inputs)
    assert len(plan["copies"]) == 1
    assert plan["copies"][0].startswith(("query", "key", "value")[index] + ": ")


@pytest.mark.parametrize("q_len", [1, 100])
def test_explain_notes_the_reason_for_the_kernel(q_len: int, isa: str) -> None:
    assert any("rows" in note for note in plan_of(q_len, 500)["notes"])


def test_explain_notes_what_weights_cost(isa: str) -> None:
    plain, asked = plan_of(1, 500), plan_of(1, 500, return_weights=True)
    assert any("weights" in note for note in asked["notes"])
    assert not any("second pass" in note for note in plain["notes"])


def test_explain_notes_split_keys(isa: str) -> None:
    assert any("split" in note for note in plan_of(1, 32768)["notes"])
    assert not any("split" in note for note in plan_of(1, 100)["notes"])


def products_of(
    dtypes: Dtypes, precision: str, isa: str, *, many_rows: bool = True
) -> str:
    """Return the products that docs/semantics.md and docs/design.md speak of."""
    uniform = dtypes.query if dtypes.query == dtypes.cache else None
    if uniform == np.float64:
        return "float64"
    if not isa.endswith("_bf16"):
        return "float32"
    if not many_rows and (isa == "amx_bf16" or dtypes.cache != BFLOAT16):
        return "float32"
    if uniform == BFLOAT16 or precision == "medium":
        return "bfloat16"
    if isa == "amx_bf16" and (uniform == np.float16 or precision == "high"):
        return "bfloat16 x3"
    return "float32"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("q_len", [1, 512], ids=["decode", "prefill"])
@every_dtype
def test_explain_products_follow_dtypes_and_precision(
    dtypes: Dtypes, q_len: int, precision: str, isa: str
) -> None:
    query = np.broadcast_to(dtypes.query.type(0), (1, 8, q_len, 64))
    key = np.broadcast_to(dtypes.cache.type(0), (1, 8, 512, 64))
    plan = cpuattn.explain(query, key, key, precision=precision)
    expected = products_of(dtypes, precision, isa, many_rows=q_len > 1)
    assert plan["products"] == expected
    assert plan["isa"] == isa


def test_explain_precision_changes_no_plan_of_float64(isa: str) -> None:
    x = np.broadcast_to(np.float64(0), (1, 8, 64, 64))
    plans = [cpuattn.explain(x, x, x, precision=p) for p in ("highest", "medium")]
    assert plans[0] == plans[1]


def test_explain_info_reports_what_runs(isa: str) -> None:
    report = cpuattn.info()
    assert report["isa"] == isa
    assert isa in cpuattn.available_isas()
    names = [row["name"] for row in report["isas"] if row["usable"]]
    assert names == list(cpuattn.available_isas())
    assert all(row["reason"] for row in report["isas"] if not row["usable"])


@pytest.mark.parametrize("name", [row["name"] for row in COMPILED_ISAS])
def test_explain_isa_runs_or_says_why_not(name: str) -> None:
    row = next(row for row in COMPILED_ISAS if row["name"] == name)
    assert row["usable"] == (not row["reason"]) == (name in cpuattn.available_isas())
    if not row["usable"]:
        with pytest.raises(RuntimeError, match="CPUATTN_ISA: must be one of"):
            cpuattn._core.set_isa(name)


def test_explain_result_is_a_new_dict(isa: str) -> None:
    first, second = plan_of(), plan_of()
    first["notes"].append("changed")
    first["isa"] = "changed"
    assert second["isa"] == isa
    assert "changed" not in second["notes"]
