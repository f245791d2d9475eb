"""Attention backends: interchangeable implementations of attention.

A backend never falls back to another: it refuses, by name, what it does not support.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lmx.config.registry import check_argument, configurable, require
from lmx.core import partitioning
from lmx.layers.mask import TokenInfo, make_attention_mask


@dataclass(frozen=True)
class AttentionMask:
    """Which keys each query sees, without the dense array.

    With `single_document` every row is one document without padding or cache: a query
    sees itself and the tokens before it, or the last `window` of these.
    """

    query: TokenInfo
    key: TokenInfo
    window: int | None = None
    single_document: bool = False

    @property
    def no_cache(self) -> bool:
        """Whether the keys are the tokens of the queries, in the same order."""
        return self.key is self.query

    @property
    def dense(self) -> Bool[Array, "B T S"]:
        """True where query t sees key s: as large as the logits of one head."""
        return make_attention_mask(self.query, self.key, self.window)


@cache
def log_once(warning: str) -> None:
    """Logs a warning the first time."""
    logging.getLogger(__name__).warning(warning)


class AttentionBackend(ABC):
    """Base class of implementations of attention.

    Attributes:
        supports: supported parameters of layers beyond plain dot products; "value_dim"
            are values of another size than keys.
        platforms, dtypes: where it runs, and what it computes in; empty: any.
        sharded_length: whether it runs where the sequence is sharded.
    """

    supports: ClassVar[frozenset[str]] = frozenset()
    platforms: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ()
    sharded_length: ClassVar[bool] = True

    def check(self, layer: str, head_dim: int, required: Iterable[str]) -> None:
        """Raises ValueError for what it does not support of a `layer` of that name.

        That is a head size, or a `required` parameter.
        """
        for parameter in required:
            check_argument(
                parameter in self.supports,
                f"{type(self).__name__} does not support {layer}.{parameter}:"
                f" leave it out, or set {layer}.backend=@ReferenceAttention().",
            )

    def count_pairs(self, queries: int, keys: int) -> int:
        """Pairs of a query and a key of which one head holds logits at once."""
        return queries * keys

    def check_program(self, dtype: jnp.dtype) -> None:
        """Raises ConfigError where the traced program is not supported."""
        remedy = (
            "change that, or set the layer's backend=@RingAttention(), which always"
            " runs."
        )
        partitioning.check_kernel(self, dtype, remedy)
        split = partitioning.mesh_axes("T")
        require(
            self.sharded_length or not split,
            f"{type(self).__name__} needs complete rows, and a rule shards them over"
            f" {split}: {remedy}",
        )

    @abstractmethod
    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K J"],
        mask: AttentionMask,
        **options: Any,
    ) -> Float[Array, "B T N J"]:
        """The result of `reference.attend`, with its options, for `mask.dense`."""


@configurable
@dataclass(frozen=True)
class XLAAttention(AttentionBackend):
    """`jax.nn.dot_product_attention` as XLA compiles it; the softmax is in float32."""

    implementation: ClassVar[Literal["xla", "cudnn"]] = "xla"

    def __call__(self, q, k, v, mask, *, scale=None, **unused):
        self.check_program(q.dtype)
        if mask.single_document:  # JAX counts the keys before the query's own
            before = None if mask.window is None else (mask.window - 1, 0)
            options: dict[str, Any] = dict(is_causal=True, local_window_size=before)
        else:
            options = dict(mask=mask.dense[:, None])
            if self.implementation == "cudnn":
                megabytes = options["mask"].size * q.dtype.itemsize / 1e6
                log_once(
                    f"CuDNNAttention needs a dense mask of {megabytes:.1f} MB for"
                    " packed rows or a cache, which every layer reads: rows of one"
                    " document each need none."
                )
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, implementation=self.implementation, **options
        )


@configurable
@dataclass(frozen=True)
class CuDNNAttention(XLAAttention):
    """cuDNN's flash attention on NVIDIA GPUs, which never stores the logits.

    `head_dim` is a multiple of 8, at most 128 (256 from Hopper on). Packed rows, and a
    cache, need a dense mask; rows of one document (`segments=None`) need none. Dao
    2023, arXiv:2307.08691.
    """

    implementation = "cudnn"
    platforms, dtypes, sharded_length = ("gpu",), ("bfloat16", "float16"), False

    def count_pairs(self, queries, keys):
        return 0

    def check(self, layer, head_dim, required):
        super().check(layer, head_dim, required)
        check_argument(
            head_dim % 8 == 0 and head_dim <= 256,
            f"CuDNNAttention does not support {layer}.head_dim={head_dim}: make"
            f" it a multiple of 8 and at most 256, or set {layer}.backend="
            "@ReferenceAttention().",
        )
