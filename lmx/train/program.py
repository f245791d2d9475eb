"""The jitted training step of an experiment on its mesh, and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmx.config.registry import ConfigError, require
from lmx.core import partitioning, rng, sharding
from lmx.core.batch import AnyBatch, BatchField, BatchSpec, count_rows, list_fields
from lmx.data.dataset import Dataset, DatasetInfo, RolloutDataset
from lmx.data.schedule import BatchSchedule
from lmx.models import params
from lmx.models.decoder import Decoder
from lmx.run.metadata import mesh_axes
from lmx.train.loop import StepFn
from lmx.train.step import Metrics, StepConfig, TrainState, TrainStepFn, step_on_mesh


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """One training step over a mesh, without parameters or data."""

    model: Decoder  # as shapes and dtypes
    step_config: StepConfig
    step_fn: TrainStepFn
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    init: Callable[..., TrainState]  # state of step 0; takes parameters by path, if any
    shardings: TrainState  # of each array of a state
    batch_spec: BatchSpec
    steps: int

    @property
    def graph(self) -> nnx.GraphDef:
        """The model without its parameters; `nnx.merge(graph, params)` has both."""
        return self.step_config.graph

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a state."""
        return sharding.with_shardings(jax.eval_shape(self.init), self.shardings)

    @property
    def has_frozen(self) -> bool:
        """Whether a state has a frozen part."""
        return bool(jax.tree.leaves(self.shardings.frozen))

    def jit_step(self, batch: AnyBatch) -> Any:
        """The step for batches of that shape. It donates its state, if not frozen."""
        context = partitioning.PartitionContext(self.mesh, self.rules)
        step = partial(step_on_mesh, self.step_fn, context, self.step_config)
        rows = batch_shardings(batch, self.mesh, self.rules)
        state, frozen = self.shardings.trained, self.shardings.frozen
        jit = partial(
            jax.jit,
            step,
            out_shardings=(state, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )
        if not self.has_frozen:
            return jit(in_shardings=(state, rows))
        return FrozenStep(jit(in_shardings=(state, rows, frozen)))

    def lower(self, rows: int, length: int) -> jax.stages.Lowered:
        """The step for a batch of that shape, lowered."""
        batch = make_abstract_batch(self.batch_spec, rows, length)
        return self.jit_step(batch).lower(self.abstract_state(), batch)


@dataclass(frozen=True)
class FrozenStep:
    """A jitted step that takes the frozen part of the state last, and keeps it."""

    jitted: Any

    def __call__(
        self, state: TrainState, batch: AnyBatch
    ) -> tuple[TrainState, Metrics]:
        new, metrics = self.jitted(state.trained, batch, state.frozen)
        return new._replace(frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: AnyBatch) -> jax.stages.Lowered:
        return self.jitted.lower(state.trained, batch, state.frozen)


@dataclass(frozen=True, kw_only=True)
class RunContext(StepProgram):
    """What training and every hook need: the program, the data and the schedule."""

    seed: int
    data: Dataset
    step: StepFn  # jitted; it donates its state
    batch_schedule: BatchSchedule  # the shape of the batch of every step

    def count_flops(self, step: int) -> float:
        """FLOPs of the first `step` steps, forward and backward."""
        stages = self.batch_schedule.split_steps(step)
        flops = self._flops_per_token
        return sum(
            (
                batch_size * length * steps * flops[length]
                for (_, batch_size, length), steps in stages
            ),
            start=0.0,
        )

    def describe(self, first_step: int = 0) -> dict[str, Any]:
        """Fields for the metadata of the run, which begins at that step."""
        state = self.abstract_state()
        count, trained = (
            sum(leaf.size for leaf in jax.tree.leaves(tree))
            for tree in (state.all_params, state.params)
        )
        named = params.flatten_params(state.all_params)
        inner = [x.size for n, x in named.items() if not n.startswith(params.VOCAB)]
        return {
            "seed": self.seed,
            "data": dict(self.data.info.fingerprint),
            "parameters": count,
            "non_embedding_parameters": sum(inner),
            **({"trained_parameters": trained} if trained != count else {}),
            "tokens": self.batch_schedule.count_tokens(self.steps),
            "flops": self.count_flops(self.steps),
            "own_flops": self.count_flops(self.steps) - self.count_flops(first_step),
            "mesh": mesh_axes(self.mesh),
        }

    @cached_property
    def _flops_per_token(self) -> dict[int, float]:
        lengths = {stage.sequence_length for stage in self.batch_schedule.stages}
        return {n: params.train_flops_per_token(self.model, n) for n in lengths}

    def put_batch(self, batch: AnyBatch) -> AnyBatch:
        """Shards a batch that this process has in full."""
        return jax.device_put(batch, batch_shardings(batch, self.mesh, self.rules))

    def load_batch(self, data: Dataset, seed: int, step: int) -> AnyBatch:
        """The sharded batch of that step. This process reads its devices' rows only."""
        count = data.info.schedule.stage_at(step).batch_size
        spec = sharding.spec(("batch",), (count,), self.mesh, self.rules)
        rows = local_rows(NamedSharding(self.mesh, spec), count)
        parts = [data.batch_at(seed, step, part) for part in rows]
        local = jax.tree.map(lambda *part: np.concatenate(part), *parts)
        check_tokens(local, step, self.model.vocab)
        batch = with_rows(local, count)
        return jax.tree.map(
            jax.make_array_from_process_local_data,
            batch_shardings(batch, self.mesh, self.rules),
            local,
            jax.tree.map(lambda x: x.shape, batch),
        )

    def add_rollouts(self, state: TrainState, batch: AnyBatch) -> AnyBatch:
        """The batch that a step trains on, of data that depend on the parameters."""
        if not isinstance(self.data, RolloutDataset):
            return batch
        keys = rng.fold(self.seed, state.step, "rollout", count_rows(batch))
        model = nnx.merge(self.graph, state.all_params)
        with partitioning.use(partitioning.PartitionContext(self.mesh, self.rules)):
            rollouts = self.data.rollout(model, batch, keys)
        stage = self.batch_schedule.stage_at(int(state.step))
        check_batch(rollouts, make_abstract_batch(self.batch_spec, *stage[1:]))
        return self.put_batch(rollouts)

    def with_rollouts(self) -> "RunContext":
        """The same, with a step that makes rollouts first."""
        return replace(
            self, step=lambda state, x: self.step(state, self.add_rollouts(state, x))
        )


def check_vocab(info: DatasetInfo, model: Decoder) -> None:
    """Refuses data with tokens that the model does not have."""
    require(
        info.vocab <= model.vocab,
        f"the data has {info.vocab} different tokens and the model"
        f" {model.vocab}: set Decoder.vocab={info.vocab}.",
    )


def check_tokens(batch: AnyBatch, step: int, vocab: int) -> None:
    """Refuses a batch whose fields `tokens` and `targets` have others than the model.

    A target of weight 0 may be any.
    """
    for name in [n for n in ("tokens", "targets") if n in batch._fields]:
        tokens = getattr(batch, name)
        if name == "targets" and "weights" in batch._fields:
            tokens = np.where(batch.weights > 0, tokens, 0)
        require(
            0 <= tokens.min() and tokens.max() < vocab,
            f"batch {step} has {name} from {tokens.min()} to {tokens.max()}, and"
            f" the model knows 0 to {vocab - 1}: repair the data, as by"
            " building the token store again.",
        )


def with_rows(batch: AnyBatch, count: int) -> AnyBatch:
    """Shapes and dtypes of a batch of that many rows, given some of them."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), batch
    )


def abstract_batch(data: Dataset, step: int = 0) -> AnyBatch:
    """Shapes and dtypes of what is read for that step. Reads one row of it."""
    rows = data.info.schedule.stage_at(step).batch_size
    return with_rows(data.batch_at(0, step, slice(1)), rows)


def make_abstract_batch(spec: BatchSpec, rows: int, length: int) -> AnyBatch:
    """Shapes and dtypes of a batch of that many rows and tokens. Reads no data."""
    sizes, arrays = {"B": rows, "T": length, **spec.sizes}, {}
    for name, (dims, dtype) in list_fields(spec.kind).items():
        if unknown := [d for d in dims if d not in sizes and not d.isdigit()]:
            raise ConfigError(
                f"{spec.kind.__name__}.{name} has a dimension {unknown[0]}: give its"
                " size in the BatchSpec of the dataset."
            )
        shape = tuple(sizes[d] if d in sizes else int(d) for d in dims)
        arrays[name] = jax.ShapeDtypeStruct(shape, dtype)
    return spec.kind(**arrays)


def check_batch(batch: AnyBatch, expected: AnyBatch) -> None:
    """Refuses a batch that is not what its dataset declares."""
    found, declared = (
        {name: (x.shape, f"{x.dtype}") for name, x in each._asdict().items()}
        for each in (batch, expected)
    )
    require(
        type(batch) is type(expected) and found == declared,
        f"the dataset makes {type(batch).__name__} {found}, and its spec declares"
        f" {type(expected).__name__} {declared}: make them the same.",
    )


def batch_shardings(
    batch: AnyBatch, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> AnyBatch:
    """The sharding of each array of a batch: B and T by the rules, others never."""
    axes = {"B": "batch", "T": "length"}

    def place(field: BatchField, x: Any) -> NamedSharding:
        names = [axes.get(dim, "") for dim in field.dims]
        return NamedSharding(mesh, sharding.spec(names, x.shape, mesh, rules))

    fields = list_fields(type(batch)).values()
    return type(batch)(*map(place, fields, batch))


def local_rows(placement: NamedSharding, count: int) -> list[slice]:
    """The rows of this process's devices, in order, in as few slices as possible."""
    indices = placement.addressable_devices_indices_map((count,)).values()
    rows = np.unique(np.concatenate([np.arange(count)[index] for index in indices]))
    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
