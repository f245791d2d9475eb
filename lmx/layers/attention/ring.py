"""Attention with a row split over devices, whose keys go around them in a ring.

Liu et al. 2023, arXiv:2310.01889. No device holds all keys, nor more logits than those
of two blocks. On one device it is the same block by block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
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
        course = plotted(q.shape[1], spread.count("T"), self.block, seen.window)
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
    if course.mirrored:
        q, k, v, at = jax.tree.map(partial(_dealt, way.axes), (q, k, v, at))
    asked = asking(q, at, k.shape[2], course.length, course.block)
    held = holding(k, v, at, course.length, course.block)
    y_BTNH = told(_attended(way, asked, held), sink, course.length)
    return _collected(way.axes, y_BTNH) if course.mirrored else y_BTNH


def _attended(way: Way, asked: Asked, held: Held) -> Answer:
    """The answers; of all that was computed the backward pass gets only these."""
    attended = jax.custom_vjp(partial(_forward, way))
    attended.defvjp(partial(_kept, way), partial(_backward, way))
    return attended(asked, held)


def _forward(way: Way, asked: Asked, held: Held) -> Answer:
    def visit(sums: Sums, held: Held, pairs: Pairs) -> tuple[Sums, Held]:
        return summed(sums, asked, held, pairs, way.rule), held

    sums, _ = _around(way, visit, nothing(asked, held), held)
    return finished(sums, held.v.dtype)


def _kept(way: Way, asked: Asked, held: Held) -> tuple[Answer, Any]:
    answer = _forward(way, asked, held)
    return answer, (asked, held, answer)


def _backward(way: Way, kept: Any, grad: Answer) -> tuple[Asked, Held]:
    """Keys go around once more, and the gradients of each with it."""
    asked, held, answer = kept
    pull = pull_of(answer, grad)

    def visit(q: Array, moving: Any, pairs: Pairs) -> tuple[Array, Any]:
        held, k, v = moving
        q, k, v = pulled(Grads(q, k, v), asked, held, pull, pairs, way.rule)
        return q, (held, k, v)

    q, k, v = (jnp.zeros_like(widened(x)) for x in (asked.q, held.k, held.v))
    q, (_, k, v) = _around(way, visit, q, (held, k, v))
    k, v = _passed((k, v), way.axes, 1 - len(way.steps))  # home
    like = asked.q.dtype, held.k.dtype, held.v.dtype
    q, k, v = (x.astype(dtype) for x, dtype in zip((q, k, v), like, strict=True))
    return Asked(q, _still(asked.place)), Held(k, v, _still(held.place))


def _still(place: Place) -> Place:
    """The gradient with respect to whole numbers, which is none."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), place)


def _around(
    way: Way,
    visit: Callable[[Staying, Moving, Pairs], tuple[Staying, Moving]],
    staying: Staying,
    moving: Moving,
) -> tuple[Staying, Moving]:
    """After all steps. What moves goes to the next device after each but the last.

    What a visit does not change can be on its way while the visit is computed.
    """
    here = jax.lax.axis_index(way.axes) if way.axes else 0

    def step(state: Any, pairs: Pairs) -> tuple[Any, None]:
        staying, moving = visit(state[0], state[1], pairs)
        return (staying, _passed(moving, way.axes, 1)), None

    *before, last = way.steps
    for _, alike in groupby(before, np.shape):
        pairs = jnp.stack([*alike], axis=1)[here]
        (staying, moving), _ = jax.lax.scan(step, (staying, moving), pairs)
    return visit(staying, moving, jnp.asarray(last)[here])


def _passed(tree: Tree, axes: tuple[str, ...], by: int) -> Tree:
    """Each device has what the one `by` places before had."""
    if not axes or not by:
        return tree
    devices = jax.lax.axis_size(axes)
    ring = [(at, (at + by) % devices) for at in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, ring), tree)


def _dealt(axes: tuple[str, ...], x: Shaped[Array, "B T *dims"]) -> Array:
    """Device i has pieces 2i and 2i + 1 of the row, and gets i and its mirror."""
    even, odd = (
        jax.lax.ppermute(half, axes, moves)
        for half, moves in zip(jnp.split(x, 2, axis=1), _moves(axes), strict=True)
    )
    front, back = _swapped(axes, even, odd)
    return jnp.concatenate([front, back], axis=1)


def _collected(axes: tuple[str, ...], x: Shaped[Array, "B T *dims"]) -> Array:
    """The reverse of `_dealt`."""
    even, odd = _swapped(axes, *jnp.split(x, 2, axis=1))
    back = ([(there, here) for here, there in moves] for moves in _moves(axes))
    halves = map(jax.lax.ppermute, (even, odd), (axes, axes), back)
    return jnp.concatenate([*halves], axis=1)


def _moves(axes: tuple[str, ...]) -> list[list[tuple[int, int]]]:
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
