"""DiLoCo: replicas train independently and synchronize every so many steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lmx.config.registry import Positive, Rate, configurable, require
from lmx.core import rng
from lmx.core.batch import AnyBatch, count_rows
from lmx.core.partitioning import vmap_over_replicas
from lmx.core.sharding import is_variable
from lmx.train.step import Metrics, StepConfig, TrainState, TrainStepFn


class ReplicaState(NamedTuple):
    """Parameters and optimizer states of the replicas, and of the outer optimizer."""

    params: PyTree  # with a leading dimension of replicas
    opt_state: PyTree  # likewise
    outer: optax.OptState


@configurable
@dataclass(frozen=True, kw_only=True)
class DiLoCo:
    """Replicas train on their share of each batch, and synchronize periodically.

    The outer optimizer, Nesterov momentum, then applies their mean change to the
    parameters of all. Douillard et al. 2023, arXiv:2311.08105, algorithm 1 and section
    3.1. The `params` of a state are those of the last synchronization. Metrics are
    means over replicas, which communicate nothing else in between.

    Attributes:
        replicas: equal to `Mesh.replica`, or any number if that is 1.
        sync_every: steps from one synchronization to the next.
    """

    replicas: Positive[int]
    sync_every: Positive[int] = 500
    outer_lr: Positive[float] = 0.7
    outer_momentum: Rate[float] = 0.9

    def check(self, steps: int, rows: int) -> None:
        """Refuses a run that does not end with a synchronization, and uneven rows."""
        require(
            steps % self.sync_every == 0,
            f"{steps} steps do not end with a synchronization: DiLoCo.sync_every is"
            f" {self.sync_every}, and must divide Experiment.steps.",
        )
        require(
            rows % self.replicas == 0,
            f"{rows} rows cannot be split evenly over {self.replicas} replicas:"
            " DiLoCo.replicas must divide the batch size.",
        )

    def init(
        self, init_replica: Callable[..., TrainState], *weights: Any
    ) -> TrainState:
        """The state of step 0, from that of one replica."""
        state = init_replica(*weights)
        params, opt_state = self._broadcast((state.params, state.opt_state))
        outer = self._outer_optimizer().init(state.params)
        return state._replace(opt_state=ReplicaState(params, opt_state, outer))

    def step(
        self,
        step_fn: TrainStepFn,
        config: StepConfig,
        state: TrainState,
        batch: AnyBatch,
    ) -> tuple[TrainState, Metrics]:
        """One step of every replica, and a synchronization if it is due."""
        keys_B = rng.fold(config.seed, state.step, "dropout", count_rows(batch))
        rows = jax.tree.map(
            lambda x: x.reshape(self.replicas, -1, *x.shape[1:]), (batch, keys_B)
        )

        def replica_step(params: PyTree, opt_state: PyTree, rows: Any) -> Any:
            old = TrainState(state.step, params, opt_state)
            new, metrics = step_fn(config, old, *rows)
            return (new.params, new.opt_state), metrics

        each = _rename_axes(state.opt_state[:2], lambda axes: axes[1:])
        each, metrics = vmap_over_replicas(replica_step, self.replicas)(*each, rows)
        params, opt_state = _rename_axes(each, lambda axes: ("replicas", *axes))
        common, params, outer = jax.lax.cond(
            (state.step + 1) % self.sync_every == 0,
            self._sync,
            lambda *unchanged: unchanged,
            *(state.params, params, state.opt_state.outer),
        )
        metrics = {name: x.mean(axis=0) for name, x in metrics.items()}
        metrics["tokens"] *= self.replicas
        replicas = ReplicaState(params, opt_state, outer)
        return TrainState(state.step + 1, common, replicas), metrics

    def _sync(
        self, common: PyTree, params: PyTree, outer: optax.OptState
    ) -> tuple[PyTree, PyTree, optax.OptState]:
        """The new common parameters, those of the replicas, and the outer state."""
        pairs = zip(jax.tree.leaves(common), jax.tree.leaves(params), strict=True)
        changes = jax.tree.unflatten(
            jax.tree.structure(common), [old - new.mean(axis=0) for old, new in pairs]
        )
        updates, outer = self._outer_optimizer().update(changes, outer, common)
        common = optax.apply_updates(common, updates)
        return common, self._broadcast(common), outer

    def _outer_optimizer(self) -> optax.GradientTransformation:
        return optax.sgd(self.outer_lr, self.outer_momentum, nesterov=True)

    def _broadcast(self, tree: PyTree) -> PyTree:
        """A copy for every replica, along a new leading dimension."""
        each = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (self.replicas, *x.shape)), tree
        )
        return _rename_axes(each, lambda axes: ("replicas", *axes))


def _rename_axes(tree: PyTree, rename: Callable[[tuple], tuple]) -> PyTree:
    """Renames the logical axes of all variables."""

    def rename_leaf(leaf: Any) -> Any:
        if not is_variable(leaf) or "axes" not in leaf.get_metadata():
            return leaf
        return leaf.replace(leaf[...], axes=rename(leaf.axes))

    return jax.tree.map(rename_leaf, tree, is_leaf=is_variable)
