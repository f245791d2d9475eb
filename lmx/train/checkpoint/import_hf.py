"""Imports a Hugging Face model as a run."""

import hashlib
from pathlib import Path

from lmx.core.files import create_dir
from lmx.core.precision import Dtype
from lmx.models.hf.api import CONFIG, HFCheckpoint, load_model
from lmx.models.trained_model import TrainedModel
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
