"""Attention with a row split over devices, whose keys go around them in a ring.

Liu et al. 2023, arXiv:2310.01889. No device holds all keys, nor more logits than those
of two blocks. On one device it is the same block by block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Shaped

from lmx.config.registry import configurable
from lmx.core import partitioning
from lmx.core.precision import upcast
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.flash import (
    FlashOutput,
    KVBlocks,
    OnlineSoftmax,
    Pairs,
    QKVGrads,
    QueryBlocks,
    ScoreOptions,
    accumulate,
    accumulate_grads,
    finalize,
    init_softmax,
    make_output_grad,
    merge_output,
    split_kv,
    split_queries,
    split_token_info,
)
from lmx.layers.attention.ring_schedule import (
    RingSchedule,
    choose_schedule,
    list_all_pairs,
)
from lmx.layers.mask import TokenInfo

Tree = TypeVar("Tree")
Staying = TypeVar("Staying")
Moving = TypeVar("Moving")
Moves = list[tuple[int, int]]  # from which device to which


class RingPlan(NamedTuple):
    """How keys go around: the pairs of each step, and over which axes."""

    steps: Sequence[np.ndarray]
    axes: tuple[str, ...]
    options: ScoreOptions


@configurable
@dataclass(frozen=True, kw_only=True)
class RingAttention(AttentionBackend):
    """Ring attention over `Mesh.context`, in plain JAX, on any backend.

    Causal work is even: see `course`. Pairs of blocks that no query sees are not
    computed, and keys beyond the window are not sent; what packing hides is. A cache is
    read whole, block by block.

    Attributes:
        block: tokens of a block of queries and of keys.
    """

    block: int = 512
    supports = frozenset(("sink", "logit_cap"))

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(
                f"RingAttention.block is {self.block}: a block has 1 token at least."
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
        del beyond  # `check` saw that nothing is asked for
        q_BTNH = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        rule = ScoreOptions(mask.window, logit_cap)
        if not mask.no_cache:
            return self._attend_to_cache(q_BTNH, k, v, mask, rule, sink)
        course = choose_schedule(
            q.shape[1], partitioning.num_shards("T"), self.block, mask.window
        )
        way = RingPlan(course.steps, partitioning.mesh_axes("T"), rule)
        program = partial(_attend_local, course, way)
        letters = ["BTNH", "BTKH", "BTKH", "BT", "N"]
        return partitioning.shard_map(program, letters, "BTNH")(
            q_BTNH, k, v, mask.query, sink
        )

    def _attend_to_cache(
        self, q, k, v, seen: AttentionMask, rule: ScoreOptions, sink: Array | None
    ) -> Array:
        T, S = q.shape[1], k.shape[1]
        way = RingPlan((list_all_pairs(T, S, self.block),), (), rule)
        asked = split_queries(q, seen.query, k.shape[2], T, self.block)
        held = split_kv(k, v, seen.key, S, self.block)
        held = held._replace(tokens=jax.tree.map(lambda x: x[None], held.tokens))
        return merge_output(_attend(way, asked, held), sink, T)


def _attend_local(
    course: RingSchedule,
    way: RingPlan,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K J"],
    at: TokenInfo,
    sink: Float[Array, "N"] | None,
) -> Float[Array, "B T N J"]:
    """The answers to the device's share of queries."""
    every, own = _gather_token_info(course, way.axes, at)
    if course.zigzag:
        q, k, v = _to_zigzag(way.axes, q, k, v)
    cut = course.chunk_length, course.block
    asked = split_queries(q, own, k.shape[2], *cut)
    held = split_kv(k, v, own, *cut)
    held = held._replace(tokens=jax.vmap(lambda at: split_token_info(at, *cut))(every))
    y_BTNH = merge_output(_attend(way, asked, held), sink, course.chunk_length)
    return _from_zigzag(way.axes, y_BTNH) if course.zigzag else y_BTNH


def _gather_token_info(
    course: RingSchedule, axes: tuple[str, ...], at: TokenInfo
) -> tuple[TokenInfo, TokenInfo]:
    """Of every device's tokens, device first, and of this one's own.

    They are a few bytes a token, and need not go around with the keys.
    """
    if not axes:
        return jax.tree.map(lambda x: x[None], at), at
    rows = jax.lax.all_gather(jnp.stack(at), axes, axis=2, tiled=True)
    pieces = rearrange(
        rows, "kind B (piece T) -> kind B piece T", T=course.chunk_length
    )
    every = pieces[:, :, course.chunks]
    every = rearrange(every, "kind B at piece T -> kind at B (piece T)")
    return TokenInfo(*every), TokenInfo(*every[:, jax.lax.axis_index(axes)])


def _attend(way: RingPlan, asked: QueryBlocks, held: KVBlocks) -> FlashOutput:
    """The answers; of all that was computed the backward pass gets only these."""
    attended = jax.custom_vjp(partial(_forward, way))
    attended.defvjp(partial(_forward_with_residuals, way), partial(_backward, way))
    return attended(asked, held)


def _forward(way: RingPlan, asked: QueryBlocks, held: KVBlocks) -> FlashOutput:
    def visit(
        sums: OnlineSoftmax, keys: Any, pairs: Pairs, place: TokenInfo
    ) -> tuple[OnlineSoftmax, Any]:
        here = KVBlocks(keys[0], keys[1], place)
        return accumulate(sums, asked, here, pairs, way.options), keys

    sums, _ = _rotate_kv(
        way, visit, init_softmax(asked, held), (held.k, held.v), held.tokens
    )
    return finalize(sums, held.v.dtype)


def _forward_with_residuals(
    way: RingPlan, asked: QueryBlocks, held: KVBlocks
) -> tuple[FlashOutput, Any]:
    answer = _forward(way, asked, held)
    return answer, (asked, held, answer)


def _backward(
    way: RingPlan, kept: Any, grad: FlashOutput
) -> tuple[QueryBlocks, KVBlocks]:
    """Keys go around once more, and the gradients of each with it."""
    asked, held, answer = kept
    pull = make_output_grad(answer, grad)

    def visit(
        q: Array, moving: Any, pairs: Pairs, place: TokenInfo
    ) -> tuple[Array, Any]:
        keys, k, v = moving
        here = KVBlocks(keys[0], keys[1], place)
        q, k, v = accumulate_grads(
            QKVGrads(q, k, v), asked, here, pull, pairs, way.options
        )
        return q, (keys, k, v)

    q, k, v = (jnp.zeros_like(upcast(x)) for x in (asked.q, held.k, held.v))
    moving = (held.k, held.v), k, v
    q, (_, k, v) = _rotate_kv(way, visit, q, moving, held.tokens)
    k, v = _shift((k, v), way.axes, 1 - len(way.steps))  # home
    like = asked.q.dtype, held.k.dtype, held.v.dtype
    q, k, v = (x.astype(dtype) for x, dtype in zip((q, k, v), like, strict=True))
    return QueryBlocks(q, _zero_gradient(asked.tokens)), KVBlocks(
        k, v, _zero_gradient(held.tokens)
    )


def _zero_gradient(place: TokenInfo) -> TokenInfo:
    """The gradient with respect to whole numbers, which is none."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), place)


def _rotate_kv(
    way: RingPlan,
    visit: Callable[[Staying, Moving, Pairs, TokenInfo], tuple[Staying, Moving]],
    staying: Staying,
    moving: Moving,
    every: TokenInfo,
) -> tuple[Staying, Moving]:
    """After all steps. What moves goes to the next device after each but the last.

    What a visit does not change can be on its way while the visit is computed. `every`
    has the places of the keys that each device begins with.
    """
    here = jax.lax.axis_index(way.axes) if way.axes else 0

    def place(step: Any) -> TokenInfo:
        return jax.tree.map(lambda x: x[(here - step) % len(x)], every)

    def turn(state: Any, what: Any) -> tuple[Any, None]:
        pairs, step = what
        staying, moving = visit(state[0], state[1], pairs, place(step))
        return (staying, _shift(moving, way.axes, 1)), None

    *before, last = enumerate(way.steps)
    for _, alike in groupby(before, lambda numbered: numbered[1].shape):
        steps, pairs = zip(*alike, strict=True)
        what = jnp.stack(pairs, axis=1)[here], jnp.array(steps)
        (staying, moving), _ = jax.lax.scan(turn, (staying, moving), what)
    return visit(staying, moving, jnp.asarray(last[1])[here], place(last[0]))


def _permute_sequentially(
    axes: tuple[str, ...], mail: Iterable[tuple[Array, Moves]]
) -> list[Array]:
    """Each array where its moves take it, one after the other."""
    found: list[Array] = []
    for x, moves in mail:
        move = partial(jax.lax.ppermute, axis_name=axes, perm=moves)
        found.append(
            partitioning.serialize_collective(move, x, found[-1]) if found else move(x)
        )
    return found


def _shift(tree: Tree, axes: tuple[str, ...], by: int) -> Tree:
    """Each device has what the one `by` places before had."""
    if not axes or not by:
        return tree
    devices = jax.lax.axis_size(axes)
    ring = [(at, (at + by) % devices) for at in range(devices)]
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, _permute_sequentially(axes, ((x, ring) for x in leaves))
    )


def _to_zigzag(
    axes: tuple[str, ...], *rows: Shaped[Array, "B T ..."]
) -> Iterator[Array]:
    """Device i has pieces 2i and 2i + 1 of a row, and gets i and its mirror."""
    halves = (half for x in rows for half in jnp.split(x, 2, axis=1))
    found = _permute_sequentially(
        axes, zip(halves, cycle(_zigzag_moves(axes)), strict=False)
    )
    for even, odd in zip(found[::2], found[1::2], strict=True):
        yield jnp.concatenate(_swap_halves(axes, even, odd), axis=1)


def _from_zigzag(axes: tuple[str, ...], x: Shaped[Array, "B T *dims"]) -> Array:
    """The reverse of `_dealt`."""
    halves = _swap_halves(axes, *jnp.split(x, 2, axis=1))
    back = ([(there, here) for here, there in moves] for moves in _zigzag_moves(axes))
    return jnp.concatenate(
        _permute_sequentially(axes, zip(halves, back, strict=True)), axis=1
    )


def _zigzag_moves(axes: tuple[str, ...]) -> list[Moves]:
    """Where each device's even piece goes, and where its odd one."""
    devices = jax.lax.axis_size(axes)
    return [
        [(at, min(piece, 2 * devices - 1 - piece)) for at, piece in enumerate(pieces)]
        for pieces in (range(0, 2 * devices, 2), range(1, 2 * devices, 2))
    ]


def _swap_halves(axes: tuple[str, ...], x: Array, y: Array) -> tuple[Array, Array]:
    """A device whose piece of the front is odd has them the other way round."""
    is_even = jax.lax.axis_index(axes) % 2 == 0
    return jnp.where(is_even, x, y), jnp.where(is_even, y, x)
