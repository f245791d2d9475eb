"""The root of every configuration: all that tells one run from another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import optax
from flax import nnx

from lmx.config.names import ConfigError, Execution, configurable
from lmx.core import sharding, spread
from lmx.core.sharding import RULES, AnyMesh, Mesh, Rules
from lmx.data.batches import Source
from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.models.remat import offloadable
from lmx.train.hooks import Periodic, Save
from lmx.train.loss.next_token import NextToken
from lmx.train.outer import DiLoCo
from lmx.train.run import Run, rows_sharding
from lmx.train.schedule import Schedule
from lmx.train.step import Recipe, init_state, train_step

configurable(Mesh)


@configurable
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run.

    Attributes:
        rules: which mesh axes split a logical axis, where it is not as `RULES` says.
        microbatches: parts that a batch is taken in, one after the other, to save
            memory; the gradient is that of the whole.
        outer: how replicas that learn apart agree; None: all learn together.
        log_every: steps between two lines of metrics.
    """

    model: Callable[..., Decoder]
    data: Source
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    steps: int
    loss: NextToken = NextToken()
    outer: DiLoCo | None = None
    seed: int = 0
    mesh: Execution[Mesh] = Mesh()
    rules: Execution[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    microbatches: Execution[int] = 1
    hooks: Execution[tuple[Periodic, ...]] = ()
    checkpoint: Execution[Save] = Save()
    log_every: Execution[int] = 10

    def __post_init__(self):
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Experiment.{name} is {getattr(self, name)}: at least 1."
                )

    def shaped(self) -> Decoder:
        """The model without its numbers, once the experiment is known to make sense.

        Asks for no data and no device.
        """
        self.optimizer(self.schedule.over(self.steps))
        return nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))

    def open(self) -> Run:
        """Everything a run needs, checked before anything is written or compiled."""
        model = self.shaped()
        rate = self.schedule.over(self.steps)
        optimizer = self.optimizer(rate)
        init = partial(init_state, self.model, optimizer, self.seed)
        init = partial(self.outer.init, init) if self.outer else init
        state = jax.eval_shape(init)
        rules = dict(RULES) | dict(self.rules)
        mesh = self.mesh.over(jax.devices(), rules)
        places = sharding.shardings(state, mesh, rules)
        data = self.data.open()
        if data.vocab > model.vocab:
            raise ConfigError(
                f"the data has {data.vocab} different tokens and the model knows"
                f" {model.vocab}: set Decoder.vocab={data.vocab}."
            )
        graph, _ = nnx.split(model)
        recipe = Recipe(graph, self.loss, optimizer, rate, self.seed, self.microbatches)
        batch = data.batch_at(self.seed, 0)
        self._check_parts(len(batch.tokens), mesh, rules)
        offloadable(model.stack.remat, mesh.devices.flat[0].platform)
        step = partial(self.outer.step if self.outer else train_step, recipe)
        rows = rows_sharding(batch, mesh, rules)
        step = jax.jit(
            spread.traced_for(mesh, rules, step),
            in_shardings=(places, rows),
            out_shardings=(places, None),
            donate_argnums=0,
        )
        here = sharding.placed((state, batch), (places, rows))
        jax.eval_shape(step, *here)  # its trace is kept for the first step
        born = jax.jit(init, out_shardings=places)
        cost = flops.per_token(model, batch.tokens.shape[1]) * batch.tokens.size
        return Run(
            steps=self.steps,
            seed=self.seed,
            data=data,
            mesh=mesh,
            rules=rules,
            graph=graph,
            places=places,
            init=born,
            step=step,
            tokens=batch.tokens.size,
            flops=cost,
        )

    def _check_parts(self, rows: int, mesh: AnyMesh, rules: Rules) -> None:
        if self.outer:
            self.outer.check(self.steps, rows)
            rows //= self.outer.replicas
            rules = dict(rules) | {
                "batch": tuple(a for a in rules["batch"] if a != "replica")
            }
        if self.microbatches < 1 or rows % self.microbatches:
            raise ConfigError(
                f"{rows} rows cannot be taken in {self.microbatches} equal parts:"
                " Experiment.microbatches must divide the batch."
            )
        sharding.spec(("batch",), (rows // self.microbatches,), mesh, rules)
