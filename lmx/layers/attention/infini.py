"""Infini-attention: attention within segments, and a memory of earlier ones.

Munkhdalai et al. 2024, arXiv:2404.07143, section 2.1.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import Positive, configurable
from lmx.core.precision import upcast
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.backend import AttentionMask
from lmx.layers.attention.kv_cache import (
    AttentionInputs,
    KVCache,
    LayerCache,
    SlotCache,
)
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.init import Init
from lmx.layers.mask import TokenInfo, make_attention_mask
from lmx.layers.tap import tap


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InfiniMemory(LayerCache):
    """The newest keys and values, and the memory of older ones.

    `sums` of sigma(k) [v 1]: over the complete segments of the newest document, and
    over its last segment.
    """

    local: SlotCache
    sums: PyTree  # one array of dimensions B 2 K H J


@dataclass(frozen=True)
class SegmentMask(AttentionMask):
    """A query sees keys of its own segment of `segment_length` tokens."""

    segment_length: int = 1

    @property
    def dense(self) -> Bool[Array, "B T S"]:
        same_BTS = segment_distance(self.query, self.key, self.segment_length) == 0
        return make_attention_mask(self.query, self.key) & same_BTS


def segment_distance(
    query: TokenInfo, key: TokenInfo, segment_length: int
) -> Int[Array, "B T S"]:
    """Segments from that of key s to that of query t."""
    query_BT, key_BS = (x.positions // segment_length for x in (query, key))
    return query_BT[:, :, None] - key_BS[:, None, :]


def elu_plus_one(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The paper's sigma, elu(x) + 1, without the rounding of the sum."""
    return jnp.where(x > 0.0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))


def linear_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """The sum of `v` weighted by q k, without normalization."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=k.shape[2])
    weight_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k)
    weight_BKGTS *= mask[:, None, None]
    sum_BTKGJ = jnp.einsum("BKGTS,BSKJ->BTKGJ", weight_BKGTS, v)
    return rearrange(sum_BTKGJ, "B T K G J -> B T (K G) J")


def read_memory(
    q: Float[Array, "B T N H"],
    sums: Float[Array, "B S K H J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """`linear_attention` to sums of k v."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=sums.shape[2])
    sum_BTKGJ = jnp.einsum("BTKGH,BSKHJ,BTS->BTKGJ", q_BTKGH, sums, mask)
    return rearrange(sum_BTKGJ, "B T K G J -> B T (K G) J")


def mix_memory(
    local: Float[Array, "B T N H"],
    memory: Float[Array, "B T N J"],
    gate: Float[Array, "N"],
) -> Float[Array, "B T N H"]:
    """Equations 3 and 6; `local` alone where the memory is empty.

    The last channel of `memory` divides the others.
    """
    weight_BTN1 = memory[..., -1:]
    filled_BTN1 = weight_BTN1 > 0.0
    mean_BTNH = memory[..., :-1] / jnp.where(filled_BTN1, weight_BTN1, 1.0)
    gate_11N1 = jax.nn.sigmoid(upcast(gate))[None, None, :, None]
    change_BTNH = jnp.where(filled_BTN1, gate_11N1 * (mean_BTNH - local), 0.0)
    return local + change_BTNH.astype(local.dtype)


@configurable
class InfiniAttention(Attention):
    """Softmax attention within a segment, and a linear memory of earlier segments.

    Segments start with the document. The memory ignores positions. `gate` is the
    initial logit of the learned weight of the memory, per head.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: Positive[int],
        segment_length: Positive[int],
        gate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(
            width,
            init,
            heads=heads,
            window=segment_length,
            sink=None,
            backend=ReferenceAttention(),
            **kwargs,
        )
        self.gate = init.full("N", dict(N=heads), gate)
        self.segment_length = segment_length

    def __call__(self, x, inputs, cache=None):
        """The projected output, and `cache` with `x` in it."""
        qkv = self.project_qkv(x)
        local_BTNH, local = self.attend(*qkv, inputs, cache and cache.local)
        memory_BTNJ, sums = self.read_and_update(*qkv, inputs, cache and cache.sums)
        y_BTNH = mix_memory(local_BTNH, memory_BTNJ, self.gate[...])
        new = None if local is None or sums is None else InfiniMemory(local, sums)
        return self.out(tap("attention.heads", y_BTNH)), new

    def make_mask(self, query, key, single_document):
        return SegmentMask(query, key, segment_length=self.segment_length)

    def memory_mask(self, query: TokenInfo, key: TokenInfo) -> Bool[Array, "B T S"]:
        """Which keys each query reads from memory."""
        earlier_BTS = segment_distance(query, key, self.segment_length) > 0
        return make_attention_mask(query, key) & earlier_BTS

    def read_and_update(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        inputs: AttentionInputs,
        sums: Float[Array, "B 2 K H J"] | None,
    ) -> tuple[Float[Array, "B T N J"], Float[Array, "B 2 K H J"] | None]:
        """What each query reads from memory, not yet divided, and the new sums."""
        tokens, view = inputs.tokens, inputs.cache
        q_BTNH, k_BTKH = elu_plus_one(upcast(q)), elu_plus_one(upcast(k))
        one_BTK1 = jnp.ones_like(k_BTKH[..., :1])
        v_BTKJ = jnp.concatenate([v.astype(k_BTKH.dtype), one_BTK1], axis=-1)
        mask_BTS = self.memory_mask(tokens, tokens)
        read_BTNJ = linear_attention(q_BTNH, k_BTKH, v_BTKJ, mask_BTS)
        if sums is None or view is None:
            return read_BTNJ, None
        old = self.describe_sums(view, inputs.old_lengths)
        new = self.describe_sums(view, view.lengths)
        read_BTNJ += read_memory(q_BTNH, sums, self.memory_mask(tokens, old))
        kept_BTS = self.assign_to_sums(old, new)
        added_BST = self.assign_to_sums(tokens, new)
        sums = jnp.einsum("BTS,BSKHJ->BTKHJ", kept_BTS, sums)
        sums += jnp.einsum("BST,BTKH,BTKJ->BSKHJ", added_BST, k_BTKH, v_BTKJ)
        return read_BTNJ, sums

    def describe_sums(self, cache: KVCache, lengths: Int[Array, "B"]) -> TokenInfo:
        """Where the two sums are when rows have these `lengths`."""
        newest = cache.describe_slots(lengths, 1)
        complete = newest._replace(positions=newest.positions - self.segment_length)
        return TokenInfo(*map(lambda *x: jnp.concatenate(x, axis=1), complete, newest))

    def assign_to_sums(self, key: TokenInfo, sums: TokenInfo) -> Bool[Array, "B 2 S"]:
        """Which tokens, or old sums, belong to which of two new sums."""
        newest = TokenInfo(*(x[:, 1:] for x in sums))
        complete_B1S = segment_distance(newest, key, self.segment_length) > 0
        complete_121 = jnp.array([True, False])[None, :, None]
        return make_attention_mask(newest, key) & (complete_B1S == complete_121)

    def init_cache(self, size):
        """Slots for the tokens of a segment, and zeros for the sums."""
        heads, head_dim = self.kv_shape
        shape = (size.batch_size, 2, heads, head_dim, head_dim + 1)
        sums = jnp.zeros(shape, jnp.promote_types(size.dtype, jnp.float32))
        return InfiniMemory(super().init_cache(size), sums)
