"""What was shown of an experiment, to the bit and within which tolerance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.value import Config
from lmx.faulttest import compare
from lmx.faulttest.process_group import RunAttempt, Scenario
from lmx.faulttest.scenario import (
    BASELINE,
    CPU,
    KILLED,
    RESHARDED,
    KillSchedule,
    load_metadata,
)
from lmx.run.metadata import describe_environment
from lmx.run.run_dir import RunDir
from lmx.run.timing import total_seconds
from lmx.train.checkpoint.directory import CheckpointDir
from lmx.train.checkpoint.reader import CheckpointReader

# Relative, of losses after the same steps on another mesh, by what computes: sums are
# taken in another order there.
RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def compare_same_mesh(
    folder: Path,
    first: RunAttempt,
    runs: Sequence[Sequence[RunAttempt]],
    plan: KillSchedule,
) -> list[dict[str, Any]]:
    """What of a run that was killed is that of the run that was not, to the bit."""
    found = []
    for number, lives in enumerate(runs, start=1):
        run = folder / f"{KILLED}-{number}"
        metrics = compare.compare_equal(
            [
                *(compare.merge_metrics(life.metrics) for life in lives),
                compare.read_metrics(run),
            ],
            compare.read_metrics(folder / BASELINE),
        )
        end = compare.compare_equal(
            [compare.read_metrics(run)], compare.read_metrics(folder / BASELINE)
        )
        found.append(
            {
                "lives": [life.to_json() for life in lives],
                "losses": compare.compare_equal(
                    map(compare.read_losses, lives), compare.read_losses(first)
                ),
                "metrics": {**metrics, "holds": metrics["holds"] and end["holds"]},
                "batches": compare.compare_equal(
                    (life.batch_fingerprints() for life in lives),
                    first.batch_fingerprints(),
                ),
                **_compare_ledgers(run, folder / BASELINE),
                "state": compare.compare_equal(
                    [read_digests(open_last_checkpoint(run, plan))],
                    read_digests(open_last_checkpoint(folder / BASELINE, plan)),
                ),
                "replays": compare.count_replayed(lives, plan.save_every),
                "account": measure_seconds(run, lives),
            }
        )
    return found


def _compare_ledgers(run: Path, whole: Path) -> dict[str, Any]:
    """Whether all that was due was done; nothing, where nothing was due."""
    due = compare.read_ledger(whole)
    return (
        {"ledger": compare.compare_equal([compare.read_ledger(run)], due)}
        if due
        else {}
    )


def _compare_evaluations(run: Path, whole: Path, tolerance: float) -> dict[str, Any]:
    """How near the losses of evaluations are; nothing, where there was none."""
    found = compare.read_evaluations(whole)
    near = compare.compare_close([compare.read_evaluations(run)], found, tolerance)
    return {"evaluations": near} if found else {}


def measure_seconds(run: Path, lives: Sequence[RunAttempt]) -> dict[str, Any]:
    """The seconds of a run by what it was doing, and by the clock of who started it.

    From the birth of the first process that came to train until the last one was done.
    """
    born = next(life.started for life in lives if life.start_step is not None)
    return {"seconds": total_seconds(run), "wall": lives[-1].finished_at - born}


def compare_other_mesh(
    folder: Path,
    first: RunAttempt,
    lives: Sequence[RunAttempt],
    plan: KillSchedule,
    tolerance: float,
) -> dict[str, Any] | None:
    """How near a run that went on elsewhere is to the run that did not.

    None if there was no other place for it.
    """
    if len({life.topology for life in lives}) < 2:
        return None
    return {
        "lives": [life.to_json() for life in lives],
        "losses": compare.compare_close(
            map(compare.read_losses, lives), compare.read_losses(first), tolerance
        ),
        "batches": compare.compare_equal(
            (life.batch_fingerprints() for life in lives), first.batch_fingerprints()
        ),
        **_compare_ledgers(folder / RESHARDED, folder / BASELINE),
        **_compare_evaluations(folder / RESHARDED, folder / BASELINE, tolerance),
        "parameters": parameter_distance(
            *(
                open_last_checkpoint(folder / name, plan)
                for name in (BASELINE, RESHARDED)
            )
        ),
    }


def default_rtol(config: Config, metadata: Mapping[str, Any]) -> float:
    """How near losses must be, by the dtype in which activations were held."""
    plain = "float32" if metadata["devices"].endswith(f" x {CPU}") else "bfloat16"
    return RTOL[config["model.precision"].fields["compute"] or plain]


def parameter_distance(a: CheckpointReader, b: CheckpointReader) -> dict[str, Any]:
    """How far the parameters of two states are apart, relative to their norm.

    In all, and those of the tensor that is farthest.
    """
    far, norm = 0.0, 0.0
    each = {}
    for name in a.read_metadata()["digests"]:
        if name.startswith("params."):
            here, there = (x.read_part(name, x.open_tensor(name), ()) for x in (a, b))
            here, there = here.astype(np.float64), there.astype(np.float64)
            off, size = float(np.sum((here - there) ** 2)), float(np.sum(here**2))
            far, norm = far + off, norm + size
            each[name] = (off / size) ** 0.5 if size else off**0.5
    worst = max(each, key=lambda name: each[name])
    return {"all": (far / norm) ** 0.5, "most": each[worst], "tensor": worst}


def open_last_checkpoint(run: Path, plan: KillSchedule) -> CheckpointReader:
    """The last state of a run."""
    return CheckpointReader(
        CheckpointDir(RunDir(run).checkpoint_folder.absolute()).step_path(plan.steps)
    )


def read_digests(state: CheckpointReader) -> dict[str, str]:
    """The digest of every tensor of a state, of what is read from the disk now."""
    sums = state.compute_checksums(dict.fromkeys(state.read_metadata()["digests"]))
    return {name: state.format_digest(name, found) for name, found in sums.items()}


def passed(report: Mapping[str, Any]) -> bool:
    """Whether everything that was compared is as it should be."""
    parts = [*report["same_mesh"], report["other_mesh"] or {}]
    found = [value for part in parts for value in part.values()]
    return all(value["holds"] for value in found if "holds" in value)


def describe_run(
    scenario: Scenario, config: Config, plan: KillSchedule
) -> dict[str, Any]:
    """What was run, where and with what."""
    card = load_metadata(scenario.folder / BASELINE)
    return {
        "page": scenario.config,
        "words": list(scenario.overrides),
        "run_id": config.run_id(),
        "digest": config.digest(),
        "steps": plan.steps,
        "save_every": plan.save_every,
        "devices": card["devices"],
        "mesh": card["mesh"],
        "data": card["data"],
        **describe_environment(),
    }
