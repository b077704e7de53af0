"""The shapes that `bench` times, and random arrays of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, Array, Array]


class PeerError(Exception):
    """Raised when something that was asked for cannot be used here."""


@dataclass(frozen=True)
class Case:
    """Describe a shape; causal cases are square."""

    name: str
    batch: int
    num_heads: int
    num_kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    causal: bool = False

    @property
    def shape(self) -> str:
        """The sizes, as batch x heads[/kv heads] x q_len x kv_len x head_dim."""
        heads = f"{self.num_heads}" + f"/{self.num_kv_heads}" * self.grouped
        return f"{self.batch}x{heads}x{self.q_len}x{self.kv_len}x{self.head_dim}"

    @property
    def grouped(self) -> bool:
        """Whether query heads share a kv head."""
        return self.num_heads != self.num_kv_heads

    @property
    def flops(self) -> float:
        """Operations of both products; a causal call needs half."""
        rows = self.batch * self.num_heads * self.q_len
        return 4.0 * rows * self.kv_len * self.head_dim * (0.5 if self.causal else 1)

    def arrays(self, dtype: str) -> Arrays:
        """Return query, key and value, the same ones each time."""
        rng = np.random.default_rng(0)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        lengths = (self.q_len, self.kv_len, self.kv_len)
        query, key, value = (
            rng.standard_normal((self.batch, h, n, self.head_dim), np.float32)
            for h, n in zip(heads, lengths, strict=True)
        )
        kind: Any = dtype
        if dtype == "bfloat16":
            try:
                import ml_dtypes
            except ImportError:
                raise PeerError("--dtype bfloat16 needs ml_dtypes") from None
            kind = ml_dtypes.bfloat16
        return query.astype(kind), key.astype(kind), value.astype(kind)


CASES = (
    Case("tiny", 1, 1, 1, 1, 1, 8),
    Case("bert_128", 4, 12, 12, 128, 128, 64),
    Case("vit_h_577", 1, 16, 16, 577, 577, 80),
    Case("dense_1024", 1, 12, 12, 1024, 1024, 64),
    Case("causal_1024", 1, 12, 12, 1024, 1024, 64, causal=True),
    Case("llama_1024", 1, 32, 8, 1024, 1024, 128, causal=True),
    Case("decode_gqa_1024", 1, 32, 8, 1, 1024, 128),
    Case("decode_gqa_8192", 1, 32, 8, 1, 8192, 128),
)
