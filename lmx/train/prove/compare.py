"""What a killed run has in common with one that was not: to the bit, or nearly."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.train.hooks.chores import SAVE
from lmx.train.prove.life import Life
from lmx.train.record.directory import rows
from lmx.train.record.ledger import entries

CLOCKS = ("seconds", "tokens_per_second", "mfu")  # metrics that a clock decides
SHOWN = 5  # differences that a certificate names


def merged(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Any]:
    """Every logged value by its step and name, but for what a clock decides."""
    return {
        (row["step"], name): value
        for row in lines
        for name, value in row.items()
        if name != "step" and not name.startswith(CLOCKS)
    }


def losses(life: Life) -> dict[int, float]:
    """The loss of every step that was done, to its last bit."""
    return {
        line["done"]: float.fromhex(line["loss"])
        for line in life.trace[0]
        if "loss" in line
    }


def alike(
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
        "differ": differ[:SHOWN],
        "absent": absent[:SHOWN],
        "holds": bool(compared) and not differ and not absent,
    }


def _equal(a: Any, b: Any) -> bool:
    """NaN is what it is."""
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def near(
    here: Iterable[Mapping[Any, float]], there: Mapping[Any, float], tolerance: float
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
        "tolerance": tolerance,
        "worst": worst,
        "at": where,
        "absent": absent[:SHOWN],
        "holds": bool(compared) and worst <= tolerance and not absent,
    }


def replays(lives: Sequence[Life], every: int) -> dict[str, Any]:
    """How many steps were done again after each kill, and how many may have been.

    That is a save's interval, and the steps that were begun while a save was in
    flight.
    """
    told = []
    trained = [life for life in lives if life.began is not None]
    for life, after in zip(trained, trained[1:], strict=False):
        assert life.began is not None and after.began is not None
        last = max(life.batches(), default=life.began)
        flight = in_flight(life)
        told.append(
            {"steps": last - after.began, "in_flight": flight, "most": every + flight}
        )
    return {
        "compared": len(told),
        "each": told,
        "holds": all(one["steps"] <= one["most"] for one in told),
    }


def in_flight(life: Life) -> int:
    """The steps begun since the oldest save that was not committed at the end."""
    open_: dict[int, int] = {}
    for line in life.trace[0]:
        if "saving" in line:
            open_[line["saving"]] = 0
        elif "saved" in line:
            open_ = {step: n for step, n in open_.items() if step > line["saved"]}
        elif "batch" in line:
            open_ = {step: n + 1 for step, n in open_.items()}
    return max(open_.values(), default=0)


def logged(run: Path) -> dict[tuple[int, str], Any]:
    """What a run has on disk at its end."""
    return merged(rows(run))


def settled(run: Path) -> dict[tuple[int, str], str]:
    """What became of all that was due beside the training, but for the saves.

    Those are there or not, whatever a ledger says.
    """
    return {
        (row["step"], row["what"]): row["state"]
        for row in entries(run)
        if row["what"] != SAVE
    }


def evaluated(run: Path) -> dict[tuple[int, str], float]:
    """The losses of a run's evaluations, in nats."""
    found = logged(run).items()
    return {key: value for key, value in found if key[1].endswith("/nats")}
