"""A page for a browser: the texts of a step, each token as dark as it was hard."""

from html import escape

from lmx.analysis.batch_report import BatchReport, ScoredDocument

MAX_TOKENS = 20_000  # tokens of a page: browsers grow slow beyond
MAX_NATS = 10.0  # nats of a token that is as dark as can be

_HEAD = """\
<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; }}
pre {{ white-space: pre-wrap; word-break: break-word; }}
h2 {{ font-size: 1em; margin: 2em 0 0; }}
i {{ color: #999; font-style: normal; }}
</style>
<h1>{title}</h1>
<p>{said}</p>
"""


def render(title: str, report: BatchReport) -> str:
    """HTML that needs nothing else: the hardest documents first, up to `MOST` tokens.

    Over each token its nats show. What was not to be learned is grey.
    """
    shown, left = [], MAX_TOKENS
    for told in sorted(report.documents, key=lambda told: -told.mean_nats):
        if len(told.tokens) > left:
            break
        left -= len(told.tokens)
        shown.append(_render_document(told, report))
    said = (
        f"{report.nats:.4f} nats per target; {len(shown)} of {len(report.documents)} documents"
        f" that the batch tells, the hardest first. White is foretold, the darkest red"
        f" {MAX_NATS:g} nats or more."
    )
    head = _HEAD.format(title=escape(title), said=escape(said))
    return head + "\n".join(shown) + "\n"


def _render_document(told: ScoredDocument, found: BatchReport) -> str:
    first = escape(found.decode(told.tokens[:1]))
    tokens = [f"<i>{first}</i>"]
    facts = (told.targets, told.weights, told.nats)
    for target, weight, nats in zip(*(x.tolist() for x in facts), strict=True):
        text = escape(found.decode([target]))
        if not weight:
            tokens.append(f"<i>{text}</i>")
            continue
        alpha = min(nats / MAX_NATS, 1.0)
        style = f"background:rgba(220,40,40,{alpha:.2f})"
        tokens.append(f'<span style="{style}" title="{nats:.3f} nats">{text}</span>')
    return f"<h2>{escape(describe_location(told))}</h2><pre>{''.join(tokens)}</pre>"


def describe_location(told: ScoredDocument) -> str:
    """Where a text stood and what it is, in words."""
    row, _, source, document, offset, _ = told.origin
    known = "" if document is None else f" document {document:,} from token {offset:,}"
    return f"row {row}, token {told.start}: {source}{known}, {told.mean_nats:.3f} nats"
