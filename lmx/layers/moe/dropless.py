"""Every token is answered by every expert it chose, wherever that one is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import ConfigError, Execution, configurable
from lmx.core import partitioning
from lmx.core.mean import Aux
from lmx.core.partitioning import serialize_collective
from lmx.layers.moe.all_to_all import (
    AllToAll,
    AllToAllPlan,
    PaddedAllToAll,
    combine,
    dispatch,
)
from lmx.layers.moe.capacity import repeat_for_choices, weighted_sum
from lmx.layers.moe.experts import ExpertMatmul, Experts, Weights
from lmx.layers.moe.grouped_matmul import GroupedMatmul, RaggedDot
from lmx.layers.moe.router import Routing


@configurable
@dataclass(frozen=True, kw_only=True)
class DroplessDispatch:
    """Every token is answered by every expert it chose.

    Tokens are sorted by expert and multiplied group by group, so that an overloaded
    expert is slower but never lossy. Gale et al. 2022, arXiv:2211.15841. Each device
    sorts its own; where experts are on several, `all_to_all` brings tokens to them.
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
        """The weighted sums of answers, and no auxiliary loss."""
        del unpadded
        split = ExpertSharding.from_rules(experts.weight_letters)
        self.grouped_matmul.check(x.dtype)
        if split.experts:
            self.all_to_all.check()
        weights = experts.cast_weights(x.dtype)
        count = len(weights["gate"])

        def own(x, experts_BTC, weights_BTC, *shares):
            B, T, C = experts_BTC.shape
            matrices = split.gather_weights(dict(zip(weights, shares, strict=True)))
            answer = partial(experts.apply_experts, weights=matrices)
            x_MD = rearrange(repeat_for_choices(x, C), "B M D -> (B M) D")
            expert_M = rearrange(experts_BTC, "B T C -> (B T C)")
            if split.experts:
                most = B * T * min(C, len(matrices["gate"]))
                way = AllToAllPlan(split.experts, len(x_MD), most)
                y_MD = self.run_expert_parallel(x_MD, expert_M, count, answer, way)
            else:
                y_MD = self.run_local(x_MD, expert_M, count, answer)
            y_BTD = weighted_sum(y_MD.reshape(B, T, C, -1), weights_BTC)
            return jax.lax.psum(y_BTD, split.hidden) if split.hidden else y_BTD

        letters = [experts.weight_letters[name] for name in weights]
        call = partitioning.shard_map(
            own,
            ("BTD", "BTC", "BTC", *letters),
            "BTD",
            check_vma=self.grouped_matmul.check_vma,
        )
        return call(x, *routing, *weights.values()), {}

    def run_local(
        self,
        x: Float[Array, "M D"],
        expert: Int[Array, "M"],
        experts: int,
        apply: Callable[[Array, ExpertMatmul], Array],
    ) -> Float[Array, "M D"]:
        """What each row's expert makes of it; 0 where it is not one of so many."""
        order_M = jnp.argsort(expert)
        back_M = jnp.argsort(order_M)
        sizes_E = jnp.bincount(expert, length=experts).astype("int32")
        x_MD = permute(x, order_M, back_M)
        y_MD = apply(x_MD, partial(self.grouped_matmul, sizes=sizes_E))
        return permute(y_MD, back_M, order_M)

    def run_expert_parallel(
        self,
        x: Float[Array, "M D"],
        expert: Int[Array, "M"],
        experts: int,
        apply: Callable[[Array, ExpertMatmul], Array],
        plan: AllToAllPlan,
    ) -> Float[Array, "M D"]:
        """`here`, where each device along the way has its share of the experts."""
        order_M = jnp.argsort(expert)
        back_M = jnp.argsort(order_M)
        counts_E = jnp.bincount(expert, length=experts).astype("int32")
        every = jax.lax.all_gather(counts_E, plan.axes)
        devices, me = len(every), jax.lax.axis_index(plan.axes)
        counts = every.reshape(devices, devices, -1)  # from each, for each's experts
        table = counts.sum(axis=-1, dtype="int32")
        got_MD = dispatch(self.all_to_all, permute(x, order_M, back_M), table, plan)
        ends = jnp.cumsum(counts[:, me], axis=1)
        place = jnp.arange(plan.capacity)[:, None, None]
        mine = (place >= ends[None]).sum(axis=-1).T  # behind the last: nobody's
        y_MD = self.run_local(got_MD, mine.reshape(-1), experts // devices, apply)
        return permute(combine(self.all_to_all, y_MD, table, plan), back_M, order_M)


class ExpertSharding(NamedTuple):
    """How the weights of experts lie on devices, by the axes these stand along.

    Attributes:
        experts: axes along which each device has some of the experts.
        hidden: axes along which each has a part of every expert's hidden units.
        width: axes along which weights of that name lie in parts until used.
    """

    experts: tuple[str, ...]
    hidden: tuple[str, ...]
    width: Mapping[str, tuple[str, ...]]
    letters: Mapping[str, str]

    @classmethod
    def from_rules(cls, letters: Mapping[str, str]) -> "ExpertSharding":
        """As the rules say, if tokens can be exchanged and answers summed that way."""
        tokens = [
            axis for d in "BT" for axis in partitioning.mesh_axes(d, within="BTD")
        ]
        experts, hidden = (
            partitioning.mesh_axes("E", within="EFD"),
            partitioning.mesh_axes("F", within="EFD"),
        )
        if partitioning.mesh_axes("F", within="EDF") != hidden:
            raise ConfigError(
                f"experts' weights cannot be split over {hidden} along 'mlp' and along"
                " 'embed' too: let Experiment.rules give them different axes."
            )
        for axis in experts:
            if axis not in tokens:
                raise ConfigError(
                    f"rows are not split over axis {axis!r} as experts are: let"
                    " Experiment.rules give it to 'batch' too."
                )
        for axis in hidden:
            if axis in tokens:
                raise ConfigError(
                    f"rows are split over axis {axis!r} as the hidden units of"
                    " experts are: let Experiment.rules give 'mlp' another."
                )
        width = {
            name: partitioning.mesh_axes("D", within=dims) if "D" in dims else ()
            for name, dims in letters.items()
        }
        return cls(experts, hidden, width, letters)

    def gather_weights(self, shares: Weights) -> Weights:
        """A device's experts and hidden units, whole in all else.

        What has no hidden units is zero on all devices but the first that share them.
        """
        found, done = dict(shares), None
        for name, letters in self.letters.items():
            if axes := self.width[name]:
                gather = partial(jax.lax.all_gather, axis_name=axes)
                share, at = found[name], letters.index("D")
                done = (
                    gather(share)
                    if done is None
                    else serialize_collective(gather, share, done)
                )
                found[name] = jnp.concatenate(done, axis=at)
            if self.hidden and "F" not in letters:
                first = jax.lax.axis_index(self.hidden) == 0
                found[name] = jnp.where(first, found[name], 0)
        return found


@jax.custom_vjp
def permute(
    x: Float[Array, "M D"], order: Int[Array, "M"], inverse: Int[Array, "M"]
) -> Float[Array, "M D"]:
    """`x[order]`, where `back` undoes it: a gather in the gradient too."""
    del inverse
    return x[order]


permute.defvjp(
    lambda x, order, back: (x[order], back),
    lambda back, grad: (grad[back], None, None),
)
