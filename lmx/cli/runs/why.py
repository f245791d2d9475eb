"""`lmx why`: what a step of a run learned from, and how well it was foretold."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.runs.replay import add_step, opened
from lmx.config.names import ConfigError

if TYPE_CHECKING:
    from lmx.train.again.past import Past
    from lmx.train.again.why import Why, Worst

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
        past = opened(args)
        from lmx.train.again.shade import page
        from lmx.train.again.why import why

        found = why(past, args.step)
        if args.html:
            title = f"{past.folder.name}, step {found.step}"
            args.html.write_text(page(title, found), encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_json(past, found) if args.json else _text(past, found, args.top))
    return 0


def _json(past: "Past", found: "Why") -> str:
    told = [
        {
            **each.origin._asdict(),
            "place": each.place,
            "mean": each.mean,
            "text": found.text(each.tokens),
            "tokens": each.tokens.tolist(),
            "targets": each.targets.tolist(),
            "weights": each.weights.tolist(),
            "nats": each.nats.tolist(),
        }
        for each in found.told
    ]
    said = {
        "run": str(past.folder),
        "from": found.begun,
        "step": found.step,
        "nats": found.nats,
        "metrics": found.metrics,
        "documents": told,
    }
    return json.dumps(said)


def _text(past: "Past", found: "Why", top: int) -> str:
    logged = past.logged.get(found.step, {}).get("nats", "not")
    targets = sum(int((told.weights > 0).sum()) for told in found.told)
    lines = [
        f"{past.folder}, step {found.step}: {len(found.told)} documents or parts of"
        f" them, {targets:,} targets, {found.nats:.6f} nats each ({logged} logged)",
        f"parameters from the state of step {found.begun}",
        "",
        *_layers(found),
        "",
        "documents, the hardest first",
        f"{'nats':>8}  {'row':>4}  {'document':>10}  {'offset':>8}  {'tokens':>6}"
        "  source, text",
    ]
    for told in sorted(found.told, key=lambda told: -told.mean)[:top]:
        row, _, source, document, offset, length = told.origin
        number, first = ("-" if n is None else f"{n:,}" for n in (document, offset))
        lines.append(
            f"{told.mean:8.4f}  {row:4}  {number:>10}  {first:>8}  {length:6}"
            f"  {source}: {_line(found.text(told.tokens))}"
        )
    lines += ["", "tokens, the hardest first, each between what is before and after it"]
    lines += [_token(worst, found) for worst in found.worst(top)]
    return "\n".join(lines)


def _layers(found: "Why") -> list[str]:
    """Norms of all, and of each layer."""
    kinds = {"grad": "gradient", "update": "update", "param": "parameters"}
    lines = ["".join(f"{word:>12}" for word in ("norm of", *kinds.values()))]
    whole = [found.metrics[f"{kind}_norm"] for kind in kinds]
    layers = zip(*(found.layers.get(kind, []) for kind in kinds), strict=True)
    rows = {"all": whole} | {f"layer {n}": norms for n, norms in enumerate(layers)}
    for name, norms in rows.items():
        lines.append(f"{name:>12}" + "".join(f"{float(x):12.4g}" for x in norms))
    return lines


def _token(worst: "Worst", found: "Why") -> str:
    told, index = worst.told, worst.index
    before = _line(found.text(told.tokens[: index + 1]), end=True)
    after = _line(found.text(told.targets[index + 1 :]))
    token = repr(found.text(told.targets[index : index + 1]))[1:-1]
    at = f"row {told.origin.row}, token {told.place + index + 1}"
    return f"{worst.nats:8.4f}  {at:<20}  {before} [{token}] {after}"


def _line(text: str, *, end: bool = False) -> str:
    """The beginning of a text, or its end, on one line."""
    part = text[-WIDTH:] if end else text[:WIDTH]
    return repr(part)[1:-1]
