# SPDX-License-Identifier: MIT
"""Name every benchmark case, its shape, its useful work and its input arrays.

This is the only place where shapes are written down; every tool takes names or
groups from here. Every case exists in float32; `OTHER_DTYPES` says which ones exist in
what other dtype or precision too.

Counting rules (see README.md): a prefill case does 4 * head_dim useful FLOPs for each
visible (query row, key) pair of each query head. Causal cases count half of the square,
block masks and padding count the visible pairs, and a random boolean mask counts every
pair, since a mask without an empty tile saves no work.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[Any]  # NumPy has no type for bfloat16
BoolArray = npt.NDArray[np.bool_]
MaskKind = Literal["random", "block", "block_shared", "padding"]
BiasKind = Literal["full"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Precision = Literal["highest", "high", "medium"]

MASK_TILE = 128
MEMORY_BOUND_GROUPS = frozenset({"decode_gqa", "decode_mha", "speculative"})
# How far a right result may be from float64 attention on the same arrays, relative to
# the largest output: a few roundings of the dtype.
TOLERANCES: dict[Dtype, float] = {
    "float64": 1e-13,
    "float32": 2e-5,
    "float16": 2e-3,
    "bfloat16": 2e-2,
}


@dataclass(frozen=True)
class Case:
    """Describe one attention call.

    Attributes
    ----------
    name, group : str
        What the command line selects by.
    batch, num_heads, num_kv_heads, q_len, kv_len, head_dim : int
        The shape; value has the head_dim of key.
    causal : bool
        Only used with q_len equal to kv_len, where top-left and bottom-right alignment
        are the same thing.
    mask : {"random", "block", "block_shared", "padding"} or None
        "random": (batch, num_heads, q_len, kv_len), each key visible with probability
        one half, so that no tile is empty or full. "block": the same shape, a
        checkerboard of 128 x 128 tiles, half of them empty; "block_shared" is that
        with shape (1, 1, q_len, kv_len). "padding": (batch, 1, 1, kv_len).
    bias : {"full"} or None
        "full": float32, (1, num_heads, q_len, kv_len).
    twin : str or None
        The case with the same shape and no mask or bias, to compare speeds with.
    quick : bool
        Part of the short run (``--quick``).
    dtype, kv_dtype : {"float32", "bfloat16", "float16", "float64"}
        Elements of query and out, and of key and value.
    precision : {"highest", "high", "medium"}
        How exact the products of float32 must be, as cpuattn names it.
    """

    name: str
    group: str
    batch: int
    num_heads: int
    num_kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    causal: bool = False
    mask: MaskKind | None = None
    bias: BiasKind | None = None
    twin: str | None = None
    quick: bool = False
    dtype: Dtype = "float32"
    kv_dtype: Dtype = "float32"
    precision: Precision = "highest"

    @property
    def dtypes(self) -> str:
        """The dtypes and the precision in one word, as ``--dtypes`` takes it."""
        if self.kv_dtype != self.dtype:
            return f"{self.dtype}-{self.kv_dtype}"
        if self.precision != "highest":
            return f"{self.dtype}-{self.precision}"
        return self.dtype

    @property
    def id(self) -> str:
        """The name, with the dtypes unless they are float32."""
        return self.name if self.dtypes == "float32" else f"{self.name}-{self.dtypes}"

    @property
    def tolerance(self) -> float:
        """The error, relative to the largest output, up to which a result is right.

        Who multiplies a cache of 16 bits may round the query to it.
        """
        return TOLERANCES["bfloat16" if self.precision == "medium" else self.kv_dtype]

    @property
    def shape(self) -> str:
        """The sizes as batch x heads[/kv heads] x q_len x kv_len x head_dim."""
        heads = f"{self.num_heads}"
        if self.num_kv_heads != self.num_heads:
            heads += f"/{self.num_kv_heads}"
        return f"{self.batch}x{heads}x{self.q_len}x{self.kv_len}x{self.head_dim}"

    @property
    def memory_bound(self) -> bool:
        """Whether the limit is the rate of reading key and value."""
        return self.group in MEMORY_BOUND_GROUPS

    @property
    def visible_pairs(self) -> float:
        """Visible (query row, key) pairs over all batches and query heads."""
        rows = self.batch * self.num_heads * self.q_len
        if self.mask in ("block", "block_shared"):
            tile = block_mask(self.q_len, self.kv_len)
            return float(self.batch * self.num_heads * int(tile.sum()))
        if self.mask == "padding":
            return float(self.num_heads * self.q_len * int(self.kv_lengths().sum()))
        return rows * self.kv_len * (0.5 if self.causal else 1.0)

    @property
    def flops(self) -> float:
        """Useful floating point operations, 4 * head_dim for each visible pair."""
        return 4.0 * self.head_dim * self.visible_pairs

    @property
    def kv_bytes(self) -> int:
        """Bytes of key and value together."""
        elements = self.batch * self.num_kv_heads * self.kv_len * self.head_dim
        return 2 * numpy_dtype(self.kv_dtype).itemsize * elements

    def kv_lengths(self) -> npt.NDArray[np.int64]:
        """Return the valid keys of each batch element of a padded case."""
        return np.linspace(self.kv_len // 2, self.kv_len, self.batch).astype(np.int64)


@dataclass(frozen=True)
class Inputs:
    """Hold the arrays of one case.

    Attributes
    ----------
    query : ndarray, shape (batch, num_heads, q_len, head_dim), dtype of the case
    key, value : ndarray, shape (batch, num_kv_heads, kv_len, head_dim), kv_dtype
    mask : ndarray of bool or None, broadcasts to (batch, num_heads, q_len, kv_len)
    bias : ndarray of float32 or None, broadcasts to the same
    """

    query: FloatArray
    key: FloatArray
    value: FloatArray
    mask: BoolArray | None
    bias: FloatArray | None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name; bfloat16 is the one of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def aligned_empty(
    shape: tuple[int, ...], dtype: str = "float32", offset: int = 0
) -> FloatArray:
    """Allocate a C-contiguous array that starts on a 64-byte boundary.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
    offset : int
        Bytes past the boundary at which the data starts; NumPy's own large arrays
        usually start at 16.

    Returns
    -------
    ndarray, shape ``shape``, dtype ``dtype``
    """
    element = numpy_dtype(dtype)
    size = int(np.prod(shape)) * element.itemsize
    raw = np.empty(size + 128, dtype=np.uint8)
    begin = (-raw.ctypes.data) % 64 + offset
    return raw[begin : begin + size].view(element).reshape(shape)


def block_mask(q_len: int, kv_len: int) -> BoolArray:
    """Draw a checkerboard of 128 x 128 tiles, True where the tile is visible."""
    q_tile = np.arange(q_len)[:, None] // MASK_TILE
    kv_tile = np.arange(kv_len)[None, :] // MASK_TILE
    visible: BoolArray = (q_tile + kv_tile) % 2 == 0
    return visible


def make_inputs(case: Case, offset: int = 0) -> Inputs:
    """Draw the arrays of a case; the same name always gives the same numbers.

    Parameters
    ----------
    case : Case
    offset : int
        Bytes past a 64-byte boundary at which each float array starts.

    Returns
    -------
    Inputs
    """
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))

    def normal(dtype: Dtype, *shape: int) -> FloatArray:
        array = aligned_empty(shape, dtype, offset)
        drawn = np.float64 if dtype == "float64" else np.float32
        array[...] = rng.standard_normal(shape, dtype=drawn)
        return array

    query_shape = (case.batch, case.num_heads, case.q_len, case.head_dim)
    kv_shape = (case.batch, case.num_kv_heads, case.kv_len, case.head_dim)
    bias_shape = (1, case.num_heads, case.q_len, case.kv_len)
    return Inputs(
        query=normal(case.dtype, *query_shape),
        key=normal(case.kv_dtype, *kv_shape),
        value=normal(case.kv_dtype, *kv_shape),
        mask=make_mask(case, rng),
        bias=normal("float32", *bias_shape) if case.bias else None,
    )


def make_mask(case: Case, rng: np.random.Generator) -> BoolArray | None:
    """Build the boolean mask of a case, True where a key is visible."""
    full_shape = (case.batch, case.num_heads, case.q_len, case.kv_len)
    if case.mask == "random":
        bits = rng.integers(0, 2, size=full_shape, dtype=np.uint8)
        bits[..., 0] = 1
        return bits.view(np.bool_)
    if case.mask == "block":
        block = block_mask(case.q_len, case.kv_len)
        return np.ascontiguousarray(np.broadcast_to(block, full_shape))
    if case.mask == "block_shared":
        return block_mask(case.q_len, case.kv_len)[None, None]
    if case.mask == "padding":
        visible = np.arange(case.kv_len)[None, :] < case.kv_lengths()[:, None]
        return np.ascontiguousarray(visible[:, None, None, :])
    return None


PLAIN_CASES: tuple[Case, ...] = (
    # Dense prefill.
    Case("dense_512_d64", "dense", 1, 8, 8, 512, 512, 64, quick=True),
    Case("dense_1024_d64", "dense", 1, 12, 12, 1024, 1024, 64),
    Case("dense_2048_d64", "dense", 1, 8, 8, 2048, 2048, 64),
    Case("dense_4096_d64", "dense", 1, 8, 8, 4096, 4096, 64),
    Case("dense_16384_d64", "dense", 1, 1, 1, 16384, 16384, 64),
    Case("dense_512_d128", "dense", 1, 32, 8, 512, 512, 128),
    Case("dense_1024_d128", "dense", 1, 32, 8, 1024, 1024, 128),
    Case("dense_2048_d128", "dense", 1, 32, 8, 2048, 2048, 128),
    Case("dense_4096_d128", "dense", 1, 8, 2, 4096, 4096, 128),
    Case("dense_16384_d128", "dense", 1, 1, 1, 16384, 16384, 128),
    # Causal prefill.
    Case("causal_512_d64", "causal", 1, 8, 8, 512, 512, 64, causal=True, quick=True),
    Case("causal_1024_d64", "causal", 1, 12, 12, 1024, 1024, 64, causal=True),
    Case("causal_2048_d64", "causal", 1, 8, 8, 2048, 2048, 64, causal=True),
    Case("causal_4096_d64", "causal", 1, 8, 8, 4096, 4096, 64, causal=True),
    Case("causal_16384_d64", "causal", 1, 1, 1, 16384, 16384, 64, causal=True),
    Case("causal_512_d128", "causal", 1, 32, 8, 512, 512, 128, causal=True),
    Case("causal_1024_d128", "causal", 1, 32, 8, 1024, 1024, 128, causal=True),
    Case("causal_2048_d128", "causal", 1, 32, 8, 2048, 2048, 128, causal=True),
    Case("causal_4096_d128", "causal", 1, 8, 2, 4096, 4096, 128, causal=True),
    # Small and odd shapes of real models.
    Case("bert_128", "small", 4, 12, 12, 128, 128, 64, quick=True),
    Case("minilm_32", "small", 32, 12, 12, 32, 32, 32, quick=True),
    Case("vit_h_577", "small", 1, 16, 16, 577, 577, 80),
    Case("cross_attention_77", "small", 2, 8, 8, 4096, 77, 40, quick=True),
    Case("diffusion_self_4096", "small", 1, 10, 10, 4096, 4096, 64),
    # One new token against a cache, grouped heads as in Llama 3 8B.
    Case("decode_gqa_1024", "decode_gqa", 1, 32, 8, 1, 1024, 128, quick=True),
    Case("decode_gqa_2048", "decode_gqa", 1, 32, 8, 1, 2048, 128),
    Case("decode_gqa_4096", "decode_gqa", 1, 32, 8, 1, 4096, 128),
    Case("decode_gqa_8192", "decode_gqa", 1, 32, 8, 1, 8192, 128),
    Case("decode_gqa_16384", "decode_gqa", 1, 32, 8, 1, 16384, 128),
    Case("decode_gqa_32768", "decode_gqa", 1, 32, 8, 1, 32768, 128),
    Case("decode_gqa_1024_b8", "decode_gqa", 8, 32, 8, 1, 1024, 128),
    # One new token, every query head with its own key and value.
    Case("decode_mha_1024_d128", "decode_mha", 1, 32, 32, 1, 1024, 128, quick=True),
    Case("decode_mha_4096_d128", "decode_mha", 1, 32, 32, 1, 4096, 128),
    Case("decode_mha_8192_d128", "decode_mha", 1, 32, 32, 1, 8192, 128),
    Case("decode_mha_128_d64", "decode_mha", 1, 12, 12, 1, 128, 64),
    Case("decode_mha_1024_d64", "decode_mha", 1, 12, 12, 1, 1024, 64),
    Case("decode_mha_8192_d64", "decode_mha", 1, 12, 12, 1, 8192, 64),
    Case("decode_mha_32768_d64", "decode_mha", 1, 12, 12, 1, 32768, 64),
    # A few drafted tokens against a long cache (every row sees the whole cache).
    Case("speculative_4_4096", "speculative", 1, 32, 8, 4, 4096, 128),
    Case("speculative_4_8192", "speculative", 1, 32, 8, 4, 8192, 128, quick=True),
    Case("speculative_4_32768", "speculative", 1, 32, 8, 4, 32768, 128),
    Case("speculative_8_4096", "speculative", 1, 32, 8, 8, 4096, 128),
    Case("speculative_8_8192", "speculative", 1, 32, 8, 8, 8192, 128),
    Case("speculative_8_32768", "speculative", 1, 32, 8, 8, 32768, 128),
    # Calls whose cost is the call itself.
    Case("tiny_1x1x1x1x8", "tiny", 1, 1, 1, 1, 1, 8, quick=True),
    Case("tiny_1x4x8x8x16", "tiny", 1, 4, 4, 8, 8, 16),
    Case("tiny_1x8x16x16x64", "tiny", 1, 8, 8, 16, 16, 64),
)


def masked(
    name: str,
    twin: str,
    *,
    mask: MaskKind | None = None,
    bias: BiasKind | None = None,
    quick: bool = False,
) -> Case:
    """Give a plain case a mask or a bias."""
    plain = next(case for case in PLAIN_CASES if case.name == twin)
    return replace(
        plain,
        name=name,
        group="masked",
        mask=mask,
        bias=bias,
        twin=twin,
        quick=quick,
    )


MASKED_CASES: tuple[Case, ...] = (
    # Masks and bias; each shape has its dense twin above.
    masked("mask_512_d64", "dense_512_d64", mask="random", quick=True),
    masked("mask_1024_d64", "dense_1024_d64", mask="random"),
    masked("mask_2048_d64", "dense_2048_d64", mask="random"),
    masked("mask_1024_d128", "dense_1024_d128", mask="random"),
    masked("mask_bert_128", "bert_128", mask="random"),
    masked("block_1024_d64", "dense_1024_d64", mask="block"),
    masked("block_2048_d64", "dense_2048_d64", mask="block"),
    masked("block_shared_2048_d64", "dense_2048_d64", mask="block_shared"),
    masked("padded_bert_128", "bert_128", mask="padding"),
    masked("bias_512_d64", "dense_512_d64", bias="full"),
    masked("bias_1024_d64", "dense_1024_d64", bias="full"),
    masked("bias_vit_h_577", "vit_h_577", bias="full"),
    Case("padded_512_d64", "masked", 4, 8, 8, 512, 512, 64, mask="padding"),
)

FLOAT32_CASES = PLAIN_CASES + MASKED_CASES

# The float32 cases of docs/benchmarks.md; of the other dtypes it has all.
REPORT_CASES = frozenset(
    [
        "dense_512_d64",
        "dense_2048_d64",
        "dense_2048_d128",
        "causal_512_d64",
        "causal_2048_d64",
        "causal_2048_d128",
        "bert_128",
        "minilm_32",
        "vit_h_577",
        "cross_attention_77",
        "decode_gqa_1024",
        "decode_gqa_8192",
        "decode_gqa_32768",
        "decode_mha_1024_d128",
        "decode_mha_8192_d64",
        "speculative_4_8192",
        "speculative_8_8192",
        "tiny_1x1x1x1x8",
        "mask_1024_d64",
        "block_1024_d64",
        "bias_512_d64",
        "padded_512_d64",
    ]
)


def prefill_names(*lengths: int) -> tuple[str, ...]:
    """Name the dense and causal cases of both head dims at the given lengths."""
    return tuple(
        f"{group}_{length}_d{head_dim}"
        for group in ("dense", "causal")
        for length in lengths
        for head_dim in (64, 128)
    )


MODEL_NAMES = ("bert_128", "minilm_32", "vit_h_577")
DECODE_NAMES = (
    "decode_gqa_1024",
    "decode_gqa_8192",
    "decode_gqa_32768",
    "decode_mha_1024_d128",
    "decode_mha_8192_d64",
    "decode_mha_32768_d64",
)
PRECISION_NAMES = (
    "dense_512_d64",
    "dense_1024_d64",
    "dense_2048_d64",
    "dense_4096_d64",
    "dense_2048_d128",
    "causal_2048_d64",
    "causal_2048_d128",
    "bert_128",
)
DOUBLE_NAMES = ("dense_512_d64", "dense_512_d128", "dense_2048_d64", "dense_2048_d128")


def variants(names: Iterable[str], **fields: Any) -> tuple[Case, ...]:
    """Give float32 cases another dtype or precision."""
    chosen = set(names)
    return tuple(
        replace(case, **fields) for case in FLOAT32_CASES if case.name in chosen
    )


def in_dtype(dtype: Dtype, names: Iterable[str]) -> tuple[Case, ...]:
    """Give float32 cases another dtype of query, key and value."""
    return variants(names, dtype=dtype, kv_dtype=dtype)


OTHER_DTYPES: tuple[Case, ...] = (
    *variants(PRECISION_NAMES, precision="high"),
    *variants(PRECISION_NAMES, precision="medium"),
    *in_dtype("bfloat16", prefill_names(512, 1024, 2048, 4096)),
    *in_dtype("bfloat16", MODEL_NAMES + DECODE_NAMES),
    *variants(DECODE_NAMES, kv_dtype="bfloat16"),
    *in_dtype("float16", prefill_names(512, 2048) + MODEL_NAMES + DECODE_NAMES),
    *in_dtype("float64", DOUBLE_NAMES),
)
CASES = FLOAT32_CASES + OTHER_DTYPES
DTYPES = tuple(dict.fromkeys(case.dtypes for case in CASES))


def select_cases(
    names: Iterable[str],
    *,
    quick: bool = False,
    dtypes: Iterable[str] = ("float32",),
) -> list[Case]:
    """Choose cases by case or group name, in the order of `CASES`.

    Parameters
    ----------
    names : iterable of str
        Case and group names, or "report" for the cases of docs/benchmarks.md; none of
        them means every case.
    quick : bool
        Keep only the cases of the short run.
    dtypes : iterable of str
        Keep only these, of `DTYPES`.

    Returns
    -------
    list of Case

    Raises
    ------
    ValueError
        If a name is neither a case nor a group, or a dtype is not one of `DTYPES`.
    """
    wanted, kept = set(names), set(dtypes)
    groups = {case.group for case in CASES} | {"report"}
    unknown = wanted - groups - {case.name for case in CASES}
    if unknown:
        raise ValueError(
            f"case: must be a case or a group ({', '.join(sorted(groups))}); "
            f"got {', '.join(sorted(unknown))}"
        )
    if kept - set(DTYPES):
        raise ValueError(
            f"dtypes: must be of {', '.join(DTYPES)}; "
            f"got {', '.join(sorted(kept - set(DTYPES)))}"
        )

    def is_wanted(case: Case) -> bool:
        in_report = case.name in REPORT_CASES or case.dtypes != "float32"
        return (
            not wanted
            or not wanted.isdisjoint((case.name, case.group))
            or ("report" in wanted and in_report)
        )

    return [
        case
        for case in CASES
        if case.dtypes in kept and is_wanted(case) and (case.quick or not quick)
    ]
