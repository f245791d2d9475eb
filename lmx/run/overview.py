"""A table of runs: their states, their settings that differ, and their losses."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.config.registry import ConfigError
from lmx.config.value import format_value
from lmx.data.optional import import_optional
from lmx.run.goodput import total_seconds
from lmx.run.lock import is_being_written
from lmx.run.run_dir import (
    CONFIG,
    find_losses,
    read_config,
    read_last_metrics,
    read_metadata,
)

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]


def list_runs(folder: Path) -> list[Row]:
    """The runs in a folder, at any depth: one row each, with the names as keys.

    First run, state, step, steps, parameters (and without embedding and head), tokens
    so far, FLOPs of all steps, FLOPs of its own steps (which leave out those of a run
    whose state it began with), and seconds of all attempts; then the settings that are
    not the same in all runs, by their paths; then the last losses, by their names.
    `state` is done, running, stopped or imported, or why the run cannot be read.
    """
    runs = [_read_run(path) for path in sorted(f.parent for f in folder.rglob(CONFIG))]
    shown = _find_differing([settings for _, settings, _ in runs if settings])
    return [
        row | {name: settings[name] for name in shown if name in settings} | losses
        for row, settings, losses in runs
    ]


def read_runs(folder: str | Path) -> "pandas.DataFrame":
    """The rows of `list_runs` as a pandas frame, with the numbers of settings as such.

    Needs pandas: pip install 'lmx[data]'.
    """
    pandas = import_optional("pandas", "data", "for a frame of runs")
    frame = pandas.DataFrame(list_runs(Path(folder)))
    for name in frame.columns[2:]:
        if frame[name].dtype.kind == "O":
            with contextlib.suppress(ValueError, TypeError):  # not all are numbers
                frame[name] = frame[name].astype(float)
    return frame


def _read_run(path: Path) -> tuple[Row, Row, Row]:
    """The state of a run, its settings as text, and its last losses."""
    row: Row = {"run": f"{path}"}
    try:
        config, last = read_config(path), read_last_metrics(path)
        metadata = read_metadata(path)
    except ConfigError as error:
        return row | {"state": f"unreadable: {error}"}, {}, {}
    states = {
        "imported": "steps" not in config.fields,
        "done": "final" in metadata,
        "running": is_being_written(path),
        "stopped": True,
    }
    row |= {
        "state": next(state for state, holds in states.items() if holds),
        "step": last.get("step", 0),
        "steps": config.fields.get("steps", 0),
        "parameters": metadata.get("parameters", 0),
        "non_embedding_parameters": metadata.get("non_embedding_parameters", 0),
        "tokens": last.get("tokens_seen", 0),
        "flops": int(metadata.get("flops", 0)),
        "own_flops": int(metadata.get("own_flops", 0)),
        "seconds": sum(n for x, n in total_seconds(path).items() if x != "down"),
    }
    names = ("loss", *find_losses(last).values())
    losses = {name: last[name] for name in names if name in last}
    return row, {name: format_value(x) for name, x in config.flatten()}, losses


def _find_differing(settings: Sequence[Row]) -> list[str]:
    """The settings that differ, but not those of a part that is itself another one."""
    known = dict.fromkeys(name for fields in settings for name in fields)
    differing = [n for n in known if len({each.get(n) for each in settings}) > 1]
    inside = tuple(f"{name}." for name in differing)
    return [name for name in differing if not name.startswith(inside)]
