"""A batch report as HTML, with each token shaded by its loss."""

from html import escape

from lmx.analysis.batch_report import BatchReport, ScoredDocument

MAX_TOKENS = 20_000  # larger pages are slow in a browser
MAX_NATS = 10.0  # loss of the darkest shade

_PAGE = """\
<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; }}
pre {{ white-space: pre-wrap; word-break: break-word; }}
h2 {{ font-size: 1em; margin: 2em 0 0; }}
i {{ color: #999; font-style: normal; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{documents}
"""


def render(title: str, report: BatchReport) -> str:
    """A self-contained page: the documents with the highest loss, up to MAX_TOKENS.

    The tooltip of a token has its loss. Targets without weight are grey.
    """
    sections, tokens = [], 0
    for document in sorted(report.documents, key=lambda each: -each.mean_nats):
        tokens += len(document.tokens)
        if tokens > MAX_TOKENS:
            break
        sections.append(_render_document(document, report))
    summary = (
        f"{report.nats:.4f} nats per target; {len(sections)} of"
        f" {len(report.documents)} documents of the batch, highest loss first. White is"
        f" a loss of 0, the darkest red one of {MAX_NATS:g} nats or more."
    )
    documents = "\n".join(sections)
    return _PAGE.format(title=escape(title), summary=summary, documents=documents)


def _render_document(document: ScoredDocument, report: BatchReport) -> str:
    spans = [f"<i>{escape(report.decode(document.tokens[:1]))}</i>"]
    columns = (document.targets, document.weights, document.nats)
    for target, weight, nats in zip(*(x.tolist() for x in columns), strict=True):
        text, alpha = escape(report.decode([target])), min(nats / MAX_NATS, 1.0)
        style = (
            f'style="background:rgba(220,40,40,{alpha:.2f})" title="{nats:.3f} nats"'
        )
        spans.append(f"<span {style}>{text}</span>" if weight else f"<i>{text}</i>")
    row, _, source, number, offset, _ = document.origin
    known = "" if number is None else f" document {number:,} from token {offset:,}"
    place = f"row {row}, token {document.start}: {source}{known}"
    heading = escape(f"{place}, {document.mean_nats:.3f} nats")
    return f"<h2>{heading}</h2><pre>{''.join(spans)}</pre>"
