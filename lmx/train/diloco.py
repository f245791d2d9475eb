"""Replicas that learn apart for a while and then agree: few words over slow links."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lmx.config.registry import ConfigError, configurable
from lmx.core import rng
from lmx.core.batch import Batch
from lmx.core.partitioning import vmap_over_replicas
from lmx.core.sharding import is_variable
from lmx.train.step import Metrics, StepConfig, TrainState

TrainStepFn = Callable[
    ..., tuple[TrainState, Metrics]
]  # of recipe, state, batch and keys


class ReplicaState(NamedTuple):
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
    sync_every: int = 500
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    def __post_init__(self):
        if self.replicas < 1 or self.sync_every < 1:
            raise ConfigError(
                "DiLoCo.replicas and DiLoCo.sync_every must be 1 or more."
            )

    def check(self, steps: int, rows: int) -> None:
        """Refuses a run that ends between two meetings, or rows that do not part."""
        if steps % self.sync_every:
            raise ConfigError(
                f"{steps} steps end between two meetings of the replicas: DiLoCo.sync_every"
                f" is {self.sync_every}, and must divide Experiment.steps."
            )
        if rows % self.replicas:
            raise ConfigError(
                f"{rows} rows cannot be shared out evenly to {self.replicas} replicas:"
                " DiLoCo.replicas must divide the batch."
            )

    def init(self, init_replica: Callable[[], TrainState]) -> TrainState:
        """The state of step 0, made of that of one replica."""
        state = init_replica()
        params, opt_state = self._broadcast((state.params, state.opt_state))
        outer = self._outer_optimizer().init(state.params)
        return state._replace(opt_state=ReplicaState(params, opt_state, outer))

    def step(
        self, step_fn: TrainStepFn, recipe: StepConfig, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """A step of every replica, by `take`, and a meeting where one is due."""
        keys_B = rng.fold(recipe.seed, state.step, "dropout", batch.tokens.shape[0])
        rows = jax.tree.map(
            lambda x: x.reshape(self.replicas, -1, *x.shape[1:]), (batch, keys_B)
        )

        def one(params: PyTree, opt_state: PyTree, rows: Any) -> Any:
            before = TrainState(state.step, params, opt_state)
            after, metrics = step_fn(recipe, before, *rows)
            return (after.params, after.opt_state), metrics

        apart = state.opt_state
        mine = _rename_axes((apart.params, apart.opt_state), lambda axes: axes[1:])
        mine, metrics = vmap_over_replicas(one, self.replicas)(*mine, rows)
        mine = _rename_axes(mine, lambda axes: ("replicas", *axes))
        due = (state.step + 1) % self.sync_every == 0
        common, params, outer = jax.lax.cond(
            due, self._sync, lambda *same: same, state.params, mine[0], apart.outer
        )
        metrics = {name: each.mean(axis=0) for name, each in metrics.items()}
        metrics["tokens"] *= self.replicas
        return TrainState(
            state.step + 1, common, ReplicaState(params, mine[1], outer)
        ), metrics

    def _sync(
        self, common: PyTree, params: PyTree, outer: optax.OptState
    ) -> tuple[PyTree, PyTree, optax.OptState]:
        """What is common after a meeting, with which each goes on, and the momentum."""
        changes = jax.tree.map(
            lambda old, new: old - new.mean(axis=0),
            jax.tree.leaves(common),
            jax.tree.leaves(params),
        )
        changes = jax.tree.unflatten(jax.tree.structure(common), changes)
        updates, outer = self._outer_optimizer().update(changes, outer, common)
        common = optax.apply_updates(common, updates)
        return common, self._broadcast(common), outer

    def _outer_optimizer(self) -> optax.GradientTransformation:
        return optax.sgd(self.outer_lr, self.outer_momentum, nesterov=True)

    def _broadcast(self, tree: PyTree) -> PyTree:
        """The same for every replica."""
        each = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (self.replicas, *x.shape)), tree
        )
        return _rename_axes(each, lambda axes: ("replicas", *axes))


def _rename_axes(tree: PyTree, change: Callable[[tuple], tuple]) -> PyTree:
    """The same numbers, whose axes carry other names."""

    def one(leaf: Any) -> Any:
        if not is_variable(leaf) or "axes" not in leaf.get_metadata():
            return leaf
        return leaf.replace(leaf[...], axes=change(leaf.axes))

    return jax.tree.map(one, tree, is_leaf=is_variable)
