"""A report of runs as one HTML page: table, curves, fit, settings and provenance."""

import base64
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from lmx.config.registry import require
from lmx.run.overview import Row, list_runs
from lmx.run.plots import extract_curve, smooth
from lmx.run.run_dir import find_losses, read_metadata, read_metrics
from lmx.study.fit import fit_law
from lmx.study.isoflop import find_frontier
from lmx.study.law import LAWS
from lmx.study.points import read_points
from lmx.study.report import format_report, make_report, plot_fit

Line = tuple[Sequence[float], Sequence[float]]  # tokens and losses
MAX_POINTS = 200  # of a curve
TOP = 0.95  # the quantile of losses at the upper end of a chart
SPAN = 1.001  # the least ratio of the ends of an axis
WIDTH, HEIGHT, LEFT, BOTTOM = 480, 280, 45, 30  # of a chart
# The other columns are settings and losses.
FACTS = ("run", "state", "step", "steps", "parameters", "non_embedding_parameters")
FACTS += ("tokens", "flops", "own_flops", "seconds")

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #fff; --text: #222; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #151515; --text: #ddd; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 1em auto;
 padding: 0 1em; background: var(--back); color: var(--text); }}
h1, h2, p, li {{ overflow-wrap: anywhere; }}
.wide, pre {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .2em .6em; white-space: nowrap; text-align: right;
 border-bottom: 1px solid #8886; }}
td:first-child, th:first-child {{ text-align: left; }}
.text td, .text th {{ text-align: left; }}
svg {{ width: 100%; max-width: 50em; height: auto; font-size: 13px; }}
svg text {{ fill: var(--text); }}
svg path {{ fill: none; stroke-linecap: round; }}
svg path:hover {{ stroke-width: 5; }}
img {{ max-width: 100%; background: #fff; }}
ul {{ list-style: none; padding: 0; columns: 16em; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{sections}
</html>
"""


def render_report(folder: Path, command: str, draws: int = 200) -> str:
    """A page that needs no other file, of the runs in a folder.

    Has the table of `lmx runs`, curves of each loss, a scaling law where the finished
    runs determine one (with `draws` of the bootstrap), the settings that differ, and
    where each run is from. `command` is what makes the page.
    """
    rows = list_runs(folder)
    require(rows, f"{folder} has no runs: give the folder that has them.")
    paths = {os.path.relpath(row["run"], folder): Path(row["run"]) for row in rows}
    readable = {
        name: path
        for (name, path), row in zip(paths.items(), rows, strict=True)
        if not row["state"].startswith("unreadable")
    }
    rows = [row | {"run": name} for row, name in zip(rows, paths, strict=True)]
    losses = dict.fromkeys(x for row in rows for x in row if x == "loss" or "/" in x)
    settings = [x for x in _list_names(rows) if x not in (*FACTS, *losses)]
    metadata = {name: read_metadata(path) for name, path in readable.items()}
    origins = ("fact", "value", "runs")
    sections = {
        "Runs": _make_table([*FACTS, *losses], rows),
        "Curves": _draw_losses(readable),
        "Scaling law": _render_fit(folder, draws),
        "Settings that differ": _make_table(["run", *settings], rows),
        "Provenance": _make_table(origins, _list_origins(metadata), "wide text"),
    }
    states = [f"{row['state'].partition(':')[0]}" for row in rows]
    counts = (f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return _PAGE.format(
        title=escape(f"{folder}"),
        summary=escape(f"{len(rows)} runs: {', '.join(counts)}. Made by: {command}"),
        sections="\n".join(f"<h2>{x}</h2>\n{text}" for x, text in sections.items()),
    )


def _list_names(rows: Sequence[Row]) -> list[str]:
    return [*dict.fromkeys(name for row in rows for name in row)]


def _make_table(header: Iterable[str], rows: Iterable[Row], kind: str = "wide") -> str:
    def write(cells: Iterable[Any], tag: str) -> str:
        texts = (f"<{tag}>{escape(_format_cell(x))}</{tag}>" for x in cells)
        return f"<tr>{''.join(texts)}</tr>"

    header = [*header]
    lines = (write((row.get(name, "") for name in header), "td") for row in rows)
    body = "\n".join((write(header, "th"), *lines))
    return f'<div class="{kind}"><table>\n{body}\n</table></div>'


def _format_cell(value: Any) -> str:
    if type(value) is float:
        return f"{value:,.4f}"
    return f"{value:,}" if type(value) is int else f"{value}"


def _draw_losses(runs: Mapping[str, Path]) -> str:
    """A chart of each loss that runs have: over tokens, that of training smoothed."""
    charts: dict[str, dict[str, Line]] = {}
    for name, path in runs.items():
        lines = [*read_metrics(path)]
        steps, tokens = extract_curve(lines, "tokens_seen")
        evaluations = find_losses(_list_names(lines))
        for title, loss in {"training": "loss", **evaluations}.items():
            at, values = extract_curve(lines, loss)
            if at and steps:
                x = np.interp(at, steps, tokens).tolist()
                values = smooth((at, values))[1] if title == "training" else values
                charts.setdefault(title, {})[name] = x, values
    hues = {name: f"hsl({137.5 * n % 360:.0f} 70% 50%)" for n, name in enumerate(runs)}
    drawn = [_draw_chart(title, curves, hues) for title, curves in charts.items()]
    keys = (
        f'<li><span style="color: {hue}">&#9632;</span> {escape(name)}</li>'
        for name, hue in hues.items()
    )
    return "\n".join((*drawn, "<ul>", *keys, "</ul>"))


def _draw_chart(title: str, curves: Mapping[str, Line], hues: Mapping[str, str]) -> str:
    """Curves as SVG, with a logarithmic x axis. The tooltip of each is its name."""
    x, y = (np.concatenate(values) for values in zip(*curves.values(), strict=True))
    left, right = x.min(), max(x.max(), SPAN * x.min())
    low, high = y.min(), max(np.quantile(y, TOP), SPAN * y.min())

    def place_x(x: Any) -> Any:
        return LEFT + (WIDTH - LEFT) * np.log(x / left) / np.log(right / left)

    def place_y(y: Any) -> Any:
        return (HEIGHT - BOTTOM) * (high - y) / (high - low)

    parts = [
        f'<text x="{place_x(tick):.0f}" y="{HEIGHT - 12}" text-anchor="middle">'
        f"{tick:g}</text>"
        for tick in LogLocator(subs=(1, 3)).tick_values(left, right)
        if left <= tick <= right
    ] + [
        f'<text x="{LEFT - 6}" y="{place_y(tick) + 4:.0f}" text-anchor="end">'
        f"{tick:g}</text>"
        for tick in MaxNLocator(6).tick_values(low, high)
        if low <= tick <= high
    ]
    for name, (x, y) in curves.items():
        shown = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int)
        ends = place_x(np.array(x)[shown]), place_y(np.array(y)[shown])
        line = " L".join(f"{a:.1f} {b:.1f}" for a, b in zip(*ends, strict=True))
        label = escape(f"{name}: {y[-1]:.4f}")
        style = f'stroke="{hues[name]}" stroke-width="{2 if len(x) > 1 else 7}"'
        parts.append(f'<path {style} d="M{line} h0"><title>{label}</title></path>')
    body = "\n".join(parts)
    size = f'viewBox="0 -6 {WIDTH + 20} {HEIGHT + 6}" role="img"'
    return f"<h3>{escape(title)}: loss over tokens</h3>\n<svg {size}>\n{body}\n</svg>"


def _render_fit(folder: Path, draws: int) -> str:
    """The first law that the finished runs determine, or why none does."""
    reasons = []
    for form in ("chinchilla", "compute"):
        try:
            points = read_points(folder, {})
            points = find_frontier(points) if form == "compute" else points
            fit = fit_law(LAWS[form].build(points), points)
            report = make_report(fit, draws=draws)
        except ValueError as error:
            reasons.append(f"{form}: {error}")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, "fit.png")
            plot_fit(report, file)
            image = base64.b64encode(file.read_bytes()).decode()
        text = escape(format_report(report, None))
        source = f"data:image/png;base64,{image}"
        return f'<pre>{text}</pre>\n<img alt="The fit" src="{source}">'
    return f"<p>The finished runs determine none. {escape(' '.join(reasons))}</p>"


def _list_origins(runs: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Each fact about where runs are from, and the runs of which it holds."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, metadata in runs.items():
        changed = metadata.get("uncommitted") or metadata.get("untracked")
        commit = f"{metadata.get('commit')}{' with changes' if changed else ''}"
        facts = {f"version of {x}": v for x, v in metadata.get("versions", {}).items()}
        facts |= {"commit of lmx": commit}
        facts |= {
            x: metadata.get(x) for x in ("devices", "processor", "system", "seed")
        }
        facts |= {"command": shlex.join(metadata.get("command", ()))}
        for fact, value in facts.items():
            found.setdefault(fact, {}).setdefault(f"{value}", []).append(name)
    return [
        {
            "fact": fact,
            "value": value,
            "runs": "all" if len(names) == len(runs) else ", ".join(names),
        }
        for fact, values in found.items()
        for value, names in values.items()
    ]
