"""`lmx ckpt list | verify | diff | lineage`: the saved states of a run, looked at."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmx.cli.config import Words
from lmx.config.registry import ConfigError

_LIST = """\
The saved states of a run: step, when it was saved, how large it is, and the root, one
digest of all its tensors that neither mesh nor number of processes changes. `whole` is
told by the sizes of files; only `lmx ckpt verify` reads what is in them. States that
were found damaged and set aside are listed too.

  lmx ckpt list runs/quickstart-...
"""
_VERIFY = """\
Reads every byte of the saved states of a run, or of the one of --step, and holds each
tensor against the digest that was taken when it was saved. Names each tensor that is
not as it was, and its file. Exit status 1 if there is one.

  lmx ckpt verify runs/quickstart-...
  lmx ckpt verify runs/quickstart-... --step 800
"""
_DIFF = """\
What differs between two saved states: for each tensor that is not equal to the bit, the
norm of B - A, of A, and their ratio; then what differs in the settings of both runs. A
state is RUN, its newest, or RUN@STEP.

  lmx ckpt diff runs/a runs/b
  lmx ckpt diff runs/a@800 runs/a@1000
"""
_LINEAGE = """\
Where the newest state of a run comes from: each attempt at the run, the state that it
went on from by step and root, and the commit and the devices it ran on. An attempt that
was ended before it saved anything left no trace in a state, and is not there.

  lmx ckpt lineage runs/quickstart-...
"""
_VERBS = {
    "list": ("the saved states of a run", _LIST, "RUN"),
    "verify": ("read them again, and compare with their digests", _VERIFY, "RUN"),
    "diff": ("what differs between two of them, by tensor", _DIFF, "A B"),
    "lineage": ("where the newest of them comes from", _LINEAGE, "RUN"),
}
_LETTERS = 12  # of a root or commit, where people read it


def add(parsers: Any) -> None:
    """Adds the verb `ckpt` to what `ArgumentParser.add_subparsers` returned."""
    about = "The saved states of a run, looked at; none is changed.\n\n"
    parser = parsers.add_parser(
        "ckpt",
        help="the saved states of a run: list, verify, diff, lineage",
        description=about + "\n".join(long for _, long, _ in _VERBS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=Words)
    for name, (short, long, words) in _VERBS.items():
        verb = verbs.add_parser(
            name,
            help=short,
            description=long,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"lmx ckpt {name} {words} [options]",
        )
        verb.set_defaults(run=run, verb=name, count=len(words.split()))
        verb.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
        verb.add_argument("--json", action="store_true", help="print it for a machine")
        if name == "verify":
            verb.add_argument("--step", type=int, metavar="N", help="only that one")


def run(args: argparse.Namespace) -> int:
    """Looks. Returns the exit status."""
    ways: dict[str, Callable[[argparse.Namespace], tuple[Any, Sequence[str], int]]] = {
        "list": _list,
        "verify": _verify,
        "diff": _diff,
        "lineage": _lineage,
    }
    try:
        if len(args.words) != args.count:
            raise ConfigError(
                f"got {' '.join(args.words)!r}: write lmx ckpt {args.verb}"
                f" {_VERBS[args.verb][2]}"
            )
        facts, lines, status = ways[args.verb](args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts) if args.json else "\n".join(lines))
    return status


def _shelf(run: Path) -> Any:
    """The states of the run in that folder."""
    from lmx.run.run_dir import RunDir, read_metadata
    from lmx.train.checkpoint.directory import CheckpointDir

    read_metadata(run)
    shelf = CheckpointDir(RunDir(run).checkpoint_folder.absolute())
    if not shelf.list_steps() and not shelf.list_quarantined():
        raise ConfigError(f"{run} has no checkpoint yet: train it further first.")
    return shelf


def _state(word: str) -> tuple[Path, Any]:
    """The folder of a run, and a reader of its newest state or of the one @STEP."""
    from lmx.train.checkpoint.reader import CheckpointReader

    name, at, step = word.rpartition("@")
    if Path(word).is_dir() or not at:
        name, step = word, ""
    shelf = _shelf(Path(name))
    steps = shelf.list_steps()
    if not steps or not (step or f"{steps[-1]}").isdigit():
        raise ConfigError(f"{word} is no state: write RUN, or RUN@STEP.")
    return Path(name), CheckpointReader(
        shelf.step_path(_known(steps, int(step or steps[-1]), name))
    )


def _known(steps: Sequence[int], step: int, run: Any) -> int:
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise ConfigError(f"{run} has no state of step {step}: it has {there}.")
    return step


def _list(args: argparse.Namespace) -> tuple[Any, Sequence[str], int]:
    from lmx.train.checkpoint.reader import CheckpointReader, DamageError

    shelf, rows = _shelf(Path(args.words[0])), []
    for path in [*map(shelf.step_path, shelf.list_steps()), *shelf.list_quarantined()]:
        reader = CheckpointReader(path)
        try:
            meta = reader.read_metadata()
        except DamageError:
            meta = {}
        faults = reader.check_sizes()
        rows.append(
            {
                "name": path.name,
                "step": int(path.name[:8]),
                "saved": path.stat().st_mtime,
                "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
                "root": meta.get("root"),
                "whole": path.name.isdigit() and not faults,
                "faults": [f"{fault}" for fault in faults],
            }
        )
    lines = [f"{'state':20} {'saved':16} {'bytes':>15}  {'root':{_LETTERS}}  whole"]
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["saved"]))
        root = (row["root"] or "?")[:_LETTERS]
        whole = "yes" if row["whole"] else "NO"
        lines.append(
            f"{row['name']:20} {when} {row['bytes']:15,}  {root:{_LETTERS}}  {whole}"
        )
        lines += [f"  {fault}" for fault in row["faults"]]
    return rows, lines, 0


def _verify(args: argparse.Namespace) -> tuple[Any, Sequence[str], int]:
    from lmx.train.checkpoint.reader import CheckpointReader

    run = Path(args.words[0])
    shelf = _shelf(run)
    steps = shelf.list_steps()
    if args.step is not None:
        steps = [_known(steps, args.step, run)]
    rows, lines = [], []
    for step in steps:
        reader = CheckpointReader(shelf.step_path(step))
        faults = reader.verify()
        rows.append({"step": step, "faults": [fault._asdict() for fault in faults]})
        if faults:
            lines += [f"step {step}: DAMAGED"] + [f"  {fault}" for fault in faults]
        else:
            tensors, root = (
                len(reader.read_metadata()["digests"]),
                reader.read_metadata()["root"],
            )
            lines.append(f"step {step}: whole, {tensors} tensors, root {root}")
    return rows, lines, int(any(row["faults"] for row in rows))


def _diff(args: argparse.Namespace) -> tuple[Any, Sequence[str], int]:
    from lmx.config.value import diff
    from lmx.run.run_dir import read_config
    from lmx.train.checkpoint.compare import diff_checkpoints

    (run, a), (other, b) = map(_state, args.words)
    found = list(diff_checkpoints(a, b))
    configs = [read_config(r) for r in (run, other)]
    settings = {path: list(map(str, pair)) for path, pair in diff(*configs).items()}
    apart = [each for each in found if each.status != "equal"]
    lines = [f"{len(found) - len(apart)} of {len(found)} tensors are equal to the bit"]
    if apart:
        lines.append(f"{'|B - A|':>10} {'|A|':>10} {'ratio':>10}  tensor")
    for each in apart:
        values = (each.distance, each.norm, each.relative)
        told = " ".join(f"{'-' if v is None else f'{v:.3g}':>10}" for v in values)
        note = "" if each.status == "differs" else f": {each.status}"
        lines.append(f"{told}  {each.tensor}{note}")
    lines += [
        f"{path}: {old} in A, {new} in B" for path, (old, new) in settings.items()
    ]
    facts = {
        "a": f"{a.path}",
        "b": f"{b.path}",
        "tensors": [each._asdict() | {"relative": each.relative} for each in found],
        "settings": settings,
    }
    return facts, lines, 0


def _lineage(args: argparse.Namespace) -> tuple[Any, Sequence[str], int]:
    _, reader = _state(args.words[0])
    meta = reader.read_metadata()
    lines = []
    for number, attempt in enumerate(meta["lineage"], start=1):
        parent = attempt["parent"]
        begun = (
            f"from step {parent['step']}, root {parent['root'][:_LETTERS]}"
            if parent
            else "from the beginning"
        )
        where = ", ".join(
            f"{name} {(value if name != 'commit' else (value or '?')[:_LETTERS])}"
            for name, value in attempt.items()
            if name not in ("parent", "run_id") and value
        )
        lines.append(f"{number}. {begun}; {where}")
    lines.append(f"step {meta['step']}, root {meta['root']}")
    facts = {name: meta[name] for name in ("step", "root", "run_id", "lineage")}
    return facts, lines, 0
