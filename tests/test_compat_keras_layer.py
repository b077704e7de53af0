# SPDX-License-Identifier: MIT
"""GroupQueryAttention against Keras's own layer on its NumPy backend."""

from __future__ import annotations

import inspect
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpuattn import compat
from cpuattn.compat.keras import GroupedQueryAttention, GroupQueryAttention
from support import Array, assert_same, assert_within, normal, run_python

os.environ["KERAS_BACKEND"] = "numpy"
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

if keras.config.backend() != "numpy":
    pytest.skip("keras was imported with another backend", allow_module_level=True)

from keras_support import HEADS, POLICIES, THEIRS, agree, exact, inputs, pair  # noqa: E402

# Keras warns where there is one key, and NumPy of Keras's variables.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


SIZES = st.integers(1, 9)
WINDOWS = st.one_of(st.none(), st.sampled_from([True, 1, 2, 4, 100, 10**30]))


@st.composite
def calls(draw: Any) -> tuple[dict[str, Any], list[Array], dict[str, Any]]:
    """Draw the constructor's arguments, the arrays and the options of one call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kv_heads = draw(st.integers(1, 3))
    config = {
        "head_dim": draw(SIZES),
        "num_query_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "use_bias": draw(st.booleans()),
        "use_gate": draw(st.booleans()),
        "sliding_window": draw(WINDOWS),
        "dtype": draw(st.sampled_from([*POLICIES, "float64"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    batch, q_len, kv_len = draw(st.integers(1, 3)), draw(SIZES), draw(SIZES)
    arrays = [normal(rng, batch, q_len, draw(SIZES))]
    for _ in range(draw(st.integers(1, 2))):
        arrays.append(normal(rng, batch, kv_len, draw(SIZES)))
    if draw(st.booleans()):
        arrays = [np.asfortranarray(x) for x in arrays]
    dtype = draw(st.sampled_from(["bool", "int32", "float32"]))

    def mask(*shape: int) -> Array:
        density = draw(st.sampled_from([0.3, 0.8, 1.0]))
        return np.asarray(rng.random(shape) < density).astype(dtype)

    options: dict[str, Any] = {
        name: draw(st.booleans())
        for name in ("use_causal_mask", "return_attention_scores", "training")
    }
    lengths = {"query": q_len, "value": kv_len, "key": kv_len}
    for name, length in lengths.items():
        if draw(st.integers(0, 2)) == 0:
            options[f"{name}_mask"] = mask(batch, length)
    # Keras takes the batch of the other masks for the heads of one with 4 axes.
    four = not any(f"{name}_mask" in options for name in lengths)
    heads = (draw(st.sampled_from([1, config["num_query_heads"]])),) if four else ()
    shapes = [(q_len, kv_len), (batch, *heads, q_len, kv_len), (1, 1, kv_len)]
    shapes += [(batch, q_len, 1), (1, q_len, kv_len)]
    if draw(st.booleans()):
        options["attention_mask"] = mask(*draw(st.sampled_from(shapes)))
    return config, arrays, options


@hypothesis.settings(
    deadline=None,
    derandomize=True,
    max_examples=400,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(calls())
def test_keras_layer_agrees_in_random_combinations(call: Any) -> None:
    config, arrays, options = call
    rng = np.random.default_rng(config["seed"])
    query, value, *key = (x.shape[-1] for x in arrays)
    agree(*pair(rng, query, value, *(key or [value]), **config), arrays, **options)


@pytest.mark.parametrize("method", ["__init__", "build", "compute_output_shape"])
def test_keras_layer_has_the_signature_of_keras(method: str) -> None:
    ours = inspect.signature(getattr(GroupQueryAttention, method)).parameters
    theirs = inspect.signature(getattr(THEIRS, method)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_keras_layer_call_has_the_signature_of_keras() -> None:
    ours = inspect.signature(GroupQueryAttention.__call__).parameters
    theirs = inspect.signature(THEIRS.call).parameters
    assert {n: (p.kind, p.default) for n, p in ours.items()} == {
        n: (p.kind, p.default) for n, p in theirs.items()
    }
    assert list(ours) == list(theirs)


def test_keras_layer_has_two_names() -> None:
    assert GroupQueryAttention is GroupedQueryAttention
    assert THEIRS.__name__ == GroupQueryAttention.__name__


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gate": {"use_gate": True},
    "no_bias": {"use_bias": False},
    "gate_dropout": {"use_gate": True, "dropout": 0.5, "seed": 3},
    "not_trainable": {"trainable": False},
    "mixed": {"dtype": "mixed_float16"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keras_layer_has_the_variables_of_keras(
    config: dict[str, Any], rng: np.random.Generator
) -> None:
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, name="attention", **config)
    lists = ["variables", "weights", "trainable_weights", "non_trainable_weights"]
    for name in (*lists, "trainable_variables", "non_trainable_variables"):
        mine, other = (
            [
                # Keras numbers the seed generators of a process.
                (w.name, w.path.split("/")[::2], w.shape, w.dtype, w.trainable)
                for w in getattr(x, name)
            ]
            for x in (ours, theirs)
        )
        assert mine == other
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]
    assert ours.count_params() == theirs.count_params()
    assert repr(ours) == repr(theirs)
    for dtype in ("dtype", "compute_dtype", "variable_dtype"):
        assert getattr(ours, dtype) == getattr(theirs, dtype)


def test_keras_layer_trainable_reaches_the_weights(rng: np.random.Generator) -> None:
    both = pair(rng, 6, 5, 4, **HEADS, dropout=0.5)
    for value in (False, True):
        for built in both:
            built.trainable = value
        mine, other = ([w.trainable for w in built.variables] for built in both)
        assert mine == other


def test_keras_layer_carries_weights_both_ways(rng: np.random.Generator) -> None:
    arrays = inputs(rng)
    theirs = THEIRS(**HEADS, use_gate=True)
    out = theirs(*arrays)
    ours = GroupQueryAttention.from_config(theirs.get_config())
    ours.build(*(x.shape for x in arrays))
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(*arrays), out, rtol=1e-5, atol=1e-6)
    back = THEIRS.from_config(ours.get_config())
    back.build(*(x.shape for x in arrays))
    back.set_weights(ours.get_weights())
    np.testing.assert_array_equal(back(*arrays), out)


INITIALIZERS = ["glorot_uniform", "he_normal", "random_normal", "ones", "orthogonal"]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_keras_layer_draws_the_weights_of_keras(initializer: str) -> None:
    # Keras draws the seeds that are not given from Python's generator.
    built = []
    for kind in (GroupQueryAttention, THEIRS):
        random.seed(5)
        built.append(
            kind(
                **HEADS,
                kernel_initializer=initializer,
                bias_initializer="random_uniform",
                use_gate=True,
                dropout=0.5,
            )
        )
        built[-1].build((None, 5, 6), (None, 7, 5), (None, 7, 4))
    for mine, other in zip(*(x.variables for x in built), strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [None, 7])
def test_keras_layer_clones_initializers(seed: int | None) -> None:
    config = {"class_name": "GlorotUniform", "config": {"seed": seed}}
    built = GroupQueryAttention(**HEADS, kernel_initializer=config)
    built.build((None, 5, 6), (None, 7, 5))
    key, value = (built.get_weights()[n] for n in (2, 4))
    assert np.array_equal(key, value) == (seed is not None)


def test_keras_layer_fans_are_those_of_the_projections() -> None:
    built = GroupQueryAttention(8, 6, 2)
    built.build((None, 5, 40), (None, 7, 30))
    sums = [40 + 48, 30 + 16, 30 + 16, 48 + 40]
    for kernel, fans in zip(built.get_weights()[::2], sums, strict=True):
        limit = (6 / fans) ** 0.5
        assert 0.97 * limit < np.abs(kernel).max() <= limit


def test_keras_layer_takes_a_callable_initializer() -> None:
    def twos(shape: tuple[int, ...], dtype: Any = None) -> Array:
        return np.full(shape, 2, np.float32)

    built = GroupQueryAttention(**HEADS, kernel_initializer=twos)
    built.build((None, 5, 6), (None, 7, 5))
    assert all((kernel == 2).all() for kernel in built.get_weights()[::2])


@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99, 1.0])
def test_keras_layer_dropout_draws_the_bits_of_keras(
    rate: float, scored: bool, rng: np.random.Generator
) -> None:
    arrays = inputs(rng, q_len=40, kv_len=300)
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, dropout=rate, seed=11)
    options = {"training": True, "return_attention_scores": scored}
    for _ in range(3):
        mine, other = ours(*arrays, **options), theirs(*arrays, **options)
        for x, y in zip(mine, other, strict=True) if scored else [(mine, other)]:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        states = [x.non_trainable_variables[0].numpy() for x in (ours, theirs)]
        np.testing.assert_array_equal(*states)
    assert states[0].tolist() == [11, 3 if rate < 1 else 0]


@pytest.mark.parametrize("training", [None, False])
def test_keras_layer_drops_in_training_alone(
    training: bool | None, rng: np.random.Generator
) -> None:
    arrays = inputs(rng)
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, dropout=0.5, seed=11)
    agree(ours, theirs, arrays, training=training)
    assert ours.variables[-3].numpy().tolist() == [11, 0]


PENALTIES = [
    {"kernel_regularizer": "l2"},
    {"bias_regularizer": "l1"},
    {"activity_regularizer": "l2"},
    {"kernel_regularizer": "L1L2", "bias_regularizer": "l2", "use_bias": False},
    {"kernel_regularizer": "l2", "activity_regularizer": "l1", "use_gate": True},
    {"kernel_regularizer": "l2", "activity_regularizer": "l1", "trainable": False},
    {"kernel_regularizer": "l2", "dtype": "mixed_bfloat16", "use_gate": True},
]


@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
@pytest.mark.parametrize("config", PENALTIES, ids=str)
def test_keras_layer_has_the_losses_of_keras(
    config: dict[str, Any], scored: bool, rng: np.random.Generator
) -> None:
    arrays = inputs(rng, batch=4)
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, **config)
    for _ in range(2):  # the second call replaces the losses of the first
        for built in (ours, theirs):
            built(*arrays, return_attention_scores=scored)
        expected = [float(x) for x in theirs.losses]
        np.testing.assert_allclose(ours.losses, expected, rtol=1e-5, atol=1e-6)
    assert all(type(x) is float for x in ours.losses)


def test_keras_layer_sums_16_bit_penalties_in_float32(rng: np.random.Generator) -> None:
    # Keras sums them in 16 bits.
    arrays = inputs(rng, batch=4)
    ours, _ = pair(rng, 6, 5, 4, **HEADS, activity_regularizer="l2", dtype="bfloat16")
    out = ours(*arrays).astype(np.float64)
    expected = 0.01 * np.square(out).sum() / 4
    np.testing.assert_allclose(ours.losses[0], expected, rtol=1e-6)
    assert ours.losses[0] == ours.losses[-1]
    assert len(ours.losses) == 5


def test_keras_layer_applies_constraints_when_asked(rng: np.random.Generator) -> None:
    config = {"kernel_constraint": "max_norm", "bias_constraint": "non_neg"}
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, **config)
    arrays = inputs(rng)
    agree(ours, theirs, arrays)
    ours.apply_constraints()
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        expected = other.constraint(other)
        assert not np.array_equal(expected, other)
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-7)
    theirs.set_weights(ours.get_weights())
    agree(ours, theirs, arrays)


KEPT: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "initializers": {
        "kernel_initializer": {"class_name": "HeNormal", "config": {"seed": 3}},
        "bias_initializer": "ones",
    },
    "penalties": PENALTIES[3] | {"activity_regularizer": "l1"},
    "constraints": {"kernel_constraint": "unit_norm", "bias_constraint": "non_neg"},
    "window": {"sliding_window": 3, "flash_attention": True},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("config", KEPT.values(), ids=KEPT)
def test_keras_layer_has_the_config_of_keras(config: dict[str, Any]) -> None:
    ours = GroupQueryAttention(**HEADS, name="attention", **config)
    theirs = THEIRS(**HEADS, name="attention", **config)
    assert ours.get_config() == theirs.get_config()
    again = GroupQueryAttention.from_config(theirs.get_config())
    assert again.get_config() == theirs.get_config()
    assert THEIRS.from_config(ours.get_config()).get_config() == theirs.get_config()


def test_keras_layer_names_itself_as_keras_does() -> None:
    code = """if True:
        from cpuattn.compat.keras import GroupQueryAttention
        print(*(GroupQueryAttention(4, 2, 1).name for _ in range(3)))
    """
    done = run_python(code)
    names = ["grouped_query_attention" + x for x in ("", "_1", "_2")]
    assert done.stdout.split() == names


DTYPES = [
    "float32",
    np.float16,
    np.dtype("float64"),
    ml_dtypes.bfloat16,
    "mixed_float16",
]
DTYPES += [keras.DTypePolicy("mixed_bfloat16"), None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keras_layer_takes_the_dtypes_of_keras(
    dtype: Any, rng: np.random.Generator
) -> None:
    ours, theirs = (
        GroupQueryAttention(**HEADS, dtype=dtype),
        THEIRS(**HEADS, dtype=dtype),
    )
    assert ours.get_config()["dtype"] == theirs.get_config()["dtype"]
    assert ours.dtype_policy.name == theirs.dtype_policy.name
    arrays = inputs(rng)
    assert ours(*arrays).dtype.name == ours.compute_dtype
    assert {w.dtype for w in ours.weights} == {ours.variable_dtype}


@pytest.mark.parametrize("dtype", ["bool", "int32", "float16", "float64"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_keras_layer_casts_inputs(
    dtype: str, policy: str, rng: np.random.Generator
) -> None:
    arrays = [(3 * x).astype(dtype) for x in inputs(rng)]
    agree(*pair(rng, 6, 5, 4, **HEADS, dtype=policy), arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keras_layer_mixed_policy_rounds_the_weights(
    dtype: str, rng: np.random.Generator
) -> None:
    arrays = inputs(rng)
    mixed, _ = pair(rng, 6, 5, 4, **HEADS, use_gate=True, dtype=f"mixed_{dtype}")
    narrow, _ = pair(rng, 6, 5, 4, **HEADS, use_gate=True, dtype=dtype)
    narrow.set_weights(mixed.get_weights())
    assert_same(mixed(*arrays), narrow(*arrays))


@pytest.mark.parametrize("policy", ["float32", "float16", "mixed_bfloat16"])
def test_keras_layer_sees_every_change_of_a_weight(
    policy: str, rng: np.random.Generator
) -> None:
    # The matrices of the products are kept between calls.
    arrays = inputs(rng)
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, use_gate=True, dtype=policy)
    agree(ours, theirs, arrays)
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        value = normal(rng, *mine.shape)
        mine.assign(value)
        other.assign(value)
        value[...] = np.nan
        agree(ours, theirs, arrays)
        with pytest.raises(ValueError, match="read-only"):
            mine.value[...] = 0


def test_keras_layer_saves_and_loads(rng: np.random.Generator, tmp_path: Path) -> None:
    arrays = inputs(rng)
    ours, _ = pair(rng, 6, 5, 4, **HEADS, use_gate=True, dropout=0.5, seed=3)
    ours(*arrays, training=True)
    ours.save(tmp_path / "weights.npz")
    other = GroupQueryAttention(**HEADS, use_gate=True, dropout=0.5)
    other.build(*(x.shape for x in arrays))
    other.load(tmp_path / "weights.npz")
    for x, y in zip(ours.variables, other.variables, strict=True):
        np.testing.assert_array_equal(x, y)
    # Dropout goes on where it was.
    np.testing.assert_array_equal(
        *(x(*arrays, training=True) for x in (ours, other)), strict=True
    )


def test_keras_layer_load_checks_before_it_sets(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    ours, _ = pair(rng, 6, 5, 4, **HEADS)
    other, _ = pair(rng, 6, 5, 4, **HEADS | {"head_dim": 2})
    before = ours.get_weights()
    other.save(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="must hold the weights of the layer"):
        ours.load(tmp_path / "weights.npz")
    for x, y in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
def test_keras_layer_mask_means_its_truth(
    scored: bool, rng: np.random.Generator
) -> None:
    # Keras takes up to 0.5 for False if the scores are returned.
    arrays = inputs(rng)
    ours, _ = pair(rng, 6, 5, 4, **HEADS)
    mask = rng.random((2, 5, 7)) < 0.7
    several = [mask, mask.astype(np.int64), np.where(mask, -0.3, 0.0)]
    first, *others = (
        ours(*arrays, attention_mask=x, return_attention_scores=scored) for x in several
    )
    for other in others:
        for x, y in zip(first, other, strict=True):
            np.testing.assert_array_equal(x, y)


BATCHES = [(1, 3, 3), (3, 1, 1), (3, 1, 3), (3, 3, 1), (1, 1, 3), (0, 0, 0)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_keras_layer_broadcasts_a_batch_of_1(
    batches: tuple[int, ...], scored: bool, dropout: float, rng: np.random.Generator
) -> None:
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, dropout=dropout, seed=5)
    arrays = [x[:n] for x, n in zip(inputs(rng, batch=3), batches, strict=True)]
    options = {"return_attention_scores": scored, "training": True}
    mine, other = (x(*arrays, **options) for x in (ours, theirs))
    for x, y in zip(mine, other, strict=True) if scored else [(mine, other)]:
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_keras_layer_without_rows_is_empty(rng: np.random.Generator) -> None:
    ours, theirs = pair(rng, 6, 5, 4, **HEADS)
    agree(ours, theirs, inputs(rng, q_len=0))


@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
def test_keras_layer_without_keys_gives_the_bias(
    scored: bool, rng: np.random.Generator
) -> None:
    # Keras's NumPy backend raises here, its JAX backend gives the bias.
    ours, _ = pair(rng, 6, 5, 4, **HEADS, sliding_window=2)
    out = ours(*inputs(rng, kv_len=0), return_attention_scores=scored)
    if scored:
        out, scores = out
        assert scores.shape == (2, 4, 5, 0)
    np.testing.assert_array_equal(
        out, np.broadcast_to(ours.get_weights()[-1], out.shape)
    )


@pytest.mark.parametrize("how", ["fused", "dropout", "scores"])
def test_keras_layer_fully_masked_row_depends_on_the_path(
    how: str, rng: np.random.Generator
) -> None:
    arrays = inputs(rng)
    ours, theirs = pair(rng, 6, 5, 4, **HEADS, dropout=0.5 * (how == "dropout"))
    mask = np.arange(5) != 2
    out = agree(
        ours,
        theirs,
        arrays,
        query_mask=np.stack([mask, mask]),
        return_attention_scores=how == "scores",
    )
    *_, value_kernel, value_bias, kernel, bias = ours.get_weights()
    mean = np.einsum("bsm,mvh->bvh", arrays[1] / 7, value_kernel) + value_bias
    expected = np.einsum("buh,uhm->bm", mean.repeat(2, 1), kernel) + bias
    if how != "fused":
        expected = np.broadcast_to(bias, expected.shape)
    row = (out[0] if how == "scores" else out)[:, 2]
    np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


FOUR = ["query_mask", "value_mask", "key_mask"]


@pytest.mark.parametrize("name", FOUR)
def test_keras_layer_mask_of_heads_with_other_masks(
    name: str, rng: np.random.Generator
) -> None:
    # Keras takes the batch of the other mask for heads here.
    ours, _ = pair(rng, 6, 5, 4, **HEADS)
    query, value, key = inputs(rng)
    options = {"attention_mask": rng.random((2, 4, 5, 7)) < 0.7}
    options[name] = rng.random((2, 5 if name == "query_mask" else 7)) < 0.7
    out, _, scale = exact(ours, query, value, key, options)
    assert_within(ours(query, value, key, **options), out, 1e-6 * scale)


@pytest.mark.parametrize("shape", [(), (7,)], ids=str)
@pytest.mark.parametrize("also", ["use_causal_mask", "value_mask", "query_mask"])
def test_keras_layer_mask_of_few_axes_needs_another(
    shape: tuple[int, ...], also: str, rng: np.random.Generator
) -> None:
    ours, theirs = pair(rng, 6, 5, 4, **HEADS)
    arrays = inputs(rng)
    mask = np.asarray(rng.random(shape) < 0.9)
    for built in (ours, theirs):
        with pytest.raises(np.exceptions.AxisError):
            built(*arrays, attention_mask=mask)
    options: dict[str, Any] = {"use_causal_mask": True}
    if also != "use_causal_mask":
        length = 5 if also == "query_mask" else 7
        options = {also: np.asarray(rng.random((2, length)) < 0.7)}
    agree(ours, theirs, arrays, attention_mask=mask, **options)


def test_keras_layer_nan_of_a_masked_value_is_ignored(rng: np.random.Generator) -> None:
    # Keras ignores a masked key, but spreads its value: 0 * NaN.
    ours, theirs = pair(rng, 6, 5, 4, **HEADS)
    query, value, key = inputs(rng)
    value[:, 5:], key[:, 5:] = np.nan, np.nan
    mask = np.broadcast_to(np.arange(7) < 5, (2, 7))
    out = ours(query, value, key, value_mask=mask)
    expected = theirs(query, value[:, :5], key[:, :5])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_keras_layer_flash_attention_runs(rng: np.random.Generator) -> None:
    # Keras's NumPy backend has none.
    ours, _ = pair(rng, 6, 5, 4, **HEADS, flash_attention=True)
    _, theirs = pair(rng, 6, 5, 4, **HEADS)
    theirs.set_weights(ours.get_weights())
    agree(ours, theirs, inputs(rng))


SHAPES = [
    ((2, 5, 6), (2, 7, 6), None),
    ((None, 5, 6), (None, 7, 6), (None, 7, 3)),
    ((2, 5, 6), (2, 7, 5), None),
    ((2, 5, 6), (2, 7, 6), (2, 3, 6)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_keras_layer_computes_the_output_shape_of_keras(shapes: Any) -> None:
    results: list[Any] = []
    for kind in (GroupQueryAttention, THEIRS):
        try:
            results.append(kind(**HEADS).compute_output_shape(*shapes))
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_keras_layer_set_weights_checks_before_it_sets(
    rng: np.random.Generator,
) -> None:
    ours, theirs = pair(rng, 6, 5, 4, **HEADS)
    theirs.name = ours.name
    before = ours.get_weights()
    for bad in ([], [*(2 * x for x in before[:-1]), before[-1][:2]]):
        with pytest.raises(ValueError) as mine:
            ours.set_weights(bad)
        with pytest.raises(ValueError) as other:
            theirs.set_weights(bad)
        assert str(mine.value) == str(other.value)
        for x, y in zip(ours.get_weights(), before, strict=True):
            np.testing.assert_array_equal(x, y)


def test_keras_layer_assign_checks_the_shape(rng: np.random.Generator) -> None:
    for built in pair(rng, 6, 5, 4, **HEADS):
        with pytest.raises(ValueError, match="must match"):
            built.weights[0].assign(np.zeros(3))


def test_keras_layer_that_is_not_built_says_so() -> None:
    for kind in (THEIRS, GroupQueryAttention):
        unbuilt = kind(**HEADS)
        assert not unbuilt.built
        assert unbuilt.weights == unbuilt.losses == []
        with pytest.raises(ValueError, match="the layer isn't built"):
            unbuilt.count_params()


def test_keras_layer_builds_once(rng: np.random.Generator) -> None:
    for built in pair(rng, 6, 5, 4, **HEADS):
        with pytest.raises(ValueError, match="a layer that is already built"):
            built.build((2, 5, 6), (2, 7, 5), (2, 7, 4))


def test_keras_layer_is_imported_when_asked_for() -> None:
    code = """if True:
        import sys, cpuattn
        assert "cpuattn.compat.keras.layer" not in sys.modules
        from cpuattn.compat.keras import GroupQueryAttention
        import numpy as np
        x = np.ones((1, 3, 4), np.float32)
        GroupQueryAttention(2, 2, 1, dropout=0.5)(x, x, training=True)
        print(*sys.modules)
    """
    modules = set(run_python(code).stdout.split())
    assert "cpuattn.compat.keras.layer" in modules
    assert not modules & {"keras", "h5py", "ml_dtypes", "torch", "jax", "scipy"}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = compat.keras.Nothing
