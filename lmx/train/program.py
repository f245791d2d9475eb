"""The jitted training step of an experiment on its mesh, and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmx.config.registry import require
from lmx.core import partitioning, sharding
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset, DatasetInfo
from lmx.data.schedule import BatchSchedule
from lmx.models import params
from lmx.models.decoder import Decoder
from lmx.run.metadata import mesh_axes
from lmx.train.loop import StepFn
from lmx.train.step import Metrics, StepConfig, TrainState, step_on_mesh


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """One training step over a mesh, without parameters or data.

    Attributes:
        model: the model as shapes and dtypes.
        step_fn: one step by the config.
        init: makes the state of step 0, sharded; given parameters by path, with those.
        shardings: the sharding of each array of a state.
    """

    model: Decoder
    step_config: StepConfig
    step_fn: Callable[[StepConfig, TrainState, Batch], tuple[TrainState, Metrics]]
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    init: Callable[..., TrainState]
    shardings: TrainState

    @property
    def graph(self) -> nnx.GraphDef:
        """The model without its parameters; `nnx.merge(graph, params)` has both."""
        return self.step_config.graph

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a state."""
        return sharding.with_shardings(jax.eval_shape(self.init), self.shardings)

    def jit_step(self, batch: Batch) -> Any:
        """The step for batches of that shape. It donates its state."""
        context = partitioning.PartitionContext(self.mesh, self.rules)
        step = partial(step_on_mesh, self.step_fn, context, self.step_config)
        rows = batch_sharding(batch.tokens.shape, self.mesh, self.rules)
        return jax.jit(
            step,
            in_shardings=(self.shardings, rows),
            out_shardings=(self.shardings, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )

    def lower(self, rows: int, length: int) -> jax.stages.Lowered:
        """The step for a batch of that shape, lowered."""
        dtypes = ("int32", "int32", "float32", "int32", "int32")
        shapes: Any = [jax.ShapeDtypeStruct((rows, length), dtype) for dtype in dtypes]
        batch = Batch(*shapes)
        return self.jit_step(batch).lower(self.abstract_state(), batch)


@dataclass(frozen=True, kw_only=True)
class RunContext(StepProgram):
    """What training and every hook need: the program, the data and the schedule.

    Attributes:
        step: the jitted training step, which donates its state.
        batch_schedule: the shape of the batch of every step.
    """

    steps: int
    seed: int
    data: Dataset
    step: StepFn
    batch_schedule: BatchSchedule

    def count_tokens(self, step: int) -> int:
        """Tokens of the first `step` steps, padding among them."""
        return self.batch_schedule.count_tokens(step)

    def count_flops(self, step: int) -> float:
        """FLOPs of the first `step` steps, forward and backward."""
        return sum(
            (
                stage.batch_size
                * stage.sequence_length
                * steps
                * self._flops_per_token[stage.sequence_length]
                for stage, steps in self.batch_schedule.split_steps(step)
            ),
            start=0.0,
        )

    def describe(self) -> dict[str, Any]:
        """Fields for the metadata of the run."""
        params = jax.tree.leaves(self.abstract_state().params)
        return {
            "seed": self.seed,
            "data": dict(self.data.info.fingerprint),
            "parameters": sum(leaf.size for leaf in params),
            "tokens": self.count_tokens(self.steps),
            "flops": self.count_flops(self.steps),
            "mesh": mesh_axes(self.mesh),
        }

    @cached_property
    def _flops_per_token(self) -> dict[int, float]:
        lengths = {stage.sequence_length for stage in self.batch_schedule.stages}
        return {n: params.train_flops_per_token(self.model, n) for n in lengths}

    def put_batch(self, batch: Batch) -> Batch:
        """Shards a batch that this process has in full."""
        rows = batch_sharding(batch.tokens.shape, self.mesh, self.rules)
        return jax.device_put(batch, rows)

    def load_batch(self, data: Dataset, seed: int, step: int) -> Batch:
        """The sharded batch of that step. This process reads its devices' rows only."""
        shape = data.info.schedule.stage_at(step)[1:]
        rows = batch_sharding(shape, self.mesh, self.rules)
        parts = [data.batch_at(seed, step, part) for part in local_rows(rows, shape)]
        local = jax.tree.map(lambda *part: np.concatenate(part), *parts)
        targets = np.where(local.weights > 0, local.targets, 0)
        for name, tokens in (("token", local.tokens), ("target", targets)):
            require(
                0 <= tokens.min() and tokens.max() < self.model.vocab,
                f"batch {step} has {name}s from {tokens.min()} to {tokens.max()}, and"
                f" the model knows 0 to {self.model.vocab - 1}: repair the data, as by"
                " building the token store again.",
            )
        return jax.make_array_from_process_local_data(rows, local, shape)


def check_vocab(info: DatasetInfo, model: Decoder) -> None:
    """Refuses data with tokens that the model does not have."""
    require(
        info.vocab <= model.vocab,
        f"the data has {info.vocab} different tokens and the model"
        f" {model.vocab}: set Decoder.vocab={info.vocab}.",
    )


def abstract_batch(data: Dataset, step: int = 0) -> Batch:
    """Shapes and dtypes of the batch of that step. Reads one row of it."""
    rows = data.info.schedule.stage_at(step).batch_size
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        data.batch_at(0, step, slice(1)),
    )


def batch_sharding(
    shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    """The sharding of the arrays of a batch of that shape."""
    return NamedSharding(mesh, sharding.spec(("batch", "length"), shape, mesh, rules))


def local_rows(placement: NamedSharding, shape: tuple[int, ...]) -> list[slice]:
    """The rows of this process's devices, in order, in as few slices as possible."""
    indices = placement.addressable_devices_indices_map(shape).values()
    bounds = sorted({index[0].indices(shape[0])[:2] for index in indices if index})
    merged = bounds[:1]
    for start, stop in bounds[1:]:
        if start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return [slice(*pair) for pair in merged]
