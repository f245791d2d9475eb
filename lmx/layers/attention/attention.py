"""Self-attention with queries, keys and values of every token.

Multi-head (Vaswani et al. 2017, arXiv:1706.03762), grouped-query (Ainslie et al. 2023,
arXiv:2305.13245) and multi-query (Shazeer 2019, arXiv:1911.02150).
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from lmx.config.registry import Execution, Positive, Rate, check_argument, configurable
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.kv_cache import (
    AttentionInputs,
    CacheSize,
    LayerCache,
    SlotCache,
    update_cache,
)
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import TokenInfo
from lmx.layers.norm import Norm
from lmx.layers.position import RelativePosition
from lmx.layers.rope import RoPE
from lmx.layers.tap import is_asked, tap


class SelfAttention(nnx.Module):
    """Base class of layers in which tokens attend to earlier tokens.

    Attributes:
        heads: query heads.
        macs_per_pair: multiply-adds per pair of query and key.
        window: maximum number of tokens that a token sees, itself included; None: all.
        backend: implementation; all give the same numbers up to rounding.
    """

    heads: int
    macs_per_pair: int
    window: int | None = None
    backend: AttentionBackend

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree = None
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        """The change of `x`, and the updated cache."""

    def run_backend(self, *inputs: Any, **options: Any) -> Float[Array, "B T N J"]:
        """The result of `backend`, or of the reference if what others skip is tapped.

        Other backends do not store logits and probabilities.
        """
        asked = is_asked("attention.probs") or is_asked("attention.logits")
        return (ReferenceAttention() if asked else self.backend)(*inputs, **options)

    @abstractmethod
    def init_cache(self, size: CacheSize) -> LayerCache:
        """An empty cache."""


class KV(NamedTuple):
    """Keys and values: the values of the cache of `Attention`."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]


@configurable
class AttentionSink(nnx.Module):
    """A learned logit per head of one more key, of value zero.

    Xiao et al. 2023, arXiv:2309.17453, section 3.3; OpenAI 2025, arXiv:2508.10925.
    """

    def __init__(self, heads: int, init: Init, *, logit: float = 0.0):
        self.logit = init.full("N", dict(N=heads), logit)


@configurable
class Attention(SelfAttention):
    """Self-attention with query, key, value and output projections.

    Attributes:
        position: None: only the causal mask orders tokens (NoPE; Kazemnejad et al.
            2023, arXiv:2305.19466).
        window: sliding window (Beltagy et al. 2020, arXiv:2004.05150, section 3.1).
        qk_norm: norm of queries and keys, over each head or over all `heads` together.
        scale: factor of the logits; None: 1 / sqrt(head_dim).
        qkv, out: make the projections; `@EinsumBias` adds biases.
        backend: implementation; all give the same numbers up to rounding.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: Positive[int],
        kv_heads: Positive[int],
        head_dim: Positive[int],
        position: RelativePosition | Callable[..., RelativePosition] | None = RoPE(),
        window: Positive[int | None] = None,
        sink: Callable[..., AttentionSink] | None = None,
        qk_norm: Callable[..., Norm] | None = None,
        qk_norm_over: Literal["head", "heads"] = "head",
        scale: float | None = None,
        logit_cap: Positive[float | None] = None,
        dropout: Rate[float] = 0.0,
        qkv: Callable[..., Einsum] = Einsum,
        out: Callable[..., Einsum] = Einsum,
        backend: Execution[AttentionBackend] = ReferenceAttention(),
    ):
        check_argument(
            heads % kv_heads == 0,
            f"{heads} query heads cannot share {kv_heads} key/value heads evenly: heads"
            " must be a multiple of kv_heads.",
        )
        sizes = dict(D=width, N=heads, K=kv_heads, H=head_dim)
        self.q = qkv("BTD,DNH->BTNH", sizes, init)
        self.k = qkv("BTD,DKH->BTKH", sizes, init)
        self.v = qkv("BTD,DKH->BTKH", sizes, init)
        self.out = out("BTNH,NHD->BTD", sizes, init, "residual")
        self.over_heads = qk_norm_over == "heads"
        self.q_norm = qk_norm and qk_norm(head_dim * heads**self.over_heads, init, "H")
        self.k_norm = qk_norm and qk_norm(
            head_dim * kv_heads**self.over_heads, init, "H"
        )
        self.sink = sink and sink(heads, init)
        if position is not None and not isinstance(position, RelativePosition):
            position = position(heads, head_dim, init)
        if position:
            position.check(head_dim)
        self.position = position
        self.kv_shape, self.window = (kv_heads, head_dim), window
        self.heads, self.macs_per_pair = heads, 2 * heads * head_dim
        self.scale, self.logit_cap, self.dropout = scale, logit_cap, dropout
        backend.check("Attention", head_dim, self._list_features())
        self.backend = backend

    def __call__(self, x, inputs, cache=None):
        """The projected output, and `cache` with the keys and values of `x`."""
        y_BTNH, cache = self.attend(*self.project_qkv(x), inputs, cache)
        return self.out(tap("attention.heads", y_BTNH)), cache

    def project_qkv(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
        """Queries and keys, normalized but not yet rotated, and values."""
        q_BTNH, k_BTKH, v_BTKH = self.q(x), self.k(x), self.v(x)
        if self.q_norm and self.k_norm:
            q_BTNH = self._normalize_heads(self.q_norm, q_BTNH)
            k_BTKH = self._normalize_heads(self.k_norm, k_BTKH)
        return q_BTNH, k_BTKH, v_BTKH

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        inputs: AttentionInputs,
        cache: SlotCache | None,
    ) -> tuple[Float[Array, "B T N H"], SlotCache | None]:
        """Rotates, updates the KV cache and attends to it."""
        position, tokens = self.position, inputs.tokens
        if position:
            q = position.rotate(q, tokens.positions, inputs.length)
            k = position.rotate(k, tokens.positions, inputs.length)
        q, k, v = tap("attention.q", q), tap("attention.k", k), tap("attention.v", v)
        (k, v), key_info, cache = update_cache(cache, KV(k, v), inputs)
        single_document = inputs.single_document and cache is None
        mask = self.make_mask(tokens, key_info, single_document)
        modify_logits = None
        if position and position.modifies_logits:
            modify_logits = partial(
                position.modify_logits, q=q, mask=mask.dense, query=tokens, key=key_info
            )
        y_BTNH = self.run_backend(
            q,
            k,
            v,
            mask,
            scale=self.scale,
            logit_cap=self.logit_cap,
            modify_logits=modify_logits,
            sink=self.sink and self.sink.logit[...],
            dropout=partial(dropout, rate=self.dropout, keys=inputs.keys, site=0),
        )
        return y_BTNH, cache

    def make_mask(
        self, query: TokenInfo, key: TokenInfo, single_document: bool
    ) -> AttentionMask:
        """Which keys each query sees."""
        return AttentionMask(query, key, self.window, single_document)

    def init_cache(self, size):
        """Slots for all tokens, or for a window of them."""
        head_KH = jnp.zeros(self.kv_shape, size.dtype)
        return SlotCache.init(size, self.window, KV(head_KH, head_KH))

    def _list_features(self) -> list[str]:
        used = {
            "position": self.position and self.position.modifies_logits,
            "sink": self.sink,
            "logit_cap": self.logit_cap is not None,
            "dropout": self.dropout,
        }
        return [name for name, value in used.items() if value]

    def _normalize_heads(self, norm: Norm, x: Float[Array, "B T N H"]) -> Array:
        if self.over_heads:
            return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        return norm(x)
