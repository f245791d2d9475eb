"""Attention within segments, and a memory of fixed size of all that came before.

Munkhdalai et al. 2024, arXiv:2404.07143 (Infini-attention), section 2.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import configurable
from lmx.core.precision import upcast
from lmx.layers.attention.attention import KV, QKV, Attention
from lmx.layers.attention.backend import AttentionMask
from lmx.layers.attention.inputs import AttentionInputs, CacheView
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import TokenInfo, make_attention_mask
from lmx.layers.norm import Norm
from lmx.layers.position.relative import RelativePosition
from lmx.layers.position.rope import RoPE


class InfiniMemory(NamedTuple):
    """The newest keys and values, and what older ones have become.

    A sum is one of sigma(k) [v 1]: over the segments of the newest document that are
    over, and over its last segment.
    """

    local: KV
    sums: Float[Array, "*L B 2 K H J"]


@dataclass(frozen=True)
class SegmentMask(AttentionMask):
    """Which keys a query sees: those of its own segment, of so many tokens."""

    segment_length: int = 1

    @property
    def dense(self) -> Bool[Array, "B T S"]:
        one_BTS = segment_distance(self.query, self.key, self.segment_length) == 0
        return make_attention_mask(self.query, self.key) & one_BTS


def segment_distance(
    query: TokenInfo, key: TokenInfo, segment_length: int
) -> Int[Array, "B T S"]:
    """Segments from that of key s to that of query t."""
    at_BT, at_BS = query.positions // segment_length, key.positions // segment_length
    return at_BT[:, :, None] - at_BS[:, None, :]


def elu_plus_one(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The paper's sigma, elu(x) + 1, without the rounding of the sum."""
    return jnp.where(x > 0.0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))


def linear_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """The sum of `v`, each as often as q k; nothing is negative here."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=k.shape[2])
    times_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k)
    times_BKGTS *= mask[:, None, None]
    sum_BTKGJ = jnp.einsum("BKGTS,BSKJ->BTKGJ", times_BKGTS, v)
    return rearrange(sum_BTKGJ, "B T K G J -> B T (K G) J")


def read_memory(
    q: Float[Array, "B T N H"],
    sums: Float[Array, "B S K H J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """The same, where k v is summed already."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=sums.shape[2])
    found_BTKGJ = jnp.einsum("BTKGH,BSKHJ,BTS->BTKGJ", q_BTKGH, sums, mask)
    return rearrange(found_BTKGJ, "B T K G J -> B T (K G) J")


def mix_memory(
    local: Float[Array, "B T N H"],
    memory: Float[Array, "B T N J"],
    gate: Float[Array, "N"],
) -> Float[Array, "B T N H"]:
    """Equations 3 and 6; where nothing is in memory, `local` alone.

    The last channel of `memory` divides the others.
    """
    times_BTN1 = memory[..., -1:]
    known_BTN1 = times_BTN1 > 0.0
    mean_BTNH = memory[..., :-1] / jnp.where(known_BTN1, times_BTN1, 1.0)
    share_11N1 = jax.nn.sigmoid(upcast(gate))[None, None, :, None]
    change_BTNH = jnp.where(known_BTN1, share_11N1 * (mean_BTNH - local), 0.0)
    return local + change_BTNH.astype(local.dtype)


@configurable
class InfiniAttention(Attention):
    """Dot products within a segment; a linear memory of the segments before it.

    Segments begin with the document. The memory knows no positions: queries and keys
    are turned for the dot products only.

    Attributes:
        segment: tokens.
        gate: sigmoid of this is the share of memory in each head at first; learned.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        segment_length: int,
        gate: float = 0.0,
        position: RelativePosition | Callable[..., RelativePosition] | None = RoPE(),
        qk_norm: Callable[..., Norm] | None = None,
        qk_norm_over: Literal["head", "heads"] = "head",
        scale: float | None = None,
        logit_cap: float | None = None,
        dropout: float = 0.0,
        qkv: Callable[..., Einsum] = Einsum,
        out: Callable[..., Einsum] = Einsum,
    ):
        if segment_length < 1:
            raise ValueError(
                f"InfiniAttention.segment_length is {segment_length}: a segment has 1 token at least."
            )
        super().__init__(
            width,
            init,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            position=position,
            window=segment_length,
            qk_norm=qk_norm,
            qk_norm_over=qk_norm_over,
            scale=scale,
            logit_cap=logit_cap,
            dropout=dropout,
            qkv=qkv,
            out=out,
        )
        self.gate = init.full("N", dict(N=heads), gate)
        self.segment_length = segment_length

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: InfiniMemory | None = None,
    ) -> tuple[Float[Array, "B T D"], InfiniMemory | None]:
        """The attended and recalled values, and `past` with `x` in it."""
        qkv = self.project_qkv(x)
        local_BTNH, local = self.attend(qkv, inputs, cache and cache.local)
        memory_BTNJ, sums = self.read_and_update(qkv, inputs, cache and cache.sums)
        y_BTNH = mix_memory(local_BTNH, memory_BTNJ, self.gate[...])
        after = None if local is None or sums is None else InfiniMemory(local, sums)
        return self.out(y_BTNH), after

    def make_mask(
        self, query: TokenInfo, key: TokenInfo, single_document: bool
    ) -> AttentionMask:
        del single_document  # of a row, not of a segment
        return SegmentMask(query, key, segment_length=self.segment_length)

    def memory_mask(self, query: TokenInfo, key: TokenInfo) -> Bool[Array, "B T S"]:
        """Which keys a query finds in memory."""
        return make_attention_mask(query, key) & (
            segment_distance(query, key, self.segment_length) > 0
        )

    def read_and_update(
        self, qkv: QKV, inputs: AttentionInputs, sums: Float[Array, "B 2 K H J"] | None
    ) -> tuple[Float[Array, "B T N J"], Float[Array, "B 2 K H J"] | None]:
        """What each query finds in memory, not yet divided, and the new sums."""
        here, read = inputs.tokens, inputs.cache
        q_BTNH, k_BTKH = elu_plus_one(upcast(qkv.q)), elu_plus_one(upcast(qkv.k))
        one_BTK1 = jnp.ones_like(k_BTKH[..., :1])
        v_BTKJ = jnp.concatenate([qkv.v.astype(k_BTKH.dtype), one_BTK1], axis=-1)
        at_hand_BTNJ = linear_attention(
            q_BTNH, k_BTKH, v_BTKJ, self.memory_mask(here, here)
        )
        if sums is None or read is None:
            return at_hand_BTNJ, None
        old, new = (
            self.describe_sums(read, count)
            for count in (read.old_lengths, read.new_lengths)
        )
        earlier_BTNJ = read_memory(q_BTNH, sums, self.memory_mask(here, old))
        kept_BTS, added_BST = (
            self.assign_to_sums(old, new),
            self.assign_to_sums(here, new),
        )
        kept = jnp.einsum("BTS,BSKHJ->BTKHJ", kept_BTS, sums)
        added = jnp.einsum("BST,BTKH,BTKJ->BSKHJ", added_BST, k_BTKH, v_BTKJ)
        return at_hand_BTNJ + earlier_BTNJ, kept + added

    def describe_sums(self, cache: CacheView, lengths: Int[Array, "B"]) -> TokenInfo:
        """Where the two sums stand when rows have `count` tokens."""
        newest = cache.describe_slots(lengths, 1)
        over = newest._replace(positions=newest.positions - self.segment_length)
        return TokenInfo(*map(lambda *x: jnp.concatenate(x, axis=1), over, newest))

    def assign_to_sums(self, key: TokenInfo, sums: TokenInfo) -> Bool[Array, "B 2 S"]:
        """Which tokens or sums belong to which of two new sums."""
        newest = TokenInfo(*(x[:, 1:] for x in sums))
        is_over_B1S = segment_distance(newest, key, self.segment_length) > 0
        over_121 = jnp.array([True, False])[None, :, None]
        return make_attention_mask(newest, key) & (is_over_B1S == over_121)

    def init_cache(
        self, batch_size: int, capacity: int, dtype: jnp.dtype
    ) -> InfiniMemory:
        """Room for the keys and values of a segment, and sums of nothing."""
        local = super().init_cache(batch_size, capacity, dtype)
        heads, head_width = self.kv_shape
        shape = (batch_size, 2, heads, head_width, head_width + 1)
        return InfiniMemory(
            local, jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
        )
