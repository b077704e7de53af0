# SPDX-License-Identifier: MIT
"""The oracle itself: against a literal loop, torch, Keras, JAX and published vectors.

Nothing here runs the native kernels: what the other files compare with is right.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import numpy as np
import pytest

from cpuattn import _draws, reference
from options import OPTIONS, REPRESENTATIVES, Sizes, combine
from support import Array, as_tuple, normal, qkv, rng_for

SMALL = Sizes(
    batch=(2,), heads=4, kv_heads=2, q_len=4, kv_len=6, head_dim=3, head_dim_v=2
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_random123_vectors_match(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    # kat_vectors of Random123 1.14.0, lines "philox4x32 10".
    columns = [np.array([word], np.uint64) for word in counter]
    drawn = _draws.philox(key[0] | key[1] << 32, *columns)
    assert tuple(drawn[0].tolist()) == words


def literal(
    query: Array, key: Array, value: Array, **options: Any
) -> tuple[Array, Array, Array, Array]:
    """Out, lse, weights before and after dropout, one Python float after the other.

    A transcription of docs/semantics.md that shares no expression with the oracle.
    """
    if options.get("layout") == "bshd":
        query, key, value = (x.swapaxes(-2, -3) for x in (query, key, value))
    batch = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    heads, q_len, head_dim = query.shape[-3:]
    kv_heads, kv_len, head_dim_v = value.shape[-3:]
    query, key, value = (
        np.broadcast_to(x.astype(np.float64), (*batch, *x.shape[-3:]))
        for x in (query, key, value)
    )

    def at(name: str, default: Any, *axes: int) -> Any:
        given = options.get(name)
        return np.broadcast_to(default if given is None else given, (*batch, *axes))

    full = (heads, q_len, kv_len)
    mask, bias = at("mask", True, *full), at("bias", 0.0, *full)
    keep_mask = at("dropout_mask", True, *full)
    slopes = at("alibi_slopes", 0.0, heads)
    q_lengths, kv_lengths = at("q_lengths", q_len), at("kv_lengths", kv_len)
    q_ids, kv_ids = at("q_segment_ids", 0, q_len), at("kv_segment_ids", 0, kv_len)
    causal = options.get("causal", False)
    offsets = at("causal", 0) if not isinstance(causal, (bool, str)) else None
    left, right = options.get("window") or (None, None)
    p, scale, cap = (options.get(n) for n in ("dropout_p", "scale", "softcap"))
    p = p or 0.0
    scale = (1 / math.sqrt(head_dim) if head_dim else 1) if scale is None else scale

    out = np.zeros((*batch, heads, q_len, head_dim_v))
    lse = np.full((*batch, heads, q_len), -np.inf)
    before, after = np.zeros((2, *batch, *full))
    for n, where in enumerate(np.ndindex(batch)):
        for h, i in itertools.product(range(heads), range(q_len)):
            if i >= q_lengths[where]:
                continue
            if offsets is not None:
                offset = int(offsets[where])
            elif causal == "top_left":
                offset = 0
            else:
                offset = int(kv_lengths[where] - q_lengths[where])
            group = h // (heads // kv_heads)
            scores = {}
            hidden = []
            for j in range(kv_len):
                visible = [
                    mask[where][h, i, j],
                    causal is False or j <= i + offset,
                    left is None or left == -1 or j >= i + offset - left,
                    right is None or right == -1 or j <= i + offset + right,
                    j < kv_lengths[where],
                    q_ids[where][i] == kv_ids[where][j],
                ]
                if not all(visible):
                    hidden.append(j)
                    continue
                if bias[where][h, i, j] == -math.inf:
                    continue
                row, column = query[where][h, i], key[where][group, j]
                score = scale * sum(
                    float(a) * float(b) for a, b in zip(row, column, strict=True)
                )
                if cap is not None:
                    score = cap * math.tanh(score / cap)
                score += float(bias[where][h, i, j])
                scores[j] = score - float(slopes[where][h]) * abs(i + offset - j)
            sinks = options.get("sinks")
            terms = [*scores.values(), *([] if sinks is None else [float(sinks[h])])]
            if terms:
                most = max(terms)
                lse[where][h, i] = most + math.log(
                    sum(math.exp(term - most) for term in terms)
                )
            if not scores and sinks is None:
                policy = options.get("fully_masked", "zero")
                if policy == "mean" and hidden:
                    before[where][h, i, hidden] = 1 / len(hidden)
                    after[where][h, i] = before[where][h, i]
                    out[where][h, i] = value[where][group].astype(float)[hidden].mean(0)
                elif policy == "nan" or (policy == "mean" and kv_len):
                    before[where][h, i] = after[where][h, i] = math.nan
                    out[where][h, i] = math.nan
                continue
            for j, score in scores.items():
                weight = math.exp(score - lse[where][h, i])
                before[where][h, i, j] = weight
                kept = bool(keep_mask[where][h, i, j]) and p < 1
                if options.get("dropout_mask") is None and 0 < p < 1:
                    shared = options.get("dropout_broadcast", ())
                    index = {"batch": n, "heads": h, "q_len": i, "kv_len": j}
                    b_, h_, i_, j_ = (0 if a in shared else x for a, x in index.items())
                    counter = (np.array([x], np.uint64) for x in (j_ // 4, i_, h_, b_))
                    word = _draws.philox(options["dropout_seed"], *counter)
                    kept = int(word[0, j_ % 4]) >= round(p * 2**32)
                    if options.get("dropout_generator") == "threefry":
                        sizes = {"heads": heads, "q_len": q_len, "kv_len": kv_len}
                        heads_, q_len_, kv_len_ = (
                            1 if a in shared else size for a, size in sizes.items()
                        )
                        flat = ((b_ * heads_ + h_) * q_len_ + i_) * kv_len_ + j_
                        bits = _draws.threefry(
                            options["dropout_seed"], np.array([flat], np.uint64)
                        )
                        fraction = np.float32(int(bits[0]) >> 9) / np.float32(2**23)
                        kept = bool(fraction < np.float32(1 - p))
                if kept:
                    after[where][h, i, j] = weight / (1 - p)
                    out[where][h, i] += weight / (1 - p) * value[where][group, j]
    if options.get("layout") == "bshd":
        out = out.swapaxes(-2, -3)
    return out, lse, before, after


def assert_literal(inputs: tuple[Array, Array, Array], options: dict[str, Any]) -> None:
    names = ("return_lse", "return_weights")
    asked = {name: value for name, value in options.items() if name not in names}
    returned = [
        reference.attention(*inputs, **asked, return_lse=True, return_weights=when)
        for when in ("before_dropout", "after_dropout")
    ]
    out, lse, before = returned[0]
    wanted = literal(*inputs, **asked)
    for mine, exact in zip((out, lse, before, returned[1][2]), wanted, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OPTIONS)
def test_reference_one_option_matches_literal_loop(
    name: str, rng: np.random.Generator
) -> None:
    options = OPTIONS[name](rng, SMALL)
    assert_literal(SMALL.qkv(rng, options.get("layout", "bhsd")), options)


PAIRS = [
    pair
    for pair in itertools.combinations(REPRESENTATIVES, 2)
    if not set.intersection(*(set(combine(rng_for(""), SMALL, name)) for name in pair))
]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_reference_two_options_match_literal_loop(
    pair: tuple[str, str], rng: np.random.Generator
) -> None:
    options = combine(rng, SMALL, *pair)
    assert_literal(SMALL.qkv(rng, options.get("layout", "bhsd")), options)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(Sizes(batch=(), q_len=3, kv_len=3), id="no-batch"),
        pytest.param(Sizes(batch=(2, 1, 3), q_len=2, kv_len=2, heads=2), id="rank-6"),
        pytest.param(Sizes(batch=(0,)), id="batch-0"),
        pytest.param(Sizes(heads=0, kv_heads=0), id="heads-0"),
        pytest.param(Sizes(q_len=0), id="q_len-0"),
        pytest.param(Sizes(kv_len=0), id="kv_len-0"),
        pytest.param(Sizes(head_dim=0), id="head_dim-0"),
        pytest.param(Sizes(head_dim_v=0), id="head_dim_v-0"),
        pytest.param(Sizes(heads=6, kv_heads=1), id="one-kv-head"),
    ],
)
@pytest.mark.parametrize("fully_masked", ["zero", "mean", "nan"])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["plain", "sinks"])
def test_reference_any_size_matches_literal_loop(
    sizes: Sizes, fully_masked: str, with_sinks: bool, rng: np.random.Generator
) -> None:
    options = {"fully_masked": fully_masked, "causal": -1}
    if with_sinks:
        options["sinks"] = normal(rng, sizes.heads)
    assert_literal(sizes.qkv(rng), options)


def test_reference_leading_axes_broadcast_like_numpy(rng: np.random.Generator) -> None:
    query = normal(rng, 3, 1, 4, 5, 8)
    key, value = normal(rng, 2, 2, 6, 8), normal(rng, 1, 1, 2, 6, 7)
    out = reference.attention(query, key, value)
    whole = reference.attention(
        np.broadcast_to(query, (3, 2, 4, 5, 8)),
        np.broadcast_to(key, (3, 2, 2, 6, 8)),
        np.broadcast_to(value, (3, 2, 2, 6, 7)),
    )
    assert out.shape == (3, 2, 4, 5, 7)
    np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize(
    "garbage", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"]
)
def test_reference_unseen_key_reaches_nothing(
    garbage: float, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=3, kv_len=5)
    key[..., 4, :], value[..., 4, :] = garbage, garbage
    mask = np.arange(5) < 4
    out = reference.attention(query, key, value, mask=mask)
    clean = reference.attention(query, key[..., :4, :], value[..., :4, :])
    np.testing.assert_allclose(out, clean, rtol=1e-14)


def test_reference_live_nan_in_value_reaches_its_column(
    rng: np.random.Generator,
) -> None:
    query, key, value = qkv(rng, q_len=3, kv_len=5)
    value[0, 1, 2, 7] = np.nan
    out = reference.attention(query, key, value, causal="top_left")
    places = np.zeros(out.shape, bool)
    places[0, 1, 2:, 7] = True
    np.testing.assert_array_equal(np.isnan(out), places)


def test_reference_float32_computes_in_float32(rng: np.random.Generator) -> None:
    options = combine(rng, SMALL, *REPRESENTATIVES[:4], "sinks", "softcap", "dropout")
    options |= {"return_lse": True, "return_weights": True}
    options["alibi_slopes"] = normal(rng, 4).astype(np.float64)
    returned = reference.attention(*SMALL.qkv(rng), **options, dtype=np.float32)
    assert [x.dtype for x in returned] == [np.float32] * 3


def test_reference_fits_one_screen() -> None:
    with open(reference.__file__, encoding="ascii") as file:
        lines = [line for line in file if line.strip()]
    assert len(lines) <= 80


# Real frameworks, in float64 where they can.


def torch64(*arrays: Array) -> list[Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return [torch.from_numpy(np.asarray(x, np.float64)) for x in arrays]


def torch_math(query: Array, key: Array, value: Array, **options: Any) -> Array:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    attention = torch.nn.attention
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(
            *torch64(query, key, value), **options
        )
    return np.asarray(out)


@pytest.mark.parametrize("mask_shape", [(5, 9), (1, 9), (2, 1, 5, 9), (2, 4, 5, 1)])
def test_reference_bool_mask_matches_torch(
    mask_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = qkv(rng, head_dim_v=11)
    mask = rng.random(mask_shape) < 0.5
    theirs = torch_math(*inputs, attn_mask=torch.from_numpy(mask))
    np.testing.assert_allclose(
        reference.attention(*inputs, mask=mask), theirs, rtol=1e-11, atol=1e-13
    )


def test_reference_bias_scale_and_groups_match_torch(rng: np.random.Generator) -> None:
    inputs = qkv(rng, heads=6, kv_heads=2)
    bias = normal(rng, 2, 6, 5, 9)
    bias[0, 0, 0] = -np.inf
    theirs = torch_math(*inputs, attn_mask=torch64(bias)[0], scale=0.3, enable_gqa=True)
    np.testing.assert_allclose(
        reference.attention(*inputs, bias=bias, scale=0.3),
        theirs,
        rtol=1e-11,
        atol=1e-13,
    )


@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 9), (9, 5), (6, 6), (1, 7)])
def test_reference_top_left_matches_torch_is_causal(
    q_len: int, kv_len: int, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=kv_len)
    theirs = torch_math(*inputs, is_causal=True)
    ours = reference.attention(*inputs, causal="top_left")
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 9), (9, 5), (6, 6), (1, 7)])
def test_reference_bottom_right_matches_torch_lower_right(
    q_len: int, kv_len: int, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = qkv(rng, q_len=q_len, kv_len=kv_len)
    # The tril of a lower-right bias as a plain mask, for the math backend.
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    theirs = torch_math(*inputs, attn_mask=mask)
    ours = reference.attention(*inputs, causal=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


def test_reference_dropout_mask_matches_torch_math(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = qkv(rng)
    keep = rng.random((2, 4, 5, 9)) < 0.6
    out, _ = torch.ops.aten._scaled_dot_product_attention_math(
        *torch64(*inputs), dropout_p=0.4, dropout_mask=torch.from_numpy(keep)
    )
    ours = reference.attention(*inputs, dropout_p=0.4, dropout_mask=keep)
    np.testing.assert_allclose(ours, np.asarray(out), rtol=1e-11, atol=1e-13)


def test_reference_lse_matches_torch_flash(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = qkv(rng)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *torch64(*inputs), scale=0.7
    )
    ours = reference.attention(*inputs, scale=0.7, return_lse=True)
    np.testing.assert_allclose(ours[0], np.asarray(out), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ours[1], np.asarray(lse), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_reference_live_nan_matches_torch(
    value: float, rng: np.random.Generator
) -> None:
    query, key, values = qkv(rng)
    query[0, 0, 1, 3] = np.nan
    values[1, 2, 3, 4] = value
    ours = reference.attention(query, key, values)
    np.testing.assert_allclose(ours, torch_math(query, key, values), rtol=1e-11)


def test_reference_tanh_softcap_and_sinks_match_torch_formula(
    rng: np.random.Generator,
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = qkv(rng)
    query, key, value = torch64(*inputs)
    sinks = normal(rng, 4)
    score = 1.5 * torch.tanh(query @ key.mT / 4 / 1.5)
    joined = torch.cat(
        [score, torch64(sinks)[0][:, None, None].expand(2, 4, 5, 1)], dim=-1
    )
    theirs = torch.softmax(joined, -1)[..., :-1] @ value
    out, lse = reference.attention(*inputs, softcap=1.5, sinks=sinks, return_lse=True)
    np.testing.assert_allclose(out, np.asarray(theirs), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(lse, np.asarray(torch.logsumexp(joined, -1)), rtol=1e-11)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("with_mask", [False, True], ids=["bias", "bias+mask"])
def test_reference_bshd_matches_keras(
    is_causal: bool, with_mask: bool, rng: np.random.Generator
) -> None:
    os.environ["KERAS_BACKEND"] = "numpy"
    keras = pytest.importorskip(
        "keras",
        reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)",
    )
    inputs = qkv(rng, layout="bshd")
    bias = normal(rng, 4, 5, 9)
    mask = rng.random((2, 1, 5, 9)) < 0.5 if with_mask else None
    theirs = keras.ops.dot_product_attention(
        *inputs, bias=bias, mask=mask, is_causal=is_causal
    )
    ours = reference.attention(
        *inputs,
        layout="bshd",
        bias=bias,
        mask=mask,
        causal="top_left" if is_causal else False,
        fully_masked="mean",
    )
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5, atol=1e-5)


def test_reference_window_and_lengths_match_jax(rng: np.random.Generator) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    inputs = qkv(rng, q_len=9, kv_len=9, heads=4, kv_heads=2, layout="bshd")
    q_lengths, kv_lengths = np.array([9, 4]), np.array([6, 9])
    theirs = jax.nn.dot_product_attention(
        *inputs,
        query_seq_lengths=q_lengths,
        key_value_seq_lengths=kv_lengths,
        local_window_size=(3, 2),
    )
    # JAX's window (3, 2) lies on the main diagonal whatever the lengths are: offset 9
    # with 12 to its left is the same left edge, and the mask is the right one.
    ours = reference.attention(
        *inputs,
        layout="bshd",
        causal=9,
        window=(12, -1),
        mask=np.arange(9) <= np.arange(9)[:, None] + 2,
        q_lengths=q_lengths,
        kv_lengths=kv_lengths,
        fully_masked="mean",
    )
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5, atol=1e-5)


def test_reference_as_tuple_orders_lse_before_weights(
    rng: np.random.Generator,
) -> None:
    inputs = SMALL.qkv(rng)
    both = as_tuple(reference.attention(*inputs, return_lse=True, return_weights=True))
    assert [x.shape for x in both] == [(2, 4, 4, 2), (2, 4, 4), (2, 4, 4, 6)]
