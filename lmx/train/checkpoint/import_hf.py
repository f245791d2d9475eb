"""Hugging Face models as runs, and as the weights that a run begins with."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lmx.core import distributed
from lmx.core.files import create_dir
from lmx.core.precision import Dtype
from lmx.core.sharding import Rules
from lmx.models.hf.api import CONFIG, HFCheckpoint, init_abstract, load_model
from lmx.models.hf.weights import load_params
from lmx.models.params import flatten_params
from lmx.models.trained_model import TrainedModel, get_origin
from lmx.run.metadata import initial_metadata
from lmx.run.run_dir import RunDir, write_initial_files
from lmx.train.checkpoint.manager import CheckpointManager


def import_hf(folder: Path, run: Path, dtype: Dtype | None = None) -> TrainedModel:
    """Imports the model in a folder as step 0 of a new run; all of it, or nothing."""
    source = HFCheckpoint(folder)
    with create_dir(run, "is not empty: name another folder.") as new:
        trained = load_model(source, dtype, digest=digest_files(source))
        facts = {"folder": f"{folder.absolute()}", "parameters": trained.num_parameters}
        metadata = initial_metadata(run.name, trained.config, facts)
        origin = {name: metadata[name] for name in ("run_id", "commit")}
        write_initial_files(new, trained.config, metadata, trained.tokenizer)
        checkpoints = CheckpointManager(RunDir(new).checkpoint_folder, origin=origin)
        checkpoints.save(0, {"params": trained.params})
        checkpoints.wait()
    return trained


def digest_files(source: HFCheckpoint) -> str:
    """SHA-256 of the contents of a model's files."""
    content = hashlib.sha256()
    for file in (source.path / CONFIG, *source.weights.files):
        with file.open("rb") as opened:
            content.update(hashlib.file_digest(opened, "sha256").digest())
    return content.hexdigest()


class HFWeights:
    """The parameters in a folder of Hugging Face; attributes as in `RunWeights`."""

    def __init__(self, path: Path):
        self.step, self.checkpoint = 0, HFCheckpoint(path)
        config = self.checkpoint.to_config("bfloat16")
        model = init_abstract(config)
        self.slices = self.checkpoint.map_tensors(model)
        self.checkpoint.infer_dtype(model, self.slices)  # refuses those it cannot read
        self.shapes = {
            path: leaf.shape for path, leaf in flatten_params(nnx.state(model)).items()
        }
        self.origin = get_origin(config)
        self.digest = distributed.broadcast_from_leader(
            lambda: digest_files(self.checkpoint)
        )

    def load(
        self, abstract: Mapping[str, Any], mesh: jax.sharding.Mesh, rules: Rules
    ) -> dict[str, jax.Array]:
        """The parameters at these paths, with these dtypes and shardings."""
        del mesh, rules
        return load_params(self.checkpoint.weights, self.slices, dict(abstract))
