"""What a killed run has in common with one that was not: to the bit, or nearly."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.faulttest.process_group import RunAttempt
from lmx.run.ledger import read_ledger as read_ledger_rows
from lmx.run.run_dir import read_metrics as read_metric_rows
from lmx.train.hooks.runner import SAVE

TIMING_METRICS = ("seconds", "tokens_per_second", "mfu")  # metrics that a clock decides
MAX_SHOWN = 5  # differences that a certificate names


def merge_metrics(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Any]:
    """Every logged value by its step and name, but for what a clock decides."""
    return {
        (row["step"], name): value
        for row in lines
        for name, value in row.items()
        if name != "step" and not name.startswith(TIMING_METRICS)
    }


def read_losses(attempt: RunAttempt) -> dict[int, float]:
    """The loss of every step that was done, to its last bit."""
    return {
        line["done"]: float.fromhex(line["loss"])
        for line in attempt.traces[0]
        if "loss" in line
    }


def compare_equal(
    here: Iterable[Mapping[Any, Any]], there: Mapping[Any, Any]
) -> dict[str, Any]:
    """Whether each of these says what the other says of the same, and together all.

    Counts what was compared, and names the first differences and what is absent.
    """
    compared, differ, seen = 0, [], set()
    for part in here:
        for key, value in part.items():
            compared += 1
            seen.add(key)
            if key not in there or not _equal(there[key], value):
                differ.append(f"{key}: {value} and not {there.get(key)}")
    absent = [f"{key}" for key in there if key not in seen]
    return {
        "compared": compared,
        "differ": differ[:MAX_SHOWN],
        "absent": absent[:MAX_SHOWN],
        "holds": bool(compared) and not differ and not absent,
    }


def _equal(a: Any, b: Any) -> bool:
    """NaN is what it is."""
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def compare_close(
    here: Iterable[Mapping[Any, float]], there: Mapping[Any, float], rtol: float
) -> dict[str, Any]:
    """How far these are from the other, relative to it, at most, and where."""
    compared, worst, where, seen = 0, 0.0, None, set()
    for part in here:
        for key, value in part.items():
            compared += 1
            seen.add(key)
            far = math.inf
            if key in there:
                far = abs(value - there[key]) / max(abs(there[key]), 1e-30)
            far = math.inf if math.isnan(far) else far
            if far > worst:
                worst, where = far, key
    absent = [f"{key}" for key in there if key not in seen]
    return {
        "compared": compared,
        "tolerance": rtol,
        "worst": worst,
        "at": where,
        "absent": absent[:MAX_SHOWN],
        "holds": bool(compared) and worst <= rtol and not absent,
    }


def count_replayed(lives: Sequence[RunAttempt], every: int) -> dict[str, Any]:
    """How many steps were done again after each kill, and how many may have been.

    That is a save's interval, and the steps that were begun while a save was in
    flight.
    """
    told = []
    trained = [life for life in lives if life.start_step is not None]
    for life, after in zip(trained, trained[1:], strict=False):
        assert life.start_step is not None and after.start_step is not None
        last = max(life.batch_fingerprints(), default=life.start_step)
        flight = count_in_flight(life)
        told.append(
            {
                "steps": last - after.start_step,
                "in_flight": flight,
                "most": every + flight,
            }
        )
    return {
        "compared": len(told),
        "each": told,
        "holds": all(one["steps"] <= one["most"] for one in told),
    }


def count_in_flight(attempt: RunAttempt) -> int:
    """The steps begun since the oldest save that was not committed at the end."""
    open_: dict[int, int] = {}
    for line in attempt.traces[0]:
        if "saving" in line:
            open_[line["saving"]] = 0
        elif "saved" in line:
            open_ = {step: n for step, n in open_.items() if step > line["saved"]}
        elif "batch" in line:
            open_ = {step: n + 1 for step, n in open_.items()}
    return max(open_.values(), default=0)


def read_metrics(run: Path) -> dict[tuple[int, str], Any]:
    """What a run has on disk at its end."""
    return merge_metrics(read_metric_rows(run))


def read_ledger(run: Path) -> dict[tuple[int, str], str]:
    """What became of all that was due beside the training, but for the saves.

    Those are there or not, whatever a ledger says.
    """
    return {
        (row["step"], row["hook"]): row["status"]
        for row in read_ledger_rows(run)
        if row["hook"] != SAVE
    }


def read_evaluations(run: Path) -> dict[tuple[int, str], float]:
    """The losses of a run's evaluations, in nats."""
    found = read_metrics(run).items()
    return {key: value for key, value in found if key[1].endswith("/nats")}
