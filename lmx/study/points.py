"""Points of a scaling law: the parameters, tokens, FLOPs and final loss of runs."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lmx.config.registry import ConfigError, require
from lmx.run.overview import list_runs

FLOPS = 6.0  # of training, per parameter and token
# The names by which a column is found, in this order and in any case.
COLUMNS = {
    "n": ("n", "params", "parameters", "model size"),
    "d": ("d", "tokens"),
    "c": ("c", "flops", "compute", "training flop"),
    "loss": ("validation/nats", "validation/loss", "val_loss", "loss"),
    "unique": ("unique", "unique_tokens"),
    "experts": ("experts",),
}
SEPARATORS = ",;\t"  # of columns; the one that the header has most of
NUMBER = re.compile(r"\s*[-+.]?\d[\d.eE+-]*\s*")
BUDGET_GAP = 0.1  # between the logs of budgets that are not the same


@dataclass(frozen=True, eq=False)
class Points:
    """Runs, as arrays of one shape.

    Attributes:
        n: parameters.
        d: tokens of training.
        c: FLOPs of training.
        loss: nats per token.
        unique: tokens without repetition; `d` unless given.
        experts: experts of each layer; 1 unless given.
        rows: line numbers in the file; of a folder, those of `lmx runs`.
    """

    n: Float[np.ndarray, "..."]
    d: Float[np.ndarray, "..."]
    c: Float[np.ndarray, "..."]
    loss: Float[np.ndarray, "..."]
    unique: Float[np.ndarray, "..."]
    experts: Float[np.ndarray, "..."]
    rows: Int[np.ndarray, "..."]

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, which: ArrayLike) -> "Points":
        """Some of the points: a mask or indices."""
        return Points(
            **{name: value[np.asarray(which)] for name, value in vars(self).items()}
        )

    def with_loss(self, loss: np.ndarray) -> "Points":
        """The same runs with other losses."""
        return replace(self, loss=loss)

    @property
    def flops_per_token(self) -> float:
        """FLOPs per parameter and token: the median over points."""
        return float(np.median(self.c / (self.n * self.d)))

    @property
    def budgets(self) -> Int[np.ndarray, "..."]:
        """The number of the compute budget of each point, the smallest being 0."""
        order = np.argsort(self.c)
        steps = np.diff(np.log(self.c[order]), prepend=np.log(self.c.min()))
        budgets = np.empty(len(self), int)
        budgets[order] = np.cumsum(steps > BUDGET_GAP)
        return budgets


def make_points(n: ArrayLike, d: ArrayLike, **known: ArrayLike) -> Points:
    """Points of N and D, and of other fields; their loss is 1 unless given."""
    n, d = np.broadcast_arrays(n, d)
    defaults = {"c": FLOPS * n * d, "loss": np.ones(n.shape), "unique": d}
    defaults |= {"experts": np.ones(n.shape), "rows": np.zeros(n.shape, int)}
    given = {name: np.asarray(values) for name, values in known.items()}
    return Points(n=n, d=d, **{**defaults, **given})


def read_points(
    path: Path, columns: Mapping[str, str | None], where: Sequence[str] = ()
) -> Points:
    """The points of a CSV file with a header, or of the finished runs in a folder.

    In the rows with COLUMN=VALUE. Commas, semicolons or tabs separate the columns of a
    file. `columns` are those of fields of `Points`; others are found by `COLUMNS`. Two
    of n, d and c imply the third by C = 6 N D.
    """
    if path.is_dir():
        done = [row for row in list_runs(path) if row["state"] == "done"]
        require(done, f"{path} has no finished runs.")
        header = [*dict.fromkeys(name for row in done for name in row)]
        rows = [*enumerate(done, 1)]
    else:
        header, rows = _read_csv(path)
    names = _find_columns(path, header, columns)
    for condition in where:
        column, _, wanted = condition.partition("=")
        require(column in header, f"{path} has no column {column!r}: {_list(header)}")
        rows = [(line, row) for line, row in rows if f"{row.get(column)}" == wanted]
    require(rows, f"{path} has no rows{' with ' if where else ''}{' '.join(where)}.")
    values = {
        field: np.array([_parse(path, line, row, name) for line, row in rows])
        for field, name in names.items()
    }
    if "n" not in values:
        values["n"] = values["c"] / (FLOPS * values["d"])
    if "d" not in values:
        values["d"] = values["c"] / (FLOPS * values["n"])
    return make_points(**values, rows=np.array([line for line, _ in rows]))


def _read_csv(path: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, Any]]]]:
    """The header, and each row with its line number."""
    message = (
        f"{path} is a config: name the folder of its runs, as in sweeps/{path.stem}"
    )
    require(path.suffix != ".gin", message)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            table = csv.DictReader(file, delimiter=max(SEPARATORS, key=first.count))
            header = table.fieldnames or []
            require(
                not any(map(NUMBER.fullmatch, header)),
                f"{path}:1: {first.strip()!r} has numbers, and must name the columns:"
                " add a line such as n,d,loss before it.",
            )
            return header, [(table.line_num, row) for row in table]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a CSV file: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.") from None


def _find_columns(
    path: Path, header: Sequence[str], given: Mapping[str, str | None]
) -> dict[str, str]:
    found = {}
    by_name = {name.lower(): name for name in header}
    for field, candidates in COLUMNS.items():
        name = given.get(field)
        known = name is None or name in header
        require(known, f"{path} has no column {name!r}: {_list(header)}")
        match = next((by_name[x] for x in candidates if x in by_name), None)
        if name or match:
            found[field] = name or match
    if "loss" not in found or len({"n", "d", "c"} & found.keys()) < 2:
        raise ConfigError(
            f"{path} needs columns of the loss and of two of N, D and C: name them, as"
            f" in --n COLUMN --d COLUMN --loss COLUMN; {_list(header)}"
        )
    return found


def _list(header: Sequence[str]) -> str:
    return f"its columns are {', '.join(map(repr, header))}."


def _parse(path: Path, line: int, row: Mapping[str, Any], column: str) -> float:
    try:
        value = float(row.get(column) or "nan")
    except (TypeError, ValueError):
        value = math.nan
    message = (
        f"{path}:{line}: {column} is {row.get(column)!r}, and must be a number above 0."
    )
    require(0 < value < math.inf, message)
    return value
