# SPDX-License-Identifier: MIT
"""Weights that Keras saved, weights of its layers, and weights in .npz files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpuattn.compat.keras import initializers, saving
from support import Array, assert_same

os.environ["KERAS_BACKEND"] = "numpy"
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)

DTYPES = ["float32", "float64", "float16", "bfloat16"]


def as_dtype(name: str) -> np.dtype[Any]:
    return initializers.numpy_dtype(name)


@dataclass
class Weight:
    path: str
    value: Array
    trainable: bool = True


class Layer:
    """What `saving` needs of a layer, made like a layer of Keras."""

    def __init__(self, like: Any, dtype: str = "float32", name: str = "ours") -> None:
        self.weights = [
            Weight(
                "/".join([name, *weight.path.split("/")[-2:]]),
                np.zeros(weight.shape, as_dtype(dtype)),
            )
            for weight in like.weights
        ]

    def set_weights(self, weights: list[Array]) -> None:
        assert len(weights) == len(self.weights)
        for weight, value in zip(self.weights, weights, strict=True):
            assert weight.value.shape == value.shape
            assert weight.value.dtype == value.dtype
            weight.value = value

    @property
    def values(self) -> list[Array]:
        return [weight.value for weight in self.weights]


def attention_layer(name: str, heads: int = 4, **options: Any) -> Any:
    """Return a built layer of Keras, none of whose weights is 0."""
    options = {"bias_initializer": "random_normal"} | options
    layer = keras.layers.GroupQueryAttention(3, heads, 2, name=name, **options)
    layer.build((None, 5, 6), (None, 5, 6))
    return layer


def model_of(*layers: Any) -> Any:
    """Return a model with these layers, one after another."""
    inputs = out = keras.Input((5, 6))
    for layer in layers:
        out = layer(out, out)
    return keras.Model(inputs, out)


OPTIONS: dict[str, dict[str, Any]] = {
    "bias": {},
    "no_bias": {"use_bias": False},
    "gate": {"use_gate": True},
    "dropout": {"dropout": 0.25, "seed": 3},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "mixed": {"dtype": "mixed_bfloat16"},
}


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_saving_weights_of_a_file_of_keras_are_loaded(
    options: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    theirs = attention_layer("mine", **options)
    model, path = model_of(theirs), tmp_path / f"model{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    ours = Layer(theirs, theirs.weights[0].dtype)
    saving.load_keras_weights(ours, path)
    expected = saving.weights_from_keras_layer(theirs)
    assert len(expected) == len(theirs.weights)
    assert all(x.any() for x in expected)
    for mine, value in zip(ours.values, expected, strict=True):
        assert_same(mine, value)


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Save a file with several attention layers, one of them within another layer."""
    pytest.importorskip("h5py", reason="h5py is not installed")

    class Block(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="block")
            self.attention = attention_layer("inside")

        def call(self, x: Any, y: Any) -> Any:
            return self.attention(x, y)

    # The second has the name of the first one's group.
    layers = [attention_layer("mine"), attention_layer("grouped_query_attention")]
    block = Block()
    other = keras.layers.MultiHeadAttention(2, 3, name="other")
    model = model_of(*layers, block, other)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    found = {layer.name: layer for layer in [*layers, block.attention]}
    return path, found | {"layers/block/attention": block.attention}


@pytest.mark.parametrize(
    "name", ["mine", "grouped_query_attention", "inside", "layers/block/attention"]
)
def test_saving_layer_of_a_file_is_found_by_its_name(
    name: str, many: tuple[Path, dict[str, Any]]
) -> None:
    path, layers = many
    ours = Layer(layers[name])
    saving.load_keras_weights(ours, path, name)
    for mine, value in zip(ours.values, layers[name].get_weights(), strict=True):
        assert_same(mine, value)


@pytest.mark.parametrize("name", [None, "other", "block", "typo", ""])
def test_saving_layer_that_is_not_one_of_the_file_is_an_error(
    name: str | None, many: tuple[Path, dict[str, Any]]
) -> None:
    path, layers = many
    ours = Layer(layers["mine"])
    with pytest.raises(ValueError, match=r"^layer_name: must .*; got .* mine \("):
        saving.load_keras_weights(ours, path, name)
    assert not any(x.any() for x in ours.values)


DIFFERENT: dict[str, dict[str, Any]] = {
    "fewer_heads": {"heads": 2},
    "no_bias": {"use_bias": False},
    "gate": {"use_gate": True},
}


@pytest.mark.parametrize("options", DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("suffix", [".weights.h5", ".npz"])
def test_saving_weights_of_another_layer_change_nothing(
    options: dict[str, Any], swapped: bool, suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    pair = [attention_layer("one"), attention_layer("two", **options)]
    saved, wanted = pair[::-1] if swapped else pair
    path = tmp_path / f"model{suffix}"
    ours = Layer(wanted)
    if suffix == ".npz":
        saving.save_npz(Layer(saved), path)
        load: Any = saving.load_npz
    else:
        model_of(saved).save_weights(path)
        load = saving.load_keras_weights
    with pytest.raises(ValueError, match=r"^path: must hold the weights of the layer"):
        load(ours, path)
    assert not any(x.any() for x in ours.values)


def test_saving_quantized_weights_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    theirs = attention_layer("mine")
    ours = Layer(theirs)
    model = model_of(theirs)
    model.quantize("int8")
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="path: must hold the weights"):
        saving.load_keras_weights(ours, tmp_path / "model.weights.h5")


@pytest.mark.parametrize("dtype", DTYPES)
def test_saving_npz_keeps_every_bit(
    dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    like = attention_layer("mine", use_gate=True)
    ours, again = Layer(like, dtype), Layer(like, dtype, name="another")
    for weight in ours.weights:
        weight.value = rng.standard_normal(weight.value.shape).astype(as_dtype(dtype))
    path = tmp_path / "weights"
    saving.save_npz(ours, path)
    saving.load_npz(again, path)
    for mine, value in zip(again.values, ours.values, strict=True):
        assert_same(mine, value)


def test_saving_npz_has_the_names_within_the_layer(tmp_path: Path) -> None:
    saving.save_npz(Layer(attention_layer("mine")), tmp_path / "a.npz")
    names = np.load(tmp_path / "a.npz").files
    assert names[:2] == ["query/kernel", "query/bias"]
    assert len(names) == 8


def test_saving_npz_is_converted_to_the_dtype_of_the_layer(tmp_path: Path) -> None:
    like = attention_layer("mine")
    narrow, wide = Layer(like, "bfloat16"), Layer(like)
    narrow.weights[0].value[...] = 1.5
    saving.save_npz(narrow, tmp_path / "a.npz")
    saving.load_npz(wide, tmp_path / "a.npz")
    assert wide.values[0].dtype == np.float32
    assert (wide.values[0] == 1.5).all()


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("in_layer", [False, True])
def test_saving_npz_seed_is_set_where_both_have_one(
    in_file: bool, in_layer: bool, tmp_path: Path
) -> None:
    like = attention_layer("mine")

    def made(seeded: bool, name: str, state: list[int]) -> Layer:
        layer = Layer(like)
        if seeded:
            seed = Weight(f"a/{name}/seed_generator_state", np.array(state, np.uint32))
            layer.weights.insert(6, seed)
        return layer

    # Keras numbers the generators of a process.
    saving.save_npz(made(in_file, "seed_generator", [7, 4]), tmp_path / "a.npz")
    ours = made(in_layer, "seed_generator_1", [1, 0])
    saving.load_npz(ours, tmp_path / "a.npz")
    if in_layer:
        assert ours.values[6].tolist() == ([7, 4] if in_file else [1, 0])


def test_saving_npz_with_pickles_is_refused(tmp_path: Path) -> None:
    layer = Layer(attention_layer("mine"))
    objects = {"query/kernel": np.array([{}], object)}
    np.savez(tmp_path / "a.npz", **objects)
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        saving.load_npz(layer, tmp_path / "a.npz")


def test_saving_layer_that_is_not_built_is_an_error(tmp_path: Path) -> None:
    empty = Layer(attention_layer("mine"))
    empty.weights = []
    with pytest.raises(ValueError, match=r"^layer: must be built; got"):
        saving.save_npz(empty, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
    theirs = keras.layers.GroupQueryAttention(3, 4, 2, name="mine")
    with pytest.raises(ValueError, match=r"^keras_layer: must be built; got mine"):
        saving.weights_from_keras_layer(theirs)


def test_saving_keras_file_with_other_weights_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    theirs = attention_layer("mine")
    path = tmp_path / "a.npz"  # a zip file as well
    saving.save_npz(Layer(theirs), path)
    with pytest.raises(ValueError, match=r"^path: must hold model\.weights\.h5; got"):
        saving.load_keras_weights(Layer(theirs), path)


def test_saving_hdf5_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    theirs = attention_layer("mine")
    model_of(theirs).save_weights(tmp_path / "real.weights.h5")
    with h5py.File(tmp_path / "link.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "real.weights.h5"), "layers")
    with pytest.raises(ValueError, match=r"has none$"):
        saving.load_keras_weights(Layer(theirs), tmp_path / "link.weights.h5")


def test_saving_hdf5_dataset_in_another_file_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    theirs = attention_layer("mine", use_bias=False)
    path = tmp_path / "model.weights.h5"
    model_of(theirs).save_weights(path)
    (tmp_path / "raw").write_bytes(bytes(4096))
    with h5py.File(path, "a") as file:
        variables = file["layers/grouped_query_attention/_query_dense/vars"]
        shape = variables["0"].shape
        del variables["0"]
        raw = [(str(tmp_path / "raw"), 0, 4096)]
        variables.create_dataset("0", shape, np.float32, external=raw)
    with pytest.raises(ValueError, match="a dataset in another file"):
        saving.load_keras_weights(Layer(theirs), path)
