"""Multi-head (K = N), grouped-query and multi-query (K = 1) attention.

Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Shazeer 2019, arXiv:1911.02150;
Ainslie et al. 2023, arXiv:2305.13245.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, PyTree

from lmx.config.registry import Execution, configurable
from lmx.layers.attention.backend import (
    AttentionBackend,
    AttentionMask,
    ReferenceAttention,
)
from lmx.layers.attention.inputs import AttentionInputs, update_cache
from lmx.layers.attention.reference import ModifyLogits
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import TokenInfo
from lmx.layers.norm import Norm
from lmx.layers.position.relative import RelativePosition
from lmx.layers.position.rope import RoPE


class SelfAttention(nnx.Module):
    """Anything that lets tokens read the tokens before them.

    Attributes:
        pairs: multiplications of one token with one that it sees.
        window: how many tokens it sees, itself among them; None: all.
    """

    macs_per_pair: int
    window: int | None = None

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree = None
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        """What is added to `x`, and `past` with what is remembered of `x`."""

    @abstractmethod
    def init_cache(self, batch_size: int, capacity: int, dtype: jnp.dtype) -> PyTree:
        """The past of `rows` texts that have not begun; each has `length` tokens."""


class KV(NamedTuple):
    """Keys and values."""

    k: Float[Array, "*L B S K H"]
    v: Float[Array, "*L B S K H"]


class QKV(NamedTuple):
    """Queries, keys and values."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]


@configurable
class AttentionSink(nnx.Module):
    """One more key for each head to look at when there is nothing to see.

    Its logit is learned, its value zero. Xiao et al. 2023, arXiv:2309.17453, section
    3.3; OpenAI 2025, arXiv:2508.10925, section 2.3.
    """

    def __init__(self, heads: int, init: Init, *, logit: float = 0.0):
        self.logit = init.full("N", dict(N=heads), logit)


@configurable
class Attention(SelfAttention):
    """Self-attention and its four projections.

    Attributes:
        position: what tells tokens apart by their distance; None: nothing does, but
            that a token sees only those before it (NoPE; Kazemnejad et al. 2023,
            arXiv:2305.19466).
        window: as in Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
        qk_norm: of queries and keys, each head by itself, or all `heads` as one.
        scale: of the logits; None: 1 / sqrt(head_width).
        qkv: makes queries, keys and values: `@EinsumBias` gives them offsets, as `out`.
        kernel: the program that computes it; the same numbers but for rounding.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        position: RelativePosition | Callable[..., RelativePosition] | None = RoPE(),
        window: int | None = None,
        sink: Callable[..., AttentionSink] | None = None,
        qk_norm: Callable[..., Norm] | None = None,
        qk_norm_over: Literal["head", "heads"] = "head",
        scale: float | None = None,
        logit_cap: float | None = None,
        dropout: float = 0.0,
        qkv: Callable[..., Einsum] = Einsum,
        out: Callable[..., Einsum] = Einsum,
        backend: Execution[AttentionBackend] = ReferenceAttention(),
    ):
        _check(heads, kv_heads, window)
        sizes = dict(D=width, N=heads, K=kv_heads, H=head_dim)
        self.q = qkv("BTD,DNH->BTNH", sizes, init)
        self.k = qkv("BTD,DKH->BTKH", sizes, init)
        self.v = qkv("BTD,DKH->BTKH", sizes, init)
        self.out = out("BTNH,NHD->BTD", sizes, init, "residual")
        whole = qk_norm_over == "heads"
        self.q_norm = qk_norm and qk_norm(head_dim * heads**whole, init, "H")
        self.k_norm = qk_norm and qk_norm(head_dim * kv_heads**whole, init, "H")
        self.qk_norm_over = qk_norm_over
        self.sink = sink and sink(heads, init)
        if position is not None and not isinstance(position, RelativePosition):
            position = position(heads, head_dim, init)
        if position:
            position.check(head_dim)
        self.position = position
        self.kv_shape, self.window = (kv_heads, head_dim), window
        self.macs_per_pair = 2 * heads * head_dim
        self.scale, self.logit_cap, self.dropout = scale, logit_cap, dropout
        backend.check(head_dim, self._required_features())
        self.backend = backend

    def __call__(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: KV | None = None
    ) -> tuple[Float[Array, "B T D"], KV | None]:
        """The attended values, and `past` with the keys and values of `x`."""
        y_BTNH, cache = self.attend(self.project_qkv(x), inputs, cache)
        return self.out(y_BTNH), cache

    def project_qkv(self, x: Float[Array, "B T D"]) -> QKV:
        """Queries and keys, normed but not yet turned, and values."""
        q_BTNH, k_BTKH, v_BTKH = self.q(x), self.k(x), self.v(x)
        if self.q_norm and self.k_norm:
            q_BTNH = self._normalize_heads(self.q_norm, q_BTNH)
            k_BTKH = self._normalize_heads(self.k_norm, k_BTKH)
        return QKV(q_BTNH, k_BTKH, v_BTKH)

    def attend(
        self, qkv: QKV, inputs: AttentionInputs, cache: KV | None
    ) -> tuple[Float[Array, "B T N H"], KV | None]:
        """The average of the values that each query sees, and what is remembered."""
        q_BTNH, k_BTKH, v_BTKH = qkv
        if self.position:
            at = inputs.tokens.positions, inputs.length
            q_BTNH = self.position.rotate(q_BTNH, *at)
            k_BTKH = self.position.rotate(k_BTKH, *at)
        (k_BSKH, v_BSKH), keys, cache = update_cache(cache, KV(k_BTKH, v_BTKH), inputs)
        seen = self.make_mask(
            inputs.tokens, keys, inputs.single_document and cache is None
        )
        y_BTNH = self.backend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            seen,
            scale=self.scale,
            logit_cap=self.logit_cap,
            modify_logits=self._logit_modifier(q_BTNH, seen),
            sink=self.sink and self.sink.logit[...],
            dropout=lambda probs: dropout(probs, self.dropout, inputs.keys, 0),
        )
        return y_BTNH, cache

    def make_mask(
        self, query: TokenInfo, key: TokenInfo, single_document: bool
    ) -> AttentionMask:
        """Which keys a query attends to."""
        return AttentionMask(query, key, self.window, single_document)

    def _required_features(self) -> list[str]:
        """The parameters that ask for more than dot products of what is seen."""
        asked = {
            "position": self.position and self.position.modifies_logits,
            "sink": self.sink,
            "logit_cap": self.logit_cap is not None,
            "dropout": self.dropout,
        }
        return [name for name, value in asked.items() if value]

    def _normalize_heads(self, norm: Norm, x: Float[Array, "B T N H"]) -> Array:
        if self.qk_norm_over == "head":
            return norm(x)
        joined = norm(rearrange(x, "B T N H -> B T (N H)"))
        return rearrange(joined, "B T (N H) -> B T N H", N=x.shape[2])

    def _logit_modifier(
        self, q: Float[Array, "B T N H"], seen: AttentionMask
    ) -> ModifyLogits | None:
        """What the position scheme makes of logits."""
        position = self.position
        if not position or not position.modifies_logits:
            return None
        return lambda logits: position.modify_logits(
            logits, q, seen.dense, seen.query, seen.key
        )

    def init_cache(self, batch_size: int, capacity: int, dtype: jnp.dtype) -> KV:
        """Room for the keys and values of `length` tokens, or of a window of them."""
        room = min(capacity, self.window or capacity)
        room_BSKH = jnp.zeros((batch_size, room, *self.kv_shape), dtype)
        return KV(room_BSKH, room_BSKH)


def _check(heads: int, kv_heads: int, window: int | None) -> None:
    """Refuses heads and windows that cannot be."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{heads} query heads cannot share {kv_heads} key/value heads evenly:"
            " heads must be a multiple of kv_heads."
        )
    if window is not None and window < 1:
        raise ValueError(
            f"Attention.window is {window}: a token sees 1 token at least, itself."
        )
