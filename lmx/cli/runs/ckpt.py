"""`lmx ckpt list | verify | diff | lineage`: reads the checkpoints of a run."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, format_table
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.train.checkpoint.directory import CheckpointDir
    from lmx.train.checkpoint.reader import CheckpointReader

_LIST = """\
The checkpoints of a run: step, time saved, size in bytes, and the root, one digest of
all tensors that does not depend on the mesh or the number of processes. `complete`
checks the sizes of files; only `lmx ckpt verify` reads their contents. Quarantined
checkpoints, which were found damaged, are listed too.

  lmx ckpt list runs/quickstart-...
"""
_VERIFY = """\
Reads every byte of the checkpoints of a run, or of the one of --step, and compares each
tensor with the digest taken when it was saved. Names each damaged tensor and its file.
Exit status 1 if there is one.

  lmx ckpt verify runs/quickstart-...
  lmx ckpt verify runs/quickstart-... --step 800
"""
_DIFF = """\
What differs between two checkpoints: for each tensor that is not equal to the bit, the
norm of B - A, of A, and their ratio; then the settings of the two runs that differ. A
checkpoint is RUN, its latest, or RUN@STEP.

  lmx ckpt diff runs/a runs/b
  lmx ckpt diff runs/a@800 runs/a@1000
"""
_LINEAGE = """\
The attempts that led to the latest checkpoint of a run: the checkpoint that each one
resumed from, by step and root, and its commit and devices. An attempt that ended before
it saved a checkpoint is not listed.

  lmx ckpt lineage runs/quickstart-...
"""
_DIGITS = 12  # of a root or commit, in text


def _open(run: Path) -> "CheckpointDir":
    from lmx.run.run_dir import RunDir, read_metadata
    from lmx.train.checkpoint.directory import CheckpointDir

    read_metadata(run)
    checkpoints = CheckpointDir(RunDir(run).checkpoint_folder.absolute())
    if not checkpoints.list_steps() and not checkpoints.list_quarantined():
        raise ConfigError(f"{run} has no checkpoint yet: train it further first.")
    return checkpoints


def _open_checkpoint(name: str) -> tuple[Path, "CheckpointReader"]:
    """The run and the checkpoint that RUN or RUN@STEP names."""
    from lmx.train.checkpoint.reader import CheckpointReader

    run, at, step = name.rpartition("@")
    if Path(name).is_dir() or not at:
        run, step = name, ""
    checkpoints = _open(Path(run))
    steps = checkpoints.list_steps()
    if not steps or not (step or f"{steps[-1]}").isdigit():
        raise ConfigError(f"{name} is not a checkpoint: write RUN, or RUN@STEP.")
    number = _check_step(steps, int(step or steps[-1]), run)
    return Path(run), CheckpointReader(checkpoints.step_path(number))


def _check_step(steps: Sequence[int], step: int, run: Any) -> int:
    if step not in steps:
        saved = ", ".join(map(str, steps))
        raise ConfigError(f"{run} has no checkpoint of step {step}: it has {saved}.")
    return step


def _list(args: argparse.Namespace) -> Output:
    from lmx.train.checkpoint.reader import CheckpointReader, DamageError

    checkpoints, data, rows = _open(Path(args.names[0])), [], []
    paths = map(checkpoints.step_path, checkpoints.list_steps())
    for path in [*paths, *checkpoints.list_quarantined()]:
        reader = CheckpointReader(path)
        try:
            root = reader.read_metadata().get("root")
        except DamageError:
            root = None
        faults = [f"{fault}" for fault in reader.check_sizes()]
        item = {
            "name": path.name,
            "step": int(path.name[:8]),
            "saved": path.stat().st_mtime,
            "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
            "root": root,
            "complete": path.name.isdigit() and not faults,
            "faults": faults,
        }
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(item["saved"]))
        complete = "yes" if item["complete"] else "NO"
        cells = (
            path.name,
            when,
            (root or "?")[:_DIGITS],
            complete,
            f"{item['bytes']:,}",
        )
        data.append(item)
        rows += [cells, *((f"  {fault}", "", "", "", "") for fault in faults)]
    header = ("checkpoint", "saved", "root", "complete", "bytes")
    return Output(format_table(header, rows, 4), data)


def _verify(args: argparse.Namespace) -> Output:
    from lmx.train.checkpoint.reader import CheckpointReader

    run = Path(args.names[0])
    checkpoints = _open(run)
    steps = checkpoints.list_steps()
    if args.step is not None:
        steps = [_check_step(steps, args.step, run)]
    data, lines = [], []
    for step in steps:
        reader = CheckpointReader(checkpoints.step_path(step))
        faults = reader.verify()
        data.append({"step": step, "faults": [fault._asdict() for fault in faults]})
        if faults:
            lines += [f"step {step}: DAMAGED", *(f"  {fault}" for fault in faults)]
        else:
            tensors = len(reader.read_metadata()["digests"])
            root = reader.read_metadata()["root"]
            lines.append(f"step {step}: intact, {tensors} tensors, root {root}")
    return Output("\n".join(lines), data, int(any(item["faults"] for item in data)))


def _diff(args: argparse.Namespace) -> Output:
    from lmx.config.value import diff
    from lmx.run.run_dir import read_config
    from lmx.train.checkpoint.compare import diff_checkpoints

    (run, a), (other, b) = map(_open_checkpoint, args.names)
    tensors = list(diff_checkpoints(a, b))
    changes = diff(read_config(run), read_config(other))
    settings = {path: list(map(str, pair)) for path, pair in changes.items()}
    changed = [tensor for tensor in tensors if tensor.status != "equal"]
    equal = len(tensors) - len(changed)
    lines = [f"{equal} of {len(tensors)} tensors are equal to the bit"]
    rows = [
        (
            tensor.tensor + (f": {tensor.status}" * (tensor.status != "differs")),
            *(
                "-" if value is None else f"{value:.3g}"
                for value in (tensor.distance, tensor.norm, tensor.relative)
            ),
        )
        for tensor in changed
    ]
    if rows:
        lines.append(format_table(("tensor", "|B - A|", "|A|", "ratio"), rows))
    lines += [
        f"{path}: {old} in A, {new} in B" for path, (old, new) in settings.items()
    ]
    data = {
        "a": f"{a.path}",
        "b": f"{b.path}",
        "tensors": [x._asdict() | {"relative": x.relative} for x in tensors],
        "settings": settings,
    }
    return Output("\n".join(lines), data)


def _lineage(args: argparse.Namespace) -> Output:
    _, reader = _open_checkpoint(args.names[0])
    metadata, lines = reader.read_metadata(), []
    for number, attempt in enumerate(metadata["lineage"], start=1):
        start, parent = "from the beginning", attempt["parent"]
        if parent:
            start = f"from step {parent['step']}, root {parent['root'][:_DIGITS]}"
        shown = {**attempt, "commit": (attempt.get("commit") or "")[:_DIGITS]}
        where = ", ".join(
            f"{name} {value}"
            for name, value in shown.items()
            if name not in ("parent", "run_id") and value
        )
        lines.append(f"{number}. {start}; {where}")
    lines.append(f"step {metadata['step']}, root {metadata['root']}")
    names = ("step", "root", "run_id", "lineage")
    return Output("\n".join(lines), {name: metadata[name] for name in names})


_STEP = {"--step": {"type": int, "metavar": "N", "help": "only this checkpoint"}}
COMMANDS = (
    Command("ckpt list", "RUN", "the checkpoints of a run", _LIST, _list),
    Command("ckpt verify", "RUN", "find damaged tensors", _VERIFY, _verify, _STEP),
    Command("ckpt diff", "A B", "what differs, by tensor", _DIFF, _diff),
    Command(
        "ckpt lineage", "RUN", "the attempts behind the latest", _LINEAGE, _lineage
    ),
)
