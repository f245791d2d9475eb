"""Runs an experiment undisturbed, killed, and killed on other meshes."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmx.core.files import create_dir
from lmx.core.sharding import Mesh
from lmx.faulttest import report
from lmx.faulttest.kill_point import STEP, KillPoint
from lmx.faulttest.process_group import (
    RunAttempt,
    Scenario,
    Topology,
    UnexpectedExitError,
    run_attempt,
)
from lmx.run.run_dir import read_metadata

BASELINE, KILLED, RESHARDED = "baseline", "killed", "resharded"
REPORT_FILE = "report.json"
AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")
# Processes, and the meshes to try with them, where devices are emulated.
CPU_MESHES = [
    (2, [{"fsdp": 2}, {"data": 2}, {"tensor": 2}]),
    (1, [{"data": 2, "fsdp": 2}, {"data": 4}, {"fsdp": 4}, {"data": 2}]),
]
# Relative, of losses after the same steps on another mesh, by the dtype of activations:
# sums are taken in another order.
RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
CONFIG_ERROR = 2  # exit status


def run_faulttest(
    scenario: Scenario, kill_points: Sequence[KillPoint], **facts: Any
) -> dict[str, Any]:
    """Runs the whole test. Returns its report, and writes it, with these facts.

    Raises UnexpectedExitError if a process exits with any other status than it should.
    """
    started, config = time.monotonic(), scenario.config
    baseline, same_mesh = compare_killed(scenario, kill_points)
    metadata = read_metadata(baseline.run)
    other_mesh, refused = None, []
    if rounds := other_topologies(scenario.experiment.mesh, metadata):
        resharded, refused = run_resharded(scenario, rounds)
        default = "float32" if has_cpus(metadata) else "bfloat16"
        rtol = RTOL[config["model.precision"].fields["compute"] or default]
        if len({attempt.topology for attempt in resharded}) > 1:
            other_mesh = report.compare_runs(resharded, baseline, scenario, rtol)
    content = {
        "passed": all(map(report.passed, [*same_mesh, other_mesh or {}])),
        **facts,
        "config": scenario.file,
        "overrides": list(scenario.overrides),
        "digest": config.digest(),
        "steps": scenario.experiment.steps,
        "save_every": scenario.experiment.checkpoint.every,
        "environment": metadata,
        "same_mesh": same_mesh,
        "other_mesh": other_mesh,
        "refused": refused,
        "seconds": round(time.monotonic() - started, 1),
    }
    (scenario.folder / REPORT_FILE).write_text(json.dumps(content, indent=1) + "\n")
    return content


def compare_killed(
    scenario: Scenario, kill_points: Sequence[KillPoint]
) -> tuple[RunAttempt, list[dict[str, Any]]]:
    """The undisturbed run, and the comparison with it of runs killed at these points.

    If a killed run finishes before it reached all of them, another one gets the rest.
    """
    topology = default_topology(scenario.experiment.mesh)
    baseline = run_attempt(scenario, BASELINE, topology)
    comparisons, remaining = [], list(kill_points)
    while remaining or not comparisons:
        name, attempts = f"{KILLED}-{len(comparisons) + 1}", []
        while not attempts or attempts[-1].killed:
            point = next(iter(remaining), None)
            attempts.append(run_attempt(scenario, name, topology, point))
            if attempts[-1].killed:
                remaining.pop(0)
        comparisons.append(report.compare_runs(attempts, baseline, scenario))
    return baseline, comparisons


def run_resharded(
    scenario: Scenario, rounds: Sequence[Sequence[Topology]]
) -> tuple[list[RunAttempt], list[str]]:
    """A run that resumes on one topology of each round; why others were refused."""
    original = default_topology(scenario.experiment.mesh)
    attempts, refused, steps = [], [], scenario.experiment.steps
    stops = [steps * (n + 1) // (len(rounds) + 1) for n in range(len(rounds))]
    points = [*(KillPoint(STEP, max(stop, 1), 0.5) for stop in stops), None]
    for candidates, point in zip([[original], *rounds], points, strict=True):
        for topology in candidates:
            try:
                attempts.append(run_attempt(scenario, RESHARDED, topology, point))
                break
            except UnexpectedExitError as error:
                if error.status != CONFIG_ERROR:
                    raise
                refused.append(f"{topology}: {error}")
    if attempts[-1].killed:
        attempts.append(run_attempt(scenario, RESHARDED, original))
    return attempts, refused


def default_topology(mesh: Mesh) -> Topology:
    """One process with as many devices as the config's mesh takes."""
    sizes = asdict(mesh) | {"data": mesh.data or 1}
    return Topology(devices=math.prod(sizes.values()))


def other_topologies(mesh: Mesh, metadata: Mapping[str, Any]) -> list[list[Topology]]:
    """Other topologies for a run with this metadata, the preferred ones first.

    The run is resumed once for each inner list. CPU devices are emulated; other devices
    are arranged along another axis.
    """
    current = {axis: n for axis, n in metadata["mesh"].items() if axis != "replica"}
    used, rounds = math.prod(current.values()), []
    if has_cpus(metadata):
        rounds = CPU_MESHES
    elif used > 1:
        rounds = [(1, [{axis: used} for axis in ("fsdp", "data", "tensor")])]
    return [
        [
            Topology(
                processes,
                mesh.replica * math.prod(sizes.values()) // processes,
                tuple({**dict.fromkeys(AXES, 1), **sizes}.items()),
            )
            for sizes in meshes
            if sizes != current
        ]
        for processes, meshes in rounds
    ]


def has_cpus(metadata: Mapping[str, Any]) -> bool:
    """Whether a run used CPUs."""
    return metadata["devices"].endswith(" x cpu")


def create_folder(folder: Path) -> None:
    """Creates the folder of a test; refuses one that is not empty."""
    with create_dir(folder, "is not empty: name another --out."):
        pass
