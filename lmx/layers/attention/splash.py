"""Splash attention: JAX's Pallas flash-attention kernel for TPUs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Array

from lmx.config.registry import configurable, multiple_of
from lmx.core import partitioning
from lmx.layers.attention.backend import AttentionBackend, log_once
from lmx.layers.attention.ring import RingAttention

LANES = 128  # of a TPU's vector unit


@configurable
@dataclass(frozen=True, kw_only=True)
class SplashAttention(AttentionBackend):
    """Flash attention on TPUs, in float32, which stores neither logits nor masks.

    Blocks that the causal mask or the window hides are not computed; documents are
    separated by segment ids. A cache is read by `RingAttention`, on any platform.
    `block` is a multiple of 128 tokens; short rows use smaller blocks.
    """

    block: Annotated[int, multiple_of(LANES)] = 512
    supports = frozenset(("sink", "logit_cap", "value_dim"))
    platforms, dtypes = ("tpu",), ("bfloat16", "float16", "float32")
    sharded_length = False

    def count_pairs(self, queries, keys):
        return 0

    def __call__(
        self, q, k, v, mask, *, scale=None, logit_cap=None, sink=None, **unused
    ):
        if not mask.no_cache:
            log_once("SplashAttention does not read a cache: RingAttention does.")
            ring = RingAttention(block=self.block)
            return ring(q, k, v, mask, scale=scale, logit_cap=logit_cap, sink=sink)
        self.check_program(q.dtype)
        q_BTNH = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        segments_BT = None if mask.single_document else mask.query.segments
        program = partial(self._attend_local, mask.window, logit_cap)
        letters = ["BTNH", "BTKH", "BTKH", "BT", "N"]
        attend = partitioning.shard_map(program, letters, "BTNH", check_vma=False)
        return attend(q_BTNH, k, v, segments_BT, sink)

    def _attend_local(
        self,
        window: int | None,
        logit_cap: float | None,
        q: Array,
        k: Array,
        v: Array,
        segments: Array | None,
        sink: Array | None,
    ) -> Array:
        """The output of one device's rows and heads."""
        T, N = q.shape[1:3]
        blocks = math.ceil(T / self.block)
        block = LANES * math.ceil(T / blocks / LANES)
        padding = (0, blocks * block - T)  # at the end, which no token sees
        q, k, v = (
            jnp.pad(
                rearrange(x, "B T N H -> B N T H"), ((0, 0), (0, 0), padding, (0, 0))
            )
            for x in (q, k, v)
        )
        kernel = _make_kernel(blocks * block, block, N, window, logit_cap)
        attend = jax.vmap(partial(kernel, sinks=sink))
        if segments is None:
            y_BNTH = attend(q, k, v)
        else:
            padded = jnp.pad(segments, ((0, 0), padding), constant_values=-1)
            y_BNTH = attend(q, k, v, kernels.SegmentIds(q=padded, kv=padded))
        return rearrange(y_BNTH[:, :, :T], "B N T H -> B T N H")


def _make_kernel(
    length: int, block: int, heads: int, window: int | None, logit_cap: float | None
) -> Callable[..., Any]:
    """The kernel for one row of `length` tokens."""
    shape = (length, length)
    mask = (
        kernels.CausalMask(shape)
        if window is None
        else kernels.LocalMask(shape, (window - 1, 0), 0)
    )
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=logit_cap,
        head_shards=1,
        q_seq_shards=1,
    )
