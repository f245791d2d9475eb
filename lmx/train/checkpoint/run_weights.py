"""The weights in a checkpoint of a run, by the names of parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import require
from lmx.config.value import to_jsonable
from lmx.run.run_dir import RunDir, read_config, read_metadata, read_run_ids
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader

ORIGIN = ("family", "hf_fields", "generation")  # fields of `Pretrained` for an export


class RunWeights:
    """The parameters in a checkpoint of a run, read when they are loaded.

    Attributes:
        step: of the checkpoint, the newest by default.
        digest: of all its tensors.
        shapes: by the path of a parameter, as in `norm.scale`.
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
        reader = CheckpointReader(self.checkpoints.directory.step_path(self.step))
        metadata = reader.read_metadata()
        self.digest = metadata["root"]
        self.shapes = {
            name.removeprefix("params.").removesuffix(".value"): tuple(
                reader.open_tensor(name).shape
            )
            for name in metadata["digests"]
            if name.startswith("params.")
        }

    @property
    def origin(self) -> Mapping[str, Any]:
        fields = self.config.fields
        if self.config.name == "Pretrained":
            return {name: to_jsonable(fields[name]) for name in ORIGIN}
        return read_metadata(self.path).get("init_from", {}).get("origin", {})

    def load(self, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The parameters at these paths, with these dtypes and shardings."""
        names = {f"params.{path}.value": leaf for path, leaf in abstract.items()}
        loaded = self.checkpoints.restore(self.step, names)
        return {path: loaded[f"params.{path}.value"] for path in abstract}
