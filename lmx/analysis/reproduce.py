"""Trains a run again from its metadata, and compares the losses."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError, check_argument, require
from lmx.config.resolve import apply_overrides
from lmx.config.value import Config, diff, explain_errors
from lmx.run.metadata import affects_bits, diff_metadata, sample_losses
from lmx.run.run_dir import METADATA, check_schema, read_metadata, read_metrics
from lmx.run.user_code import (
    CODE,
    diff_digests,
    digest_modules,
    load_recorded_config,
)
from lmx.train.experiment import Experiment
from lmx.train.hooks.preemption import StoppedError
from lmx.train.trainer import RunOptions, train_run

MAX_BYTES = 256 * 2**20  # of a metadata file
DEFAULT_RTOL = 0.01  # of a loss, where it cannot be the same to the bit


@dataclass(frozen=True)
class RunMetadata:
    """The metadata of a run, without its folder."""

    fields: Mapping[str, Any]
    config: Config[Experiment]
    losses: Mapping[int, float | str]  # of some steps, in order

    @classmethod
    def load(cls, path: Path) -> "RunMetadata":
        """Reads a metadata file, or that in the folder of a run. Imports no module
        but those that the user has named with --import.

        The losses of an unfinished run are those of its metrics.jsonl.
        """
        path = path / METADATA if path.is_dir() else path
        try:
            check_argument(
                path.stat().st_size <= MAX_BYTES, f"it is larger than {MAX_BYTES} bytes"
            )
            fields = json.loads(path.read_text())
            experiment, _ = fields["experiment"], fields["data"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is not the metadata of a run ({error!r}): give the {METADATA}"
                " of a run that lmx trained."
            ) from None
        check_schema(path, fields.get("schema"))
        modules = fields.get("imports") or {}
        config = load_recorded_config(json.dumps(experiment), modules, path)
        require(
            config.name == "Experiment",
            f"{path} is of @{config.name}, which lmx did not train.",
        )
        losses = fields.get("losses") or sample_losses(read_metrics(path.parent))
        return cls(fields, config, dict(losses))


def override_execution(
    original: Config[Experiment], overrides: Iterable[str]
) -> Config[Experiment]:
    """The experiment with overrides; refused if they change its identity."""
    config = apply_overrides(original, overrides)
    changes = diff(original.identity(), config.identity())
    require(
        not changes,
        f"{', '.join(changes)} cannot be changed, since they change the results:"
        " override only how the run is executed, as in Mesh.fsdp=1.",
    )
    return config


@dataclass(frozen=True)
class Reproduction:
    """A run compared with the run that it reproduces."""

    steps: int
    environment_diff: Mapping[str, tuple[Any, Any]]
    rtol: float  # of losses; 0: the same to the bit
    losses: Mapping[int, tuple[float | str, float | str]]  # of steps that both logged

    @property
    def differing_steps(self) -> list[int]:
        """The steps whose losses are not within the tolerance."""
        return [
            step
            for step, (old, new) in self.losses.items()  # NaN and infinity are strings
            if old != new
            and not math.isclose(float(old), float(new), rel_tol=self.rtol)
        ]


def reproduce(
    metadata: RunMetadata,
    config: Config[Experiment],
    path: Path,
    steps: int | None = None,
    rtol: float | None = None,
) -> Reproduction:
    """Trains all of the run, or its first steps, in a new folder, and compares losses.

    With `rtol` None the tolerance is 0 if devices, mesh, versions and flags are the
    same, and DEFAULT_RTOL otherwise.
    """
    last = min(config["steps"] if steps is None else steps, config["steps"])
    _check_reproducible(metadata, config, path, last)
    options = RunOptions(stop_after=last if last < config["steps"] else None)
    try:
        train_run(f"{metadata.fields['name']}", config, path, options)
    except StoppedError as stopped:
        if stopped.done != options.stop_after:
            raise
    changes = diff_metadata(metadata.fields, read_metadata(path))
    if rtol is None:
        rtol = DEFAULT_RTOL if any(map(affects_bits, changes)) else 0.0
    new = {row["step"]: row["loss"] for row in read_metrics(path) if "loss" in row}
    losses = {s: (old, new[s]) for s, old in metadata.losses.items() if s in new}
    require(losses, f"{path} logged none of the steps {[*metadata.losses]}.")
    return Reproduction(last, changes, rtol, losses)


def _check_reproducible(
    metadata: RunMetadata, config: Config[Experiment], path: Path, last: int
) -> None:
    """Refuses an existing folder, steps without a loss, and other data."""
    require(not path.exists(), f"{path} exists: name a new folder with --run.")
    first = min(metadata.losses, default=math.inf)
    require(
        first <= last,
        f"no loss of the first {last} steps can be compared: the metadata"
        f" {f'starts with step {first}' if metadata.losses else 'has no losses'}.",
    )
    modules = metadata.fields.get("imports") or {}
    changed = diff_digests(modules, digest_modules(config))
    require(
        not changed,
        f"{', '.join(changed)} is not the code of the run: restore it from the folder"
        f" {CODE} of the run.",
    )
    with explain_errors(config):
        experiment = config.build()
        fingerprint = dict(experiment.data.open().info.fingerprint)
        if experiment.init_from:
            experiment.init_from.open(metadata.fields["init_from"])
    require(
        fingerprint == metadata.fields["data"],
        "the data are not those of the run: restore them.\n"
        f"  {metadata.fields['data']} in the metadata\n  {fingerprint} now",
    )
