"""Attention between blocks of queries and of keys, a pair at a time.

Of all logits only those of one pair are there at once: a softmax is summed up as its
keys come (Milakov and Gimelshein 2018, arXiv:1805.02867), and the backward pass takes
each pair's logits anew (Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4).
"""

import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Shaped

from lmx.core.precision import upcast
from lmx.layers.attention.reference import MASKED, soft_cap
from lmx.layers.mask import TokenInfo, make_attention_mask

Tree = TypeVar("Tree")
Pairs = Int[Array, "pairs 3"]  # block of queries, block of keys, 0 for a pair to ignore


class QueryBlocks(NamedTuple):
    """Blocks of queries, scaled, and where they stand."""

    q: Float[Array, "blocks B K G T H"]
    tokens: TokenInfo


class KVBlocks(NamedTuple):
    """Blocks of keys and values, and where they stand."""

    k: Float[Array, "blocks B S K H"]
    v: Float[Array, "blocks B S K J"]
    tokens: TokenInfo


class OnlineSoftmax(NamedTuple):
    """Softmax as far as keys have come: all is over exp(high)."""

    max_logit: Float[Array, "blocks B K G T"]  # the largest logit
    denominator: Float[Array, "blocks B K G T"]
    numerator: Float[Array, "blocks B K G T J"]


class FlashOutput(NamedTuple):
    """What queries came to."""

    out: Float[Array, "blocks B K G T J"]
    logsumexp: Float[Array, "blocks B K G T"]


class ScoreOptions(NamedTuple):
    """What holds for every pair."""

    window: int | None = None
    logit_cap: float | None = None


def split_queries(
    q: Float[Array, "B T N H"],
    tokens: TokenInfo,
    kv_heads: int,
    chunk_length: int,
    block: int,
) -> QueryBlocks:
    """Queries in blocks, of a row in pieces of `length` tokens; rests are filled up."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=kv_heads)
    cut = rearrange(
        _split_blocks(q_BTKGH, chunk_length, block), "C B T K G H -> C B K G T H"
    )
    return QueryBlocks(cut, split_token_info(tokens, chunk_length, block))


def split_kv(
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    tokens: TokenInfo,
    chunk_length: int,
    block: int,
) -> KVBlocks:
    """Keys and values in blocks."""
    k, v = (_split_blocks(x, chunk_length, block) for x in (k, v))
    return KVBlocks(k, v, split_token_info(tokens, chunk_length, block))


def merge_output(
    output: FlashOutput, sink: Float[Array, "N"] | None, chunk_length: int
) -> Float[Array, "B T N J"]:
    """The answers of blocks as those of a row, with `sink` as one more key."""
    out = output.out
    if sink is not None:
        sink_KG = sink.reshape(out.shape[2:4])
        share = jax.nn.sigmoid(output.logsumexp - sink_KG[None, None, ..., None])
        out = (out * share[..., None]).astype(out.dtype)
    blocks = math.ceil(chunk_length / out.shape[4])
    rows = rearrange(out, "(M C) B K G T J -> B M (C T) (K G) J", C=blocks)
    return rearrange(rows[:, :, :chunk_length], "B M T N J -> B (M T) N J")


def init_softmax(queries: QueryBlocks, kv: KVBlocks) -> OnlineSoftmax:
    """The sums before any key has come."""
    wide = upcast(queries.q)
    zero = jnp.zeros_like(wide[..., 0])
    out = jnp.zeros_like(wide[..., :1])
    return OnlineSoftmax(zero + MASKED, zero, jnp.repeat(out, kv.v.shape[-1], axis=-1))


def accumulate(
    softmax: OnlineSoftmax,
    queries: QueryBlocks,
    kv: KVBlocks,
    pairs: Pairs,
    options: ScoreOptions,
) -> OnlineSoftmax:
    """`sums` with the keys of each pair."""

    def add(sums: OnlineSoftmax, pair: Int[Array, "3"]) -> tuple[OnlineSoftmax, None]:
        old, v_BSKJ = _take_block(sums, pair[0]), _take_block(kv.v, pair[1])
        logits_BKGTS, seen_BKGTS = _logits(queries, kv, pair, options)
        logits_BKGTS = jnp.where(seen_BKGTS, logits_BKGTS, MASKED)
        high_BKGT = jnp.maximum(old.max_logit, logits_BKGTS.max(axis=-1))
        share_BKGTS = jnp.exp(logits_BKGTS - high_BKGT[..., None])
        fade_BKGT = jnp.exp(old.max_logit - high_BKGT)
        total_BKGT = share_BKGTS.sum(axis=-1)
        share_BKGTS = share_BKGTS.astype(v_BSKJ.dtype)
        out_BKGTJ = _einsum("BKGTS,BSKJ->BKGTJ", share_BKGTS, v_BSKJ)
        new = OnlineSoftmax(
            high_BKGT,
            old.denominator * fade_BKGT + total_BKGT,
            old.numerator * fade_BKGT[..., None] + out_BKGTJ,
        )
        return _put_block(sums, pair[0], new), None

    return jax.lax.scan(add, softmax, pairs)[0]


def finalize(softmax: OnlineSoftmax, dtype: jnp.dtype) -> FlashOutput:
    """The average of the values, once all keys have come."""
    out = softmax.numerator / softmax.denominator[..., None]
    return FlashOutput(
        out.astype(dtype), softmax.max_logit + jnp.log(softmax.denominator)
    )


class OutputGrad(NamedTuple):
    """What the gradient of blocks of queries needs to know of their answers."""

    out: Float[Array, "blocks B K G T J"]  # the gradient with respect to it
    logsumexp: Float[Array, "blocks B K G T"]
    delta: Float[Array, "blocks B K G T"]  # subtracted from every probability's


def make_output_grad(output: FlashOutput, grad: FlashOutput) -> OutputGrad:
    """From an answer and the gradient with respect to it."""
    common = (upcast(output.out) * upcast(grad.out)).sum(axis=-1)
    return OutputGrad(grad.out, output.logsumexp, common - grad.logsumexp)


class QKVGrads(NamedTuple):
    """With respect to queries, keys and values, in at least float32."""

    q: Float[Array, "blocks B K G T H"]
    k: Float[Array, "blocks B S K H"]
    v: Float[Array, "blocks B S K J"]


def accumulate_grads(
    grads: QKVGrads,
    queries: QueryBlocks,
    kv: KVBlocks,
    output_grad: OutputGrad,
    pairs: Pairs,
    options: ScoreOptions,
) -> QKVGrads:
    """`grads` with what each pair adds to them."""

    def add(grads: QKVGrads, pair: Int[Array, "3"]) -> tuple[QKVGrads, None]:
        q_BKGTH, (y_BKGTJ, sum_BKGT, common_BKGT) = _take_block(
            (queries.q, output_grad), pair[0]
        )
        k_BSKH, v_BSKJ = _take_block((kv.k, kv.v), pair[1])
        logits_BKGTS, seen_BKGTS = _logits(queries, kv, pair, options)
        probs_BKGTS = jnp.exp(logits_BKGTS - sum_BKGT[..., None])
        probs_BKGTS = jnp.where(seen_BKGTS, probs_BKGTS, 0.0)
        above_BKGTS = _einsum("BKGTJ,BSKJ->BKGTS", y_BKGTJ, v_BSKJ)
        slope_BKGTS = probs_BKGTS * (above_BKGTS - common_BKGT[..., None])
        if options.logit_cap is not None:
            slope_BKGTS *= 1.0 - jnp.square(logits_BKGTS / options.logit_cap)
        slope_BKGTS = slope_BKGTS.astype(q_BKGTH.dtype)
        probs_BKGTS = probs_BKGTS.astype(v_BSKJ.dtype)
        old = QKVGrads(_take_block(grads.q, pair[0]), *_take_block(grads[1:], pair[1]))
        q = old.q + _einsum("BKGTS,BSKH->BKGTH", slope_BKGTS, k_BSKH)
        k = old.k + _einsum("BKGTS,BKGTH->BSKH", slope_BKGTS, q_BKGTH)
        v = old.v + _einsum("BKGTS,BKGTJ->BSKJ", probs_BKGTS, y_BKGTJ)
        held_grads = _put_block((grads.k, grads.v), pair[1], (k, v))
        return QKVGrads(_put_block(grads.q, pair[0], q), *held_grads), None

    return jax.lax.scan(add, grads, pairs)[0]


def _logits(
    asked: QueryBlocks, held: KVBlocks, pair: Int[Array, "3"], rule: ScoreOptions
) -> tuple[Float[Array, "B K G T S"], Bool[Array, "B 1 1 T S"]]:
    """The logits of a pair, and which of them count."""
    q_BKGTH, query = _take_block(asked, pair[0])
    k_BSKH, _, key = _take_block(held, pair[1])
    logits_BKGTS = _einsum("BKGTH,BSKH->BKGTS", q_BKGTH, k_BSKH)
    if rule.logit_cap is not None:
        logits_BKGTS = soft_cap(logits_BKGTS, rule.logit_cap)
    seen_BTS = make_attention_mask(query, key, rule.window) & (pair[2] > 0)
    return logits_BKGTS, seen_BTS[:, None, None]


def _split_blocks(
    x: Shaped[Array, "B T *dims"], length: int, block: int, fill: int = 0
) -> Shaped[Array, "blocks B S *dims"]:
    """Blocks first; what the last of a piece lacks is `read_into`."""
    block = min(block, length)
    pieces = rearrange(x, "B (M T) ... -> B M T ...", T=length)
    lacks = [(0, 0)] * pieces.ndim
    lacks[2] = (0, -length % block)
    filled = jnp.pad(pieces, lacks, constant_values=fill)
    return rearrange(filled, "B M (C T) ... -> (M C) B T ...", T=block)


def split_token_info(tokens: TokenInfo, chunk_length: int, block: int) -> TokenInfo:
    """What fills up is of no segment."""
    cut = TokenInfo(*(_split_blocks(x, chunk_length, block) for x in tokens))
    return cut._replace(
        segments=_split_blocks(tokens.segments, chunk_length, block, fill=-1)
    )


def _einsum(equation: str, x: Array, y: Array) -> Array:
    """Summed in at least float32, whatever the factors are held in."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(equation, x, y, preferred_element_type=wide)


def _take_block(tree: Tree, index: Int[Array, ""]) -> Tree:
    """One block of every array."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree
    )


def _put_block(tree: Tree, index: Int[Array, ""], new: Tree) -> Tree:
    """The arrays with that block in place of theirs."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), tree, new
    )
