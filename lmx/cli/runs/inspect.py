"""`lmx inspect`: the batch, token losses and norms of one training step."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, option
from lmx.cli.runs.replay import STEP, open_recorded_run
from lmx.core.console import format_table

if TYPE_CHECKING:
    from lmx.analysis.batch_report import BatchReport, WorstToken
    from lmx.analysis.replay import RecordedRun

_WIDTH = 48  # characters of a text


@Command(
    "inspect",
    "RUN",
    "the batch and losses of one step of a run",
    STEP
    | {
        "--top": option("documents and tokens to show (10)", int, 10, "K"),
        "--html": option("write the texts as HTML", Path, metavar="FILE"),
    },
    takes_overrides=True,
)
def inspect_batch(args: argparse.Namespace) -> Output:
    """Shows step N of a run, as numbered in metrics.jsonl.

    The documents in its batch and where each part of them starts; the loss of each
    token in nats under the parameters before the step, which are recomputed from the
    latest earlier checkpoint; and the norms of gradients, updates and parameters by
    layer. Writes nothing but the --html file.

      lmx inspect runs/quickstart-... --step 1200
      lmx inspect runs/quickstart-... --step 1200 --top 30
      lmx inspect runs/quickstart-... --step 1200 --html batch.html    shaded by loss
      lmx inspect runs/quickstart-... --step 1200 --json     all documents and tokens
      lmx inspect runs/quickstart-... --step 1200 Mesh.fsdp=1    on fewer devices

    Run it in the folder where the run was started if its config has relative paths.
    """
    run = open_recorded_run(args)
    from lmx.analysis.batch_report import inspect_step
    from lmx.analysis.html import render

    report = inspect_step(run, args.step)
    if args.html:
        title = f"{run.folder.name}, step {report.step}"
        args.html.write_text(render(title, report), encoding="utf-8")
    return Output(_format(run, report, args.top), _to_json(run, report))


def _to_json(run: "RecordedRun", report: "BatchReport") -> dict[str, Any]:
    documents = [
        {
            **document.origin._asdict(),
            "start": document.start,
            "mean_nats": document.mean_nats,
            "text": report.decode(document.tokens),
            "tokens": document.tokens.tolist(),
            "targets": document.targets.tolist(),
            "weights": document.weights.tolist(),
            "nats": document.nats.tolist(),
        }
        for document in report.documents
    ]
    return {
        "run": str(run.folder),
        "checkpoint": report.start_step,
        "step": report.step,
        "nats": report.nats,
        "metrics": report.metrics,
        "cause": report.cause,
        "documents": documents,
    }


def _format(run: "RecordedRun", report: "BatchReport", top: int) -> str:
    logged = run.logged_metrics.get(report.step, {}).get("nats", "not")
    targets = sum(int((document.weights > 0).sum()) for document in report.documents)
    hardest = sorted(report.documents, key=lambda document: -document.mean_nats)[:top]
    rows = []
    for document in hardest:
        row, _, source, index, offset, length = document.origin
        number, start = ("-" if n is None else f"{n:,}" for n in (index, offset))
        text = _one_line(report.decode(document.tokens))
        nats = f"{document.mean_nats:.4f}"
        rows.append((source, text, nats, row, number, start, length))
    header = ("source", "text", "nats", "row", "document", "offset", "tokens")
    return "\n".join(
        (
            f"{run.folder}, step {report.step}: {len(report.documents)} documents or"
            f" parts of them, {targets:,} targets, {report.nats:.6f} nats each"
            f" ({logged} logged)",
            f"parameters from the checkpoint of step {report.start_step}",
            f"{report.cause or ''}\n",
            f"{_format_norms(report)}\n",
            "documents with the highest loss",
            f"{format_table(header, rows, 2)}\n",
            "tokens with the highest loss, in their context",
            *(_format_token(token, report) for token in report.worst_tokens(top)),
        )
    )


def _format_norms(report: "BatchReport") -> str:
    """Norms over all layers, and of each layer."""
    kinds = {"grad": "gradient", "update": "update", "param": "parameters"}
    total = [report.metrics[f"{kind}_norm"] for kind in kinds]
    layers = zip(*(report.layer_norms.get(kind, []) for kind in kinds), strict=True)
    norms = {"all": total} | {f"layer {n}": values for n, values in enumerate(layers)}
    rows = [(name, *(f"{float(x):.4g}" for x in row)) for name, row in norms.items()]
    return format_table(("norm of", *kinds.values()), rows)


def _format_token(token: "WorstToken", report: "BatchReport") -> str:
    document, index = token.document, token.index
    before = _one_line(report.decode(document.tokens[: index + 1]), end=True)
    after = _one_line(report.decode(document.targets[index + 1 :]))
    text = _one_line(report.decode(document.targets[index : index + 1]))
    position = f"row {document.origin.row}, token {document.start + index + 1}"
    return f"{token.nats:8.4f}  {position:<20}  {before} [{text}] {after}"


def _one_line(text: str, *, end: bool = False) -> str:
    """The start or the end of a text, escaped to fit one line."""
    return repr(text[-_WIDTH:] if end else text[:_WIDTH])[1:-1]
