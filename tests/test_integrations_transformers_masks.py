# SPDX-License-Identifier: MIT
"""Promise: masks of transformers become ranges, and show the keys that they should."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Array, sees

torch = pytest.importorskip("torch", reason="torch is not installed")
masking_utils = pytest.importorskip(
    "transformers.masking_utils", reason="needs transformers 5"
)
if "q_length" not in inspect.signature(masking_utils.sdpa_mask).parameters:
    pytest.skip("needs the mask functions of transformers 5", allow_module_level=True)

from cpuattn.integrations import _transformers_attention as hook  # noqa: E402
from cpuattn.integrations._range_mask import RangeMask  # noqa: E402
from cpuattn.integrations._transformers_masks import make_mask  # noqa: E402


def patterns() -> dict[str, Any]:
    """Return mask functions of transformers, and one of a user."""
    functions = {
        "causal": masking_utils.causal_mask_function,
        "window": masking_utils.sliding_window_causal_mask_function(3),
        "window of 1": masking_utils.sliding_window_causal_mask_function(1),
        "left": masking_utils.sliding_window_overlay(3),
        "user": lambda b, h, q, k: (k <= q) & (k % 3 != 1),
    }
    if hasattr(masking_utils, "sliding_window_bidirectional_mask_function"):
        functions["bidirectional"] = masking_utils.bidirectional_mask_function
        functions["both"] = masking_utils.sliding_window_bidirectional_mask_function(2)
    functions["user and window"] = masking_utils.and_masks(
        functions["user"], functions["window"]
    )
    return functions


def as_mask(given: Any, shape: tuple[int, ...], causal: bool) -> Array:
    """Return which keys `attention_forward` would let each row see."""
    batch_size, _, q_len, kv_len = shape
    if given is None:
        options = {"causal": "top_left"} if causal and q_len > 1 else {}
    else:
        assert tuple(given.shape) == shape
        options = hook._mask_options(given, kv_len)
    if "mask" in options:
        options["mask"] = options["mask"].numpy()
    query = np.zeros((batch_size, 1, q_len, 1), np.float32)
    key = np.zeros((batch_size, 1, kv_len, 1), np.float32)
    return sees(query, key, key, **options)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_mask_of_any_kind_shows_the_keys_that_sdpa_mask_does(
    data: st.DataObject,
) -> None:
    draw = data.draw
    name = draw(st.sampled_from(sorted(patterns())), "pattern")
    q_len, kv_len = draw(st.tuples(*2 * [st.integers(1, 9)]), "lengths")
    q_offset, kv_offset = draw(st.tuples(*2 * [st.integers(0, 6)]), "offsets")
    q_offset += kv_offset
    skips = draw(st.booleans())
    padding = None
    if draw(st.booleans(), "padding"):
        length = draw(st.integers(kv_offset, kv_offset + kv_len + 2), "length")
        bits = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        padding = torch.tensor([bits, length * [True]], dtype=torch.bool)
    arguments = {
        "batch_size": 2,
        "q_length": q_len,
        "kv_length": kv_len,
        "q_offset": torch.tensor(q_offset) if draw(st.booleans()) else q_offset,
        "kv_offset": kv_offset,
        "mask_function": patterns()[name],
        "attention_mask": padding,
    }
    causal = name in ("causal", "window", "window of 1")

    mask = make_mask(
        **arguments,
        allow_is_causal_skip=skips and causal,
        allow_is_bidirectional_skip=skips and name in ("bidirectional", "both"),
    )

    exact = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False).numpy()
    exact = np.broadcast_to(exact, (2, 1, q_len, kv_len))
    np.testing.assert_array_equal(as_mask(mask, exact.shape, causal), exact)
    assert skips or mask is not None
    assert (type(mask) is RangeMask) or mask is None or "user" in name
    if type(mask) is RangeMask:
        np.testing.assert_array_equal(mask.elements().numpy(), exact)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "offset", "options"),
    [
        (5, 5, 0, None),
        (5, 9, 0, None),  # a prompt into a static cache
        (1, 9, 8, None),
        (1, 9, 0, {"causal": 0}),
        (1, 9, 4, {"causal": 4}),
        (5, 9, 4, {"causal": 4}),
    ],
)
def test_mask_of_a_causal_model_is_left_out_where_the_default_is_the_same(
    q_len: int, kv_len: int, offset: int, options: dict[str, Any] | None
) -> None:
    mask = make_mask(
        batch_size=1,
        q_length=q_len,
        kv_length=kv_len,
        q_offset=offset,
        attention_mask=torch.ones(1, q_len + offset, dtype=torch.bool),
    )

    assert (mask if mask is None else mask.options) == options


@pytest.fixture
def window_mask() -> Any:
    """Return a RangeMask."""
    return make_mask(
        batch_size=2,
        q_length=4,
        kv_length=7,
        q_offset=torch.tensor(3),
        mask_function=masking_utils.sliding_window_causal_mask_function(2),
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda mask: mask[:, 0, 1:],
        lambda mask: mask & ~mask.roll(1, -1),
        lambda mask: torch.where(mask, 0.0, -1.0),
        lambda mask: mask.to(torch.float32).sum(-1),
        lambda mask: torch.cat([mask, mask], 0),
        lambda mask: mask.expand(2, 3, 4, 7).clone(),
        lambda mask: torch.zeros(2, 1, 4, 7).masked_fill(mask, 1.0),
    ],
    ids=["index", "logic", "where", "sum", "cat", "expand", "masked_fill"],
)
def test_range_mask_in_an_operation_is_its_array(
    window_mask: Any, operation: Any
) -> None:
    assert type(window_mask) is RangeMask
    assert window_mask._elements is None

    result = operation(window_mask)

    plain = window_mask.elements()
    assert type(plain) is torch.Tensor
    assert type(result) is torch.Tensor
    assert torch.equal(result, operation(plain))


def test_range_mask_keeps_the_offset_of_a_cache_that_counts_on() -> None:
    position = torch.tensor(3)
    function = masking_utils.sliding_window_causal_mask_function(2)
    arguments = {"batch_size": 1, "q_length": 2, "kv_length": 9}
    mask = make_mask(**arguments, q_offset=position, mask_function=function)
    position += 2

    exact = masking_utils.sdpa_mask(**arguments, q_offset=3, mask_function=function)
    assert torch.equal(mask.elements(), exact)


def test_mask_by_the_positions_of_older_transformers_is_the_same_range(
    window_mask: Any,
) -> None:
    mask = make_mask(
        batch_size=2,
        cache_position=torch.arange(3, 7),
        kv_length=7,
        mask_function=masking_utils.sliding_window_causal_mask_function(2),
    )

    assert mask is not None
    assert mask.shape == window_mask.shape
    assert mask.options == window_mask.options


def test_range_mask_shows_its_options(window_mask: Any) -> None:
    assert repr(window_mask) == (
        "RangeMask(shape=(2, 1, 4, 7), options={'causal': 3, 'window': (1, None)})"
    )
