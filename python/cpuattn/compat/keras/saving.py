# SPDX-License-Identifier: MIT
"""Weights of attention layers: in .npz files, from Keras's files and layers."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .._optional import require
from ._registry import numpy_dtype

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Path = str | os.PathLike[str]

__all__ = ["load_keras_weights", "load_npz", "save_npz", "weights_from_keras_layer"]

# The groups of a layer in Keras's files, and what our layers call the same.
_GROUPS = {
    "_query_dense": "query",
    "_key_dense": "key",
    "_gate_dense": "gate",
    "_value_dense": "value",
    "_output_dense": "attention_output",
}
_VARIABLES = {"0": "kernel", "1": "bias"}
_SEED = "seed_generator_state"


class Weight(Protocol):
    """What a weight of a layer has, as far as it is needed here."""

    @property
    def path(self) -> str: ...

    @property
    def value(self) -> Array: ...


class Layer(Protocol):
    """What a layer has, as far as it is needed here."""

    @property
    def weights(self) -> Sequence[Weight]: ...

    def set_weights(self, weights: list[Array]) -> None: ...


def save_npz(layer: Layer, path: Path) -> None:
    """Save the weights of a layer in a .npz file.

    Parameters
    ----------
    layer : GroupQueryAttention
        A built layer.
    path : str or path
        File to write; no suffix is added.

    Raises
    ------
    ValueError
        The layer has no weights yet.

    Notes
    -----
    An array is called what its weight is called within the layer, "query/kernel" for
    instance. bfloat16 is written as it is: two bytes without a dtype, for NumPy.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from types import SimpleNamespace
    >>> from cpuattn.compat.keras import saving
    >>> kernel = SimpleNamespace(path="attention/query/kernel", value=np.ones(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saving.save_npz(SimpleNamespace(weights=[kernel]), f"{folder}/a.npz")
    ...     np.load(f"{folder}/a.npz").files
    ['query/kernel']
    """
    weights: dict[str, Any] = {name: w.value for name, w in _built(layer).items()}
    with open(path, "wb") as file:
        np.savez(file, **weights)


def load_npz(layer: Layer, path: Path) -> None:
    """Set the weights of a layer from a file of `save_npz`.

    Parameters
    ----------
    layer : GroupQueryAttention
        A built layer.
    path : str or path

    Raises
    ------
    ValueError
        The names or shapes are not those of the layer, which stays as it was.

    Notes
    -----
    Numbers are converted to the dtypes of the layer. The seed of dropout is set where
    both the file and the layer have one.
    """
    with np.load(path, allow_pickle=False) as arrays:
        _set_weights(layer, {name: arrays[name] for name in arrays.files}, path)


def weights_from_keras_layer(keras_layer: Any) -> list[Array]:
    """Return the weights of a layer of Keras, on any backend, for `set_weights`.

    Parameters
    ----------
    keras_layer : keras.layers.GroupQueryAttention
        A built layer.

    Returns
    -------
    list of ndarray
        Copies, in the order of the layer's `weights`.

    Raises
    ------
    ValueError
        The layer is not built.
    """
    if not keras_layer.built:
        raise ValueError(
            f"keras_layer: must be built; got {keras_layer.name} without weights, "
            "call it or its `build` first"
        )
    return [np.array(weight) for weight in keras_layer.get_weights()]


def load_keras_weights(layer: Layer, path: Path, layer_name: str | None = None) -> None:
    """Set the weights of a layer from a model that Keras saved.

    Parameters
    ----------
    layer : GroupQueryAttention
        A built layer.
    path : str or path
        A .weights.h5 or a .keras file.
    layer_name : str, optional
        Name of a GroupQueryAttention layer of the model, or its group in the file
        ("layers/block/attention"); not needed where there is only one.

    Raises
    ------
    ImportError
        h5py is not installed.
    ValueError
        The file has no such layer, or several; or the names or shapes of the weights
        are not those of `layer`, which stays as it was.

    Notes
    -----
    Keras itself is not needed. Numbers are converted to the dtypes of the layer. Keras
    does not save the seed of dropout.
    """
    with _open_h5(path) as file:
        _set_weights(layer, _find(file, layer_name, path), path)


@contextmanager
def _open_h5(path: Path) -> Iterator[Any]:
    h5py = require("h5py", "reading Keras's files")
    if not zipfile.is_zipfile(path):
        with h5py.File(path, "r") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            raise ValueError(
                f"path: must hold model.weights.h5; got {path} with "
                f"{archive.namelist()}"
            )
        with archive.open("model.weights.h5") as raw, h5py.File(raw, "r") as file:
            yield file


def _attention_layers(file: Any) -> dict[str, dict[str, Any]]:
    """Return the datasets of the attention layers: by group, by our weights' names."""
    layers: dict[str, dict[str, Any]] = {}

    def visit(path: str, node: Any) -> None:
        *place, part, kind, key = ["", "", *path.split("/")]
        if part in _GROUPS and kind == "vars" and hasattr(node, "shape"):
            name = f"{_GROUPS[part]}/{_VARIABLES.get(key, key)}"
            layers.setdefault("/".join(place).strip("/"), {})[name] = node

    file.visititems(visit)  # which follows no link
    return {place: found for place, found in layers.items() if "query/kernel" in found}


def _find(file: Any, layer_name: str | None, path: Path) -> dict[str, Any]:
    """Return the datasets of the layer that is meant."""
    layers = _attention_layers(file)
    names = {place: _layer_name(file, place) for place in layers}
    chosen = [
        place
        for place, name in names.items()
        if layer_name is None or layer_name in (name, place)
    ]
    if len(chosen) == 1:
        return layers[chosen[0]]
    listed = ", ".join(f"{name} ({place})" for place, name in names.items())
    if layer_name is None:
        rule = "must be given unless the file has one GroupQueryAttention layer"
    else:
        rule = "must be the name or group of one GroupQueryAttention layer of the file"
    raise ValueError(
        f"layer_name: {rule}; got {layer_name}, {path} has {listed or 'none'}"
    )


def _layer_name(file: Any, place: str) -> str:
    """Return the name that a layer had in its model; old files do not tell it."""
    variables = file.get(f"{place}/vars", default=None)
    if variables is not None and "name" in variables.attrs:
        return str(variables.attrs["name"])
    return place.rpartition("/")[2]


def _name(weight: Weight) -> str:
    """Name a weight within its layer; Keras numbers the seeds of a process."""
    *_, part, variable = weight.path.split("/")
    return _SEED if variable == _SEED else f"{part}/{variable}"


def _built(layer: Layer) -> dict[str, Weight]:
    """Return the weights of a layer by their names."""
    weights = {_name(weight): weight for weight in layer.weights}
    if not weights:
        raise ValueError("layer: must be built; got a layer without weights")
    return weights


def _set_weights(layer: Layer, found: Mapping[str, Any], path: Path) -> None:
    """Set all weights of a layer at once, after every check."""
    weights = _built(layer)
    wanted = {name: w.value.shape for name, w in weights.items() if name != _SEED}
    shapes = {name: array.shape for name, array in found.items() if name != _SEED}
    if wanted != shapes:
        differing = sorted(
            name
            for name in wanted.keys() | shapes.keys()
            if wanted.get(name) != shapes.get(name)
        )
        listed = "; ".join(
            f"{name} is {wanted.get(name, 'none')} in the layer, "
            f"{shapes.get(name, 'none')} in the file"
            for name in differing
        )
        raise ValueError(
            f"path: must hold the weights of the layer; got {path}, where {listed}"
        )
    layer.set_weights(
        [
            _read(found[name]).astype(weight.value.dtype, copy=False)
            if name in found
            else weight.value
            for name, weight in weights.items()
        ]
    )


def _read(stored: Any) -> Array:
    """Return the numbers of an array of .npz or of a dataset of HDF5."""
    if getattr(stored, "external", None) or getattr(stored, "is_virtual", False):
        raise ValueError("path: must hold its numbers; got a dataset in another file")
    array = np.asarray(stored[()])
    # Both formats have no bfloat16: they store its two bytes.
    return array.view(numpy_dtype("bfloat16")) if array.dtype.kind == "V" else array
