"""Compares a killed run with an undisturbed one, and formats the report."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmx.faulttest.process_group import RunAttempt, Scenario
from lmx.run.goodput import total_seconds
from lmx.run.run_dir import RunDir, read_ledger
from lmx.train.checkpoint.compare import diff_checkpoints
from lmx.train.checkpoint.manager import CheckpointDir
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.hook import SAVE

TIMING_METRICS = ("seconds", "tokens_per_second", "mfu")  # they differ in every run
MAX_SHOWN = 5  # differences of one kind in a report
LABELS = {
    "losses": "losses of steps",
    "metrics": "logged values at every kill",
    "final_metrics": "logged values at the end",
    "batches": "batches",
    "hooks": "hooks that ran when due",
    "state": "tensors of parameters and optimizer",
}


def compare_runs(
    attempts: Sequence[RunAttempt],
    baseline: RunAttempt,
    scenario: Scenario,
    rtol: float = 0.0,
) -> dict[str, Any]:
    """Compares the attempts of a killed run with the undisturbed run.

    With `rtol` 0 everything must be equal to the bit. Otherwise losses must be that
    close, those of evaluations too; other metrics are not compared, and of the state
    only names and shapes must be equal.
    """
    run, experiment = attempts[0].run, scenario.experiment
    metrics = [select_metrics(attempt.metrics, rtol) for attempt in attempts]
    expected = select_metrics(baseline.metrics, rtol)
    checks = {
        "losses": ([a.losses for a in attempts], baseline.losses, rtol),
        "metrics": (metrics, expected, rtol),
        "final_metrics": (metrics[-1:], expected, rtol),
        "batches": ([a.batches for a in attempts], baseline.batches),
        "hooks": ([read_hooks(run)], read_hooks(baseline.run)),
    }
    optional = [name for name in checks if name not in ("losses", "batches")]
    started = next(a.started for a in attempts if a.start_step is not None)
    return {
        "attempts": [attempt.to_json() for attempt in attempts],
        **{
            name: compare(*check)
            for name, check in checks.items()
            if check[1] or name not in optional
        },
        "state": compare_states(run, baseline.run, experiment.steps, rtol),
        "replayed": count_replayed(attempts, experiment.checkpoint.every),
        "timing": {
            "seconds": total_seconds(run),
            "wall": attempts[-1].finished_at - started,
        },
    }


def passed(comparison: Mapping[str, Any]) -> bool:
    """Whether every part of what `compare_runs` returns passed."""
    return all(
        part["passed"]
        for part in comparison.values()
        if isinstance(part, Mapping) and "passed" in part
    )


def compare(
    parts: Iterable[Mapping[Any, Any]], expected: Mapping[Any, Any], rtol: float = 0.0
) -> dict[str, Any]:
    """Whether the values of all parts are the expected ones, and none is absent."""
    errors = [
        (relative_error(value, expected.get(key), rtol), key, value)
        for part in parts
        for key, value in part.items()
    ]
    worst, at, _ = max(errors, default=(0.0, None, None), key=lambda error: error[0])
    differ = [f"{k}: {v}, expected {expected.get(k)}" for e, k, v in errors if e > rtol]
    absent = [f"{key}" for key in expected.keys() - {key for _, key, _ in errors}]
    return {
        "passed": bool(errors) and not differ and not absent,
        "compared": len(errors),
        "rtol": rtol,
        "largest_error": worst,
        "at": f"{at}" if worst else None,
        "differ": differ[:MAX_SHOWN],
        "absent": sorted(absent)[:MAX_SHOWN],
    }


def relative_error(value: Any, expected: Any, rtol: float) -> float:
    """0 if equal, or both NaN; infinity where a tolerance does not apply."""
    if value == expected or (value != value and expected != expected):
        return 0.0
    if not rtol or not isinstance(value, float) or not isinstance(expected, float):
        return math.inf
    error = abs(value - expected) / max(abs(expected), 1e-30)
    return math.inf if math.isnan(error) else error


def compare_states(a: Path, b: Path, step: int, rtol: float) -> dict[str, Any]:
    """Every tensor of the states of two runs after that step, verified on disk."""
    readers = [
        CheckpointReader(CheckpointDir(RunDir(p).checkpoint_folder).step_path(step))
        for p in (a, b)
    ]
    damaged = [f"{fault}" for reader in readers for fault in reader.verify()]
    diffs = list(diff_checkpoints(*readers))
    unequal = [diff for diff in diffs if diff.status != "equal"]
    close = [diff for diff in unequal if rtol and diff.distance is not None]
    params = [diff for diff in close if diff.tensor.startswith("params.")]
    worst = max(params, default=None, key=lambda d: d.relative or d.distance or 0.0)
    differ = [f"{d.tensor}: {d.status}" for d in unequal if d not in close]
    norm = math.hypot(*(diff.norm or 0.0 for diff in params))
    return {
        "passed": bool(diffs) and not differ and not damaged,
        "compared": len(diffs),
        "distance": math.hypot(*(d.distance or 0.0 for d in params)) / (norm or 1.0),
        "largest_error": worst.relative or worst.distance if worst else 0.0,
        "at": worst.tensor if worst else None,
        "differ": [*damaged, *differ][:MAX_SHOWN],
        "absent": [],
    }


def select_metrics(
    lines: Iterable[Mapping[str, Any]], rtol: float = 0.0
) -> dict[tuple[int, str], Any]:
    """Logged values by step and name; with a tolerance only losses of evaluations."""
    return {
        (row["step"], name): value
        for row in lines
        for name, value in row.items()
        if name != "step" and not name.startswith(TIMING_METRICS)
        if not rtol or name.endswith("/nats")
    }


def read_hooks(run: Path) -> dict[tuple[int, str], str]:
    """The last status of each due hook by step and name, saves excluded."""
    rows = [row for row in read_ledger(run) if row["hook"] != SAVE]
    return {(row["step"], row["hook"]): row["status"] for row in rows}


def count_replayed(attempts: Sequence[RunAttempt], save_every: int) -> dict[str, Any]:
    """Steps repeated after each kill: at most a save interval and those in flight."""
    trained = [(a, a.start_step) for a in attempts if a.start_step is not None]
    each = [
        {
            "steps": max(attempt.batches, default=start) - resumed,
            "allowed": save_every + count_in_flight(attempt),
        }
        for (attempt, start), (_, resumed) in pairwise(trained)
    ]
    return {
        "passed": all(kill["steps"] <= kill["allowed"] for kill in each),
        "each": each,
    }


def count_in_flight(attempt: RunAttempt) -> int:
    """The steps started since the oldest save that was not committed at the end."""
    steps_since: dict[int, int] = {}
    for event in attempt.traces[0]:
        if "saving" in event:
            steps_since[event["saving"]] = 0
        elif "saved" in event:
            steps_since = {s: n for s, n in steps_since.items() if s > event["saved"]}
        elif "batch" in event:
            steps_since = {s: n + 1 for s, n in steps_since.items()}
    return max(steps_since.values(), default=0)


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text."""
    run, result = report["environment"], "passed" if report["passed"] else "FAILED"
    commit = (run["commit"] or "no commit")[:12] + "+" * bool(run["uncommitted"])
    lines = [
        f"{result}: {' '.join([report['config'], *report['overrides']])}",
        f"  run {run['run_id']}, {report['steps']:,} steps, saved every"
        f" {report['save_every']:,}; {run['devices']}, lmx {commit}, jax"
        f" {run['versions']['jax']}, Python {run['python']}",
    ]
    for comparison in report["same_mesh"]:
        lines += ["killed and resumed on the same mesh", *_format_run(comparison)]
    if other := report["other_mesh"]:
        lines += ["killed and resumed on other meshes", *_format_run(other)]
    else:
        lines.append("no other mesh was tested: there is no second device")
    lines += [f"  refused: {reason.splitlines()[0]}" for reason in report["refused"]]
    return "\n".join([*lines, f"{report['seconds']:,.0f} s"])


def _format_run(comparison: Mapping[str, Any]) -> Iterator[str]:
    for attempt in comparison["attempts"]:
        step = attempt["start_step"]
        start = "no step" if step is None else f"from step {step}"
        end = f"killed {attempt['killed']}" if attempt["killed"] else "to the end"
        yield f"  {start}, {end}; {attempt['topology']}"
    for name, label in LABELS.items():
        if part := comparison.get(name):
            yield _format_part(label, part)
    replayed, timing = comparison["replayed"], comparison["timing"]
    result = "ok" if replayed["passed"] else "TOO MANY"
    steps = [kill["steps"] for kill in replayed["each"]]
    yield f"  {result}: {sum(steps):,} steps repeated after {len(steps)} kills"
    seconds = sorted(timing["seconds"].items(), key=lambda item: -item[1])
    phases = ", ".join(f"{name} {n:.1f}" for name, n in seconds if n >= 0.05)
    total = sum(timing["seconds"].values())
    yield f"  timing: {total:.1f} of {timing['wall']:.1f} s: {phases}"


def _format_part(label: str, part: Mapping[str, Any]) -> str:
    text = (
        f"  {'equal' if part['passed'] else 'DIFFERENT'}: {part['compared']:,} {label}"
    )
    if part["largest_error"]:
        text += f", largest relative error {part['largest_error']:.1e} at {part['at']}"
    if part.get("rtol"):
        text += f" (tolerance {part['rtol']:g})"
    details = [*part["differ"], *(f"{key} is missing" for key in part["absent"])]
    return "\n".join([text, *(f"    {line}" for line in details)])
