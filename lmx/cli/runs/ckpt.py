"""`lmx ckpt list | verify | diff | lineage`: reads the checkpoints of a run."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, option
from lmx.config.registry import require
from lmx.core.console import format_table

if TYPE_CHECKING:
    from lmx.train.checkpoint.manager import CheckpointDir
    from lmx.train.checkpoint.reader import CheckpointReader

_DIGITS = 12  # of a root or commit, in text


def _open(run: Path) -> "CheckpointDir":
    from lmx.run.run_dir import RunDir, read_metadata
    from lmx.train.checkpoint.manager import CheckpointDir

    read_metadata(run)
    checkpoints = CheckpointDir(RunDir(run).checkpoint_folder.absolute())
    saved = checkpoints.list_steps() or checkpoints.list_quarantined()
    require(saved, f"{run} has no checkpoint yet: train it further first.")
    return checkpoints


def _open_checkpoint(name: str) -> tuple[Path, "CheckpointReader"]:
    """The run and the checkpoint that RUN or RUN@STEP names."""
    from lmx.train.checkpoint.reader import CheckpointReader

    run, at, step = name.rpartition("@")
    if Path(name).is_dir() or not at:
        run, step = name, ""
    checkpoints = _open(Path(run))
    steps = {f"{saved}": saved for saved in checkpoints.list_steps()}
    step = step or next(reversed(steps), "")
    saved = ", ".join(steps) or "none that can be read"
    require(step in steps, f"{run} has no checkpoint of step {step}: it has {saved}.")
    return Path(run), CheckpointReader(checkpoints.step_path(steps[step]))


@Command("ckpt list", "RUN", "the checkpoints of a run")
def list_checkpoints(args: argparse.Namespace) -> Output:
    """The checkpoints of a run: step, time saved, size in bytes, and the root.

    The root is one digest of all tensors that does not depend on the mesh or the number
    of processes. `complete` checks the sizes of files; only `lmx ckpt verify` reads
    their contents. Quarantined checkpoints, which were found damaged, are listed too.

      lmx ckpt list runs/quickstart-...
    """
    checkpoints, rows = _open(Path(args.names[0])), []
    paths = map(checkpoints.step_path, checkpoints.list_steps())
    data = [*map(_describe, (*paths, *checkpoints.list_quarantined()))]
    for item in data:
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(item["saved"]))
        root = (item["root"] or "?")[:_DIGITS]
        complete = "yes" if item["complete"] else "NO"
        rows.append((item["name"], saved, root, complete, f"{item['bytes']:,}"))
        rows += [(f"  {fault}", "", "", "", "") for fault in item["faults"]]
    header = ("checkpoint", "saved", "root", "complete", "bytes")
    return Output(format_table(header, rows, 4), data)


def _describe(path: Path) -> dict[str, Any]:
    """A checkpoint as its metadata and the sizes of its files show it."""
    from lmx.train.checkpoint.reader import CheckpointReader, DamageError

    reader = CheckpointReader(path)
    try:
        root = reader.read_metadata().get("root")
    except DamageError:
        root = None
    faults = [f"{fault}" for fault in reader.check_sizes()]
    return {
        "name": path.name,
        "step": int(path.name[:8]),
        "saved": path.stat().st_mtime,
        "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
        "root": root,
        "complete": path.name.isdecimal() and not faults,
        "faults": faults,
    }


@Command(
    "ckpt verify",
    "RUN",
    "find damaged tensors",
    {"--step": option("only this checkpoint", int, metavar="N")},
)
def verify_checkpoints(args: argparse.Namespace) -> Output:
    """Reads every byte of the checkpoints of a run, or of the one of --step.

    Compares each tensor with the digest taken when it was saved, and names each damaged
    tensor and its file. Exit status 1 if there is one.

      lmx ckpt verify runs/quickstart-...
      lmx ckpt verify runs/quickstart-... --step 800
    """
    run, data, lines = args.names[0], [], []
    steps = _open(Path(run)).list_steps() if args.step is None else [args.step]
    for step in steps:
        _, reader = _open_checkpoint(f"{run}@{step}")
        faults = reader.verify()
        data.append({"step": step, "faults": [fault._asdict() for fault in faults]})
        if faults:
            lines += [f"step {step}: DAMAGED", *(f"  {fault}" for fault in faults)]
        else:
            metadata = reader.read_metadata()
            tensors, root = len(metadata["digests"]), metadata["root"]
            lines.append(f"step {step}: intact, {tensors} tensors, root {root}")
    return Output("\n".join(lines), data, int(any(item["faults"] for item in data)))


@Command("ckpt diff", "A B", "what differs, by tensor")
def diff_tensors(args: argparse.Namespace) -> Output:
    """What differs between two checkpoints, by tensor, and between their settings.

    For each tensor that is not equal to the bit, the norm of B - A, of A, and their
    ratio; then the settings of the two runs that differ. A checkpoint is RUN, its
    latest, or RUN@STEP.

      lmx ckpt diff runs/a runs/b
      lmx ckpt diff runs/a@800 runs/a@1000
    """
    from lmx.config.value import diff
    from lmx.run.run_dir import read_config
    from lmx.train.checkpoint.compare import diff_checkpoints

    (run, a), (other, b) = map(_open_checkpoint, args.names)
    tensors = list(diff_checkpoints(a, b))
    changes = diff(read_config(run), read_config(other))
    settings = {path: list(map(str, pair)) for path, pair in changes.items()}
    rows = []
    for tensor in (tensor for tensor in tensors if tensor.status != "equal"):
        shown = "" if tensor.status == "differs" else f": {tensor.status}"
        norms = (tensor.distance, tensor.norm, tensor.relative)
        cells = ("-" if value is None else f"{value:.3g}" for value in norms)
        rows.append((f"{tensor.tensor}{shown}", *cells))
    equal = len(tensors) - len(rows)
    lines = [f"{equal} of {len(tensors)} tensors are equal to the bit"]
    if rows:
        lines.append(format_table(("tensor", "|B - A|", "|A|", "ratio"), rows))
    lines += [f"{path}: {x} in A, {y} in B" for path, (x, y) in settings.items()]
    data = {
        "a": f"{a.path}",
        "b": f"{b.path}",
        "tensors": [x._asdict() | {"relative": x.relative} for x in tensors],
        "settings": settings,
    }
    return Output("\n".join(lines), data)


@Command("ckpt lineage", "RUN", "the attempts behind the latest")
def show_lineage(args: argparse.Namespace) -> Output:
    """The attempts that led to the latest checkpoint of a run.

    The checkpoint that each one resumed from, by step and root, and its commit and
    devices. An attempt that ended before it saved a checkpoint is not listed.

      lmx ckpt lineage runs/quickstart-...
    """
    _, reader = _open_checkpoint(args.names[0])
    metadata, lines = reader.read_metadata(), []
    for number, attempt in enumerate(metadata["lineage"], start=1):
        start, parent = "from the beginning", attempt["parent"]
        if parent:
            start = f"from step {parent['step']}, root {parent['root'][:_DIGITS]}"
        facts = {**attempt, "commit": (attempt.get("commit") or "")[:_DIGITS]}
        hidden = ("parent", "run_id")
        shown = [f"{k} {v}" for k, v in facts.items() if k not in hidden and v]
        lines.append(f"{number}. {start}; {', '.join(shown)}")
    lines.append(f"step {metadata['step']}, root {metadata['root']}")
    names = ("step", "root", "run_id", "lineage")
    return Output("\n".join(lines), {name: metadata[name] for name in names})
