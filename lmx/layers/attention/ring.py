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

from lmx.config.names import configurable
from lmx.core import spread
from lmx.core.precision import widened
from lmx.layers.attention.blocks import (
    Answer,
    Asked,
    Grads,
    Held,
    Pairs,
    Rule,
    Sums,
    asking,
    cut_place,
    finished,
    holding,
    nothing,
    pull_of,
    pulled,
    summed,
    told,
)
from lmx.layers.attention.course import Course, everything, plotted
from lmx.layers.attention.kernel import Kernel, Seen
from lmx.layers.mask import Place

Tree = TypeVar("Tree")
Staying = TypeVar("Staying")
Moving = TypeVar("Moving")
Moves = list[tuple[int, int]]  # from which device to which


class Way(NamedTuple):
    """How keys go around: the pairs of each step, and over which axes."""

    steps: Sequence[np.ndarray]
    axes: tuple[str, ...]
    rule: Rule


@configurable
@dataclass(frozen=True, kw_only=True)
class Ring(Kernel):
    """Ring attention over `Mesh.context`, in plain JAX, on any backend.

    Causal work is even: see `course`. Pairs of blocks that no query sees are not
    computed, and keys beyond the window are not sent; what packing hides is. A cache is
    read whole, block by block.

    Attributes:
        block: tokens of a block of queries and of keys.
    """

    block: int = 512
    serves = frozenset(("sink", "logit_cap"))

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(
                f"Ring.block is {self.block}: a block has 1 token at least."
            )

    def __call__(
        self, q, k, v, seen: Seen, *, scale=None, cap=None, sink=None, **beyond
    ):
        del beyond  # `check` saw that nothing is asked for
        q_BTNH = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        rule = Rule(seen.window, cap)
        if not seen.at_hand:
            return self._of_cache(q_BTNH, k, v, seen, rule, sink)
        course = plotted(q.shape[1], spread.parts("T"), self.block, seen.window)
        way = Way(course.steps, spread.axes("T"), rule)
        program = partial(_of_one_device, course, way)
        letters = ["BTNH", "BTKH", "BTKH", "BT", "N"]
        return spread.by_device(program, letters, "BTNH")(
            q_BTNH, k, v, seen.query, sink
        )

    def _of_cache(self, q, k, v, seen: Seen, rule: Rule, sink: Array | None) -> Array:
        T, S = q.shape[1], k.shape[1]
        way = Way((everything(T, S, self.block),), (), rule)
        asked = asking(q, seen.query, k.shape[2], T, self.block)
        held = holding(k, v, seen.key, S, self.block)
        held = held._replace(place=jax.tree.map(lambda x: x[None], held.place))
        return told(_attended(way, asked, held), sink, T)


def _of_one_device(
    course: Course,
    way: Way,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K J"],
    at: Place,
    sink: Float[Array, "N"] | None,
) -> Float[Array, "B T N J"]:
    """The answers to the device's share of queries."""
    every, own = _places(course, way.axes, at)
    if course.mirrored:
        q, k, v = _dealt(way.axes, q, k, v)
    cut = course.length, course.block
    asked = asking(q, own, k.shape[2], *cut)
    held = holding(k, v, own, *cut)
    held = held._replace(place=jax.vmap(lambda at: cut_place(at, *cut))(every))
    y_BTNH = told(_attended(way, asked, held), sink, course.length)
    return _collected(way.axes, y_BTNH) if course.mirrored else y_BTNH


def _places(course: Course, axes: tuple[str, ...], at: Place) -> tuple[Place, Place]:
    """Of every device's tokens, device first, and of this one's own.

    They are a few bytes a token, and need not go around with the keys.
    """
    if not axes:
        return jax.tree.map(lambda x: x[None], at), at
    rows = jax.lax.all_gather(jnp.stack(at), axes, axis=2, tiled=True)
    pieces = rearrange(rows, "kind B (piece T) -> kind B piece T", T=course.length)
    every = pieces[:, :, course.pieces]
    every = rearrange(every, "kind B at piece T -> kind at B (piece T)")
    return Place(*every), Place(*every[:, jax.lax.axis_index(axes)])


def _attended(way: Way, asked: Asked, held: Held) -> Answer:
    """The answers; of all that was computed the backward pass gets only these."""
    attended = jax.custom_vjp(partial(_forward, way))
    attended.defvjp(partial(_kept, way), partial(_backward, way))
    return attended(asked, held)


def _forward(way: Way, asked: Asked, held: Held) -> Answer:
    def visit(sums: Sums, keys: Any, pairs: Pairs, place: Place) -> tuple[Sums, Any]:
        here = Held(keys[0], keys[1], place)
        return summed(sums, asked, here, pairs, way.rule), keys

    sums, _ = _around(way, visit, nothing(asked, held), (held.k, held.v), held.place)
    return finished(sums, held.v.dtype)


def _kept(way: Way, asked: Asked, held: Held) -> tuple[Answer, Any]:
    answer = _forward(way, asked, held)
    return answer, (asked, held, answer)


def _backward(way: Way, kept: Any, grad: Answer) -> tuple[Asked, Held]:
    """Keys go around once more, and the gradients of each with it."""
    asked, held, answer = kept
    pull = pull_of(answer, grad)

    def visit(q: Array, moving: Any, pairs: Pairs, place: Place) -> tuple[Array, Any]:
        keys, k, v = moving
        here = Held(keys[0], keys[1], place)
        q, k, v = pulled(Grads(q, k, v), asked, here, pull, pairs, way.rule)
        return q, (keys, k, v)

    q, k, v = (jnp.zeros_like(widened(x)) for x in (asked.q, held.k, held.v))
    moving = (held.k, held.v), k, v
    q, (_, k, v) = _around(way, visit, q, moving, held.place)
    k, v = _passed((k, v), way.axes, 1 - len(way.steps))  # home
    like = asked.q.dtype, held.k.dtype, held.v.dtype
    q, k, v = (x.astype(dtype) for x, dtype in zip((q, k, v), like, strict=True))
    return Asked(q, _still(asked.place)), Held(k, v, _still(held.place))


def _still(place: Place) -> Place:
    """The gradient with respect to whole numbers, which is none."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), place)


def _around(
    way: Way,
    visit: Callable[[Staying, Moving, Pairs, Place], tuple[Staying, Moving]],
    staying: Staying,
    moving: Moving,
    every: Place,
) -> tuple[Staying, Moving]:
    """After all steps. What moves goes to the next device after each but the last.

    What a visit does not change can be on its way while the visit is computed. `every`
    has the places of the keys that each device begins with.
    """
    here = jax.lax.axis_index(way.axes) if way.axes else 0

    def place(step: Any) -> Place:
        return jax.tree.map(lambda x: x[(here - step) % len(x)], every)

    def turn(state: Any, what: Any) -> tuple[Any, None]:
        pairs, step = what
        staying, moving = visit(state[0], state[1], pairs, place(step))
        return (staying, _passed(moving, way.axes, 1)), None

    *before, last = enumerate(way.steps)
    for _, alike in groupby(before, lambda numbered: numbered[1].shape):
        steps, pairs = zip(*alike, strict=True)
        what = jnp.stack(pairs, axis=1)[here], jnp.array(steps)
        (staying, moving), _ = jax.lax.scan(turn, (staying, moving), what)
    return visit(staying, moving, jnp.asarray(last[1])[here], place(last[0]))


def _sent(axes: tuple[str, ...], mail: Iterable[tuple[Array, Moves]]) -> list[Array]:
    """Each array where its moves take it, one after the other."""
    found: list[Array] = []
    for x, moves in mail:
        move = partial(jax.lax.ppermute, axis_name=axes, perm=moves)
        found.append(spread.in_turn(move, x, found[-1]) if found else move(x))
    return found


def _passed(tree: Tree, axes: tuple[str, ...], by: int) -> Tree:
    """Each device has what the one `by` places before had."""
    if not axes or not by:
        return tree
    devices = jax.lax.axis_size(axes)
    ring = [(at, (at + by) % devices) for at in range(devices)]
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _sent(axes, ((x, ring) for x in leaves)))


def _dealt(axes: tuple[str, ...], *rows: Shaped[Array, "B T ..."]) -> Iterator[Array]:
    """Device i has pieces 2i and 2i + 1 of a row, and gets i and its mirror."""
    halves = (half for x in rows for half in jnp.split(x, 2, axis=1))
    found = _sent(axes, zip(halves, cycle(_moves(axes)), strict=False))
    for even, odd in zip(found[::2], found[1::2], strict=True):
        yield jnp.concatenate(_swapped(axes, even, odd), axis=1)


def _collected(axes: tuple[str, ...], x: Shaped[Array, "B T *dims"]) -> Array:
    """The reverse of `_dealt`."""
    halves = _swapped(axes, *jnp.split(x, 2, axis=1))
    back = ([(there, here) for here, there in moves] for moves in _moves(axes))
    return jnp.concatenate(_sent(axes, zip(halves, back, strict=True)), axis=1)


def _moves(axes: tuple[str, ...]) -> list[Moves]:
    """Where each device's even piece goes, and where its odd one."""
    devices = jax.lax.axis_size(axes)
    return [
        [(at, min(piece, 2 * devices - 1 - piece)) for at, piece in enumerate(pieces)]
        for pieces in (range(0, 2 * devices, 2), range(1, 2 * devices, 2))
    ]


def _swapped(axes: tuple[str, ...], x: Array, y: Array) -> tuple[Array, Array]:
    """A device whose piece of the front is odd has them the other way round."""
    is_even = jax.lax.axis_index(axes) % 2 == 0
    return jnp.where(is_even, x, y), jnp.where(is_even, y, x)
