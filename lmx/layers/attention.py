"""Dot-product attention: multi-head (K = N), grouped-query and multi-query (K = 1).

Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Shazeer 2019, arXiv:1911.02150;
Ainslie et al. 2023, arXiv:2305.13245.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from lmx.config.names import configurable
from lmx.core.precision import widened
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.norm import Norm
from lmx.layers.position.rope import RoPE

# A logit that softmax sees as zero, finite so that an all-masked row is not NaN.
MASKED = -1e30


class KV(NamedTuple):
    """Keys and values of all positions so far, and room for those to come."""

    k: Float[Array, "*L B S K H"]
    v: Float[Array, "*L B S K H"]

    def extended(
        self,
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        first: Int[Array, ""],
    ) -> "KV":
        """With `k` and `v` written from slot `first` on."""
        put = jax.lax.dynamic_update_slice_in_dim
        return KV(
            put(self.k, k.astype(self.k.dtype), first, 1),
            put(self.v, v.astype(self.v.dtype), first, 1),
        )


class Context(NamedTuple):
    """What every layer is told about the tokens, beside their vectors."""

    positions: Int[Array, "B T"]  # restart at 0 with each document
    mask: Bool[Array, "B T S"]  # True where query t may see key s
    live: Bool[Array, "B T"]  # False at padding
    first: Int[Array, ""]  # the slot of query 0 among the keys
    keys: Key[Array, "B"] | None = None  # for dropout; None: there is none


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    *,
    cap: float | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """The average of `v` under softmax(q k / sqrt(H)), taken in at least float32.

    Query head n reads key head n // G. `mask` is True where query t may see key s.
    `cap` bounds the logits to (-cap, cap) by a tanh (Gemma Team 2024, arXiv:2408.00118,
    section 2); `drop` acts on the probabilities, batch first.
    """
    K, H = k.shape[-2:]
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=K)
    logits_BKGTS = widened(jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH * H**-0.5, k))
    if cap is not None:
        logits_BKGTS = soft_cap(logits_BKGTS, cap)
    logits_BKGTS = jnp.where(mask[:, None, None], logits_BKGTS, MASKED)
    probs_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v.dtype)
    if drop is not None:
        probs_BKGTS = drop(probs_BKGTS)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v)
    return rearrange(out_BTKGH, "B T K G H -> B T (K G) H")


def soft_cap(logits: Float[Array, "*dims"], cap: float) -> Float[Array, "*dims"]:
    """Cap * tanh(logits / cap): the identity near 0, never beyond +-cap."""
    if cap <= 0.0:
        raise ValueError(f"logits cannot be capped at {cap}: it must be above 0.")
    return cap * jnp.tanh(logits / cap)


@configurable
class Attention(nnx.Module):
    """Self-attention and its four projections."""

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        position: RoPE | None = RoPE(),
        qk_norm: Callable[..., Norm] | None = None,
        logit_cap: float | None = None,
        dropout: float = 0.0,
    ):
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"{heads} query heads cannot share {kv_heads} key/value heads evenly:"
                " heads must be a multiple of kv_heads."
            )
        if position:
            position.speed(head_width)  # refuses what it cannot rotate
        sizes = dict(D=width, N=heads, K=kv_heads, H=head_width)
        self.q = Einsum("BTD,DNH->BTNH", sizes, init)
        self.k = Einsum("BTD,DKH->BTKH", sizes, init)
        self.v = Einsum("BTD,DKH->BTKH", sizes, init)
        self.out = Einsum("BTNH,NHD->BTD", sizes, init, "residual")
        self.q_norm = qk_norm and qk_norm(head_width, init, "H")
        self.k_norm = qk_norm and qk_norm(head_width, init, "H")
        self.kv_shape = (kv_heads, head_width)
        self.position = position
        self.logit_cap = logit_cap
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: KV | None = None
    ) -> tuple[Float[Array, "B T D"], KV | None]:
        """The attended values, and `past` with the keys and values of `x`."""
        q_BTNH, k_BTKH, v_BTKH = self.q(x), self.k(x), self.v(x)
        if self.q_norm and self.k_norm:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if self.position:
            q_BTNH = self.position.rotate(q_BTNH, context.positions)
            k_BTKH = self.position.rotate(k_BTKH, context.positions)
        if past is not None:
            past = past.extended(k_BTKH, v_BTKH, context.first)
        k_BSKH, v_BSKH = past or (k_BTKH, v_BTKH)
        y_BTNH = attend(
            q_BTNH,
            k_BSKH.astype(x.dtype),
            v_BSKH.astype(x.dtype),
            context.mask,
            cap=self.logit_cap,
            drop=lambda probs: dropout(probs, self.dropout, context.keys, 0),
        )
        return self.out(y_BTNH), past

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> KV:
        """Room for the keys and values of `length` tokens."""
        room_BSKH = jnp.zeros((rows, length, *self.kv_shape), dtype)
        return KV(room_BSKH, room_BSKH)
