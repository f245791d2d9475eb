"""Replicas that learn apart for a while and then agree: few words over slow links."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lmx.config.names import ConfigError, configurable
from lmx.core import rng
from lmx.core.batch import Batch
from lmx.core.sharding import is_variable
from lmx.core.spread import by_replica
from lmx.train.step import Metrics, Recipe, TrainState

Take = Callable[..., tuple[TrainState, Metrics]]  # of recipe, state, batch and keys


class Apart(NamedTuple):
    """What is kept for the replicas beside the parameters they agreed on last."""

    params: PyTree  # what each has made of them, with a leading dimension of replicas
    opt_state: PyTree  # likewise
    outer: optax.OptState  # of the steps that they take together


@configurable
@dataclass(frozen=True, kw_only=True)
class DiLoCo:
    """Replicas learn from their share of each batch, and meet every so many steps.

    There the parameters of all move together, by Nesterov momentum of the mean of what
    each changed. Douillard et al. 2023, arXiv:2311.08105, algorithm 1 and section 3.1.
    A state's `params` are those of the last meeting. Metrics are means over replicas;
    nothing else but these passes between them from one meeting to the next.

    Attributes:
        replicas: as many as `Mesh.replica`, or all on one slice of devices.
        every: steps from one meeting to the next.
        rate, momentum: of what is done at a meeting.
    """

    replicas: int
    every: int = 500
    rate: float = 0.7
    momentum: float = 0.9

    def __post_init__(self):
        if self.replicas < 1 or self.every < 1:
            raise ConfigError("DiLoCo.replicas and DiLoCo.every must be 1 or more.")

    def check(self, steps: int, rows: int) -> None:
        """Refuses a run that ends between two meetings, or rows that do not part."""
        if steps % self.every:
            raise ConfigError(
                f"{steps} steps end between two meetings of the replicas: DiLoCo.every"
                f" is {self.every}, and must divide Experiment.steps."
            )
        if rows % self.replicas:
            raise ConfigError(
                f"{rows} rows cannot be shared out evenly to {self.replicas} replicas:"
                " DiLoCo.replicas must divide the batch."
            )

    def init(self, alone: Callable[[], TrainState]) -> TrainState:
        """The state of step 0, made of that of one replica."""
        state = alone()
        params, opt_state = self._each((state.params, state.opt_state))
        outer = self._outer().init(state.params)
        return state._replace(opt_state=Apart(params, opt_state, outer))

    def step(
        self, take: Take, recipe: Recipe, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """A step of every replica, by `take`, and a meeting where one is due."""
        keys_B = rng.fold(recipe.seed, state.step, "dropout", batch.tokens.shape[0])
        rows = jax.tree.map(
            lambda x: x.reshape(self.replicas, -1, *x.shape[1:]), (batch, keys_B)
        )

        def one(params: PyTree, opt_state: PyTree, rows: Any) -> Any:
            before = TrainState(state.step, params, opt_state)
            after, metrics = take(recipe, before, *rows)
            return (after.params, after.opt_state), metrics

        apart = state.opt_state
        mine = _renamed((apart.params, apart.opt_state), lambda axes: axes[1:])
        mine, metrics = by_replica(one, self.replicas)(*mine, rows)
        mine = _renamed(mine, lambda axes: ("replicas", *axes))
        due = (state.step + 1) % self.every == 0
        common, params, outer = jax.lax.cond(
            due, self._meet, lambda *same: same, state.params, mine[0], apart.outer
        )
        metrics = {name: each.mean(axis=0) for name, each in metrics.items()}
        metrics["tokens"] *= self.replicas
        return TrainState(
            state.step + 1, common, Apart(params, mine[1], outer)
        ), metrics

    def _meet(
        self, common: PyTree, params: PyTree, outer: optax.OptState
    ) -> tuple[PyTree, PyTree, optax.OptState]:
        """What is common after a meeting, with which each goes on, and the momentum."""
        changes = jax.tree.map(
            lambda old, new: old - new.mean(axis=0),
            jax.tree.leaves(common),
            jax.tree.leaves(params),
        )
        changes = jax.tree.unflatten(jax.tree.structure(common), changes)
        updates, outer = self._outer().update(changes, outer, common)
        common = optax.apply_updates(common, updates)
        return common, self._each(common), outer

    def _outer(self) -> optax.GradientTransformation:
        return optax.sgd(self.rate, self.momentum, nesterov=True)

    def _each(self, tree: PyTree) -> PyTree:
        """The same for every replica."""
        each = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (self.replicas, *x.shape)), tree
        )
        return _renamed(each, lambda axes: ("replicas", *axes))


def _renamed(tree: PyTree, change: Callable[[tuple], tuple]) -> PyTree:
    """The same numbers, whose axes carry other names."""

    def one(leaf: Any) -> Any:
        if not is_variable(leaf) or "axes" not in leaf.get_metadata():
            return leaf
        return leaf.replace(leaf[...], axes=change(leaf.axes))

    return jax.tree.map(one, tree, is_leaf=is_variable)
