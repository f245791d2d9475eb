"""What was shown of an experiment, to the bit and within which tolerance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.tree import Config
from lmx.train.checkpoint.reader import Reader
from lmx.train.checkpoint.shelf import Shelf
from lmx.train.prove import compare
from lmx.train.prove.life import Life, Trial
from lmx.train.prove.trial import CPU, KILLED, MOVED, WHOLE, Plan, card_of
from lmx.train.record.account import total
from lmx.train.record.card import ground
from lmx.train.record.directory import Directory

# Relative, of losses after the same steps on another mesh, by what computes: sums are
# taken in another order there.
CLOSE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def same_mesh(
    folder: Path, first: Life, runs: Sequence[Sequence[Life]], plan: Plan
) -> list[dict[str, Any]]:
    """What of a run that was killed is that of the run that was not, to the bit."""
    found = []
    for number, lives in enumerate(runs, start=1):
        run = folder / f"{KILLED}-{number}"
        metrics = compare.alike(
            [*(compare.merged(life.logged) for life in lives), compare.logged(run)],
            compare.logged(folder / WHOLE),
        )
        end = compare.alike([compare.logged(run)], compare.logged(folder / WHOLE))
        found.append(
            {
                "lives": [life.plain() for life in lives],
                "losses": compare.alike(
                    map(compare.losses, lives), compare.losses(first)
                ),
                "metrics": {**metrics, "holds": metrics["holds"] and end["holds"]},
                "batches": compare.alike(
                    (life.batches() for life in lives), first.batches()
                ),
                **_ledger(run, folder / WHOLE),
                "state": compare.alike(
                    [held(last_state(run, plan))],
                    held(last_state(folder / WHOLE, plan)),
                ),
                "replays": compare.replays(lives, plan.every),
                "account": account(run, lives),
            }
        )
    return found


def _ledger(run: Path, whole: Path) -> dict[str, Any]:
    """Whether all that was due was done; nothing, where nothing was due."""
    due = compare.settled(whole)
    return {"ledger": compare.alike([compare.settled(run)], due)} if due else {}


def _evaluations(run: Path, whole: Path, tolerance: float) -> dict[str, Any]:
    """How near the losses of evaluations are; nothing, where there was none."""
    found = compare.evaluated(whole)
    near = compare.near([compare.evaluated(run)], found, tolerance)
    return {"evaluations": near} if found else {}


def account(run: Path, lives: Sequence[Life]) -> dict[str, Any]:
    """The seconds of a run by what it was doing, and by the clock of who started it.

    From the birth of the first process that came to train until the last one was done.
    """
    born = next(life.born for life in lives if life.began is not None)
    return {"seconds": total(run), "wall": lives[-1].over - born}


def other_mesh(
    folder: Path, first: Life, lives: Sequence[Life], plan: Plan, tolerance: float
) -> dict[str, Any] | None:
    """How near a run that went on elsewhere is to the run that did not.

    None if there was no other place for it.
    """
    if len({life.place for life in lives}) < 2:
        return None
    return {
        "lives": [life.plain() for life in lives],
        "losses": compare.near(
            map(compare.losses, lives), compare.losses(first), tolerance
        ),
        "batches": compare.alike((life.batches() for life in lives), first.batches()),
        **_ledger(folder / MOVED, folder / WHOLE),
        **_evaluations(folder / MOVED, folder / WHOLE, tolerance),
        "parameters": apart(
            *(last_state(folder / name, plan) for name in (WHOLE, MOVED))
        ),
    }


def tolerance(config: Config, card: Mapping[str, Any]) -> float:
    """How near losses must be, by the dtype in which activations were held."""
    plain = "float32" if card["devices"].endswith(f" x {CPU}") else "bfloat16"
    return CLOSE[config["model.precision"].fields["compute"] or plain]


def apart(a: Reader, b: Reader) -> dict[str, Any]:
    """How far the parameters of two states are apart, relative to their norm.

    In all, and those of the tensor that is farthest.
    """
    far, norm = 0.0, 0.0
    each = {}
    for name in a.meta()["digests"]:
        if name.startswith("params."):
            here, there = (x.read(name, x.tensor(name), ()) for x in (a, b))
            here, there = here.astype(np.float64), there.astype(np.float64)
            off, size = float(np.sum((here - there) ** 2)), float(np.sum(here**2))
            far, norm = far + off, norm + size
            each[name] = (off / size) ** 0.5 if size else off**0.5
    worst = max(each, key=lambda name: each[name])
    return {"all": (far / norm) ** 0.5, "most": each[worst], "tensor": worst}


def last_state(run: Path, plan: Plan) -> Reader:
    """The last state of a run."""
    return Reader(Shelf(Directory(run).checkpoints.absolute()).path(plan.steps))


def held(state: Reader) -> dict[str, str]:
    """The digest of every tensor of a state, of what is read from the disk now."""
    sums = state.sums(dict.fromkeys(state.meta()["digests"]))
    return {name: state.told(name, found) for name, found in sums.items()}


def holds(certificate: Mapping[str, Any]) -> bool:
    """Whether everything that was compared is as it should be."""
    parts = [*certificate["same_mesh"], certificate["other_mesh"] or {}]
    found = [value for part in parts for value in part.values()]
    return all(value["holds"] for value in found if "holds" in value)


def stands_on(trial: Trial, config: Config, plan: Plan) -> dict[str, Any]:
    """What was run, where and with what."""
    card = card_of(trial.folder / WHOLE)
    return {
        "page": trial.page,
        "words": list(trial.words),
        "run_id": config.run_id(),
        "digest": config.digest(),
        "steps": plan.steps,
        "save_every": plan.every,
        "devices": card["devices"],
        "mesh": card["mesh"],
        "data": card["data"],
        **ground(),
    }
