# SPDX-License-Identifier: MIT
"""Initializers, regularizers and constraints against Keras's own."""

from __future__ import annotations

import importlib
import inspect
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cpuattn.compat.keras import constraints, initializers, regularizers
from support import SEED, Array, assert_same, expect_success

os.environ["KERAS_BACKEND"] = "numpy"
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)
st = hypothesis.strategies

DTYPES = ["float32", "float64", "float16", "bfloat16"]
KINDS = {
    "initializers": (initializers, keras.initializers),
    "regularizers": (regularizers, keras.regularizers),
    "constraints": (constraints, keras.constraints),
}
# What Keras exports, without its functions and its other spellings.
CLASSES = {
    kind: sorted(
        name
        for name, found in vars(theirs).items()
        if inspect.isclass(found) and found.__name__ == name
    )
    for kind, (_, theirs) in KINDS.items()
}
ALL = [(kind, name) for kind, names in CLASSES.items() for name in names]


def properties(examples: int) -> Callable[[Any], Any]:
    """Return the settings of a property test with this many examples."""

    def decorated(test: Any) -> Any:
        settings = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        return hypothesis.seed(SEED)(settings(test))

    return decorated


def outcome(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or the type of what it raises."""
    try:
        with np.errstate(all="ignore"):
            return function()
    except Exception as error:
        return type(error)


def same_outcome(ours: Callable[[], Any], theirs: Callable[[], Any]) -> Any:
    """Assert arrays equal to the bit, or errors of the same type."""
    mine, expected = outcome(ours), outcome(theirs)
    if inspect.isclass(expected):
        assert inspect.isclass(mine)
        assert issubclass(mine, expected)
    else:
        assert_same(mine, np.asarray(expected))
    return mine


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_parts_class_has_the_signature_of_keras(kind: str, name: str) -> None:
    ours, theirs = (getattr(module, name) for module in KINDS[kind])
    mine = inspect.signature(ours).parameters.values()
    expected = inspect.signature(theirs).parameters.values()
    assert [(p.name, p.kind, p.default) for p in mine] == [
        (p.name, p.kind, p.default) for p in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_module_has_every_name_of_keras(kind: str) -> None:
    ours, theirs = KINDS[kind]
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert len(public) > 5
    assert public <= {*vars(ours)}
    spellings = {n for n in public if inspect.isclass(getattr(theirs, n))}
    different = {
        n for n in spellings if getattr(ours, n).__name__ != getattr(theirs, n).__name__
    }
    assert not different


def identifiers(kind: str) -> list[str]:
    source = importlib.import_module(f"keras.src.{kind}")
    return sorted(source.ALL_OBJECTS_DICT)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in identifiers(kind)]
)
def test_parts_get_knows_every_name_of_keras(kind: str, name: str) -> None:
    ours, theirs = KINDS[kind]
    # Keras has a name for Constant, and no value for it.
    identifier = (
        {"class_name": name, "config": {"value": 0.0}}
        if name.lower() == "constant"
        else name
    )
    mine, expected = ours.get(identifier), theirs.get(identifier)
    assert type(mine).__name__ == type(expected).__name__
    if name.lower() != "regularizer":  # which has no config
        assert ours.serialize(mine) == theirs.serialize(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "typo",
        "l_1",
        3,
        (1, 2),
        {},
        {"config": {}},
        {"class_name": "Typo", "config": {}},
        {"class_name": "Zeros", "config": {"typo": 1}},
        {"class_name": "L1", "config": {"typo": 1}},
        {"class_name": "MaxNorm", "config": {"typo": 1}, "module": "keras.constraints"},
        {"class_name": "Mine", "config": {}, "module": None},
        {"class_name": "NonNeg", "config": {}, "module": None},
    ],
    ids=str,
)
def test_parts_get_refuses_what_keras_refuses(kind: str, identifier: Any) -> None:
    ours, theirs = KINDS[kind]
    expected = outcome(lambda: theirs.get(identifier))
    assert inspect.isclass(expected)
    assert outcome(lambda: ours.get(identifier)) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_parts_get_says_what_it_cannot_interpret(kind: str) -> None:
    for module in KINDS[kind]:
        with pytest.raises(
            ValueError, match=f"^Could not interpret {kind[:-1]} identifier: typo$"
        ):
            module.get("typo")


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_parts_get_takes_classes_instances_and_those_of_keras(
    kind: str, name: str
) -> None:
    ours, theirs = (getattr(module, name) for module in KINDS[kind])
    get, serialize = KINDS[kind][0].get, KINDS[kind][0].serialize
    mine = ours()
    assert get(mine) is mine
    assert type(get(ours)) is ours
    if name != "Regularizer":
        assert type(get(theirs())) is ours
        assert serialize(get(theirs())) == KINDS[kind][1].serialize(theirs())
    assert get(None) is None


@pytest.mark.parametrize("kind", KINDS)
def test_parts_deserialize_takes_custom_objects(kind: str) -> None:
    ours = KINDS[kind][0]
    base = getattr(ours, kind[:-1].capitalize())

    class Mine(base):  # type: ignore[misc, valid-type]
        def get_config(self) -> dict[str, Any]:
            return {}

    config = ours.serialize(Mine())
    assert config["registered_name"] == "Mine"
    assert type(ours.deserialize(config, {"Mine": Mine})) is Mine
    with pytest.raises(ValueError, match="Could not interpret"):
        ours.deserialize(config)


def as_dtype(name: str) -> np.dtype[Any]:
    return initializers.numpy_dtype(name)


SEEDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, True, 2**32 - 1]))
SCALES = st.floats(0.01, 10)
AXES = st.one_of(st.none(), st.lists(st.integers(0, 2), max_size=2))


def arguments(name: str) -> Any:
    """Return a strategy for the keyword arguments of an initializer."""
    fans = {"input_axes": AXES, "output_axes": AXES}
    own: dict[str, Any] = {
        "Constant": {"value": st.one_of(st.floats(-9, 9), st.integers(-9, 9))},
        "Identity": {},
        "Orthogonal": {"gain": SCALES},
        "RandomNormal": {"mean": st.floats(-2, 2), "stddev": st.floats(0, 3)},
        "TruncatedNormal": {"mean": st.floats(-2, 2), "stddev": st.floats(0, 3)},
        "RandomUniform": {"minval": st.floats(-3, 0), "maxval": st.floats(0, 3)},
        "STFT": {
            "side": st.sampled_from(["real", "imag"]),
            "window": st.sampled_from(
                ["hann", "hamming", "blackman", "boxcar", "nuttall", None]
            ),
            "scaling": st.sampled_from(["density", "spectrum", None]),
            "periodic": st.booleans(),
        },
        "VarianceScaling": fans
        | {
            "scale": SCALES,
            "mode": st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
            "distribution": st.sampled_from(
                ["uniform", "normal", "truncated_normal", "Untruncated_normal"]
            ),
        },
    }.get(name, fans if name[:2] in ("Gl", "He", "Le") else {})
    seeded = name not in (
        "Constant",
        "Identity",
        "Initializer",
        "Ones",
        "STFT",
        "Zeros",
    )
    required = {"seed": SEEDS} if seeded else {}
    if name == "Constant":
        required, own = own, {}
    return st.fixed_dictionaries(required, optional=own)


@st.composite
def initializer_cases(draw: Any) -> tuple[str, dict[str, Any], tuple[int, ...], str]:
    name = draw(st.sampled_from(CLASSES["initializers"]))
    shape = draw(st.lists(st.integers(1, 9), max_size=4))
    if draw(st.integers(0, 3)):  # mostly ranks that the initializer takes
        shape = [*shape, 3, 5, 7][: 2 if name == "Identity" else 3]
    dtype = draw(st.sampled_from(DTYPES))
    return name, draw(arguments(name)), tuple(shape), dtype


@properties(1200)
@hypothesis.given(case=initializer_cases())
def test_parts_initializer_gives_the_numbers_of_keras(
    case: tuple[str, dict[str, Any], tuple[int, ...], str],
) -> None:
    name, options, shape, dtype = case
    ours = getattr(initializers, name)(**options)
    theirs = getattr(keras.initializers, name)(**options)
    assert initializers.serialize(ours) == keras.initializers.serialize(theirs)
    if name == "Orthogonal" and len(shape) > 1 and dtype != "float32":
        # Keras fails with 16 bits and makes float32 of float64. Ours is rounded from
        # float32, and has all digits of float64.
        expected = np.asarray(theirs(shape, "float32")).astype(as_dtype(dtype))
        mine = ours(shape, dtype)
        assert mine.dtype == expected.dtype
        limit = 1e-2 * ours.gain if dtype == "float64" else 0.0
        np.testing.assert_allclose(mine, expected, rtol=0, atol=limit)
        if dtype == "float64":
            matrix = mine.reshape(-1, shape[-1]) / ours.gain
            gram = matrix.T @ matrix if len(matrix) >= shape[-1] else matrix @ matrix.T
            np.testing.assert_allclose(gram, np.eye(len(gram)), rtol=0, atol=1e-12)
    else:
        same_outcome(lambda: ours(shape, dtype), lambda: theirs(shape, dtype))
    for again in (
        ours.clone(),
        initializers.get(initializers.serialize(ours)),
        initializers.get(keras.initializers.serialize(theirs)),
        initializers.get(theirs),
    ):
        same_outcome(
            lambda again=again: again(shape, dtype), lambda: ours(shape, dtype)
        )


EINSUMS = {
    "query": ("bqm,muh->bquh", (None, 4, 3), (2, 5, 6), [0], [1, 2]),
    "attention_output": ("bquh,uhm->bqm", (None, 7), (2, 5, 4, 3), [0, 1], [2]),
}


@pytest.mark.parametrize("sub_layer", EINSUMS)
@pytest.mark.parametrize(
    "name", [n for n in CLASSES["initializers"] if n[:2] in ("Gl", "He", "Le", "Va")]
)
def test_parts_initializer_takes_the_axes_of_einsum_dense(
    name: str, sub_layer: str
) -> None:
    equation, output_shape, input_shape, inputs, outputs = EINSUMS[sub_layer]
    theirs = getattr(keras.initializers, name)(seed=7)
    layer = keras.layers.EinsumDense(equation, output_shape, kernel_initializer=theirs)
    layer.build(input_shape)
    kernel = np.asarray(layer.kernel)
    ours = initializers.get(theirs)
    axes = {"input_axes": inputs, "output_axes": outputs}
    assert_same(ours(kernel.shape, **axes), kernel)
    if sub_layer == "query":  # not the fans of a convolution
        assert not np.array_equal(ours(kernel.shape), kernel)
    own = type(ours).from_config(ours.get_config() | axes)
    assert_same(own(kernel.shape, input_axes=[1], output_axes=[1]), kernel)


@pytest.mark.parametrize("name", CLASSES["initializers"])
def test_parts_initializer_without_seed_draws_as_keras_after_random_seed(
    name: str,
) -> None:
    values = []
    for module in (initializers, keras.initializers):
        random.seed(20240229)
        made = getattr(module, name)()
        values.append(lambda made=made: made((4, 4)))
    first = same_outcome(*values)
    second = outcome(values[0])
    assert np.array_equal(first, second)


def test_parts_unseeded_initializer_and_its_clone_differ() -> None:
    ours = initializers.GlorotUniform()
    assert ours.seed != ours.clone().seed
    assert ours.get_config()["seed"] is None


def test_parts_seed_generator_gives_the_sequence_of_keras() -> None:
    ours, theirs = (
        module.RandomNormal(seed=generator(5, name="mine"))
        for module, generator in (
            (initializers, initializers.SeedGenerator),
            (keras.initializers, keras.random.SeedGenerator),
        )
    )
    assert initializers.serialize(ours) == keras.initializers.serialize(theirs)
    draws = [ours((3,)) for _ in range(3)]
    for mine in draws:
        assert_same(mine, np.asarray(theirs((3,))))
    assert not np.array_equal(draws[0], draws[1])
    # A clone starts again.
    assert_same(ours.clone()((3,)), draws[0])
    assert_same(initializers.get(theirs)((3,)), draws[0])


@pytest.mark.parametrize("seed", ["1", 1.5, np.int64(1), [1]], ids=repr)
def test_parts_seed_of_another_type_is_refused(seed: Any) -> None:
    for module in (initializers, keras.initializers):
        with pytest.raises(ValueError, match="`seed` argument should be an instance"):
            module.GlorotUniform(seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_parts_seed_out_of_range_is_refused_when_it_is_used(seed: int) -> None:
    for module in (initializers, keras.initializers):
        initializer = module.GlorotUniform(seed=seed)
        with pytest.raises(OverflowError):
            initializer((2, 2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("VarianceScaling", {"scale": 0.0}),
        ("VarianceScaling", {"scale": -1.0}),
        ("VarianceScaling", {"mode": "fan"}),
        ("VarianceScaling", {"distribution": "gamma"}),
        ("STFT", {"side": "left"}),
        ("STFT", {"window": "curtain"}),
        ("STFT", {"scaling": "power"}),
        ("Zeros", {"value": 0}),
    ],
    ids=str,
)
def test_parts_initializer_refuses_the_arguments_keras_refuses(
    name: str, options: dict[str, Any]
) -> None:
    ours, theirs = (
        outcome(lambda module=module: getattr(module, name)(**options))
        for module in (initializers, keras.initializers)
    )
    assert ours is theirs
    assert issubclass(ours, Exception)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("VarianceScaling", {"scale": np.nan}),
        ("TruncatedNormal", {"mean": np.nan}),
        ("TruncatedNormal", {"stddev": np.nan}),
    ],
    ids=str,
)
def test_parts_initializer_refuses_nan_that_keras_never_returns_from(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"^(Argument `scale` must|stddev: must)"):
        getattr(initializers, name)(**options)((2, 2))


@pytest.mark.parametrize("name", CLASSES["initializers"])
def test_parts_initializer_draws_from_a_generator_instead_of_its_seed(
    name: str,
) -> None:
    if name in ("Initializer", "STFT"):
        return
    ours = getattr(initializers, name)()
    one, two = (ours((4, 4), generator=np.random.default_rng(n)) for n in (1, 2))
    same = ours((4, 4), generator=np.random.default_rng(1))
    assert_same(one, same)
    random_one = name not in ("Constant", "Identity", "Ones", "Zeros")
    assert np.array_equal(one, two) is not random_one


def named(shape: tuple[int, ...], dtype: Any = None) -> Array:
    return np.full(shape, 2.0)


class Scaled(initializers.Initializer):
    """As a user of Keras writes it: without the arguments that ours have besides."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, shape: Any, dtype: Any = None) -> Array:  # type: ignore[override]
        return np.full(shape, self.factor)

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor}


@pytest.mark.parametrize("function", [named, Scaled(2.0)], ids=["function", "object"])
def test_parts_callable_becomes_an_initializer(function: Any) -> None:
    ours = initializers.get(function)
    for initializer in (ours, ours.clone(), initializers.get(ours)):
        values = initializer((2, 3), "float16", input_axes=[0], output_axes=[1])
        assert_same(values, np.full((2, 3), 2.0, np.float16))


def test_parts_serialized_callables_are_those_of_keras() -> None:
    ours = initializers.serialize(initializers.get(named))
    assert ours == keras.initializers.serialize(named)
    own = initializers.serialize(initializers.get(Scaled(2.0)))
    assert own["class_name"] == own["registered_name"] == "Scaled"
    assert own["config"] == {"factor": 2.0}
    with pytest.raises(TypeError, match="lambda"):
        initializers.serialize(initializers.get(lambda shape, dtype: None))


def test_parts_array_is_an_initializer_of_its_shape(rng: np.random.Generator) -> None:
    values = rng.standard_normal((2, 3))
    ours, theirs = (m.get(values) for m in (initializers, keras.initializers))
    same_outcome(lambda: ours((2, 3), "float16"), lambda: theirs((2, 3), "float16"))
    for function in (ours, theirs):
        with pytest.raises(ValueError, match=r"Expected `shape` to be \(2, 3\)"):
            function((3, 2))


@pytest.mark.parametrize(
    "value", [3, 2.5, np.float32(3), np.arange(3.0), np.ones((2, 3))], ids=repr
)
def test_parts_constant_is_saved_as_keras_saves_it(value: Any) -> None:
    ours, theirs = (m.Constant(value) for m in (initializers, keras.initializers))
    config = keras.initializers.serialize(theirs)
    assert initializers.serialize(ours) == config
    assert_same(initializers.get(config)((2, 3)), np.asarray(theirs((2, 3))))


def test_parts_constant_by_name_alone_is_0() -> None:
    # Keras raises KeyError.
    assert initializers.get("constant")((2,)).tolist() == [0.0, 0.0]


def test_parts_identity_keeps_its_gain() -> None:
    # Keras forgets it: its config is empty.
    ours = initializers.Identity(gain=2.0)
    assert_same(ours.clone()((3, 3)), 2 * np.eye(3, dtype=np.float32))
    theirs = keras.initializers.get(initializers.serialize(ours))
    assert_same(np.asarray(theirs((3, 3))), ours((3, 3)))


@pytest.mark.parametrize("window", [[0.5, 1.0, 0.25], np.ones(3)], ids=repr)
def test_parts_stft_takes_a_window_of_values(window: Any) -> None:
    ours, theirs = (m.STFT(window=window) for m in (initializers, keras.initializers))
    same_outcome(lambda: ours((3, 1, 5)), lambda: theirs((3, 1, 5)))
    same_outcome(lambda: ours((4, 1, 5)), lambda: theirs((4, 1, 5)))
    assert initializers.serialize(ours) == keras.initializers.serialize(theirs)
    assert_same(ours.clone()((3, 1, 5)), ours((3, 1, 5)))


FACTORS = st.one_of(st.floats(0, 3, width=32), st.sampled_from([0, 1, 0.0, 0.01]))
REGULARIZERS: dict[str, Any] = {
    "L1": st.fixed_dictionaries({}, optional={"l1": FACTORS}),
    "L2": st.fixed_dictionaries({}, optional={"l2": FACTORS}),
    "L1L2": st.fixed_dictionaries({}, optional={"l1": FACTORS, "l2": FACTORS}),
    "OrthogonalRegularizer": st.fixed_dictionaries(
        {},
        optional={"factor": FACTORS, "mode": st.sampled_from(["rows", "columns"])},
    ),
}


def numbers(draw: Any, dtype: str, *, most: int = 4) -> Array:
    """Return random numbers of a drawn shape, some rows of which may be 0."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=most)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = rng.standard_normal(shape) * draw(st.sampled_from([1e-3, 1.0, 4.0]))
    if draw(st.booleans()):
        array[rng.integers(shape[0])] = 0
    return array.astype(initializers.numpy_dtype(dtype))


@st.composite
def regularizer_cases(draw: Any) -> tuple[str, dict[str, Any], Array]:
    name = draw(st.sampled_from(sorted(REGULARIZERS)))
    most = 2 if name == "OrthogonalRegularizer" and draw(st.booleans()) else 4
    array = numbers(draw, draw(st.sampled_from(DTYPES)), most=most)
    return name, draw(REGULARIZERS[name]), array


@properties(600)
@hypothesis.given(case=regularizer_cases())
def test_parts_regularizer_gives_the_penalty_of_keras(
    case: tuple[str, dict[str, Any], Array],
) -> None:
    name, options, array = case
    ours = getattr(regularizers, name)(**options)
    theirs = getattr(keras.regularizers, name)(**options)
    config = keras.regularizers.serialize(theirs)
    assert regularizers.serialize(ours) == config
    # Keras normalizes a variable in another way than an array, whose columns it mixes
    # up. And its sums of 16-bit numbers are inexact, so that they are not compared.
    wide = array if array.dtype.itemsize > 2 else array.astype(np.float32)
    variable = keras.Variable(wide, dtype=str(wide.dtype))
    expected = outcome(lambda: float(theirs(variable)))
    mine = outcome(lambda: ours(array))
    assert type(mine) is type(expected)
    if inspect.isclass(expected):
        assert mine is expected
    elif name == "OrthogonalRegularizer":
        # Its terms may cancel: the products of unit vectors are at most 1.
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7)
    else:
        assert mine == expected
    again = outcome(lambda: regularizers.get(config)(array))
    np.testing.assert_equal(again, mine)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("L1", {"l1": -1.0}),
        ("L1", {"l1": "a"}),
        ("L1", {"l1": np.float32(1)}),
        ("L2", {"l2": np.inf}),
        ("L2", {"l2": np.nan}),
        ("L1L2", {"l1": -0.1}),
        ("L1L2", {"l2": [1]}),
        ("OrthogonalRegularizer", {"factor": -1}),
        ("OrthogonalRegularizer", {"mode": "diagonals"}),
    ],
    ids=str,
)
def test_parts_regularizer_refuses_what_keras_refuses(
    name: str, options: dict[str, Any]
) -> None:
    for module in (regularizers, keras.regularizers):
        with pytest.raises(ValueError, match="Invalid value for argument"):
            getattr(module, name)(**options)


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2"])
def test_parts_regularizer_takes_none_for_its_default(name: str) -> None:
    options = dict.fromkeys(inspect.signature(getattr(regularizers, name)).parameters)
    ours = getattr(regularizers, name)(**options)
    theirs = getattr(keras.regularizers, name)(**options)
    assert ours.get_config() == theirs.get_config()


def test_parts_regularizer_l1_l2_has_the_factors_keras_documents() -> None:
    # Keras refuses the name that its documentation gives.
    assert regularizers.get("l1_l2").get_config() == {"l1": 0.01, "l2": 0.01}


def test_parts_regularizer_of_zero_weights_hides_infinity() -> None:
    x = np.array([np.inf], np.float32)
    for module in (regularizers, keras.regularizers):
        assert float(module.L1L2()(x)) == 0.0


def test_parts_regularizer_of_16_bits_does_not_overflow() -> None:
    x = np.full(100, 100, np.float16)
    assert regularizers.L2(1.0)(x) == 1e6


LIMITS = st.floats(0, 3)
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "Constraint": {},
    "NonNeg": {},
    "MaxNorm": {"max_value": LIMITS},
    "UnitNorm": {},
    "MinMaxNorm": {"min_value": LIMITS, "max_value": LIMITS, "rate": st.floats(0, 1)},
}


@st.composite
def constraint_cases(draw: Any) -> tuple[str, dict[str, Any], Array]:
    name = draw(st.sampled_from(sorted(CONSTRAINTS)))
    array = numbers(draw, draw(st.sampled_from(DTYPES)))
    optional = dict(CONSTRAINTS[name])
    if "Norm" in name:
        axis = st.integers(-array.ndim, array.ndim - 1)
        optional["axis"] = st.one_of(
            axis, st.sets(st.integers(0, array.ndim - 1)).map(list)
        )
    return name, draw(st.fixed_dictionaries({}, optional=optional)), array


@properties(600)
@hypothesis.given(case=constraint_cases())
def test_parts_constraint_gives_the_weights_of_keras(
    case: tuple[str, dict[str, Any], Array],
) -> None:
    name, options, array = case
    ours = getattr(constraints, name)(**options)
    theirs = getattr(keras.constraints, name)(**options)
    config = keras.constraints.serialize(theirs)
    assert constraints.serialize(ours) == config
    before = array.copy()
    if array.dtype == np.float64 and name != "Constraint":  # float32 in Keras
        mine, expected = outcome(lambda: ours(array)), np.asarray(theirs(array))
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7)
    else:
        mine = same_outcome(lambda: ours(array), lambda: theirs(array))
    assert_same(array, before)
    assert_same(outcome(lambda: constraints.get(config)(array)), mine)


@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_parts_constraint_refuses_an_axis_that_is_not_there(name: str) -> None:
    for module in (constraints, keras.constraints):
        with pytest.raises(ValueError, match="axis"):
            getattr(module, name)(axis=2)(np.ones((2, 2), np.float32))


@pytest.mark.parametrize("kind", ["regularizers", "constraints"])
def test_parts_callable_is_kept_as_it_is(kind: str) -> None:
    ours, theirs = KINDS[kind]
    assert ours.get(named) is named
    assert ours.serialize(named) == theirs.serialize(named)


WITHOUT = """
import sys
sys.modules["{absent}"] = None
from types import SimpleNamespace
from cpuattn.compat.keras import initializers, saving
try:
    {statement}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("absent", "statement", "text"),
    [
        (
            "h5py",
            "saving.load_keras_weights(SimpleNamespace(weights=[]), 'a.keras')",
            "reading Keras's files needs h5py",
        ),
        (
            "scipy",
            "initializers.STFT(window='nuttall')",
            "window 'nuttall' needs scipy",
        ),
        (
            "ml_dtypes",
            "initializers.Ones()((2,), 'bfloat16')",
            "dtype bfloat16 needs ml_dtypes",
        ),
    ],
)
def test_parts_absent_package_is_named(absent: str, statement: str, text: str) -> None:
    done = expect_success(WITHOUT.format(absent=absent, statement=statement))
    assert done.startswith(text)
    assert f"pip install {absent}" in done


def test_parts_need_numpy_alone() -> None:
    loaded = expect_success(
        "import sys\n"
        "from cpuattn.compat.keras import constraints, initializers, regularizers\n"
        "from cpuattn.compat.keras import saving\n"
        "import cpuattn.integrations.keras\n"
        "initializers.get('he_normal')((2, 2)), initializers.STFT()((4, 1, 3))\n"
        "print(*sys.modules)"
    )
    absent = {"keras", "torch", "scipy", "h5py", "ml_dtypes", "jax"}
    assert "numpy" in loaded.split()
    assert not absent & {*loaded.split()}
