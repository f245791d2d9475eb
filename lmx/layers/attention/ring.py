"""Ring attention: keys and values rotate over the devices of a sharded sequence.

Liu et al. 2023, arXiv:2310.01889. `ring_schedule` plans it; `flash` has the arithmetic.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, PyTree

from lmx.config.registry import Positive, configurable
from lmx.core import partitioning
from lmx.core.precision import upcast
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.flash import (
    FlashOutput,
    KVBlocks,
    Pairs,
    QueryBlocks,
    ScoreOptions,
    accumulate,
    accumulate_grads,
    finalize,
    init_softmax,
    merge_output,
    split_blocks,
    split_queries,
    split_token_info,
)
from lmx.layers.attention.ring_schedule import (
    RingSchedule,
    choose_schedule,
    list_all_pairs,
)
from lmx.layers.mask import TokenInfo

Permutation = list[tuple[int, int]]  # source and destination devices


class RingPlan(NamedTuple):
    """Block pairs of each step, mesh axes of the ring, and options of the logits."""

    steps: Sequence[np.ndarray]
    axes: tuple[str, ...]
    options: ScoreOptions


@configurable
@dataclass(frozen=True, kw_only=True)
class RingAttention(AttentionBackend):
    """Ring attention over `Mesh.context` in plain JAX, on any platform.

    Pairs of blocks that the causal mask or the window hides are not computed, and keys
    outside the window are not sent; pairs hidden by packing are computed. MLA sends
    expanded keys and values, not latents. A cache is read in blocks of `block` tokens.
    """

    block: Positive[int] = 512
    supports = frozenset(("sink", "logit_cap", "value_dim"))

    def count_pairs(self, queries, keys):
        return min(self.block, queries) * min(self.block, keys)

    def __call__(
        self, q, k, v, mask, *, scale=None, logit_cap=None, sink=None, **unused
    ):
        q_BTNH = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        options = ScoreOptions(mask.window, logit_cap)
        if not mask.no_cache:
            return self._attend_to_cache(q_BTNH, k, v, mask, options, sink)
        schedule = choose_schedule(
            q.shape[1], partitioning.num_shards("T"), self.block, mask.window
        )
        plan = RingPlan(schedule.steps, partitioning.mesh_axes("T"), options)
        program = partial(_attend_local, schedule, plan)
        letters = ["BTNH", "BTKH", "BTKH", "BT", "N"]
        attend = partitioning.shard_map(program, letters, "BTNH")
        return attend(q_BTNH, k, v, mask.query, sink)

    def _attend_to_cache(
        self, q, k, v, mask: AttentionMask, options: ScoreOptions, sink: Array | None
    ) -> Array:
        T, S = q.shape[1], k.shape[1]
        plan = RingPlan((list_all_pairs(T, S, self.block),), (), options)
        queries = split_queries(q, mask.query, k.shape[2], T, self.block)
        tokens = split_token_info(mask.key, S, self.block)
        kv = KVBlocks(
            split_blocks(k, S, self.block),
            split_blocks(v, S, self.block),
            jax.tree.map(lambda x: x[None], tokens),
        )
        return merge_output(_attend(plan, queries, kv), sink, T)


def _attend_local(
    schedule: RingSchedule,
    plan: RingPlan,
    q: Array,
    k: Array,
    v: Array,
    tokens: TokenInfo,
    sink: Array | None,
) -> Array:
    all_tokens, local_tokens = _gather_token_info(schedule, plan.axes, tokens)
    if schedule.zigzag:
        q, k, v = _to_zigzag(plan.axes, q, k, v)
    sizes = schedule.chunk_length, schedule.block
    queries = split_queries(q, local_tokens, k.shape[2], *sizes)
    split = jax.vmap(lambda tokens: split_token_info(tokens, *sizes))
    kv = KVBlocks(split_blocks(k, *sizes), split_blocks(v, *sizes), split(all_tokens))
    y_BTNH = merge_output(_attend(plan, queries, kv), sink, schedule.chunk_length)
    return _from_zigzag(plan.axes, y_BTNH) if schedule.zigzag else y_BTNH


def _gather_token_info(
    schedule: RingSchedule, axes: tuple[str, ...], tokens: TokenInfo
) -> tuple[TokenInfo, TokenInfo]:
    """The tokens of every device, device first, and those of this device."""
    if not axes:
        return jax.tree.map(lambda x: x[None], tokens), tokens
    rows = jax.lax.all_gather(jnp.stack(tokens), axes, axis=2, tiled=True)
    length = schedule.chunk_length
    chunks = rearrange(rows, "field B (chunk T) -> field B chunk T", T=length)
    chunks = chunks[:, :, schedule.chunks]
    devices = rearrange(chunks, "field B device chunk T -> field device B (chunk T)")
    return TokenInfo(*devices), TokenInfo(*devices[:, jax.lax.axis_index(axes)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: RingPlan, queries: QueryBlocks, kv: KVBlocks) -> FlashOutput:
    """Attention over the ring; the backward pass gets the inputs and the output."""

    def visit(softmax, keys: Any, pairs: Pairs, tokens: TokenInfo):
        return accumulate(
            softmax, queries, KVBlocks(keys[0], keys[1], tokens), pairs, plan.options
        ), keys

    softmax = init_softmax(queries, kv)
    softmax, _ = _rotate_kv(plan, visit, softmax, (kv.k, kv.v), kv.tokens)
    return finalize(softmax, kv.v.dtype)


def _forward(plan: RingPlan, queries: QueryBlocks, kv: KVBlocks):
    output = _attend(plan, queries, kv)
    return output, (queries, kv, output)


def _backward(plan: RingPlan, residuals: Any, grad: FlashOutput):
    """Rotates the keys once more, together with their gradients."""
    queries, kv, output = residuals
    delta = (upcast(output.out) * upcast(grad.out)).sum(axis=-1) - grad.logsumexp
    output_grad = grad.out, output.logsumexp, delta

    def visit(q: Array, moving: Any, pairs: Pairs, tokens: TokenInfo):
        keys, k, v = moving
        blocks, options = KVBlocks(keys[0], keys[1], tokens), plan.options
        q, k, v = accumulate_grads(
            (q, k, v), queries, blocks, output_grad, pairs, options
        )
        return q, (keys, k, v)

    q, k, v = (jnp.zeros_like(upcast(x)) for x in (queries.q, kv.k, kv.v))
    moving = (kv.k, kv.v), k, v
    q, (_, k, v) = _rotate_kv(plan, visit, q, moving, kv.tokens)
    k, v = _shift((k, v), plan.axes, 1 - len(plan.steps))  # back to their devices
    k, v = k.astype(kv.k.dtype), v.astype(kv.v.dtype)
    dq = queries._replace(q=q.astype(queries.q.dtype), tokens=None)
    return dq, kv._replace(k=k, v=v, tokens=None)


_attend.defvjp(_forward, _backward)


def _rotate_kv(
    plan: RingPlan,
    visit: Callable[[PyTree, PyTree, Pairs, TokenInfo], tuple[PyTree, PyTree]],
    local: PyTree,
    moving: PyTree,
    all_tokens: TokenInfo,
) -> tuple[PyTree, PyTree]:
    """Calls `visit` at every step; `moving` goes to the next device in between.

    What a visit does not change can be sent while the visit is computed. `all_tokens`
    describes the keys that each device starts with.
    """
    device = jax.lax.axis_index(plan.axes) if plan.axes else 0

    def key_tokens(step: Any) -> TokenInfo:
        return jax.tree.map(lambda x: x[(device - step) % len(x)], all_tokens)

    def run_step(carry: Any, inputs: Any) -> tuple[Any, None]:
        pairs, step = inputs
        local, moving = visit(carry[0], carry[1], pairs, key_tokens(step))
        return (local, _shift(moving, plan.axes, 1)), None

    *before, last = enumerate(plan.steps)
    for _, group in groupby(before, lambda numbered: numbered[1].shape):
        steps, pairs = zip(*group, strict=True)
        inputs = jnp.stack(pairs, axis=1)[device], jnp.array(steps)
        (local, moving), _ = jax.lax.scan(run_step, (local, moving), inputs)
    return visit(local, moving, jnp.asarray(last[1])[device], key_tokens(last[0]))


def _permute_sequentially(
    axes: tuple[str, ...], transfers: Iterable[tuple[Array, Permutation]]
) -> list[Array]:
    """Sends each array by its permutation, one after the other."""
    received: list[Array] = []
    for x, permutation in transfers:
        send = partial(jax.lax.ppermute, axis_name=axes, perm=permutation)
        received.append(
            partitioning.serialize_collective(send, x, received[-1])
            if received
            else send(x)
        )
    return received


def _shift(tree: PyTree, axes: tuple[str, ...], by: int) -> PyTree:
    if not axes or not by:
        return tree
    devices = jax.lax.axis_size(axes)
    ring = [(device, (device + by) % devices) for device in range(devices)]
    leaves, structure = jax.tree.flatten(tree)
    received = _permute_sequentially(axes, ((x, ring) for x in leaves))
    return jax.tree.unflatten(structure, received)


def _to_zigzag(axes: tuple[str, ...], *rows: Array) -> Iterator[Array]:
    """Sends chunks 2i and 2i + 1 of device i to the devices of the zigzag layout."""
    halves = (half for x in rows for half in jnp.split(x, 2, axis=1))
    transfers = zip(halves, cycle(_zigzag_permutations(axes)), strict=False)
    received = _permute_sequentially(axes, transfers)
    for pair in zip(received[::2], received[1::2], strict=True):
        yield jnp.concatenate(pair, axis=1)


def _from_zigzag(axes: tuple[str, ...], x: Array) -> Array:
    """The inverse of `_to_zigzag`."""
    inverse = (
        [(target, source) for source, target in permutation]
        for permutation in _zigzag_permutations(axes)
    )
    transfers = zip(jnp.split(x, 2, axis=1), inverse, strict=True)
    return jnp.concatenate(_permute_sequentially(axes, transfers), axis=1)


def _zigzag_permutations(axes: tuple[str, ...]) -> list[Permutation]:
    """Where the even chunk of each device goes, and where its odd chunk."""
    devices = jax.lax.axis_size(axes)
    return [
        [
            (device, min(chunk, 2 * devices - 1 - chunk))
            for device, chunk in enumerate(range(first, 2 * devices, 2))
        ]
        for first in (0, 1)
    ]
