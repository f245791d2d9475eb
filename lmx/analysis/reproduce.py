"""A run made again from its card, and whether its figures come out the same."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.format import to_gin
from lmx.config.parse import parse, parse_text
from lmx.config.registry import ConfigError
from lmx.config.resolve import from_json, resolve
from lmx.config.value import Config, diff, explain_errors
from lmx.run.metadata import affects_bits, diff_metadata, sample_losses
from lmx.run.run_dir import read_metrics
from lmx.run.schema import check_schema
from lmx.train.experiment import Experiment
from lmx.train.hooks.signals import StoppedError
from lmx.train.trainer import RunOptions, train_run

MAX_BYTES = 256 * 2**20  # bytes of a card
DEFAULT_RTOL = (
    0.01  # of a loss, where nobody says otherwise and bits cannot be expected
)


@dataclass(frozen=True)
class RunMetadata:
    """A card by itself: what was run, on what, and what came out.

    Attributes:
        config: the experiment as it was run.
        losses: those of some steps, in order.
    """

    fields: Mapping[str, Any]
    config: Config[Experiment]
    losses: Mapping[int, float | str]

    @classmethod
    def load(cls, path: Path) -> "RunMetadata":
        """The card in a file or in the folder of a run. It imports nothing.

        Of a run that has not come to its end, the losses are those beside the card.
        """
        path = path / "metadata.json" if path.is_dir() else path
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ConfigError(f"{path} is larger than any card.")
            facts = json.loads(path.read_text())
            check_schema(path, facts.get("schema"))
            experiment, _ = facts["experiment"], facts["data"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{path} is no card that a run can be made of ({error!r}): give the"
                " metadata.json of a run that this lmx trained."
            ) from None
        losses = facts.get("losses") or sample_losses(read_metrics(path.parent))
        return cls(facts, _parse_config(path, facts, experiment), dict(losses))


def _parse_config(
    path: Path, facts: Mapping[str, Any], told: Any
) -> Config[Experiment]:
    try:
        config = from_json(json.dumps(told))
    except ConfigError as error:
        needed = " ".join(f"--import {module}" for module in facts.get("imports", {}))
        hint = f" It names classes of others: give {needed}." if needed else ""
        raise ConfigError(f"{path}: {error}.{hint}") from error
    if config.name != "Experiment":
        raise ConfigError(f"{path} is of @{config.name}, which was not trained.")
    return config


def apply_overrides(
    metadata: RunMetadata, overrides: Iterable[str]
) -> Config[Experiment]:
    """The experiment of a card, made another way; refused if it were another run."""
    words = [*overrides]
    if not words:
        return metadata.config
    page = parse_text(to_gin(metadata.config), "metadata.json")
    config = resolve({**page, **parse([], words)}, metadata.config.name)
    changes = diff(metadata.config.identity(), config.identity())
    if changes:
        raise ConfigError(
            f"another {', '.join(changes)} is another run: bind nothing but what is"
            " execution, as Mesh.fsdp=1."
        )
    return config


@dataclass(frozen=True)
class Reproduction:
    """A run beside the one that it was made after.

    Attributes:
        steps: how many of it were done.
        unlike: what the two do not stand on alike, by name.
        within: by which part of itself a loss may differ; 0: not by one bit.
        losses: of each step that both logged, the first run's and this one's.
    """

    steps: int
    environment_diff: Mapping[str, tuple[Any, Any]]
    rtol: float
    losses: Mapping[int, tuple[float | str, float | str]]

    @property
    def differing_steps(self) -> list[int]:
        """The steps whose losses differ by more than they may."""
        return [s for s, pair in self.losses.items() if not is_close(*pair, self.rtol)]


def is_close(old: float | str, new: float | str, rtol: float) -> bool:
    """Whether the two are the same, or near enough; NaN and infinity are words."""
    if isinstance(old, str) or isinstance(new, str) or not rtol:
        return old == new
    return math.isclose(old, new, rel_tol=rtol)


def reproduce(
    metadata: RunMetadata,
    config: Config[Experiment],
    path: Path,
    steps: int | None = None,
    rtol: float | None = None,
) -> Reproduction:
    """Runs it again in a new folder, all of it or its first steps, and compares.

    `within` is the part of itself by which a loss may differ; None: 0 on the same
    devices, mesh, versions and flags, and `DEFAULT_RTOL` elsewhere.
    """
    wanted = _expected_losses(metadata, config, path, steps)
    name = str(metadata.fields["name"])
    until = None if steps is None or steps >= config["steps"] else steps
    try:
        train_run(name, config, path, RunOptions(stop_after=until))
    except StoppedError as stopped:
        if stopped.done != until:
            raise
    here = json.loads((path / "metadata.json").read_text())
    differences = diff_metadata(metadata.fields, here)
    if rtol is None:
        rtol = DEFAULT_RTOL if any(map(affects_bits, differences)) else 0.0
    found = _logged_losses(path)
    losses = {s: (loss, found[s]) for s, loss in wanted.items() if s in found}
    if not losses:
        raise ConfigError(f"{path} logged none of the steps {[*wanted]}.")
    return Reproduction(until or config["steps"], differences, rtol, losses)


def _logged_losses(path: Path) -> dict[int, float | str]:
    return {row["step"]: row["loss"] for row in read_metrics(path) if "loss" in row}


def _expected_losses(
    metadata: RunMetadata, config: Config[Experiment], path: Path, steps: int | None
) -> dict[int, float | str]:
    """The losses to be met, once it is known that they can be looked for."""
    if path.exists():
        raise ConfigError(f"{path} is there: name a new folder with --run.")
    last = config["steps"] if steps is None else steps
    wanted = {step: loss for step, loss in metadata.losses.items() if step <= last}
    if not wanted:
        first = min(metadata.losses, default=None)
        there = "has none" if first is None else f"begins with step {first}"
        raise ConfigError(
            f"there is no loss of the first {last} steps to compare with: the card"
            f" {there}."
        )
    with explain_errors(config):
        here = dict(config.build().data.open().info.fingerprint)
    if here != metadata.fields["data"]:
        raise ConfigError(
            "the data are not those of the card: bring them back.\n"
            f"  {metadata.fields['data']} there\n  {here} here"
        )
    return wanted
