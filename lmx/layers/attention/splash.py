"""Splash attention: the kernel for TPUs that comes with JAX, in Pallas."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
    BlockSizes,
    SegmentIds,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import (
    CausalMask,
    LocalMask,
    MultiHeadMask,
)
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core import partitioning
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.ring import RingAttention

LANES = 128  # of a TPU's vector unit: blocks are whole multiples


@configurable
@dataclass(frozen=True, kw_only=True)
class SplashAttention(AttentionBackend):
    """Flash attention on TPUs, in float32, which holds neither logits nor masks.

    Blocks that no query sees are not computed, whether causality or a window hides
    them; documents are told apart within blocks. A row is filled up to whole blocks. A
    cache is read by the program of `RingAttention`, on any backend.

    Attributes:
        block: tokens of a block of queries and of keys, a multiple of 128; a short row
            has smaller ones.
    """

    block: int = 512
    supports = frozenset(("sink", "logit_cap"))

    def __post_init__(self):
        if self.block < LANES or self.block % LANES:
            raise ValueError(
                f"SplashAttention.block is {self.block}: it must be a multiple of {LANES}."
            )

    def __call__(
        self,
        q,
        k,
        v,
        mask: AttentionMask,
        *,
        scale=None,
        logit_cap=None,
        sink=None,
        **beyond,
    ):
        if not mask.no_cache:
            _warn_about_cache()
            how = dict(scale=scale, logit_cap=logit_cap, sink=sink)
            return RingAttention(block=self.block)(q, k, v, mask, **how, **beyond)
        _check_support(q.dtype)
        q_BTNH = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        segments_BT = None if mask.single_document else mask.query.segments
        program = partial(self._attend_local, mask.window, logit_cap)
        letters = ["BTNH", "BTKH", "BTKH", "BT", "N"]
        answered = partitioning.shard_map(program, letters, "BTNH", check_vma=False)
        return answered(q_BTNH, k, v, segments_BT, sink)

    def _attend_local(
        self,
        window: int | None,
        cap: float | None,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segments: Int[Array, "B T"] | None,
        sink: Float[Array, "N"] | None,
    ) -> Float[Array, "B T N H"]:
        """The answers to the device's share of rows and heads."""
        T, N = q.shape[1:3]
        blocks = math.ceil(T / self.block)
        block = LANES * math.ceil(T / blocks / LANES)
        rest = (0, blocks * block - T)  # comes last, so that no token sees it
        q, k, v = (
            jnp.pad(rearrange(x, "B T N H -> B N T H"), ((0, 0), (0, 0), rest, (0, 0)))
            for x in (q, k, v)
        )
        answer = _make_kernel(blocks * block, block, N, window, cap)
        if segments is None:
            y_BNTH = jax.vmap(partial(answer, sinks=sink))(q, k, v)
        else:
            filled = jnp.pad(segments, ((0, 0), rest), constant_values=-1)
            each = SegmentIds(q=filled, kv=filled)
            y_BNTH = jax.vmap(partial(answer, sinks=sink))(q, k, v, each)
        return rearrange(y_BNTH[:, :, :T], "B N T H -> B T N H")


def _make_kernel(
    length: int, block: int, heads: int, window: int | None, cap: float | None
) -> Callable[..., Any]:
    """The kernel for one row of so many tokens."""
    shape = (length, length)
    mask = CausalMask(shape) if window is None else LocalMask(shape, (window - 1, 0), 0)
    return splash_attention_kernel.make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=cap,
        head_shards=1,
        q_seq_shards=1,
    )


@cache
def _warn_about_cache() -> None:
    """Says once which program it is that reads a cache."""
    logging.getLogger(__name__).warning(
        "the kernel Splash leaves a cache to the program of Ring."
    )


def _check_support(dtype: jnp.dtype) -> None:
    """Refuses what the kernel cannot run on, and what it would round."""
    if (backend := partitioning.platform()) != "tpu":
        raise ValueError(
            f"the kernel Splash runs on TPUs and this program is for {backend}: choose"
            " Attention.backend=@RingAttention(), which runs anywhere."
        )
    if dtype == jnp.float64:
        raise ValueError(
            "the kernel Splash computes in float32 at most, not float64: choose"
            " Attention.backend=@RingAttention()."
        )
    if split := partitioning.mesh_axes("T"):
        raise ValueError(
            f"the kernel Splash takes rows whole, and a rule splits them over {split}:"
            " choose Attention.backend=@RingAttention()."
        )
