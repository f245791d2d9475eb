"""Stack of blocks: parameters stacked over layers, run by `lax.scan`."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PyTree

from lmx.config.registry import check_argument
from lmx.core import dims
from lmx.core.mean import Aux, merge_aux
from lmx.core.partitioning import constrain, num_shards
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.kv_cache import AttentionInputs, CacheSize
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.tap import add_layers, recording_layer
from lmx.models.block import Block, BlockCache
from lmx.models.pipeline import PipelineSchedule
from lmx.models.remat import BLOCK_INPUT, Remat, apply_remat

LayerFactory = Callable[[Init], Block]
Layer = TypeVar("Layer")
Cyclic = Callable[..., Layer] | tuple[Callable[..., Layer], ...]


class LayerGroup(NamedTuple):
    """`repeats` * `period` layers whose kinds repeat, starting with layer `first`."""

    first: int
    period: int
    repeats: int

    @property
    def layers(self) -> Int[np.ndarray, "L kinds"]:
        """Layer numbers, one row per iteration."""
        numbers = np.arange(self.period * self.repeats)
        return self.first + numbers.reshape(self.repeats, self.period)


def plan_layers(
    depth: int,
    attention: Cyclic[SelfAttention],
    mlp: Cyclic[FeedForward],
    first_mlps: tuple[Callable[..., FeedForward], ...],
    block: Callable[..., Block],
) -> tuple[list[LayerFactory], list[LayerGroup]]:
    """The factory of each layer, and groups of layers that one scan runs."""
    attentions = attention if isinstance(attention, tuple) else (attention,)
    mlps = mlp if isinstance(mlp, tuple) else (mlp,)
    first = len(first_mlps)
    check_argument(
        attentions and mlps,
        "Decoder.attention and Decoder.mlp need at least one layer.",
    )
    check_argument(
        first <= depth,
        f"Decoder.first_mlps has {first} layers and Decoder.depth is {depth}: it must"
        " have at most as many.",
    )
    all_mlps = [*first_mlps, *(mlps[i % len(mlps)] for i in range(first, depth))]
    factories = [
        partial(block, attention=attentions[i % len(attentions)], mlp=all_mlps[i])
        for i in range(depth)
    ]
    return factories, group_layers(depth, first, math.lcm(len(attentions), len(mlps)))


def group_layers(depth: int, first: int, period: int) -> list[LayerGroup]:
    """The `first` layers, then repetitions of `period` layers, then the rest."""
    repeats, rest = divmod(depth - first, period)
    groups = (
        LayerGroup(0, first, 1),
        LayerGroup(first, period, repeats),
        LayerGroup(depth - rest, rest, 1),
    )
    return [group for group in groups if group.period and group.repeats]


class RepeatedBlocks(nnx.Module):
    """A cycle of blocks of different kinds, repeated.

    `blocks` has one of each kind. Every parameter has a leading dimension L, and the
    layer numbers in its metadata (`layers`).
    """

    def __init__(
        self,
        factories: Sequence[LayerFactory],
        group: LayerGroup,
        keys: Array,
        init: Init,
    ):
        layers = group.layers.T.tolist()
        self.blocks = nnx.List(
            [
                _init_stacked(*kind, keys, init)
                for kind in zip(factories, layers, strict=True)
            ]
        )
        self.group = group

    def init_cache(self, size: CacheSize) -> PyTree:
        """An empty cache of each kind, with a leading dimension L."""
        L = self.group.repeats
        caches = tuple(block.init_cache(size) for block in self.blocks)
        return jax.tree.map(lambda x: jnp.zeros((L, *x.shape), x.dtype), caches)


def _init_stacked(
    make_block: LayerFactory, layers: Sequence[int], keys: Array, init: Init
) -> Block:
    """One block with the stacked parameters of these layers."""
    keys = keys[jnp.array(layers)]
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_block(init.with_key(keys[0]))))
    params = jax.vmap(lambda key: nnx.split(make_block(init.with_key(key)))[1])(keys)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda p: p.replace(
                p[...], axes=dims.logical("L") + p.axes, layers=tuple(layers)
            ),
            params,
            is_leaf=lambda p: isinstance(p, nnx.Param),
        ),
    )


class Stack(nnx.Module):
    """All residual blocks; the scan over a cycle is unrolled `unroll` times."""

    def __init__(
        self,
        factories: Sequence[LayerFactory],
        groups: Sequence[LayerGroup],
        init: Init,
        *,
        unroll: int,
        remat: Remat,
        pipeline: PipelineSchedule,
    ):
        keys = jax.random.split(init.rngs.params(), len(factories))
        self.cycles = nnx.List(
            [
                RepeatedBlocks(
                    factories[group.first :][: group.period], group, keys, init
                )
                for group in groups
            ]
        )
        self.depth, self.unroll, self.pipeline = len(factories), unroll, pipeline
        self.remat: Remat = remat

    def __call__(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree = None
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """Hidden states, auxiliary means stacked over layers, and the updated cache."""
        auxes, caches, records = [], [], []
        for number, cycle in enumerate(self.cycles):
            graphs, params = zip(*map(nnx.split, cycle.blocks), strict=True)
            layers = jnp.asarray(cycle.group.layers)
            iterations = params, layers, cache and cache[number]
            scan = partial(self._scan_layers, graphs)
            if num_shards("L") == 1 or cache is not None:
                x, aux, new, kinds = scan(iterations, x, inputs, self.remat)
                records.append((cycle.group.layers, kinds))
            else:
                x, aux, new = self.pipeline(scan, iterations, x, inputs, self.remat)
            auxes.append(aux)
            caches.append(new)
        add_layers(records)
        return x, merge_aux(auxes), cache and tuple(caches)

    def _scan_layers(
        self,
        graphs: Sequence[nnx.GraphDef],
        iterations: PyTree,
        x: Array,
        inputs: AttentionInputs,
        remat: Remat,
    ) -> tuple[Array, Aux, PyTree, PyTree]:
        """Runs iterations of a cycle in sequence; also what taps record, by kind."""

        def run(layers, kind, params, x, keys, cache: BlockCache | None):
            x = checkpoint_name(constrain(x, "BTD"), BLOCK_INPUT)
            block = nnx.merge(graphs[kind], params)
            with recording_layer(layers, kind) as records:
                return block(x, inputs._replace(keys=keys), cache), records

        fold_keys = jax.vmap(jax.random.fold_in, (0, None))

        def step(x_BTD, iteration):
            params, layers_C, cache = iteration
            run_block = apply_remat(partial(run, layers_C), remat)
            auxes, caches, records = [], [], []
            for kind in range(len(graphs)):
                keys_B = inputs.keys  # for dropout
                if keys_B is not None:
                    keys_B = fold_keys(keys_B, layers_C[kind])
                old = cache and cache[kind]
                result = run_block(kind, params[kind], x_BTD, keys_B, old)
                (x_BTD, aux, new), taps = result
                auxes.append({name: mean.expand_dims() for name, mean in aux.items()})
                caches.append(new)
                records.append(taps)
            return x_BTD, (merge_aux(auxes), cache and tuple(caches), tuple(records))

        unroll = min(self.unroll, len(iterations[1]))
        x, (aux, cache, records) = jax.lax.scan(step, x, iterations, unroll=unroll)
        return x, jax.tree.map(lambda x: x.reshape(-1), aux), cache, records

    def init_cache(self, size: CacheSize) -> PyTree:
        """An empty cache of every layer."""
        return tuple(cycle.init_cache(size) for cycle in self.cycles)

    def kinds(self) -> Iterator[tuple[Block, int]]:
        """Each kind of block, and its number of layers."""
        for cycle in self.cycles:
            for block in cycle.blocks:
                yield block, cycle.group.repeats
