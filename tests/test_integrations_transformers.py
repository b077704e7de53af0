# SPDX-License-Identifier: MIT
"""Promise: transformers models compute with "cpuattn" what they do with "eager".

Models are tiny, of random weights, and drawn so that each of their options matters.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Array, allowance, assert_within, expect_success, run_python

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is absent")
masking_utils = pytest.importorskip(
    "transformers.masking_utils", reason="needs transformers 5"
)
if "q_length" not in inspect.signature(masking_utils.sdpa_mask).parameters:
    pytest.skip("needs the mask functions of transformers 5", allow_module_level=True)

from cpuattn.integrations import transformers as integration  # noqa: E402

integration.register()

from cpuattn.integrations import _transformers_attention as hook  # noqa: E402
from cpuattn.integrations._transformers_masks import make_mask  # noqa: E402

LAYERS = 2
VOCABULARY = 61
WINDOW = 5

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", DECODER),
    "mistral": ("Mistral", DECODER | {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2",
        DECODER
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 1.5,
        },
    ),
    "gpt_oss": (
        "GptOss",
        DECODER
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            # Every expert: the choice among them would make rounding errors great.
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
        },
    ),
    "bert": (
        "Bert",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "initializer_range": 0.3,
        },
    ),
}
DECODERS = [name for name in CONFIGS if name != "bert"]
WITH_SDPA = ["llama", "mistral", "bert"]  # "sdpa" has no softcap and no sinks
PADDINGS = ["none", "left", "right"]


@functools.cache
def original(name: str) -> Any:
    """Return a model in float32 with "eager" attention."""
    kind, options = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    head = "ForMaskedLM" if name == "bert" else "ForCausalLM"
    torch.manual_seed(7)
    model = getattr(transformers, kind + head)._from_config(
        config, attn_implementation="eager"
    )
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others refuse float64
    return model.eval()


def model_of(name: str, attention: str, dtype: Any = None) -> Any:
    """Return a copy of a model with another attention and dtype."""
    model = copy.deepcopy(original(name)).to(dtype or torch.float32)
    model.set_attn_implementation(attention)
    return model


def batch(padding: str, length: int = 13) -> dict[str, Any]:
    """Return two sequences, one of them padded by 4 tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, VOCABULARY, (2, length), generator=generator)
    if padding == "none":
        return {"input_ids": tokens}
    live = torch.ones_like(tokens)
    live[1, slice(4) if padding == "left" else slice(-4, None)] = 0
    return {"input_ids": tokens * live, "attention_mask": live}


def live_rows(inputs: dict[str, Any]) -> Array:
    """Return where tokens are no padding."""
    tokens = inputs["input_ids"]
    live: Array = inputs.get("attention_mask", torch.ones_like(tokens)).numpy() > 0
    return live


def logits_of(model: Any, inputs: dict[str, Any]) -> Array:
    """Return the logits of a model, as wide as NumPy knows them."""
    with torch.no_grad():
        logits = model(**inputs).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    result: Array = wide.numpy()
    return result


def exact_logits(name: str, inputs: dict[str, Any], dtype: Any) -> Array:
    """Return the float64 logits of live rows, each sequence computed without padding.

    The weights are those of a model in `dtype`.
    """
    model = model_of(name, "eager", dtype).double()
    sequences = []
    for tokens, live in zip(inputs["input_ids"], live_rows(inputs), strict=True):
        positions = torch.from_numpy(live.nonzero()[0])
        alone = {"input_ids": tokens[positions], "position_ids": positions}
        sequences.append(logits_of(model, {k: x[None] for k, x in alone.items()})[0])
    return np.concatenate(sequences)


def assert_as_good(ours: Array, oracle: Array, naive: Array) -> None:
    """Assert errors at most twice those of another implementation in the same dtype."""
    assert_within(ours, oracle, allowance(oracle, [naive], np.float32))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the options of every call of the native function."""
    recorded: list[dict[str, Any]] = []
    native = hook.attention

    def attention(*inputs: Any, **options: Any) -> Any:
        recorded.append(options)
        return native(*inputs, **options)

    monkeypatch.setattr(hook, "attention", attention)
    return recorded


def ranges(options: dict[str, Any]) -> dict[str, Any]:
    """Return what a call said of the visible keys, shapes in place of arrays."""
    return {
        name: tuple(x.shape) if isinstance(x, torch.Tensor) else x
        for name, x in options.items()
        if name in ("causal", "window", "mask", "bias")
    }


# Whole models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_model_logits_equal_those_of_eager(
    name: str, padding: str, dtype: Any, calls: list[dict[str, Any]]
) -> None:
    inputs = batch(padding)
    live = live_rows(inputs)

    ours = logits_of(model_of(name, "cpuattn", dtype), inputs)[live]

    assert len(calls) == LAYERS
    naive = logits_of(model_of(name, "eager", dtype), inputs)[live]
    assert_as_good(ours, exact_logits(name, inputs, dtype), naive)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", WITH_SDPA)
def test_model_logits_equal_those_of_sdpa_in_padding_too(
    name: str, padding: str, calls: list[dict[str, Any]]
) -> None:
    inputs = batch(padding)

    ours = logits_of(model_of(name, "cpuattn"), inputs)

    assert len(calls) == LAYERS
    exact = logits_of(model_of(name, "sdpa", torch.float64), inputs)
    assert_as_good(ours, exact, logits_of(model_of(name, "sdpa"), inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_model_masks_are_ranges_and_never_arrays_of_all_pairs(
    name: str, calls: list[dict[str, Any]]
) -> None:
    windowed = {"causal": 0, "window": (WINDOW - 1, None)}
    hidden = {"mask": (2, 1, 1, 13)}
    whole = {"llama": {"causal": "top_left"}, "mistral": windowed, "bert": {}}
    padded = {"llama": {"causal": 0}, "mistral": windowed, "bert": {}}
    first = whole.get(name, windowed)  # gemma2 and gpt_oss alternate

    logits_of(model_of(name, "cpuattn"), batch("none"))
    logits_of(model_of(name, "cpuattn"), batch("left"))

    assert ranges(calls[0]) == first
    assert ranges(calls[1]) == whole.get(name, {"causal": "top_left"})
    assert ranges(calls[2]) == padded.get(name, windowed) | hidden
    assert ranges(calls[3]) == padded.get(name, {"causal": 0}) | hidden


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"window": None}),
        ("gemma2", {"window": None}),
        ("gemma2", {"softcap": None}),
        ("gpt_oss", {"sinks": None}),
        ("llama", {"causal": False}),
        ("bert", {"mask": None}),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_model_without_an_option_differs(
    name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests above would not notice a lost option that does not matter.
    inputs = batch("right")
    live = live_rows(inputs)
    right = logits_of(model_of(name, "cpuattn"), inputs)
    native = hook.attention
    monkeypatch.setattr(hook, "attention", lambda *x, **o: native(*x, **o | change))

    wrong = logits_of(model_of(name, "cpuattn"), inputs)

    assert np.abs(wrong - right)[live].max() > 1e-2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_generate_with_a_cache_equals_eager_token_by_token(
    name: str, padding: str, cache: str, calls: list[dict[str, Any]]
) -> None:
    tokens = 9  # crosses the window
    inputs = batch(padding, length=7)
    options = {
        "max_new_tokens": tokens,
        "do_sample": False,
        "cache_implementation": None if cache == "dynamic" else cache,
        "output_logits": True,
        "return_dict_in_generate": True,
        "disable_compile": True,
    }

    ours = model_of(name, "cpuattn").generate(**inputs, **options)

    assert len(calls) == LAYERS * tokens
    eager = model_of(name, "eager").generate(**inputs, **options)
    assert torch.equal(ours.sequences, eager.sequences)
    for mine, other in zip(ours.logits, eager.logits, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_generate_with_a_static_cache_hides_unused_slots_by_a_range(
    calls: list[dict[str, Any]],
) -> None:
    model_of("llama", "cpuattn").generate(
        **batch("none", length=7),
        max_new_tokens=6,
        do_sample=False,
        cache_implementation="static",
        disable_compile=True,
    )

    # 12 slots; the last token needs none.
    assert [ranges(options) for options in calls[::LAYERS]] == [
        {"causal": "top_left"},
        *({"causal": n} for n in range(7, 11)),
        {},
    ]


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_prompt_in_two_parts_equals_eager(
    name: str, padding: str, calls: list[dict[str, Any]]
) -> None:
    inputs = batch(padding)
    logits = {}

    for attention in ("cpuattn", "eager"):
        model = model_of(name, attention)
        first = {key: x[:, :6] for key, x in inputs.items()}
        with torch.no_grad():
            cache = model(**first, use_cache=True).past_key_values
        rest = inputs | {"input_ids": inputs["input_ids"][:, 6:]}
        logits[attention] = logits_of(model, rest | {"past_key_values": cache})

    assert len(calls) == 2 * LAYERS
    np.testing.assert_allclose(logits["cpuattn"], logits["eager"], rtol=0, atol=1e-4)
    if padding == "none" and name == "llama":
        assert ranges(calls[-1]) == {"causal": 6}


def test_encoder_decoder_with_position_bias_equals_eager(
    calls: list[dict[str, Any]],
) -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=LAYERS,
        num_heads=4,
        decoder_start_token_id=0,
    )
    torch.manual_seed(1)
    model = transformers.T5ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval()
    inputs = batch("right") | {"decoder_input_ids": batch("none", 5)["input_ids"]}
    exact, eager = (
        logits_of(copy.deepcopy(model).to(dtype), inputs)
        for dtype in (torch.float64, torch.float32)
    )
    model.set_attn_implementation("cpuattn")

    ours = logits_of(model, inputs)

    assert len(calls) == 3 * LAYERS
    assert_as_good(ours, exact, eager)


@pytest.mark.parametrize("name", ["mistral", "gpt_oss"])
def test_model_asked_for_attentions_returns_the_weights_of_eager(name: str) -> None:
    inputs = batch("right") | {"output_attentions": True}
    with torch.no_grad():
        ours, eager = (
            model_of(name, attention)(**inputs).attentions
            for attention in ("cpuattn", "eager")
        )

    assert len(ours) == LAYERS
    for mine, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_model_in_autocast_equals_eager_in_bfloat16_accuracy(
    calls: list[dict[str, Any]],
) -> None:
    # Without a cache the dtypes of key and value differ.
    inputs = batch("right") | {"use_cache": False}
    live = live_rows(inputs)
    exact = exact_logits("llama", inputs, torch.float32)

    with torch.autocast("cpu", torch.bfloat16):
        ours, eager = (
            logits_of(model_of("llama", attention), inputs)[live]
            for attention in ("cpuattn", "eager")
        )

    assert len(calls) == LAYERS
    assert_as_good(ours, exact, eager)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_compiled_model_equals_itself(name: str, calls: list[dict[str, Any]]) -> None:
    model = model_of(name, "cpuattn")
    inputs = batch("left")
    expected = logits_of(model, inputs)
    calls.clear()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that it cannot see inside
        compiled = logits_of(torch.compile(model, backend="eager"), inputs)

    assert len(calls) == LAYERS
    np.testing.assert_allclose(compiled, expected, rtol=0, atol=1e-5)


# Where torch takes over


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", WITH_SDPA)
def test_training_runs_on_torch_with_its_gradients(
    name: str, padding: str, calls: list[dict[str, Any]]
) -> None:
    inputs = batch(padding)
    gradients = {}

    for attention in ("cpuattn", "sdpa"):
        model = model_of(name, attention).train()
        torch.manual_seed(5)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients[attention] = [x.grad for x in model.parameters()]

    assert not calls
    for mine, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("name", "option"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")]
)
def test_training_without_an_equivalent_on_torch_raises(name: str, option: str) -> None:
    model = model_of(name, "cpuattn").train()

    with pytest.raises(
        NotImplementedError, match=rf"{option}: must be None where gradients .*'eager'"
    ):
        model(**batch("none"))


@pytest.mark.parametrize("which", ["query", "key", "value", "position_bias"])
def test_attention_with_any_input_that_requires_gradients_has_them(
    which: str, calls: list[dict[str, Any]]
) -> None:
    names = ("query", "key", "value", "position_bias")
    inputs = dict(zip(names, torch.randn(4, 1, 2, 8, 8).unbind(), strict=True))
    inputs[which].requires_grad_()

    out, _ = hook.attention_forward(torch.nn.Module(), **inputs, attention_mask=None)

    out.sum().backward()
    assert not calls
    assert inputs[which].grad is not None


def test_attention_with_sinks_that_require_gradients_raises() -> None:
    query, key, value = torch.randn(3, 1, 2, 8, 8).unbind()
    sinks = torch.zeros(2, requires_grad=True)

    with pytest.raises(NotImplementedError, match=r"^s_aux: "):
        hook.attention_forward(torch.nn.Module(), query, key, value, None, s_aux=sinks)


def test_evaluation_that_records_gradients_warns(calls: list[dict[str, Any]]) -> None:
    model = model_of("llama", "cpuattn")

    with pytest.warns(UserWarning, match=r"use torch.no_grad\(\) for inference"):
        model(**batch("none"))

    assert not calls


def test_dropout_without_gradients_follows_the_generator_of_torch(
    calls: list[dict[str, Any]],
) -> None:
    config = transformers.LlamaConfig(**DECODER, attention_dropout=0.5)
    model = transformers.LlamaForCausalLM._from_config(
        config, attn_implementation="cpuattn"
    )
    inputs = batch("none")
    plain = logits_of(model.eval(), inputs)
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(logits_of(model, inputs))

    assert [options.get("dropout_p", 0) for options in calls[::LAYERS]] == [
        0,
        *3 * [0.5],
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], plain)


def test_traced_attention_is_not_a_constant() -> None:
    def run(query: Any, key: Any, value: Any) -> Any:
        module = torch.nn.Module()
        return hook.attention_forward(module, query, key, value, None)[0]

    first, second = torch.randn(2, 3, 1, 2, 4, 8).unbind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        traced = torch.jit.trace(run, tuple(first))

    torch.testing.assert_close(traced(*second), run(*second))


def test_attention_off_the_cpu_runs_on_torch(calls: list[dict[str, Any]]) -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 8, device="meta").unbind()
    mask = make_mask(batch_size=1, q_length=4, kv_length=4, device="meta")

    out, _ = hook.attention_forward(torch.nn.Module(), query, key, value, mask)

    assert out.shape == (1, 4, 2, 8)
    assert out.device.type == "meta"
    assert not calls


@pytest.mark.parametrize("name", sorted(hook._REFUSED))
def test_attention_with_an_unknown_option_raises(name: str) -> None:
    module = torch.nn.Module()
    inputs = torch.randn(3, 1, 2, 4, 8).unbind()

    hook.attention_forward(module, *inputs, None, **{name: None})

    with pytest.raises(
        NotImplementedError, match=rf"^{name}: must be None; got .*sdpa"
    ):
        hook.attention_forward(module, *inputs, None, **{name: torch.ones(1)})


# The attention function


def eager(
    query: Any, key: Any, value: Any, bias: Any, softcap: float | None, sinks: Any
) -> Any:
    """Compute attention as the models' own functions do, in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = query @ key.mT * 0.3
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + bias
    if sinks is not None:
        sinks = sinks.double()[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1)[..., : key.shape[2]]
    return torch.nan_to_num(weights @ value).transpose(1, 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_attention_with_any_options_equals_the_formula(data: st.DataObject) -> None:
    draw = data.draw
    batch_size, heads, group = draw(st.tuples(*3 * [st.integers(1, 3)]), "sizes")
    q_len, kv_len = draw(st.tuples(*2 * [st.integers(1, 9)]), "lengths")
    widths = draw(st.tuples(*2 * [st.sampled_from([1, 5, 8])]), "widths")
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    kind = draw(st.sampled_from(["none", "bool", "float", "longer"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    query = torch.randn(batch_size, q_len, heads * group, widths[0]).to(dtype)
    key, value = (torch.randn(batch_size, kv_len, heads, w).to(dtype) for w in widths)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    options: dict[str, Any] = {"scaling": 0.3}
    module = torch.nn.Module()
    causal = draw(st.sampled_from(["default", "module", "argument"]), "says causal")
    if causal == "module":
        module.is_causal = draw(st.booleans(), "is_causal")
    elif causal == "argument":
        module.is_causal = draw(st.booleans(), "is_causal, not to be seen")
        options["is_causal"] = draw(st.booleans(), "is_causal")
    if draw(st.booleans(), "softcap"):
        options["softcap"] = 0.5
    if draw(st.booleans(), "sinks"):
        options["s_aux"] = torch.randn(heads * group).to(dtype)
    bias = torch.zeros(batch_size, 1, q_len, kv_len)
    mask = None
    if kind != "none":
        extra = 2 if kind == "longer" else 0
        mask = torch.rand(batch_size, 1, q_len, kv_len + extra) < 0.7
        bias = bias.masked_fill(~mask[..., :kv_len], -torch.inf)
        if kind == "float":
            mask = bias = bias + torch.rand(bias.shape)
    elif q_len > 1 and options.get("is_causal", getattr(module, "is_causal", True)):
        hidden = torch.ones(q_len, kv_len, dtype=torch.bool).triu(1)
        bias = bias.masked_fill(hidden, -torch.inf)
    if draw(st.booleans(), "position_bias"):
        options["position_bias"] = torch.randn(1, heads * group, q_len, kv_len)
        bias = bias + options["position_bias"]

    out, weights = hook.attention_forward(module, query, key, value, mask, **options)

    expected = eager(
        query, key, value, bias, options.get("softcap"), options.get("s_aux")
    )
    assert weights is None
    assert out.dtype == dtype
    assert out.is_contiguous()
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(
        out.double(), expected, rtol=tolerance, atol=2 * tolerance
    )


def test_attention_of_one_query_for_a_whole_batch_broadcasts() -> None:
    query = torch.randn(1, 4, 3, 8)
    key, value = torch.randn(2, 5, 2, 6, 8).unbind()
    module = torch.nn.Module()

    out, _ = hook.attention_forward(module, query, key, value, None, is_causal=False)

    repeated = query.expand(5, -1, -1, -1)
    same, _ = hook.attention_forward(
        module, repeated, key, value, None, is_causal=False
    )
    assert torch.equal(out, same)


def test_attention_with_dropout_returns_the_weights_that_multiply_the_values() -> None:
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind()

    out, weights = hook.attention_forward(
        torch.nn.Module(), query, key, value, None, dropout=0.5, output_attentions=True
    )

    assert (weights == 0).sum() > (weights > 0).sum()  # half of them, and the future
    torch.testing.assert_close(out, (weights @ value).transpose(1, 2))


def test_attention_with_a_mask_of_too_few_keys_raises() -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind()
    mask = make_mask(batch_size=1, q_length=4, kv_length=3, allow_is_causal_skip=False)

    with pytest.raises(ValueError, match=r"^mask: "):
        hook.attention_forward(torch.nn.Module(), query, key, value, mask)


# Registration


def test_register_under_another_name_selects_it(calls: list[dict[str, Any]]) -> None:
    integration.register("another")

    logits_of(model_of("llama", "another"), batch("none"))

    assert len(calls) == LAYERS


@pytest.mark.parametrize("missing", ["transformers", "torch"])
def test_register_without_a_package_names_the_pip_command(missing: str) -> None:
    done = run_python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from cpuattn.integrations.transformers import register\n"
        "register()"
    )

    assert "ImportError: cpuattn.integrations.transformers: needs torch" in done.stderr
    assert "try pip install torch 'transformers>=4.53'" in done.stderr


def test_import_of_the_integration_loads_neither_torch_nor_transformers() -> None:
    expect_success(
        "import sys, cpuattn.integrations.transformers\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}"
    )
