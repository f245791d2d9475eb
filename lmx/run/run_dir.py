"""The run directory: what a run was told, what it found, and where it stopped."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.resolve import from_json
from lmx.config.value import Config, diff
from lmx.core.console import print_line
from lmx.core.files import create_dir
from lmx.data.tokenizer.base import Tokenizer
from lmx.run.jsonl import JsonlWriter, read_jsonl
from lmx.run.lock import Lease, Lock, acquire_lock
from lmx.run.tensorboard import TensorBoardWriter

METRICS, LEDGER, TIMING = "metrics.jsonl", "ledger.jsonl", "account.jsonl"
Value = int | float | str | list[float]
Values = Mapping[str, Value]


class RunDir:
    """One run's folder. `log_metrics` takes numbers, `path` holds everything else."""

    def __init__(self, path: Path):
        self.path = path
        self._journals = {n: JsonlWriter(path / n) for n in (METRICS, LEDGER, TIMING)}
        self._board: TensorBoardWriter | None = None
        self._lock: Lock | Lease | None = None

    @classmethod
    def claim(
        cls,
        path: Path,
        config: Config,
        metadata: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        allow_change: Iterable[str] = (),
    ) -> "RunDir":
        """The folder of this run: a new one, whole at once, or the one it began in.

        No other process can claim it before this directory is closed. What may differ
        from the beginning is named by `accept`, and goes on the card.
        """
        directory = cls(path)
        try:
            if not (path / "experiment.json").is_file():
                _create(path, config, metadata, tokenizer)
            directory._lock = acquire_lock(path)
            if differences := _check_same_run(path, config, metadata, allow_change):
                directory.update_metadata(**metadata, accepted=differences)
            _write_config(path, config)
        except OSError as error:
            directory.close()
            raise ConfigError(
                f"no run can be written at {path}: {error.strerror} ({error.filename});"
                " name another folder with --run."
            ) from None
        except ConfigError:
            directory.close()
            raise
        return directory

    @property
    def checkpoint_folder(self) -> Path:
        """Where the states are."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the last step was done and its numbers are on the card."""
        return "final" in json.loads((self.path / "card.json").read_text())

    def truncate_after(self, step: int) -> None:
        """Ready to log what follows `step`; what was logged beyond it is dropped.

        So is what the hooks logged that were due after that step and not done with.
        """
        settled = (
            row["metrics"]
            for row in read_jsonl(self.path / LEDGER)
            if row["step"] == step and "metrics" in row
        )
        *_, size = (None, *settled)

        def kept(row: Mapping[str, Any]) -> bool:
            return row["step"] <= step

        self._journals[METRICS].truncate(kept, size)
        self._journals[LEDGER].truncate(kept)
        self._board = TensorBoardWriter(self.path, step + 1)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One line of that journal; one that cannot be written now is held."""
        journal = self._journals[name]
        full = bool(journal.pending)
        try:
            journal.append(row)
        except OSError as error:
            if not full:
                print_line(
                    f"error: {journal.path} cannot be written ({error.strerror});"
                    " training goes on, and what is measured is held until it can be."
                )

    def flush(self) -> str | None:
        """Why something that was to be written is still held, if it is."""
        for journal in self._journals.values():
            try:
                journal.flush()
            except OSError as error:
                return f"{journal.path}: {error.strerror}"
        return None

    def file_size(self, name: str) -> int:
        """Bytes of that journal."""
        return self._journals[name].size

    def log_metrics(self, step: int, values: Values) -> None:
        """One line of metrics, and the same for TensorBoard."""
        line = {name: encode_non_finite(value) for name, value in values.items()}
        self.append(METRICS, {"step": step} | line)
        if self._board:
            self._board.add(step, values)

    def update_metadata(self, **facts: Any) -> None:
        """Adds facts to the card, or replaces them."""
        card = self.path / "card.json"
        known = json.loads(card.read_text()) | facts
        fresh = card.with_suffix(".new")
        fresh.write_text(json.dumps(known, indent=1) + "\n")
        fresh.replace(card)

    def close(self) -> None:
        """Everything logged is on disk."""
        for journal in self._journals.values():
            journal.close()
        if self._board:
            self._board.close()
        if self._lock:
            self._lock.release()
            self._lock = None


class NullRunDir(RunDir):
    """The folder of a run in which another process writes what this one would."""

    def truncate_after(self, step: int) -> None:
        """Drops nothing."""

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def log_metrics(self, step: int, values: Values) -> None:
        """Writes nothing."""

    def update_metadata(self, **facts: Any) -> None:
        """Writes nothing."""


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics of a run, as far as they are whole."""
    return iter(read_jsonl(path / METRICS))


def read_last_metrics(path: Path) -> dict[str, Any]:
    """The newest value of every metric."""
    newest: dict[str, Any] = {}
    for row in read_metrics(path):
        newest.update(row)
    return newest


def encode_non_finite(value: Value) -> Any:
    """What JSON has no number for, as a word: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, list):
        return [encode_non_finite(item) for item in value]
    if isinstance(value, str) or math.isfinite(value):
        return value
    return json.dumps(value)


def _write_config(path: Path, config: Config) -> None:
    """What the run was told, as a value and as a page."""
    for name, text in {
        "experiment.json": config.to_json(indent=1),
        "experiment.gin": config.to_gin(),
    }.items():
        fresh = path / f".{name}"
        fresh.write_text(text.rstrip() + "\n")
        fresh.replace(path / name)


def _create(
    path: Path, config: Config, card: Mapping[str, Any], codec: Tokenizer | None
) -> None:
    """Makes the folder of a new run; where that fails, nothing is left of it."""

    def fill(fresh: Path) -> None:
        write_initial_files(fresh, config, card, codec)

    create_dir(path, fill, "is no run: name another folder with --run.")


def write_initial_files(
    path: Path, config: Config, metadata: Mapping[str, Any], tokenizer: Tokenizer | None
) -> None:
    """What a run begins with: its configuration, its card and its tokenizer."""
    _write_config(path, config)
    (path / "card.json").write_text(json.dumps(metadata, indent=1) + "\n")
    if tokenizer:
        tokenizer.save(path)


def _check_same_run(
    path: Path, config: Config, card: Mapping[str, Any], accept: Iterable[str]
) -> list[dict[str, str]]:
    """What differs from the beginning and is accepted, if anything is.

    Refuses to go on with a run that is another one, or has other data.
    """
    try:
        old = from_json((path / "experiment.json").read_text())
        known = json.loads((path / "card.json").read_text())
        data = known["data"]
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"the record of {path} cannot be read ({error}): bring back its"
            " experiment.json and card.json, or name another folder with --run."
        ) from None
    told = diff(old.identity(), config.identity())
    settings = {name: (f"{was}", f"{now}") for name, (was, now) in told.items()}
    digests = {
        f"data {name}": (f"{data.get(name)}", f"{card['data'].get(name)}")
        for name in sorted({**data, **card["data"]})
        if data.get(name) != card["data"].get(name)
    }
    names = [place for name in accept for place in config.find_paths(name)]
    _raise_if_changed(f"{path} holds another run", _drop_allowed(settings, names))
    _raise_if_changed(
        f"the data have changed since {path} began", _drop_allowed(digests, names)
    )
    found = {**settings, **digests}.items()
    new = [{"name": name, "was": was, "now": now} for name, (was, now) in found]
    return [*known.get("accepted", []), *new] if new else []


Changes = Mapping[str, tuple[str, str]]


def _drop_allowed(changes: Changes, accepted: Iterable[str]) -> Changes:
    """The changes that lie at none of these paths, nor below one."""
    found = dict(changes)
    for path in accepted:
        for name in changes:
            if name == path or name.startswith((f"{path}.", f"{path} ")):
                found.pop(name, None)
    return found


def _raise_if_changed(what: str, changes: Changes) -> None:
    if changes:
        lines = [
            f"  {name}: {was} there, {now} here" for name, (was, now) in changes.items()
        ]
        raise ConfigError(
            f"{what}: name another folder with --run, bring back the old, or allow it"
            " with --accept NAME\n" + "\n".join(lines)
        )
