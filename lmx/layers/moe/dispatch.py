"""MoE dispatch: runs the experts of each token, dropless or with a fixed capacity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import Execution, Positive, configurable, require
from lmx.core import dims
from lmx.core.mean import Aux, Mean
from lmx.core.partitioning import (
    mesh_axes,
    num_shards,
    serialize_collective,
    shard_map,
)
from lmx.core.sharding import is_variable
from lmx.layers.linear import array_axes
from lmx.layers.moe.all_to_all import (
    AllToAll,
    AllToAllPlan,
    PaddedAllToAll,
    exchange,
)
from lmx.layers.moe.experts import ExpertMatmul, Experts
from lmx.layers.moe.grouped_matmul import GroupedMatmul, RaggedDot
from lmx.layers.moe.router import Routing, count_choices

ApplyExperts = Callable[[Array, ExpertMatmul], Array]


@configurable
@dataclass(frozen=True, kw_only=True)
class CapacityDispatch:
    """An expert takes the first tokens of a row that chose it; others are dropped.

    It takes `capacity_factor` times an even share of the row's unpadded tokens.
    "dropped" is the fraction of dropped choices. Lepikhin et al. 2020,
    arXiv:2006.16668; Fedus et al. 2021, arXiv:2101.03961, section 2.2.
    """

    capacity_factor: Positive[float] = 1.25

    def __call__(
        self,
        x: Float[Array, "B T D"],
        unpadded: Bool[Array, "B T"],
        routing: Routing,
        experts: Experts,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The weighted sum of expert outputs, and "dropped"."""
        B, T, C = routing.experts.shape
        weights = experts.cast_weights(x.dtype)
        E = experts.experts
        fraction = self.capacity_factor * C / E
        capacities = np.minimum(compute_capacities(T, fraction), T)
        slots, kept_BTC = _assign_slots(routing.experts, unpadded, capacities, E)
        rows = jnp.broadcast_to(jnp.arange(B)[:, None], slots.shape)
        sources = jnp.full((B, E * capacities[-1]), T * C)
        sources = sources.at[rows, slots].set(jnp.arange(T * C), mode="drop")
        # A copy per choice, each indexed once: the gradient is a sum in a fixed order.
        x_BMD = _gather_rows(jnp.repeat(x, C, axis=1), sources)
        x_EMD = rearrange(x_BMD, "B (E M) D -> E (B M) D", E=E)
        y_EMD = experts.apply_experts(x_EMD, jnp.matmul, weights)
        y_BMD = rearrange(y_EMD, "E (B M) D -> B (E M) D", B=B)
        y_BTCD = _gather_rows(y_BMD, slots).reshape(B, T, C, -1)
        choices = unpadded.sum().astype(routing.weights.dtype) * C
        dropped = Mean(choices - kept_BTC.sum(), choices)
        weights_BTC = routing.weights.astype(x.dtype)
        y_BTD = jnp.einsum("BTCD,BTC->BTD", y_BTCD, weights_BTC)
        return y_BTD, {"dropped": dropped}


def compute_capacities(tokens: int, fraction: float) -> Int[np.ndarray, "counts"]:
    """Capacity of an expert for a row of 0, 1, ... `tokens` unpadded tokens."""
    tolerance = 1e-9  # so that rounding of n * fraction does not add a slot
    return np.array([math.ceil(n * fraction - tolerance) for n in range(tokens + 1)])


def _assign_slots(
    experts: Array, unpadded: Array, capacities: Int[np.ndarray, "counts"], count: int
) -> tuple[Array, Array]:
    """The slot of each choice among those of all experts, and whether it has one.

    Dropped choices get the index after the last slot.
    """
    rank_BTE = jnp.cumsum(count_choices(experts, count, unpadded), axis=1)
    rank_BTC = jnp.take_along_axis(rank_BTE, experts, axis=-1) - 1
    capacity_B = jnp.asarray(capacities)[unpadded.sum(axis=1)]
    kept_BTC = (rank_BTC < capacity_B[:, None, None]) & unpadded[:, :, None]
    width = capacities[-1]
    slots_BTC = jnp.where(kept_BTC, experts * width + rank_BTC, count * width)
    return rearrange(slots_BTC, "B T C -> B (T C)"), kept_BTC


def _gather_rows(rows: Array, index: Array) -> Array:
    """The rows at these indices; 0 for an index beyond the last."""
    return jnp.take_along_axis(rows, index[:, :, None], 1, mode="fill", fill_value=0)


@configurable
@dataclass(frozen=True, kw_only=True)
class DroplessDispatch:
    """Every token gets the output of all experts it is routed to.

    Tokens are sorted by expert and multiplied group by group. Gale et al. 2022,
    arXiv:2211.15841. Each device sorts its own tokens; with expert parallelism,
    `all_to_all` exchanges them.
    """

    all_to_all: Execution[AllToAll] = PaddedAllToAll()
    grouped_matmul: Execution[GroupedMatmul] = RaggedDot()

    def __call__(
        self,
        x: Float[Array, "B T D"],
        unpadded: Bool[Array, "B T"],
        routing: Routing,
        experts: Experts,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The weighted sum of expert outputs, and no auxiliary means."""
        axes, hidden_axes = expert_axes()
        self.grouped_matmul.check(x.dtype)
        if axes:
            self.all_to_all.check(x.dtype)
        weights, count = experts.cast_weights(x.dtype), experts.experts
        params, tree = jax.tree.flatten([*weights.values()], is_leaf=is_variable)
        letters = [dims.letters(array_axes(param)) for param in params]
        width_axes = [mesh_axes("D", within=d) if "D" in d else () for d in letters]
        local_count = count // num_shards("E")

        def run_device(x, experts_BTC, weights_BTC, *shards):
            B, T, C = experts_BTC.shape
            arrays = gather_width(shards, letters, width_axes)
            local = [p.replace(w) for p, w in zip(params, arrays, strict=True)]
            local = zip(weights, jax.tree.unflatten(tree, local), strict=True)
            local = {name: mask_bias(weight, hidden_axes) for name, weight in local}
            apply = partial(experts.apply_experts, weights=local)
            x_MD = rearrange(jnp.repeat(x, C, axis=1), "B M D -> (B M) D")
            expert_M = rearrange(experts_BTC, "B T C -> (B T C)")
            if axes:
                capacity = B * T * min(C, local_count)
                plan = AllToAllPlan(axes, len(x_MD), capacity)
                y_MD = self.run_expert_parallel(x_MD, expert_M, count, apply, plan)
            else:
                y_MD = self.run_local(x_MD, expert_M, count, apply)
            y_BTCD, weights_BTC = y_MD.reshape(B, T, C, -1), weights_BTC.astype(x.dtype)
            y_BTD = jnp.einsum("BTCD,BTC->BTD", y_BTCD, weights_BTC)
            return jax.lax.psum(y_BTD, hidden_axes) if hidden_axes else y_BTD

        run = shard_map(
            run_device,
            ("BTD", "BTC", "BTC", *letters),
            "BTD",
            check_vma=self.grouped_matmul.check_vma,
        )
        return run(x, *routing, *(param[...] for param in params)), {}

    def run_local(
        self,
        x: Float[Array, "M D"],
        expert: Int[Array, "M"],
        experts: int,
        apply: ApplyExperts,
    ) -> Float[Array, "M D"]:
        """The output of each row's expert; 0 if `expert` is `experts` or more."""
        order_M = jnp.argsort(expert)
        inverse_M = jnp.argsort(order_M)
        sizes_E = jnp.bincount(expert, length=experts).astype("int32")
        x_MD = permute(x, order_M, inverse_M)
        y_MD = apply(x_MD, partial(self.grouped_matmul, sizes=sizes_E))
        return permute(y_MD, inverse_M, order_M)

    def run_expert_parallel(
        self,
        x: Float[Array, "M D"],
        expert: Int[Array, "M"],
        experts: int,
        apply: ApplyExperts,
        plan: AllToAllPlan,
    ) -> Float[Array, "M D"]:
        """`run_local` with the experts distributed over the devices of `plan`."""
        order_M = jnp.argsort(expert)
        inverse_M = jnp.argsort(order_M)
        sizes_E = jnp.bincount(expert, length=experts).astype("int32")
        gathered = jax.lax.all_gather(sizes_E, plan.axes)
        devices, device = len(gathered), jax.lax.axis_index(plan.axes)
        per_expert = gathered.reshape(devices, devices, -1)  # from, to, local expert
        counts = per_expert.sum(axis=-1, dtype="int32")
        send = partial(self.all_to_all.dispatch, plan=plan)
        send_back = partial(self.all_to_all.combine, plan=plan)
        x_MD = exchange(send, send_back, permute(x, order_M, inverse_M), counts)
        ends = jnp.cumsum(per_expert[:, device], axis=1)
        slot = jnp.arange(plan.capacity)[:, None, None]
        local_expert = (slot >= ends[None]).sum(axis=-1).T  # empty slots: no expert
        y_MD = self.run_local(x_MD, local_expert.reshape(-1), experts // devices, apply)
        y_MD = exchange(send_back, send, y_MD, counts)
        return permute(y_MD, inverse_M, order_M)


def expert_axes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes that shard the experts, and their hidden units."""
    tokens = [axis for d in "BT" for axis in mesh_axes(d, within="BTD")]
    experts, hidden = mesh_axes("E", within="EFD"), mesh_axes("F", within="EFD")
    require(
        mesh_axes("F", within="EDF") == hidden,
        f"experts' weights cannot be sharded over {hidden} along both 'mlp' and"
        " 'embed': give them different axes in Experiment.rules.",
    )
    missing = [axis for axis in experts if axis not in tokens]
    require(
        not missing,
        f"experts are sharded over {missing} and tokens are not: add them to"
        " 'batch' in Experiment.rules.",
    )
    shared = [axis for axis in hidden if axis in tokens]
    require(
        not shared,
        f"tokens and the hidden units of experts are both sharded over {shared}: give"
        " 'mlp' other axes in Experiment.rules.",
    )
    return experts, hidden


def gather_width(
    shards: Sequence[Array],
    letters: Sequence[str],
    width_axes: Sequence[tuple[str, ...]],
) -> list[Array]:
    """The shards of a device, gathered along D."""
    arrays, gathered = [], None
    for shard, names, axes in zip(shards, letters, width_axes, strict=True):
        if axes:
            gather = partial(jax.lax.all_gather, axis_name=axes)
            gathered = (
                gather(shard)
                if gathered is None
                else serialize_collective(gather, shard, gathered)
            )
            shard = jnp.concatenate(gathered, axis=names.index("D"))
        arrays.append(shard)
    return arrays


def mask_bias(weight: Any, hidden_axes: tuple[str, ...]) -> Any:
    """0 for a bias of the output on all but the first device of `hidden_axes`."""
    if weight.in_dims or "mlp" in weight.axes or not hidden_axes:
        return weight
    is_first = jax.lax.axis_index(hidden_axes) == 0
    return weight.replace(jnp.where(is_first, weight[...], 0))


@jax.custom_vjp
def permute(
    x: Float[Array, "M D"], order: Int[Array, "M"], inverse: Int[Array, "M"]
) -> Float[Array, "M D"]:
    """`x[order]`, with a gather by the `inverse` permutation as its gradient."""
    return x[order]


permute.defvjp(
    lambda x, order, inverse: (x[order], inverse),
    lambda inverse, grad: (grad[inverse], None, None),
)
