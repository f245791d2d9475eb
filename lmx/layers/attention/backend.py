"""Which program computes attention: the choice of the experiment, never a fallback.

All are `dot.attend` but for rounding. What one cannot do it refuses by name.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lmx.config.registry import configurable
from lmx.core import partitioning
from lmx.layers.attention.reference import ModifyLogits, attend
from lmx.layers.mask import TokenInfo, make_attention_mask


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query sees: `mask.visible`, by where queries and keys stand.

    Where `whole` is true the rows are one document each, all of it at hand: a query
    sees itself and what is before it in the row, or the last `window` of these.
    """

    query: TokenInfo
    key: TokenInfo
    window: int | None = None
    single_document: bool = False

    @property
    def no_cache(self) -> bool:
        """Whether the keys are the queries' own tokens, in their order: no cache."""
        return self.key is self.query

    @property
    def dense(self) -> Bool[Array, "B T S"]:
        """True where query t sees key s: as large as the logits of one head."""
        return make_attention_mask(self.query, self.key, self.window)


class AttentionBackend(ABC):
    """Anything that computes attention.

    Attributes:
        serves: the parameters of `Attention` that it can serve of those that ask for
            more than dot products.
    """

    supports: ClassVar[frozenset[str]] = frozenset()

    def check(self, head_dim: int, required: Iterable[str]) -> None:
        """Refuses a head that it cannot serve.

        `beyond` are the parameters of `Attention` that ask for more than dot products.
        """
        del head_dim
        for parameter in required:
            if parameter not in self.supports:
                raise ValueError(
                    f"the kernel {type(self).__name__} cannot do what"
                    f" Attention.{parameter} asks for: do without that, or choose"
                    " Attention.backend=@ReferenceAttention()."
                )

    @abstractmethod
    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        mask: AttentionMask,
        *,
        scale: float | None = None,
        logit_cap: float | None = None,
        modify_logits: ModifyLogits | None = None,
        sink: Float[Array, "N"] | None = None,
        dropout: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B T N H"]:
        """What `dot.attend` returns for these arguments."""


@configurable
@dataclass(frozen=True)
class ReferenceAttention(AttentionBackend):
    """`dot.attend`: does everything, everywhere, and holds all logits at once."""

    supports = frozenset(("position", "sink", "logit_cap", "dropout"))

    def __call__(self, q, k, v, mask, **how):
        return attend(q, k, v, mask.dense, **how)


@configurable
@dataclass(frozen=True)
class XLAAttention(AttentionBackend):
    """`jax.nn.dot_product_attention` as XLA compiles it, on any backend.

    Its softmax is taken in float32, of float64 too.
    """

    implementation: ClassVar[Literal["xla", "cudnn"]] = "xla"

    def __call__(self, q, k, v, mask, *, scale=None, **beyond):
        del beyond  # `check` saw that nothing is asked for
        if mask.single_document:  # jax counts the keys before a query's own
            before = None if mask.window is None else (mask.window - 1, 0)
            how: dict[str, Any] = dict(is_causal=True, local_window_size=before)
        else:
            how = dict(mask=mask.dense[:, None])
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, implementation=self.implementation, **how
        )


@configurable
@dataclass(frozen=True)
class CuDNNAttention(XLAAttention):
    """cuDNN's flash attention, on NVIDIA GPUs, which never holds the logits.

    Heads are a multiple of 8 wide, and 128 at most (256 from Hopper on). Packed rows,
    and a cache, cost a dense mask of two bytes for each pair of a query and a key;
    rows of one document each, which a model is called with `segments=None` for, cost
    none. Dao 2023, arXiv:2307.08691.
    """

    implementation: ClassVar[Literal["xla", "cudnn"]] = "cudnn"

    def check(self, head_dim: int, required: Iterable[str]) -> None:
        super().check(head_dim, required)
        if head_dim % 8 or head_dim > 256:
            raise ValueError(
                f"the kernel CuDNN cannot serve Attention.head_dim={head_dim}: it"
                " must be a multiple of 8 and 256 at most, or choose"
                " Attention.backend=@ReferenceAttention()."
            )

    def __call__(self, q, k, v, mask, **how):
        if (backend := partitioning.platform()) != "gpu":
            raise ValueError(
                f"the kernel CuDNN runs on GPUs and this process is on {backend}:"
                " choose Attention.backend=@ReferenceAttention()."
            )
        if split := partitioning.mesh_axes("T"):
            raise ValueError(
                "the kernel CuDNN takes rows whole, and a rule splits them over"
                f" {split}: choose Attention.backend=@RingAttention()."
            )
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"the kernel CuDNN computes in bfloat16 or float16, not {q.dtype}: set"
                " Precision.compute='bfloat16', or Attention.backend=@ReferenceAttention()."
            )
        if not mask.single_document:
            _warn_about_mask(mask.dense.size * q.dtype.itemsize)
        return super().__call__(q, k, v, mask, **how)


@cache
def _warn_about_mask(size: int) -> None:
    """Says once what a mask of `size` bytes is for."""
    logging.getLogger(__name__).warning(
        "the kernel CuDNN takes packed rows, or a cache, as a dense mask of %.1f MB"
        " that every layer reads: rows of one document each need none.",
        size / 1e6,
    )
