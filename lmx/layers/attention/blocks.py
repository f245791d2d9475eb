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

from lmx.core.precision import widened
from lmx.layers.attention.dot import MASKED, soft_cap
from lmx.layers.mask import Place, visible

Tree = TypeVar("Tree")
Pairs = Int[Array, "pairs 3"]  # block of queries, block of keys, 0 for a pair to ignore


class Asked(NamedTuple):
    """Blocks of queries, scaled, and where they stand."""

    q: Float[Array, "blocks B K G T H"]
    place: Place


class Held(NamedTuple):
    """Blocks of keys and values, and where they stand."""

    k: Float[Array, "blocks B S K H"]
    v: Float[Array, "blocks B S K J"]
    place: Place


class Sums(NamedTuple):
    """Softmax as far as keys have come: all is over exp(high)."""

    high: Float[Array, "blocks B K G T"]  # the largest logit
    total: Float[Array, "blocks B K G T"]
    out: Float[Array, "blocks B K G T J"]


class Answer(NamedTuple):
    """What queries came to."""

    out: Float[Array, "blocks B K G T J"]
    logsumexp: Float[Array, "blocks B K G T"]


class Rule(NamedTuple):
    """What holds for every pair."""

    window: int | None = None
    cap: float | None = None


def asking(
    q: Float[Array, "B T N H"], place: Place, kv_heads: int, length: int, block: int
) -> Asked:
    """Queries in blocks, of a row in pieces of `length` tokens; rests are filled up."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=kv_heads)
    cut = rearrange(_cut(q_BTKGH, length, block), "C B T K G H -> C B K G T H")
    return Asked(cut, cut_place(place, length, block))


def holding(
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    place: Place,
    length: int,
    block: int,
) -> Held:
    """Keys and values in blocks."""
    k, v = (_cut(x, length, block) for x in (k, v))
    return Held(k, v, cut_place(place, length, block))


def told(
    answer: Answer, sink: Float[Array, "N"] | None, length: int
) -> Float[Array, "B T N J"]:
    """The answers of blocks as those of a row, with `sink` as one more key."""
    out = answer.out
    if sink is not None:
        sink_KG = sink.reshape(out.shape[2:4])
        share = jax.nn.sigmoid(answer.logsumexp - sink_KG[None, None, ..., None])
        out = (out * share[..., None]).astype(out.dtype)
    blocks = math.ceil(length / out.shape[4])
    rows = rearrange(out, "(M C) B K G T J -> B M (C T) (K G) J", C=blocks)
    return rearrange(rows[:, :, :length], "B M T N J -> B (M T) N J")


def nothing(asked: Asked, held: Held) -> Sums:
    """The sums before any key has come."""
    wide = widened(asked.q)
    zero = jnp.zeros_like(wide[..., 0])
    out = jnp.zeros_like(wide[..., :1])
    return Sums(zero + MASKED, zero, jnp.repeat(out, held.v.shape[-1], axis=-1))


def summed(sums: Sums, asked: Asked, held: Held, pairs: Pairs, rule: Rule) -> Sums:
    """`sums` with the keys of each pair."""

    def add(sums: Sums, pair: Int[Array, "3"]) -> tuple[Sums, None]:
        old, v_BSKJ = _block(sums, pair[0]), _block(held.v, pair[1])
        logits_BKGTS, seen_BKGTS = _logits(asked, held, pair, rule)
        logits_BKGTS = jnp.where(seen_BKGTS, logits_BKGTS, MASKED)
        high_BKGT = jnp.maximum(old.high, logits_BKGTS.max(axis=-1))
        share_BKGTS = jnp.exp(logits_BKGTS - high_BKGT[..., None])
        fade_BKGT = jnp.exp(old.high - high_BKGT)
        total_BKGT = share_BKGTS.sum(axis=-1)
        share_BKGTS = share_BKGTS.astype(v_BSKJ.dtype)
        out_BKGTJ = _product("BKGTS,BSKJ->BKGTJ", share_BKGTS, v_BSKJ)
        new = Sums(
            high_BKGT,
            old.total * fade_BKGT + total_BKGT,
            old.out * fade_BKGT[..., None] + out_BKGTJ,
        )
        return _with_block(sums, pair[0], new), None

    return jax.lax.scan(add, sums, pairs)[0]


def finished(sums: Sums, dtype: jnp.dtype) -> Answer:
    """The average of the values, once all keys have come."""
    out = sums.out / sums.total[..., None]
    return Answer(out.astype(dtype), sums.high + jnp.log(sums.total))


class Pull(NamedTuple):
    """What the gradient of blocks of queries needs to know of their answers."""

    out: Float[Array, "blocks B K G T J"]  # the gradient with respect to it
    logsumexp: Float[Array, "blocks B K G T"]
    common: Float[Array, "blocks B K G T"]  # subtracted from every probability's


def pull_of(answer: Answer, grad: Answer) -> Pull:
    """From an answer and the gradient with respect to it."""
    common = (widened(answer.out) * widened(grad.out)).sum(axis=-1)
    return Pull(grad.out, answer.logsumexp, common - grad.logsumexp)


class Grads(NamedTuple):
    """With respect to queries, keys and values, in at least float32."""

    q: Float[Array, "blocks B K G T H"]
    k: Float[Array, "blocks B S K H"]
    v: Float[Array, "blocks B S K J"]


def pulled(
    grads: Grads, asked: Asked, held: Held, pull: Pull, pairs: Pairs, rule: Rule
) -> Grads:
    """`grads` with what each pair adds to them."""

    def add(grads: Grads, pair: Int[Array, "3"]) -> tuple[Grads, None]:
        q_BKGTH, (y_BKGTJ, sum_BKGT, common_BKGT) = _block((asked.q, pull), pair[0])
        k_BSKH, v_BSKJ = _block((held.k, held.v), pair[1])
        logits_BKGTS, seen_BKGTS = _logits(asked, held, pair, rule)
        probs_BKGTS = jnp.exp(logits_BKGTS - sum_BKGT[..., None])
        probs_BKGTS = jnp.where(seen_BKGTS, probs_BKGTS, 0.0)
        above_BKGTS = _product("BKGTJ,BSKJ->BKGTS", y_BKGTJ, v_BSKJ)
        slope_BKGTS = probs_BKGTS * (above_BKGTS - common_BKGT[..., None])
        if rule.cap is not None:
            slope_BKGTS *= 1.0 - jnp.square(logits_BKGTS / rule.cap)
        slope_BKGTS = slope_BKGTS.astype(q_BKGTH.dtype)
        probs_BKGTS = probs_BKGTS.astype(v_BSKJ.dtype)
        old = Grads(_block(grads.q, pair[0]), *_block(grads[1:], pair[1]))
        q = old.q + _product("BKGTS,BSKH->BKGTH", slope_BKGTS, k_BSKH)
        k = old.k + _product("BKGTS,BKGTH->BSKH", slope_BKGTS, q_BKGTH)
        v = old.v + _product("BKGTS,BKGTJ->BSKJ", probs_BKGTS, y_BKGTJ)
        held_grads = _with_block((grads.k, grads.v), pair[1], (k, v))
        return Grads(_with_block(grads.q, pair[0], q), *held_grads), None

    return jax.lax.scan(add, grads, pairs)[0]


def _logits(
    asked: Asked, held: Held, pair: Int[Array, "3"], rule: Rule
) -> tuple[Float[Array, "B K G T S"], Bool[Array, "B 1 1 T S"]]:
    """The logits of a pair, and which of them count."""
    q_BKGTH, query = _block(asked, pair[0])
    k_BSKH, _, key = _block(held, pair[1])
    logits_BKGTS = _product("BKGTH,BSKH->BKGTS", q_BKGTH, k_BSKH)
    if rule.cap is not None:
        logits_BKGTS = soft_cap(logits_BKGTS, rule.cap)
    seen_BTS = visible(query, key, rule.window) & (pair[2] > 0)
    return logits_BKGTS, seen_BTS[:, None, None]


def _cut(
    x: Shaped[Array, "B T *dims"], length: int, block: int, fill: int = 0
) -> Shaped[Array, "blocks B S *dims"]:
    """Blocks first; what the last of a piece lacks is `fill`."""
    block = min(block, length)
    pieces = rearrange(x, "B (M T) ... -> B M T ...", T=length)
    lacks = [(0, 0)] * pieces.ndim
    lacks[2] = (0, -length % block)
    filled = jnp.pad(pieces, lacks, constant_values=fill)
    return rearrange(filled, "B M (C T) ... -> (M C) B T ...", T=block)


def cut_place(place: Place, length: int, block: int) -> Place:
    """What fills up is of no segment."""
    cut = Place(*(_cut(x, length, block) for x in place))
    return cut._replace(segments=_cut(place.segments, length, block, fill=-1))


def _product(equation: str, x: Array, y: Array) -> Array:
    """Summed in at least float32, whatever the factors are held in."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(equation, x, y, preferred_element_type=wide)


def _block(tree: Tree, index: Int[Array, ""]) -> Tree:
    """One block of every array."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree
    )


def _with_block(tree: Tree, index: Int[Array, ""], new: Tree) -> Tree:
    """The arrays with that block in place of theirs."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), tree, new
    )
