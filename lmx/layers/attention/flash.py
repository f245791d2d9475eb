"""Flash attention in plain JAX: blockwise attention with an online softmax.

Only the logits of one pair of blocks exist at a time (Milakov and Gimelshein 2018,
arXiv:1805.02867); the backward pass recomputes them (Dao et al. 2022, arXiv:2205.14135,
algorithms 1 and 4).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PyTree, Shaped

from lmx.core.precision import upcast
from lmx.layers.attention.reference import MASKED, soft_cap
from lmx.layers.mask import TokenInfo, make_attention_mask

Pairs = Int[Array, "pairs 3"]  # query block, key block, 0 for a pair to ignore
# Gradient of the output, logsumexp, and what is subtracted from that of the softmax.
OutputGrad = tuple[Array, Array, Array]
QKVGrads = tuple[Array, Array, Array]


class QueryBlocks(NamedTuple):
    """Scaled queries in blocks."""

    q: Float[Array, "blocks B K G T H"]
    tokens: TokenInfo


class KVBlocks(NamedTuple):
    """Keys and values in blocks."""

    k: Float[Array, "blocks B S K H"]
    v: Float[Array, "blocks B S K J"]
    tokens: TokenInfo


class OnlineSoftmax(NamedTuple):
    """Partial softmax over the keys so far; sums are relative to exp(max_logit)."""

    max_logit: Float[Array, "blocks B K G T"]
    denominator: Float[Array, "blocks B K G T"]
    numerator: Float[Array, "blocks B K G T J"]


class FlashOutput(NamedTuple):
    """Attention output, and the log of the softmax denominator."""

    out: Float[Array, "blocks B K G T J"]
    logsumexp: Float[Array, "blocks B K G T"]


class ScoreOptions(NamedTuple):
    """Options of the logits of all pairs."""

    window: int | None = None
    logit_cap: float | None = None


def split_queries(
    q: Float[Array, "B T N H"],
    tokens: TokenInfo,
    kv_heads: int,
    chunk_length: int,
    block: int,
) -> QueryBlocks:
    """Blocks of queries, each within one chunk of `chunk_length` tokens; padded."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=kv_heads)
    blocks = split_blocks(q_BTKGH, chunk_length, block)
    tokens = split_token_info(tokens, chunk_length, block)
    return QueryBlocks(rearrange(blocks, "C B T K G H -> C B K G T H"), tokens)


def split_token_info(tokens: TokenInfo, chunk_length: int, block: int) -> TokenInfo:
    """Blocks of `tokens`; padding has segment -1."""
    blocks = (
        split_blocks(x, chunk_length, block, fill)
        for x, fill in zip(tokens, (0, 0, -1), strict=True)
    )
    return TokenInfo(*blocks)


def merge_output(
    output: FlashOutput, sink: Float[Array, "N"] | None, chunk_length: int
) -> Float[Array, "B T N J"]:
    """The output of all blocks as rows, with `sink` as the logit of one more key."""
    out = output.out
    if sink is not None:
        sink_KG = sink.reshape(out.shape[2:4])[None, None, ..., None]
        factor = jax.nn.sigmoid(output.logsumexp - sink_KG)
        out = (out * factor[..., None]).astype(out.dtype)
    blocks = math.ceil(chunk_length / out.shape[4])
    chunks = rearrange(out, "(M C) B K G T J -> B M (C T) (K G) J", C=blocks)
    return rearrange(chunks[:, :, :chunk_length], "B M T N J -> B (M T) N J")


def init_softmax(queries: QueryBlocks, kv: KVBlocks) -> OnlineSoftmax:
    """The softmax over no keys."""
    wide = upcast(queries.q)
    zero = jnp.zeros_like(wide[..., 0])
    out = jnp.zeros_like(wide[..., :1])
    numerator = jnp.repeat(out, kv.v.shape[-1], axis=-1)
    return OnlineSoftmax(zero + MASKED, zero, numerator)


def accumulate(
    softmax: OnlineSoftmax,
    queries: QueryBlocks,
    kv: KVBlocks,
    pairs: Pairs,
    options: ScoreOptions,
) -> OnlineSoftmax:
    """Adds the keys of each pair to the softmax of its queries."""

    def add(softmax: OnlineSoftmax, pair: Int[Array, "3"]):
        old, v_BSKJ = _take_block(softmax, pair[0]), _take_block(kv.v, pair[1])
        logits_BKGTS, mask_BKGTS = _logits(queries, kv, pair, options)
        logits_BKGTS = jnp.where(mask_BKGTS, logits_BKGTS, MASKED)
        max_BKGT = jnp.maximum(old.max_logit, logits_BKGTS.max(axis=-1))
        weight_BKGTS = jnp.exp(logits_BKGTS - max_BKGT[..., None])
        decay_BKGT = jnp.exp(old.max_logit - max_BKGT)
        total_BKGT = weight_BKGTS.sum(axis=-1)
        weight_BKGTS = weight_BKGTS.astype(v_BSKJ.dtype)
        out_BKGTJ = _einsum("BKGTS,BSKJ->BKGTJ", weight_BKGTS, v_BSKJ)
        new = OnlineSoftmax(
            max_BKGT,
            old.denominator * decay_BKGT + total_BKGT,
            old.numerator * decay_BKGT[..., None] + out_BKGTJ,
        )
        return _put_block(softmax, pair[0], new), None

    return jax.lax.scan(add, softmax, pairs)[0]


def finalize(softmax: OnlineSoftmax, dtype: jnp.dtype) -> FlashOutput:
    """The output after all keys."""
    out = softmax.numerator / softmax.denominator[..., None]
    logsumexp = softmax.max_logit + jnp.log(softmax.denominator)
    return FlashOutput(out.astype(dtype), logsumexp)


def accumulate_grads(
    grads: QKVGrads,
    queries: QueryBlocks,
    kv: KVBlocks,
    output_grad: OutputGrad,
    pairs: Pairs,
    options: ScoreOptions,
) -> QKVGrads:
    """Adds the gradients of each pair, in at least float32."""

    def add(grads: QKVGrads, pair: Int[Array, "3"]):
        of_queries = _take_block((queries.q, *output_grad), pair[0])
        q_BKGTH, grad_BKGTJ, logsumexp_BKGT, delta_BKGT = of_queries
        k_BSKH, v_BSKJ = _take_block((kv.k, kv.v), pair[1])
        logits_BKGTS, mask_BKGTS = _logits(queries, kv, pair, options)
        probs_BKGTS = jnp.exp(logits_BKGTS - logsumexp_BKGT[..., None])
        probs_BKGTS = jnp.where(mask_BKGTS, probs_BKGTS, 0.0)
        dprobs_BKGTS = _einsum("BKGTJ,BSKJ->BKGTS", grad_BKGTJ, v_BSKJ)
        dlogits_BKGTS = probs_BKGTS * (dprobs_BKGTS - delta_BKGT[..., None])
        if options.logit_cap is not None:
            dlogits_BKGTS *= 1.0 - jnp.square(logits_BKGTS / options.logit_cap)
        dlogits_BKGTS = dlogits_BKGTS.astype(q_BKGTH.dtype)
        probs_BKGTS = probs_BKGTS.astype(v_BSKJ.dtype)
        q = _einsum("BKGTS,BSKH->BKGTH", dlogits_BKGTS, k_BSKH)
        k = _einsum("BKGTS,BKGTH->BSKH", dlogits_BKGTS, q_BKGTH)
        v = _einsum("BKGTS,BKGTJ->BSKJ", probs_BKGTS, grad_BKGTJ)
        return (
            _add_block(grads[0], pair[0], q),
            _add_block(grads[1], pair[1], k),
            _add_block(grads[2], pair[1], v),
        ), None

    return jax.lax.scan(add, grads, pairs)[0]


def _logits(
    queries: QueryBlocks, kv: KVBlocks, pair: Array, options: ScoreOptions
) -> tuple[Array, Array]:
    """The logits of a pair, and their mask."""
    q_BKGTH, query = _take_block(queries, pair[0])
    k_BSKH, _, key = _take_block(kv, pair[1])
    logits_BKGTS = _einsum("BKGTH,BSKH->BKGTS", q_BKGTH, k_BSKH)
    if options.logit_cap is not None:
        logits_BKGTS = soft_cap(logits_BKGTS, options.logit_cap)
    mask_BTS = make_attention_mask(query, key, options.window) & (pair[2] > 0)
    return logits_BKGTS, mask_BTS[:, None, None]


def split_blocks(
    x: Shaped[Array, "B T *dims"], chunk_length: int, block: int, fill: int = 0
) -> Shaped[Array, "blocks B S *dims"]:
    """Blocks, each within one chunk; the last of a chunk is padded with `fill`."""
    block = min(block, chunk_length)
    chunks = rearrange(x, "B (M T) ... -> B M T ...", T=chunk_length)
    padding = [(0, 0)] * chunks.ndim
    padding[2] = (0, -chunk_length % block)
    padded = jnp.pad(chunks, padding, constant_values=fill)
    return rearrange(padded, "B M (C T) ... -> (M C) B T ...", T=block)


def _einsum(equation: str, x: Array, y: Array) -> Array:
    """Accumulates and returns at least float32."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def _take_block(tree: PyTree, index: Array) -> PyTree:
    """One block of every array."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree
    )


def _put_block(tree: PyTree, index: Array, new: PyTree) -> PyTree:
    """The arrays with one block replaced."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), tree, new
    )


def _add_block(x: Array, index: Array, change: Array) -> Array:
    """`x` with `change` added to one block."""
    return _put_block(x, index, _take_block(x, index) + change)
