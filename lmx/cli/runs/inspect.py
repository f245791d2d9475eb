"""`lmx why`: what a step of a run learned from, and how well it was foretold."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.runs.replay import add_step, open_recorded_run
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.analysis.batch_report import BatchReport, WorstToken
    from lmx.analysis.history import RecordedRun

_ABOUT = """\
Looks at step N of a run, the step that metrics.jsonl calls N: which documents its batch
told, from which token on; how many nats each token cost the parameters that the step
found, which are the newest state on disk before it, gone on from; and the norms of
gradients, updates and parameters, layer by layer. Nothing is written but PAGE.

  lmx why runs/x --step 1200
  lmx why runs/x --step 1200 --top 30
  lmx why runs/x --step 1200 --html batch.html     every token, as dark as it was hard
  lmx why runs/x --step 1200 --json                all documents, all tokens
  lmx why runs/x --step 1200 Mesh.fsdp=1           on fewer devices than the run had

Run it where the run was started, if its page names files by where they lie from there.
"""

WIDTH = 48  # characters of a text


def add(parsers: Any) -> None:
    """Adds the verb `why` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "why",
        help="what a step of a run learned from",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx why RUN --step N [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    add_step(parser)
    parser.add_argument(
        "--top", type=int, default=10, metavar="K", help="documents and tokens (10)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="PAGE", help="write the texts for a browser"
    )


def run(args: argparse.Namespace) -> int:
    """Looks. Returns the exit status."""
    try:
        past = open_recorded_run(args)
        from lmx.analysis.batch_report import inspect_step
        from lmx.analysis.html import render

        found = inspect_step(past, args.step)
        if args.html:
            title = f"{past.folder.name}, step {found.step}"
            args.html.write_text(render(title, found), encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_json(past, found) if args.json else _text(past, found, args.top))
    return 0


def _json(past: "RecordedRun", found: "BatchReport") -> str:
    told = [
        {
            **each.origin._asdict(),
            "place": each.start,
            "mean": each.mean_nats,
            "text": found.decode(each.tokens),
            "tokens": each.tokens.tolist(),
            "targets": each.targets.tolist(),
            "weights": each.weights.tolist(),
            "nats": each.nats.tolist(),
        }
        for each in found.documents
    ]
    said = {
        "run": str(past.folder),
        "from": found.start_step,
        "step": found.step,
        "nats": found.nats,
        "metrics": found.metrics,
        "documents": told,
    }
    return json.dumps(said)


def _text(past: "RecordedRun", found: "BatchReport", top: int) -> str:
    logged = past.logged_metrics.get(found.step, {}).get("nats", "not")
    targets = sum(int((told.weights > 0).sum()) for told in found.documents)
    lines = [
        f"{past.folder}, step {found.step}: {len(found.documents)} documents or parts of"
        f" them, {targets:,} targets, {found.nats:.6f} nats each ({logged} logged)",
        f"parameters from the state of step {found.start_step}",
        "",
        *_layers(found),
        "",
        "documents, the hardest first",
        f"{'nats':>8}  {'row':>4}  {'document':>10}  {'offset':>8}  {'tokens':>6}"
        "  source, text",
    ]
    for told in sorted(found.documents, key=lambda told: -told.mean_nats)[:top]:
        row, _, source, document, offset, length = told.origin
        number, first = ("-" if n is None else f"{n:,}" for n in (document, offset))
        lines.append(
            f"{told.mean_nats:8.4f}  {row:4}  {number:>10}  {first:>8}  {length:6}"
            f"  {source}: {_line(found.decode(told.tokens))}"
        )
    lines += ["", "tokens, the hardest first, each between what is before and after it"]
    lines += [_token(worst, found) for worst in found.worst_tokens(top)]
    return "\n".join(lines)


def _layers(found: "BatchReport") -> list[str]:
    """Norms of all, and of each layer."""
    kinds = {"grad": "gradient", "update": "update", "param": "parameters"}
    lines = ["".join(f"{word:>12}" for word in ("norm of", *kinds.values()))]
    whole = [found.metrics[f"{kind}_norm"] for kind in kinds]
    layers = zip(*(found.layer_norms.get(kind, []) for kind in kinds), strict=True)
    rows = {"all": whole} | {f"layer {n}": norms for n, norms in enumerate(layers)}
    for name, norms in rows.items():
        lines.append(f"{name:>12}" + "".join(f"{float(x):12.4g}" for x in norms))
    return lines


def _token(worst: "WorstToken", found: "BatchReport") -> str:
    told, index = worst.document, worst.index
    before = _line(found.decode(told.tokens[: index + 1]), end=True)
    after = _line(found.decode(told.targets[index + 1 :]))
    token = repr(found.decode(told.targets[index : index + 1]))[1:-1]
    at = f"row {told.origin.row}, token {told.start + index + 1}"
    return f"{worst.nats:8.4f}  {at:<20}  {before} [{token}] {after}"


def _line(text: str, *, end: bool = False) -> str:
    """The beginning of a text, or its end, on one line."""
    part = text[-WIDTH:] if end else text[:WIDTH]
    return repr(part)[1:-1]
