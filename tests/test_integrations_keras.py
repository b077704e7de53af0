# SPDX-License-Identifier: MIT
"""Keras models with the plug-in and without it, on the NumPy and torch backends.

A process has one backend: this file runs itself once for each, as a script that makes
the checks below and prints how they ended.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cpuattn.integrations.keras as plugin
from support import SEED, Array, expect_success, run_module

BACKENDS = {"numpy": ("keras", "scipy", "jax"), "torch": ("keras", "torch")}
OUTPUTS = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 4e-2}


# What the script does.


def function_of_keras() -> Any:
    """Return what layers and operations call at this time."""
    from keras.src import backend

    return backend.nn.dot_product_attention


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Enable the plug-in; count the calls of cpuattn."""
    calls: list[int] = []
    native = plugin.attention

    def counting(*arguments: Any, **options: Any) -> Any:
        out = native(*arguments, **options)
        calls.append(1)
        return out

    before = function_of_keras()
    plugin.attention = counting  # type: ignore[attr-defined]
    try:
        with plugin.enabled():
            yield calls
    finally:
        plugin.attention = native  # type: ignore[attr-defined]
    assert function_of_keras() is before


def without_gradients() -> Any:
    """Return the context that inference runs in."""
    if os.environ["KERAS_BACKEND"] == "numpy":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def array(shape: tuple[int, ...], name: str, dtype: str = "float32") -> Any:
    """Return random numbers that depend on the shape and the name, as a tensor."""
    import keras

    rng = np.random.default_rng([SEED, *shape, *name.encode()])
    numbers = rng.standard_normal(shape).astype(np.float32)
    return keras.ops.cast(keras.ops.convert_to_tensor(numbers), dtype)


def numbers(tensor: Any) -> Array:
    import keras

    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def compare(
    compute: Callable[[], Any], calls: int, tolerance: float = OUTPUTS["float32"]
) -> None:
    """Assert that a result is the same with the plug-in, of which it made `calls`."""
    expected = compute()
    with counted() as made:
        ours = compute()
    assert len(made) == calls, f"{len(made)} calls of cpuattn, not {calls}"
    assert type(ours) is type(expected)
    if hasattr(ours, "dtype"):
        assert ours.dtype == expected.dtype
        ours, expected = numbers(ours), numbers(expected)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
    assert np.abs(ours).max() > 0.01


def small_model() -> Any:
    """Return a model with two fused layers, and two that Keras does not fuse."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    tokens = keras.Input((9,), dtype="int32")
    x = layers.Embedding(17, 12, mask_zero=True)(tokens)
    x = x + layers.MultiHeadAttention(3, 4)(x, x, use_causal_mask=True)
    x = x + layers.GroupQueryAttention(4, 4, 2)(x, x)
    x = x + layers.GroupQueryAttention(4, 2, 1, dropout=0.1)(x, x)
    x = x + layers.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)[0]
    return keras.Model(tokens, layers.Dense(3)(x))


def check_model_predicts_the_same() -> None:
    model = small_model()
    tokens = np.random.default_rng(SEED).integers(0, 17, (4, 9))
    tokens[:, -2:] = 0  # padding
    compare(lambda: model.predict(tokens, verbose=0), calls=2)


def check_call_of_a_model_is_the_same() -> None:
    model = small_model()
    tokens = np.random.default_rng(SEED).integers(1, 17, (4, 9))
    with without_gradients():
        compare(lambda: model(tokens), calls=2)


def check_layers_are_the_same_with_every_mask() -> None:
    import keras

    rng = np.random.default_rng(SEED)
    query, value, key = (array((2, n, 8), s) for n, s in ((5, "q"), (7, "v"), (7, "k")))
    masks: dict[str, Any] = {
        "query_mask": np.arange(5) < np.array([[4], [5]]),
        "value_mask": np.arange(7) < np.array([[7], [3]]),
        "key_mask": np.arange(7) > np.array([[0], [1]]),
        "attention_mask": rng.random((2, 5, 7)) < 0.7,
    }
    masks["attention_mask"][0, 2] = False  # a row that sees nothing
    layers = [
        keras.layers.MultiHeadAttention(2, 4),
        keras.layers.GroupQueryAttention(4, 4, 2),
        keras.layers.GroupQueryAttention(4, 4, 4, sliding_window=3),
        keras.layers.GroupQueryAttention(4, 2, 1, use_gate=True),
    ]
    for layer in layers:
        with without_gradients():
            for causal in (False, True):
                run = functools.partial(
                    layer, query, value, key, use_causal_mask=causal
                )
                compare(run, calls=1)
                for name, mask in masks.items():
                    compare(functools.partial(run, **{name: mask}), calls=1)
                compare(functools.partial(run, **masks), calls=1)


def check_unfused_layers_are_left_alone() -> None:
    import keras

    x = array((2, 5, 8), "x")
    dropout = keras.layers.GroupQueryAttention(4, 4, 2, dropout=0.5, seed=1)
    plain = keras.layers.MultiHeadAttention(2, 4)
    with without_gradients():
        compare(lambda: dropout(x, x), calls=0)
        compare(lambda: plain(x, x, return_attention_scores=True)[0], calls=0)


def random_case(rng: np.random.Generator) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the dtype, the inputs and the options of a call that Keras can make."""
    import keras

    numpy = os.environ["KERAS_BACKEND"] == "numpy"
    batch, q_len, kv_len = (int(rng.integers(1, n)) for n in (4, 9, 12))
    kv_heads = int(rng.choice([1, 1, 2, 3]))
    group = int(rng.integers(1, 4))
    if numpy and kv_heads > 1:  # its NumPy backend has no groups
        group = 1
    heads, head_dim, head_dim_v = kv_heads * group, *map(int, rng.integers(1, 19, 2))
    dtype = str(rng.choice(["float32", "float32", "float16", "bfloat16"]))
    inputs = [
        array((batch, length, count, width), f"{rng.integers(1e6)}", dtype)
        for length, count, width in (
            (q_len, heads, head_dim),
            (kv_len, kv_heads, head_dim),
            (kv_len, kv_heads, head_dim_v),
        )
    ]
    scores = (batch, heads, q_len, kv_len)
    shape = tuple(n if rng.random() < 0.7 else 1 for n in scores)
    # Its torch backend refuses scores of one axis, and a bias of a causal call.
    shape = shape[int(rng.integers(0, 5 if numpy else 3)) :]
    kind = rng.integers(3)
    causal = rng.random() < 0.4 and (numpy or kind != 1)
    options: dict[str, Any] = {"is_causal": bool(causal)}
    if kind == 0:
        mask = rng.random(shape) < 0.7
        # A row that sees nothing is the mean of the values, but not in torch's float16.
        if not numpy and dtype == "float16":
            mask[..., 0] = True
        options["mask"] = mask
    elif kind == 1:
        bias = rng.standard_normal(shape).astype(np.float32)
        options["bias"] = keras.ops.cast(keras.ops.convert_to_tensor(bias), dtype)
    if rng.random() < 0.3:
        options["scale"] = float(rng.normal())
    if rng.random() < 0.3:
        options["flash_attention"] = False
    return dtype, inputs, options


def check_operation_is_the_same_with_all_options() -> None:
    import keras

    rng = np.random.default_rng(SEED)
    for _ in range(200):
        dtype, inputs, options = random_case(rng)
        run = functools.partial(keras.ops.dot_product_attention, *inputs, **options)
        try:
            compare(run, calls=1, tolerance=OUTPUTS[dtype])
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise AssertionError(f"{dtype} {shapes} {options}") from error


def check_operation_takes_arrays_and_other_dtypes() -> None:
    import keras

    rng = np.random.default_rng(SEED)
    wide = [rng.standard_normal((2, 5, 2, 4)) for _ in range(3)]
    run = keras.ops.dot_product_attention
    compare(lambda: run(*wide), calls=1)  # float64 becomes float32 in Keras
    compare(lambda: run(wide[0].astype("float32"), *wide[1:]), calls=1)
    half = [x.astype("float16") for x in wide]
    compare(lambda: run(wide[0].astype("float32"), *half[1:]), calls=1)
    compare(lambda: run(half[0], *(x.astype("float32") for x in wide[1:])), calls=1)
    compare(lambda: run(*(x.tolist() for x in wide)), calls=1)
    mask = np.array([[3, 0, -1, 0, 1]])
    compare(lambda: run(*wide, mask=mask), calls=1)
    bias = rng.standard_normal((5, 5)).tolist()
    compare(lambda: run(*wide, bias=bias), calls=1)


def check_errors_are_those_of_keras() -> None:
    import keras

    x = array((2, 5, 2, 4), "x")
    run = keras.ops.dot_product_attention
    wrong: list[Callable[[], Any]] = [
        lambda: run(x, x, x, flash_attention=True),
        lambda: function_of_keras()(x, x, x, typo=1),
        lambda: run(x[0], x[0], x[0]),
        lambda: run(x, x, x, attn_logits_soft_cap=3.0),
        lambda: run(x, x, x, scale="a"),
    ]
    if os.environ["KERAS_BACKEND"] == "torch":
        wrong.append(lambda: run(x, x, x, bias=x[0, 0, 0, 0], mask=np.ones(5)))
    for call in wrong:
        expected = raised(call)
        with plugin.enabled():
            assert raised(call) == expected


def raised(call: Callable[[], Any]) -> tuple[type, str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("no error")


def check_enable_and_disable_restore_exactly() -> None:
    theirs = function_of_keras()
    plugin.disable()
    assert function_of_keras() is theirs
    plugin.enable()
    ours = function_of_keras()
    assert ours is not theirs
    assert ours.__name__ == theirs.__name__
    plugin.enable()
    assert function_of_keras() is ours
    plugin.disable()
    assert function_of_keras() is theirs
    plugin.disable()
    assert function_of_keras() is theirs


def check_blocks_nest_and_overlap() -> None:
    theirs = function_of_keras()
    with plugin.enabled(), contextlib.suppress(KeyError):
        ours = function_of_keras()
        with plugin.enabled():
            plugin.disable()
            assert function_of_keras() is ours
            raise KeyError
    assert function_of_keras() is theirs
    plugin.enable()
    with plugin.enabled():
        pass
    assert function_of_keras() is not theirs
    with plugin.enabled():
        plugin.disable()
        assert function_of_keras() is not theirs
    assert function_of_keras() is theirs


def check_threads_may_switch_at_once() -> None:
    theirs = function_of_keras()
    seen = []

    def switch() -> None:
        for _ in range(300):
            with plugin.enabled():
                seen.append(function_of_keras() is not theirs)

    threads = [threading.Thread(target=switch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2400
    assert all(seen)
    assert function_of_keras() is theirs


def check_another_wrapper_is_not_removed() -> None:
    from keras.src import backend

    theirs = function_of_keras()
    with counted_wrapper() as calls:
        plugin.enable()
        ours = function_of_keras()

        def wrapper(*arguments: Any, **options: Any) -> Any:
            return ours(*arguments, **options)

        backend.nn.dot_product_attention = wrapper
        try:
            plugin.disable()
            assert function_of_keras() is wrapper
            x = array((2, 5, 2, 4), "x")
            wrapper(x, x, x)
            assert not calls  # Keras's own
        finally:
            backend.nn.dot_product_attention = theirs


@contextlib.contextmanager
def counted_wrapper() -> Iterator[list[int]]:
    """Count the calls of cpuattn, whoever enables the plug-in."""
    native = plugin.attention
    calls: list[int] = []
    plugin.attention = lambda *a, **k: (calls.append(1), native(*a, **k))[1]  # type: ignore[attr-defined]
    try:
        yield calls
    finally:
        plugin.attention = native  # type: ignore[attr-defined]


def check_fully_masked_row_is_the_mean_of_the_values() -> None:
    import keras

    query, value = array((1, 3, 2, 4), "q"), array((1, 5, 2, 4), "v")
    mask = np.ones((3, 5), bool)
    mask[1] = False
    run = functools.partial(keras.ops.dot_product_attention, query, value, value)
    compare(lambda: run(mask=mask), calls=1)
    with plugin.enabled():
        out = numbers(run(mask=mask))
    np.testing.assert_allclose(out[0, 1], numbers(value)[0].mean(0), atol=1e-6)


def check_row_of_infinite_biases_is_as_in_keras() -> None:
    import keras

    x = array((1, 3, 2, 4), "x")
    bias = np.zeros((3, 3), np.float32)
    bias[1] = -np.inf
    run = functools.partial(keras.ops.dot_product_attention, x, x, x, bias=bias)
    with np.errstate(invalid="ignore"):
        expected = numbers(run())
    with plugin.enabled():
        ours = numbers(run())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
    assert (ours[0, 1] != ours[0, 0]).all()


def check_numpy_groups_work() -> None:
    import keras

    query, key = array((2, 5, 6, 4), "q"), array((2, 7, 2, 4), "k")
    with pytest.raises(ValueError, match="broadcast"):
        keras.ops.dot_product_attention(query, key, key)
    with counted() as calls:
        ours = keras.ops.dot_product_attention(query, key, key)
    assert calls
    wide = np.repeat(key, 3, 2)
    expected = keras.ops.dot_product_attention(query, wide, wide)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def check_torch_gradients_are_those_of_keras() -> None:
    import keras
    import torch

    layer = keras.layers.GroupQueryAttention(4, 4, 2)
    x = array((2, 5, 8), "x")
    layer(x, x)

    def gradients() -> list[Array]:
        layer(x, x, use_causal_mask=True).square().sum().backward()
        found = [weight.value.grad for weight in layer.weights]
        for weight in layer.weights:
            weight.value.grad = None
        return [y.numpy() for y in found if y is not None]

    expected = gradients()
    with counted() as calls:
        ours = gradients()
    assert not calls
    assert len(ours) == 8
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # A bias alone that is learned.
    bias = torch.zeros(5, 5, requires_grad=True)
    y = array((2, 5, 2, 4), "y")
    with counted() as calls:
        keras.ops.dot_product_attention(y, y, y, bias=bias).sum().backward()
    assert not calls
    assert bias.grad is not None


def check_torch_models_train() -> None:
    tokens = np.random.default_rng(SEED).integers(1, 17, (16, 9))
    targets = np.random.default_rng(SEED).standard_normal((16, 9, 3))

    def trained() -> tuple[Any, list[float]]:
        model = small_model()
        model.compile(optimizer="adam", loss="mse")
        model.fit(tokens, targets, epochs=1, verbose=0)  # builds first, not to learn
        return model, model.fit(tokens, targets, epochs=3, verbose=0).history["loss"]

    _, expected = trained()
    with counted():
        model, losses = trained()
    assert losses == expected
    assert losses[-1] < losses[0]
    with counted() as calls:
        model.fit(tokens, targets, verbose=0)
        assert not calls
        model.evaluate(tokens, targets, verbose=0)
        assert len(calls) == 2


def check_torch_transformations_see_the_operations_of_keras() -> None:
    import keras
    import torch

    x = array((3, 2, 5, 2, 4), "x")

    def run(y: Any) -> Any:
        # Without the last one torch.compile cannot trace Keras's own function.
        return keras.ops.dot_product_attention(
            y, y, y, is_causal=True, flash_attention=False
        )

    def derivative(y: Any) -> Any:
        from torch.autograd import forward_ad

        with forward_ad.dual_level(), torch.no_grad():
            dual = forward_ad.make_dual(y, torch.ones_like(y))
            return forward_ad.unpack_dual(run(dual)).tangent

    def automatic(y: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run(y)

    def traced(y: Any) -> Any:
        return torch.jit.trace(run, y, check_trace=False)(2 * y)

    def compiled(y: Any) -> Any:
        torch.compiler.reset()
        return torch.compile(run, backend="eager", fullgraph=True)(y)

    class Tensor(torch.Tensor):
        """One that another library may watch."""

    ways: dict[str, Callable[[], Any]] = {
        "subclass": lambda: run(x[0].as_subclass(Tensor)),
        "vmap": lambda: torch.vmap(run)(x),
        "grad": lambda: torch.func.grad(lambda y: run(y).sum())(x[0]),
        "autocast": lambda: automatic(x[0]),
        "trace": lambda: traced(x[0]),
        "compile": lambda: compiled(x[0]),
    }
    for name, way in ways.items():
        try:
            compare(way, calls=0)
        except Exception as error:
            raise AssertionError(name) from error
    # torch itself has no forward derivative here; a tensor without one would be wrong.
    for way in (
        lambda: torch.func.jvp(run, (x[0],), (x[1],)),
        lambda: derivative(x[0]),
    ):
        expected = raised(way)
        with plugin.enabled():
            assert raised(way) == expected
    with counted() as calls:
        shape = run(x[0].to("meta")).shape
    assert not calls
    assert shape == (2, 5, 2, 4)


def check_torch_inference_shares_no_memory_with_its_inputs() -> None:
    import keras
    import torch

    x = array((2, 5, 2, 4), "x")
    before = x.clone()
    with plugin.enabled(), torch.inference_mode():
        out = keras.ops.dot_product_attention(x, x, x)
        expected = out.clone()
        out += 1
        again = keras.ops.dot_product_attention(x, x, x)
    assert torch.equal(x, before)
    assert torch.equal(again, expected)


def checks_of(backend: str) -> dict[str, Callable[[], None]]:
    """Return the checks that concern a backend."""
    others = tuple(f"check_{name}_" for name in BACKENDS if name != backend)
    return {
        name: found
        for name, found in globals().items()
        if name.startswith("check_") and not name.startswith(others)
    }


def main() -> None:
    """Make the checks of this process's backend, and print the results."""
    results = {}
    for name, check in checks_of(os.environ["KERAS_BACKEND"]).items():
        try:
            check()
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


# What pytest does.


def need(*modules: str) -> None:
    """Skip a test where packages are absent; importing them is for other processes."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@functools.cache
def results(backend: str) -> dict[str, str]:
    """Run this file once for a backend."""
    done = run_module(
        [__file__], timeout=300, KERAS_BACKEND=backend, OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("backend", "name"), [(b, name) for b in BACKENDS for name in checks_of(b)]
)
def test_keras_plugin(backend: str, name: str) -> None:
    need(*BACKENDS[backend])
    result = results(backend)[name]
    assert result == "passed", result


ENABLE = """
import cpuattn.integrations.keras as plugin
for use in (plugin.enable, plugin.enabled().__enter__):
    try:
        use()
    except {error} as error:
        print(error)
plugin.disable()
"""


def test_keras_plugin_on_another_backend_is_an_error() -> None:
    need("keras", "jax")
    done = expect_success(ENABLE.format(error="RuntimeError"), KERAS_BACKEND="jax")
    text = "KERAS_BACKEND: must be numpy or torch, whose arrays cpuattn can read; "
    assert done.splitlines() == [text + "got jax"] * 2


def test_keras_plugin_without_keras_is_an_error() -> None:
    absent = "import sys\nsys.modules['keras'] = None\n"
    done = expect_success(absent + ENABLE.format(error="ImportError"))
    lines = done.splitlines()
    assert len(lines) == 2
    assert all(x.startswith("cpuattn.integrations.keras needs keras") for x in lines)


if __name__ == "__main__":
    main()
