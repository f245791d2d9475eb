"""The folder of a run: its config, its metadata, and what it logs."""

import glob
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmx.config.format import to_gin
from lmx.config.json_object import check_kinds, parse_object
from lmx.config.registry import ConfigError, require
from lmx.config.value import Config, diff
from lmx.core.console import print_line
from lmx.core.files import create_dir, write_atomic
from lmx.data.tokenizer.base import Tokenizer
from lmx.run.jsonl import JsonlWriter, read_jsonl
from lmx.run.lock import LOCK, Lease, Lock, acquire_lock
from lmx.run.tensorboard import TensorBoardWriter
from lmx.run.user_code import CODE, diff_digests, load_recorded_config, save_sources
from lmx.run.wandb import WandB, WandBWriter

SCHEMA = 4  # version of all files; increased when older readers would fail
METRICS, LEDGER, TIMING = "metrics.jsonl", "ledger.jsonl", "timing.jsonl"
METADATA, CONFIG = "metadata.json", "experiment.json"
KINDS = {  # the types of the metadata that commands read
    "name": str | None,
    "run_id": str | None,
    "data": Mapping[str, Any] | None,
    "former_run_ids": tuple[str, ...] | None,
    "allowed_changes": tuple[Mapping[str, str], ...] | None,
    "devices": str | None,
    "mesh": Mapping[str, int] | None,
    "imports": Mapping[str, str] | None,
}
Value = int | float | str | list[float]
Values = Mapping[str, Value]
Changes = Mapping[str, tuple[Any, Any]]  # from and to, by name


class RunDir:
    """The folder of one run. Unless it is `writable`, nothing is written to it."""

    def __init__(self, path: Path, *, writable: bool = True):
        names = (METRICS, LEDGER, TIMING) if writable else ()
        self.path, self.writable = path, writable
        self._writers = {name: JsonlWriter(path / name) for name in names}
        self._sinks: list[TensorBoardWriter | WandBWriter] = []
        self.wandb: WandB | None = None  # where metrics are sent as well
        self.evaluated: dict[str, float] = {}  # the newest loss of each evaluation
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
        """Creates the folder of a run, or opens and locks it to resume the run.

        Refuses another config or other data than the run started with, except for what
        `allow_change` names, which is recorded in the metadata.
        """
        run_dir = cls(path)
        try:
            if not (path / CONFIG).is_file():
                advice = "is not a run: name another folder with --run."
                with create_dir(path, advice) as new:
                    write_initial_files(new, config, metadata, tokenizer)
            _refuse_links(path)
            run_dir._lock = acquire_lock(path)
            if changes := _check_same_run(path, config, metadata, allow_change):
                former = read_run_ids(path)
                run_dir.update_metadata(
                    **metadata, allowed_changes=changes, former_run_ids=former
                )
            _write_config(path, config)
            save_sources(config, path)
        except ConfigError:
            run_dir.close()
            raise
        except OSError as error:
            run_dir.close()
            raise ConfigError(
                f"no run can be written at {path}: {error.strerror} ({error.filename});"
                " name another folder with --run."
            ) from None
        return run_dir

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the last step was done and the metadata has the final metrics."""
        return "final" in read_metadata(self.path)

    def truncate_after(self, step: int) -> None:
        """Drops what was logged after that step, and by its unfinished hooks."""
        if not self.writable:
            return
        sizes = [
            row["metrics"]
            for row in read_ledger(self.path)
            if row["step"] == step and "metrics" in row
        ]
        for name, size in ((METRICS, sizes[-1] if sizes else None), (LEDGER, None)):
            self._writers[name].truncate(lambda row: row["step"] <= step, size)
        self._writers[TIMING].truncate(lambda row: True)
        self._update_evaluated(read_last_metrics(self.path))
        self._sinks = [TensorBoardWriter(self.path, step + 1)]
        if self.wandb:
            metadata = {"wandb_id": secrets.token_hex(8)} | read_metadata(self.path)
            self.update_metadata(**metadata)
            settings = dict(read_config(self.path).flatten())
            settings |= {name: metadata.get(name) for name in ("commit", "devices")}
            run_id = metadata["wandb_id"]
            self._sinks += [WandBWriter(self.wandb, self.path, run_id, settings)]

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a line to that file; one that cannot be written now stays pending."""
        if not self.writable:
            return
        writer = self._writers[name]
        reported = bool(writer.pending)
        try:
            writer.append(row)
        except OSError as error:
            if not reported:
                print_line(
                    f"error: {writer.path} cannot be written ({error.strerror});"
                    " training continues, and lines are kept in memory until they can"
                    " be written."
                )

    def flush(self) -> str | None:
        """Writes all pending lines; the reason if one cannot be written.

        Raises LostLockError if another process may write to the folder.
        """
        if self._lock:
            self._lock.check()
        for writer in self._writers.values():
            try:
                writer.flush()
            except OSError as error:
                return f"{writer.path}: {error.strerror}"
        return None

    def log_metrics(self, step: int, values: Values) -> None:
        """Appends a line of metrics, and passes them to TensorBoard and W&B."""
        line = {name: encode_non_finite(value) for name, value in values.items()}
        self.append(METRICS, {"step": step} | line)
        self._update_evaluated(values)
        for sink in self._sinks:
            sink.add(step, values)

    def _update_evaluated(self, values: Mapping[str, Any]) -> None:
        numbers = {n: x for n, x in values.items() if isinstance(x, int | float)}
        self.evaluated |= {n: numbers[loss] for n, loss in find_losses(numbers).items()}

    @property
    def metrics_size(self) -> int:
        """Bytes of metrics so far; 0 in a process that does not write them."""
        return self._writers[METRICS].size if self.writable else 0

    def record_hook(self, step: int, hook: str, status: str, **fields: Any) -> None:
        """Appends a line to the ledger: see `read_ledger`."""
        self.append(LEDGER, {"step": step, "hook": hook, "status": status, **fields})

    def update_metadata(self, **fields: Any) -> None:
        if self.writable:
            _write_json(self.path / METADATA, read_metadata(self.path) | fields)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        for sink in self._sinks:
            sink.close()
        if self._lock:
            self._lock.release()
            self._lock = None


def check_schema(path: Path, schema: Any) -> None:
    """Raises ConfigError unless the files at `path` have the schema of this lmx."""
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ConfigError(
            f"{path} was written by {'a newer' if newer else 'an older'} lmx (schema"
            f" {schema}; this lmx reads schema {SCHEMA}): use that version of lmx, or"
            " start a new run in another folder."
        )


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a run; ConfigError if there is none, or one of another schema."""
    if (path / "card.json").is_file():  # the metadata of schema 3
        check_schema(path, 3)
    metadata = _read_json(path, METADATA)
    check_schema(path, metadata.get("schema"))
    check_kinds(metadata, KINDS, path / METADATA)
    return metadata


def read_run_ids(path: Path) -> list[str]:
    """The ID of a run, and those that it had before allowed changes."""
    metadata = read_metadata(path)
    check_kinds(metadata, {"run_id": str}, path / METADATA)
    return [metadata["run_id"], *metadata.get("former_run_ids", [])]


def read_config(path: Path) -> Config:
    """The config of the run in a folder; raises what `read_metadata` raises."""
    modules = read_metadata(path).get("imports") or {}
    text = json.dumps(_read_json(path, CONFIG))
    return load_recorded_config(text, modules, path / CONFIG)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics of a run."""
    return iter(read_jsonl(path / METRICS))


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The ledger of a run: one line for each change of a hook's status at a step.

    A hook is `due`, then `done` or `failed`; a save is `started`, and is finished if
    its checkpoint exists.
    """
    return read_jsonl(path / LEDGER)


def read_last_metrics(path: Path) -> dict[str, Any]:
    """The newest value of every metric."""
    newest: dict[str, Any] = {}
    for row in read_metrics(path):
        newest.update(row)
    return newest


def find_losses(metrics: Iterable[str]) -> dict[str, str]:
    """The metric that is the loss of each evaluation, by the evaluation's name."""
    losses = [name for name in metrics if name.endswith(("/loss", "/nats"))]
    return {name.rpartition("/")[0]: name for name in losses}


def encode_non_finite(value: Value) -> Any:
    """Replaces what JSON has no number for by "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, list):
        return [encode_non_finite(item) for item in value]
    if isinstance(value, str) or math.isfinite(value):
        return value
    return json.dumps(value)


def write_initial_files(
    path: Path,
    config: Config,
    metadata: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """Writes the config, the metadata and the tokenizer of a new run."""
    _write_config(path, config)
    _write_json(path / METADATA, metadata)
    if tokenizer:
        tokenizer.save(path)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return parse_object((path / name).read_bytes(), path / name)
    except FileNotFoundError:
        start = glob.escape(path.name.removesuffix("-..."))  # as docs shorten it
        others = sorted(path.parent.glob(f"{start}-*/{CONFIG}"))
        near = "".join(f" Did you mean {file.parent}?" for file in others[:1])
        raise ConfigError(f"{path} is not a run: it has no {name}.{near}") from None
    except OSError as error:
        raise ConfigError(
            f"{path / name} cannot be read ({error}): restore it from a copy, or name"
            " another folder with --run."
        ) from None


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, f"{json.dumps(value, indent=1)}\n".encode())


def _write_config(path: Path, config: Config) -> None:
    texts = {CONFIG: config.to_json(indent=1), "experiment.gin": to_gin(config)}
    for name, text in texts.items():
        write_atomic(path / name, f"{text.rstrip()}\n".encode())


def _refuse_links(path: Path) -> None:
    """Refuses symbolic links in place of files that a run writes or truncates."""
    for name in (LOCK, METRICS, LEDGER, TIMING):
        require(
            not (path / name).is_symlink(),
            f"{path / name} is a symbolic link, and a run writes no other files than"
            " its own: remove the link, or name another folder with --run.",
        )


def _check_same_run(
    path: Path,
    config: Config,
    metadata: Mapping[str, Any],
    allow_change: Iterable[str],
) -> list[dict[str, str]]:
    """Refuses changes that are not allowed; returns all allowed ones if any is new."""
    old, old_metadata = read_config(path), read_metadata(path)
    settings = diff(old.identity(), config.identity())

    def diff_field(field: str, prefix: str) -> Changes:
        before, after = (each.get(field) or {} for each in (old_metadata, metadata))
        names = diff_digests(before, after)
        return {f"{prefix}{n}": (before.get(n), after.get(n)) for n in names}

    data, code = diff_field("data", "data "), diff_field("imports", f"{CODE}.")
    allowed: list[str] = []
    for name in allow_change:
        is_code = name == CODE or name in code
        allowed += [name] if is_code else config.find_paths(name)
    _raise_if_changed(f"{path} holds another run", settings, allowed)
    _raise_if_changed(f"the data have changed since {path} started", data, allowed)
    _raise_if_changed(f"the code has changed since {path} started", code, allowed)
    changes = [
        {"name": name, "from": f"{before}", "to": f"{after}"}
        for name, (before, after) in {**settings, **data, **code}.items()
    ]
    return [*old_metadata.get("allowed_changes", []), *changes] if changes else []


def _raise_if_changed(problem: str, changes: Changes, allowed: Iterable[str]) -> None:
    """Raises ConfigError for changes that are not at or below an allowed path."""
    prefixes = tuple(f"{path}{end}" for path in allowed for end in (".", " "))
    lines = [
        f"  {name}: {before} before, {after} now"
        for name, (before, after) in changes.items()
        if not f"{name}.".startswith(prefixes)
    ]
    require(
        not lines,
        f"{problem}: name another folder with --run, restore the old settings, or"
        " allow the change with --allow-change NAME\n" + "\n".join(lines),
    )
