"""`lmx faulttest`: kills a run repeatedly and checks that nothing of it is lost."""

import argparse
from pathlib import Path

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_experiment
from lmx.config.registry import locate_config, require


@Command(
    "faulttest",
    "CONFIG.gin",
    "kill a run repeatedly, and compare",
    {
        "--kills": option("kills on the same mesh (8)", int, 8, "N"),
        "--seed": option("seed of kills (0)", int, 0, "S"),
        "--steps": option("steps (as in the config)", int, metavar="N"),
        "--out": option("a new folder", Path, metavar="DIR"),
    },
    takes_overrides=True,
)
def inject_faults(args: argparse.Namespace) -> Output:
    """Trains an experiment once without interruption, and once with kills.

    Each kill ends a real `lmx train` by SIGKILL at a random point; it is restarted. The
    points cycle through: within a step; before a checkpoint is written; after it is
    copied from the devices; after the first file of arrays; before and after its
    commit; before an old checkpoint is removed; and between saving and an evaluation of
    the same step. A third run is killed on this mesh and resumed in two processes,
    killed there, and resumed in one process with another mesh, where the devices allow
    it (CPUs do).

    It compares the loss of every step, every logged value, every batch, all hooks that
    ran, and the digests of parameters and optimizer state. OUT/report.json says which
    values must be equal to the bit (same mesh) and which are within a tolerance
    (another mesh); OUT also has the runs. Exit status: 0 passed, 1 failed, 2 invalid
    arguments.

      lmx faulttest quickstart --steps 100 Decoder.depth=2
      lmx faulttest quickstart --steps 100 --kills 16 --seed 1 --out proof

    It takes the time of three runs and one start per kill. At least two checkpoints are
    saved per kill: CheckpointPolicy.every is reduced where that needs it.
    """
    require(args.kills >= 1, f"--kills {args.kills}: at least 1.")
    extra = [] if args.steps is None else [f"Experiment.steps={args.steps}"]
    config = load_experiment(args, extra)
    every = max(1, config["steps"] // (2 * args.kills))
    if every < config["checkpoint.every"]:
        extra.append(f"CheckpointPolicy.every={every}")
    config, file = load_experiment(args, extra), locate_config(args.names[0])

    from lmx.faulttest.kill_point import sample_kills
    from lmx.faulttest.process_group import Scenario
    from lmx.faulttest.report import format_report
    from lmx.faulttest.scenario import create_folder, run_faulttest

    name = f"faulttest-{file.stem}-{config.run_id()}"
    scenario = Scenario(
        config=config,
        file=str(file.resolve()),
        overrides=[*args.overrides, *extra],
        imports=args.imports,
        folder=(args.out or Path("runs") / name).resolve(),
    )
    kills = sample_kills(args.seed, args.kills, scenario.experiment)
    create_folder(scenario.folder)
    report = run_faulttest(scenario, kills, seed=args.seed)
    return Output(format_report(report), report, 0 if report["passed"] else 1)
