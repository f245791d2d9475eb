"""The state that a run begins with: random, or from weights trained before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmx.config.registry import Execution, NonNegative, configurable, require
from lmx.core import distributed, sharding
from lmx.core.console import print_line
from lmx.core.sharding import Mesh, is_variable
from lmx.models.params import MAX_NAMES_SHOWN, flatten_params
from lmx.models.trained_model import get_origin
from lmx.run.run_dir import (
    CONFIG,
    METADATA,
    RunDir,
    read_config,
    read_metadata,
    read_run_ids,
)
from lmx.train.checkpoint.digest import combine_digests, flatten_by_path
from lmx.train.checkpoint.frozen import KEY, check_frozen
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.loss import NextToken
from lmx.train.program import StepProgram
from lmx.train.step import Frozen, TrainState

if TYPE_CHECKING:
    from lmx.train.checkpoint.import_hf import HFWeights

RESIZABLE = {"vocab", "length"}  # logical axes whose size may differ
PROBLEMS = {
    "new": "the weights lack parameters of the model",
    "drop": "the model lacks parameters of the weights",
    "resize": "the weights have parameters in other sizes than the model",
}


@configurable
@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Begins with the weights of a run, or of a folder of Hugging Face transformers.

    Names and shapes must be those of the model, but for what patterns such as
    `head.*` name. The path is not part of a run's identity: the digest of the weights
    is, which the run records.

    Attributes:
        take: the weights alone, to train from step 0 with a new optimizer; or the whole
            state, to continue from the step of the checkpoint with its optimizer.
        step: of the checkpoint of a run; None: the newest.
        new: parameters to initialize, which the source lacks.
        drop: parameters of the source that are not taken.
        resize: parameters with more or fewer tokens or positions: those that both have
            are taken, further ones are initialized.
    """

    path: Execution[str]
    take: Literal["weights", "state"]
    step: NonNegative[int | None] = None
    new: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    resize: tuple[str, ...] = ()

    def __post_init__(self):
        require(
            self.take == "weights" or not (self.new or self.drop or self.resize),
            "InitFrom.take='state' takes the state as it is: leave new, drop and resize"
            " empty, or take 'weights'.",
        )

    def open(self, recorded: Mapping[str, Any]) -> "RunWeights | HFWeights":
        """The weights, of which only headers are read.

        Refuses others than a run has `recorded`, as by `read_init_from`.
        """
        path = Path(self.path).expanduser()
        is_run = (path / CONFIG).is_file()
        require(
            is_run or (self.step is None and self.take == "weights"),
            f"InitFrom.path is {path}, which is not a run: of other weights, take"
            " 'weights', and give no step.",
        )
        step = recorded.get("step", self.step)
        source = RunWeights(path, step) if is_run else _read_hf(path)
        require(
            recorded.get("digest") in (None, source.digest),
            f"the weights of {path} are not those that the run began with, whose digest"
            f" is {recorded.get('digest')}: restore them, or start a new run in another"
            " folder.",
        )
        return source

    def match(
        self, shapes: Mapping[str, Any], params: Mapping[str, Any]
    ) -> dict[str, list[str]]:
        """The names that `new`, `drop` and `resize` stand for; refuses any others."""
        taken = [p for p in params if p in shapes and not matches(p, self.drop)]
        found = {
            "new": [path for path in params if path not in taken],
            "drop": [path for path in shapes if path not in taken],
            "resize": [p for p in taken if shapes[p] != params[p].shape],
        }
        for name, paths in found.items():
            patterns = getattr(self, name)
            unnamed = [path for path in paths if not matches(path, patterns)]
            shown = [f"{p} {shapes.get(p, '')}" for p in unnamed[:MAX_NAMES_SHOWN]]
            require(
                not unnamed,
                f"{PROBLEMS[name]}: {', '.join(shown)}. If that is meant, name"
                f" {'it' if len(unnamed) == 1 else f'all {len(unnamed)}'} in"
                f" InitFrom.{name}.",
            )
            idle = [x for x in patterns if not any(fnmatchcase(p, x) for p in paths)]
            require(
                not idle,
                f"InitFrom.{name} = {idle} names no parameter that differs so.",
            )
        for path in found["resize"]:
            _check_resizable(path, shapes[path], params[path])
        return found


def _read_hf(path: Path) -> "HFWeights":
    from lmx.train.checkpoint.import_hf import HFWeights  # few runs need it

    return HFWeights(path)


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether the path of a parameter matches a pattern, as in `*.mlp.*`."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _check_resizable(path: str, shape: tuple[int, ...], param: Any) -> None:
    """Refuses a parameter that differs in more than tokens or positions."""
    sizes = zip(param.axes, shape, param.shape, strict=False)
    require(
        len(shape) == param.ndim and RESIZABLE >= {a for a, n, m in sizes if n != m},
        f"{path} cannot be resized from {shape} to {param.shape}: only the number of"
        " tokens or positions may differ.",
    )


def read_init_from(run: Path) -> dict[str, Any]:
    """What a run has recorded of the weights it began with; empty if there is none."""
    exists = (run / METADATA).is_file()
    return read_metadata(run).get("init_from", {}) if exists else {}


class RunWeights:
    """The parameters of a run, of which a checkpoint has those that were trained.

    Attributes:
        step: of the checkpoint, the newest by default.
        digest: of all its tensors, and of frozen parameters.
        model: as shapes and dtypes.
        shapes: by the path of a parameter, as in `norm.scale`.
        saved: the paths of those that the checkpoint has.
        origin: as in `TrainedModel`.
    """

    def __init__(self, path: Path, step: int | None = None):
        """Raises ConfigError if the run has no such checkpoint."""
        self.path, self.config = path, read_config(path)
        folder = RunDir(path, writable=False).checkpoint_folder
        self.checkpoints = CheckpointManager(folder, run_ids=read_run_ids(path))
        steps = self.checkpoints.list_steps()
        require(steps, f"{path} has no checkpoint yet: train it further first.")
        self.step = steps[-1] if step is None else step
        require(
            self.step in steps,
            f"{path} has no checkpoint of step {step}: it has"
            f" {', '.join(map(str, steps))}.",
        )
        metadata = self.checkpoints.read_metadata(self.step)
        frozen = metadata["extra"].get(KEY, {}).get("params")
        digests = {"trained": metadata["root"], "frozen": frozen}
        self.digest = combine_digests(digests) if frozen else metadata["root"]
        build = self.config.build().model
        self.model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        params = flatten_params(nnx.state(self.model))
        self.shapes = {path: leaf.shape for path, leaf in params.items()}
        self.saved = {p for p in params if f"params.{p}.value" in metadata["digests"]}

    @property
    def origin(self) -> Mapping[str, Any]:
        if self.config.name == "Pretrained":
            return get_origin(self.config)
        return read_init_from(self.path).get("origin", {})

    def load(
        self,
        abstract: Mapping[str, Any],
        mesh: jax.sharding.Mesh,
        rules: sharding.Rules,
    ) -> dict[str, jax.Array]:
        """The parameters at these paths, with these dtypes and shardings.

        Frozen ones are made again on the mesh.
        """
        names = {p: f"params.{p}.value" for p in abstract if p in self.saved}
        saved = {name: abstract[path] for path, name in names.items()}
        loaded = self.checkpoints.restore(self.step, saved)
        params = {path: loaded[name] for path, name in names.items()}
        if len(params) < len(abstract):
            initial = _open_initial(self.path, mesh, rules, NextToken())
            frozen = initial.load_frozen()
            check_frozen(frozen, self.checkpoints, self.step)
            for path, value in flatten_params(frozen.params).items():
                if (x := abstract.get(path)) is not None:
                    params[path] = jax.device_put(value.astype(x.dtype), x.sharding)
        return params


class InitialState:
    """The state that a run begins with.

    Weights are opened, and refused if they do not fit, unless the run has `recorded`
    them: then only `load` does so, since a run resumes without them.

    Attributes:
        facts: for the metadata of the run.
    """

    def __init__(
        self, init_from: InitFrom | None, run: StepProgram, recorded: Mapping[str, Any]
    ):
        self.init_from, self.run, self.recorded = init_from, run, recorded
        self.facts: dict[str, Any] = {}
        if init_from:
            moved = recorded.get("path") != init_from.path
            self.facts["init_from"] = self._opened[1] if moved else recorded

    @property
    def first_step(self) -> int:
        """The step at which the run begins: 0, or that of the state it takes."""
        takes_state = self.init_from and self.init_from.take == "state"
        return self.facts["init_from"]["step"] if takes_state else 0

    def load(self) -> TrainState:
        """The state, sharded."""
        if self.init_from is None:
            return self.run.init()
        source, facts = self._opened
        if distributed.is_leader():
            print_line(
                f"begins with the {self.init_from.take} of {self.init_from.path}"
            )
        if isinstance(source, RunWeights) and self.init_from.take == "state":
            frozen, checkpoints = self.load_frozen(), source.checkpoints
            check_frozen(frozen, checkpoints, source.step)
            abstract = self.run.abstract_state().trained
            return checkpoints.restore(source.step, abstract)._replace(frozen=frozen)
        wanted = {
            path: self._place(param, source.shapes[path])
            for path, param in self._params.items()
            if path not in facts["new"]
        }
        return self.run.init(source.load(wanted, self.run.mesh, self.run.rules))

    def load_frozen(self) -> Frozen:
        """The frozen part of the state; with `take="state"` that of the other run."""
        if not self.run.has_frozen:
            return Frozen()
        if self.init_from is None or self.init_from.take == "weights":
            return self.load().frozen
        path, loss = Path(self.init_from.path).expanduser(), self.run.step_config.loss
        other = _open_initial(path, self.run.mesh, self.run.rules, loss).load_frozen()
        abstract, arrays = self.run.abstract_state().frozen, flatten_by_path(other)
        wanted = flatten_by_path(abstract)
        require(
            arrays.keys() == wanted.keys(),
            "InitFrom.take='state' takes the state as it is: give Experiment.trainable"
            f" as in {path}, or take 'weights'.",
        )
        leaves = [jax.device_put(arrays[n], x.sharding) for n, x in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    @cached_property
    def _opened(self) -> "tuple[RunWeights | HFWeights, dict[str, Any]]":
        """The weights, and the facts about them."""
        assert self.init_from
        source = self.init_from.open(self.recorded)
        names = self.init_from.match(source.shapes, self._params)
        facts = {name: getattr(source, name) for name in ("step", "digest", "origin")}
        require(
            self.init_from.take == "weights" or source.step < self.run.steps,
            f"the state of {self.init_from.path} is that after step {source.step}:"
            f" Experiment.steps, which counts those too, is {self.run.steps}.",
        )
        return source, {"path": self.init_from.path, **facts, **names}

    @cached_property
    def _params(self) -> dict[str, Any]:
        """The parameters of the model, as shapes with their logical axes."""
        return flatten_params(nnx.split(self.run.model)[1], is_variable)

    def _place(self, param: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        """The parameter in the shape that the weights have, on the devices."""
        whole = sharding.spec(param.axes, param.shape, self.run.mesh, self.run.rules)
        sizes = zip(whole, shape, param.shape, strict=True)
        spec = PartitionSpec(*(axes if n == m else None for axes, n, m in sizes))
        return jax.ShapeDtypeStruct(
            shape, param.dtype, sharding=NamedSharding(self.run.mesh, spec)
        )


def _open_initial(
    path: Path, mesh: jax.sharding.Mesh, rules: sharding.Rules, loss: Any
) -> InitialState:
    """The state that a run began with, on this mesh, for this loss."""
    experiment = replace(
        read_config(path).build(),
        mesh=Mesh(**mesh.shape),
        rules=rules,
        local_sgd=None,
        loss=loss,
    )
    program = experiment.build_program([*mesh.devices.flat])
    return InitialState(experiment.init_from, program, read_init_from(path))
