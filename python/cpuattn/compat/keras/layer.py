# SPDX-License-Identifier: MIT
"""``keras.layers.GroupQueryAttention`` on NumPy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._core import attention
from . import constraints, initializers, regularizers
from ._base import Layer
from ._dense import Projection, sigmoid, wide_dtype
from ._masks import bands, visibility
from ._registry import numpy_dtype
from ._shapes import Shape, feature_size, output_shape
from ._weights import Array, SeedGenerator, drops


class GroupedQueryAttention(Layer):
    """Compute attention of several heads that share keys, as Keras's layer does.

    ``keras.layers.GroupQueryAttention`` is another name of the same class, here too.

    Parameters
    ----------
    head_dim : int
        Size of each head.
    num_query_heads : int
        Number of query heads.
    num_key_value_heads : int
        Number of key and value heads; divides `num_query_heads`.
    dropout : float
        Fraction of the weights that is dropped in training.
    use_bias : bool
        Whether the projections add a bias.
    sliding_window : int, optional
        Row i sees key j only if ``abs(i - j) < sliding_window``.
    flash_attention : bool, optional
        Accepted for compatibility: every value runs the same fused kernel.
    kernel_initializer, bias_initializer : str, dict or callable
        First values of the weights; cloned for every projection.
    kernel_regularizer, bias_regularizer, activity_regularizer : str, dict or callable
        Penalties in `losses`; none by default.
    kernel_constraint, bias_constraint : str, dict or callable
        What `apply_constraints` makes of the weights; none by default.
    use_gate : bool
        Multiply the heads by the sigmoid of another projection of the query.
    seed : int, optional
        Seed of dropout.
    **kwargs
        name : str, trainable : bool, and dtype : float32, float16, bfloat16, float64,
        mixed_float16 or mixed_bfloat16.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    ValueError
        An argument has no meaning, or two do not go together.
    ZeroDivisionError
        `head_dim` or `num_key_value_heads` is 0.

    Notes
    -----
    Weights, in the order of `get_weights`: kernel and bias of ``query``, ``key``,
    ``gate`` (if there is one), ``value`` and ``attention_output``. They have the shapes
    that Keras gives them, so `set_weights` takes what its `get_weights` returns.

    As in Keras, a row with no visible key is the mean of the values, but 0 where
    `dropout` is above 0 or the scores are returned; the scores are those before
    dropout; and dropout draws what Keras's NumPy backend draws for the same seed.

    Differences from Keras: keys and values are not repeated, and causal masks, windows
    and products of masks not written out; a mask may not enlarge the batch, and means
    its truth whatever its dtype; a query, value or key mask together with a 4-D
    `attention_mask` works; a masked key reaches nothing even if its value holds NaN;
    kv_len 0 gives the output bias; float64 is computed and returned in float64; 16-bit
    policies have float32 projections, penalties and a float32 copy of the weights;
    weights are read-only arrays that `assign` replaces; there are no symbolic calls,
    quantization or LoRA.

    References
    ----------
    Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from
    Multi-Head Checkpoints"; Keras 3.15, ``keras.layers.GroupQueryAttention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.keras import GroupQueryAttention
    >>> layer = GroupQueryAttention(16, num_query_heads=8, num_key_value_heads=2)
    >>> x = np.ones((2, 10, 64), np.float32)
    >>> layer(x, x, use_causal_mask=True).shape
    (2, 10, 64)
    >>> [weight.path.partition("/")[2] for weight in layer.weights[:3]]
    ['query/kernel', 'query/bias', 'key/kernel']
    """

    def __init__(
        self,
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        dropout: float = 0.0,
        use_bias: bool = True,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_query_heads % num_key_value_heads != 0:
            raise ValueError(
                "`num_query_heads` must be divisible by `num_key_value_heads`."
            )
        if sliding_window is not None and (
            not isinstance(sliding_window, int) or sliding_window <= 0
        ):
            raise ValueError(
                "`sliding_window` must be `None` or a positive integer. "
                f"Received: sliding_window={sliding_window}"
            )
        self.supports_masking = True
        self.head_dim = head_dim
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_repeats = num_query_heads // num_key_value_heads
        self.dropout = dropout
        self.use_bias = use_bias
        self.use_gate = use_gate
        self.sliding_window = sliding_window
        self.kernel_initializer: Any = initializers.get(kernel_initializer)
        self.bias_initializer: Any = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.seed = seed
        self._flash_attention = bool(flash_attention)
        self._inverse_sqrt_head_dim = 1.0 / math.sqrt(float(head_dim))
        self._compute = numpy_dtype(self.compute_dtype)
        self._wide = wide_dtype(self.dtype_policy)
        self._rounds = self._compute != self._wide
        if self._flash_attention and dropout > 0.0:
            raise ValueError(
                "Dropout is not supported when flash attention is enabled. "
                "Please set dropout to 0.0 to use flash attention."
            )

    def build(
        self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None
    ) -> None:
        """Make the weights for inputs of these shapes; the first call does it, too.

        Parameters
        ----------
        query_shape, value_shape, key_shape : tuple of int or None
            (batch, length, features), of which only the features matter.

        Raises
        ------
        IndexError
            A shape has fewer than 3 axes.
        ValueError
            A shape has more, `dropout` is not in [0, 1], or the layer is built.
        """
        if self.built:
            raise ValueError(
                "You cannot add new elements of state (variables or sub-layers) to a "
                "layer that is already built."
            )
        key_shape = value_shape if key_shape is None else key_shape
        model, values, keys = map(feature_size, (query_shape, value_shape, key_shape))
        queries = (self.num_query_heads, self.head_dim)
        shared = (self.num_key_value_heads, self.head_dim)
        self._query_dense = self._projection("query", (model,), queries)
        self._key_dense = self._projection("key", (keys,), shared)
        state = [*self._query_dense.weights, *self._key_dense.weights]
        if self.use_gate:
            self._gate_dense = self._projection("gate", (model,), queries)
            state += self._gate_dense.weights
        self._value_dense = self._projection("value", (values,), shared)
        state += self._value_dense.weights
        if not 0 <= self.dropout <= 1:
            raise ValueError(
                "Invalid value received for argument `rate`. Expected a float value "
                f"between 0 and 1. Received: rate={self.dropout}"
            )
        if self.dropout > 0:
            self._seed_generator = SeedGenerator(self.seed, self.name)
            state.append(self._seed_generator.state)
        self._output_dense = self._projection("attention_output", queries, (model,))
        self._variables = [*state, *self._output_dense.weights]
        self.built = True

    def _projection(
        self, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> Projection:
        # Clones, so that an unseeded initializer draws anew for every projection.
        kernel_initializer = self.kernel_initializer.clone()
        bias_initializer = self.bias_initializer.clone()
        return Projection(
            f"{self.name}/{name}",
            inputs,
            outputs,
            self.dtype_policy,
            kernel_initializer,
            bias_initializer if self.use_bias else None,
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
        )

    def __call__(
        self,
        query: Array,
        value: Array,
        key: Array | None = None,
        query_mask: NDArray[Any] | None = None,
        value_mask: NDArray[Any] | None = None,
        key_mask: NDArray[Any] | None = None,
        attention_mask: NDArray[Any] | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attend to `value` by `key`.

        Parameters
        ----------
        query : ndarray, shape (batch, q_len, query_features)
            Copied if its dtype is not that of the layer.
        value : ndarray, shape (batch, kv_len, value_features)
            Its batch may be 1.
        key : ndarray, shape (batch, kv_len, key_features), optional
            `value` by default.
        query_mask : ndarray, shape (batch, q_len), optional
            True or non-zero = attend.
        value_mask, key_mask : ndarray, shape (batch, kv_len), optional
            True or non-zero = attend to it.
        attention_mask : ndarray, optional
            True or non-zero = attend; shape (q_len, kv_len), (batch, q_len, kv_len) or
            (batch, num_heads, q_len, kv_len), where any axis may be 1. Copied if it is
            not boolean.
        return_attention_scores : bool
            Whether to return the weights before dropout as well.
        training : bool, optional
            Whether to drop.
        use_causal_mask : bool
            Top-left causal mask: row i sees keys j <= i.

        Returns
        -------
        output : ndarray, shape (batch, q_len, query_features), dtype of the layer
        scores : ndarray, shape (batch, num_query_heads, q_len, kv_len), same dtype
            Only if `return_attention_scores`.

        Raises
        ------
        TypeError
            An input is complex.
        ValueError
            An input is not an array, or shapes do not fit together.
        IndexError
            An input of the first call has fewer than 3 axes.
        """
        if return_attention_scores and self._flash_attention:
            raise ValueError(
                "Returning attention scores is not supported when flash attention is "
                "enabled. Please disable flash attention to access attention scores."
            )
        same = value is query
        query = self._input("query", query)
        value = query if same else self._input("value", value)
        key = value if key is None else self._input("key", key)
        if not self.built:
            self.build(query.shape, value.shape, key.shape)
        # One row for each: what Keras's sub-layers return, in their order.
        projected = [
            self._narrow(self._query_dense(query)),
            self._narrow(self._key_dense(key)),
        ]
        gate = sigmoid(self._gate_dense(query)) if self.use_gate else None
        if gate is not None:
            projected.append(gate)
        projected.append(self._narrow(self._value_dense(value)))

        options = self._options(
            (query.shape, value.shape, key.shape),
            (attention_mask, query_mask, value_mask, key_mask),
            use_causal_mask,
            training,
        )
        # Keras leaves its fused path, which has the mean, for dropout and for scores.
        fused = not (self.dropout > 0.0 or return_attention_scores)
        returned = attention(
            projected[0],
            projected[1],
            projected[-1],
            layout="bshd",
            scale=self._inverse_sqrt_head_dim,
            fully_masked="mean" if fused else "zero",
            return_weights=bool(return_attention_scores),
            **options,
        )
        heads, *scores = returned if return_attention_scores else (returned,)
        if self._rounds:
            heads = heads.astype(self._wide)
        if gate is not None:
            heads *= gate
        output = self._narrow(self._output_dense(heads))
        if self.activity_regularizer is not None:
            self._losses = [
                float(self.activity_regularizer(self._narrow(x))) / max(len(x), 1)
                for x in (output, *scores, *projected, output)
            ]
        return (output, *scores) if scores else output

    call = __call__

    def _input(self, name: str, x: Any) -> Array:
        """Round an input to the dtype of the layer, and give it the wide one."""
        if not hasattr(x, "__array__"):
            raise ValueError(f"{name}: must be an array; got {type(x).__name__}")
        array = np.asarray(x)
        if self.built and array.ndim != 3:
            raise ValueError(
                f"Input 0 with name 'None' of layer '{name}' is incompatible with the "
                f"layer: expected ndim=3, found ndim={array.ndim}. Full shape "
                f"received: {array.shape}"
            )
        if array.dtype != self._compute:
            if array.dtype.kind == "c":
                raise TypeError(f"{name}: must be real; got dtype {array.dtype}")
            array = array.astype(self._compute)
        return array.astype(self._wide) if self._rounds else array

    def _narrow(self, x: Array) -> Array:
        """Round what was computed in the wide dtype to that of the layer."""
        return x.astype(self._compute, copy=False) if self._rounds else x

    def _options(
        self,
        shapes: tuple[tuple[int, ...], ...],
        masks: tuple[Any, ...],
        use_causal_mask: bool,
        training: bool | None,
    ) -> dict[str, Any]:
        """Return the options of `attention` for masks and dropout."""
        query, value, key = shapes
        lengths = query[1], value[1]
        options = bands(use_causal_mask, self.sliding_window, *lengths)
        if any(mask is not None for mask in masks):
            options |= visibility(lengths, *masks, banded=bool(options))
        if training and self.dropout > 0.0:
            batch = np.broadcast_shapes(query[:1], key[:1])
            shape = (*batch, self.num_query_heads, *lengths)
            options |= drops(self.dropout, shape, self._seed_generator)
        return options

    def compute_output_shape(
        self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None
    ) -> Shape:
        """Return that of the query; ValueError if Keras's rules forbid the shapes."""
        return output_shape(query_shape, value_shape, key_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the layer again, as Keras writes them."""
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "use_bias": self.use_bias,
            "use_gate": self.use_gate,
            "sliding_window": self.sliding_window,
            "dropout": self.dropout,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
            "seed": self.seed,
        }
