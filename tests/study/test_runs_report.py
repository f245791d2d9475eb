"""The page about runs is complete, loads nothing, and shows names as text."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmx.cli.main import main
from lmx.run.run_dir import SCHEMA, write_initial_files
from lmx.study.runs_report import MAX_POINTS, render_report
from lmx.train.experiment import load_experiment
from tests.study.test_check import TRUTH, make_ladder

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
EVIL = "<script>alert(1)<b title='\"&amp;"  # of a folder


def write_run(path, seed=0, n=1000.0, d=1280.0, loss=2.0, lines=10, done=True):
    """A folder as a run leaves it, with a loss that falls to that value."""
    config = load_experiment(TINY, [f"Experiment.seed={seed}"])
    metadata = {
        **{"schema": SCHEMA, "run_id": config.run_id(), "parameters": n, "seed": seed},
        **{"flops": 6 * n * d, "commit": "c0ffee", "uncommitted": "", "untracked": []},
        **{"devices": "8 x H200", "versions": {"lmx": "0.1.0"}},
        "command": ["lmx", "train", f"{path.name}"],
        **({"final": {}} if done else {}),
    }
    path.mkdir(parents=True)
    write_initial_files(path, config, metadata, None)
    rows = [
        {"step": step, "loss": loss + 1 / step, "tokens_seen": d * step / lines}
        for step in range(1, lines + 1)
    ]
    rows.append({"step": lines, "validation/nats": loss})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (path / "metrics.jsonl").write_text(text)


def search(pattern, text):
    """The match, with its groups."""
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert found
    return found


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def find(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "sweep"
    write_run(folder / EVIL)
    write_run(folder / "deep" / "b", seed=1, lines=3 * MAX_POINTS, done=False)
    write_run(folder / "broken")
    (folder / "broken" / "metadata.json").write_text('{"schema": 99}')
    return Page(render_report(folder, "lmx report 'a<b>'"))


def test_every_element_is_closed_and_names_are_text(page):
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= set(
        "html meta title style h1 h2 h3 p div table tr th td svg text path ul li span"
        " details summary pre".split()
    )
    assert not any(name.startswith("on") for _, at in page.elements for name in at)
    assert page.texts.count(EVIL) == 4  # two tables, legend, origin of its command
    assert any(text.endswith("lmx report 'a<b>'") for text in page.texts)
    assert f"{EVIL}: 2.1000" in page.texts  # the tooltip of its curve


def test_nothing_is_loaded_and_a_phone_is_served(page):
    assert not any({"src", "href"} & at.keys() for _, at in page.elements)
    metas = {
        at.get("name", at.get("http-equiv")): at.get("content")
        for at in page.find("meta")
    }
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["Content-Security-Policy"].startswith("default-src 'none'")
    style = "".join(page.texts)
    assert "prefers-color-scheme: dark" in style and "overflow-x: auto" in style
    assert "url(" not in style and "@import" not in style
    wide = [at for at in page.find("div") if at["class"].startswith("wide")]
    assert len(wide) == len(page.find("table")) == 3


def test_states_settings_losses_and_origins_are_there(page):
    texts = page.texts
    [summary] = [text for text in texts if text.startswith("3 runs: ")]
    assert all(f"1 {state}" in summary for state in ("done", "stopped", "unreadable"))
    assert {"seed", "validation/nats", "2.0000", "c0ffee", "8 x H200"} <= {*texts}
    assert any("lmx train b" in text for text in texts)
    assert "training: loss over tokens" in texts
    assert "validation: loss over tokens" in texts
    assert any("do not determine" in t or "determine none" in t for t in texts)


def test_a_curve_has_its_values_where_the_axes_say(page):
    """The ends of the curves against the scale that two ticks of each axis imply."""
    drawing = [at for tag, at in page.elements if tag in ("text", "path")]
    paths = [at["d"] for at in drawing if "d" in at]
    assert len(paths) == 4
    assert max(path.count("L") for path in paths) == MAX_POINTS - 1
    ends = [re.findall(r"[\d.]+ [\d.]+", path)[-1].split() for path in paths[:2]]
    assert float(ends[0][0]) == float(ends[1][0]) == 480  # both end at 1280 tokens
    assert float(ends[0][1]) < float(ends[1][1])  # 2.1 is above 2 + 1/600


def test_the_fit_of_a_ladder_is_on_the_page_with_its_picture(tmp_path):
    """Against the parameters that the ladder was made with."""
    points = make_ladder(seed=1)
    for i, (n, d, loss) in enumerate(zip(points.n, points.d, points.loss, strict=True)):
        write_run(tmp_path / f"{i}", seed=i, n=float(n), d=float(d), loss=float(loss))
    page = Page(render_report(tmp_path, "lmx report", draws=9))
    [text] = [t for t in page.texts if "(likelihood)" in t]
    row = search(r"^alpha +(\S+) +(\S+) to (\S+)", text)
    assert float(row[2]) < TRUTH["alpha"] < float(row[3])
    [image] = page.find("img")
    assert image["src"].startswith("data:image/png;base64,iVBOR")


def test_the_command_writes_the_page_and_keeps_the_old_one_if_it_fails(
    tmp_path, capsys, monkeypatch
):
    write_run(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    for words, file in ([], "runs/report.html"), (["--out", "b.html"], "b.html"):
        with pytest.raises(SystemExit) as stop:
            main(["report", "runs", *words])
        assert stop.value.code == 0
        assert capsys.readouterr().out.strip() == file
        command = html.escape(" ".join(["lmx report runs", *words]))
        assert command in Path(file).read_text()
    with pytest.raises(SystemExit) as stop:
        main(["report", "nothing", "--out", "b.html"])
    assert stop.value.code == 2 and "nothing has no runs" in capsys.readouterr().err
    assert "lmx report runs --out b.html" in Path("b.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.html", "runs"]


# Reads what a browser made of the page; the policy of the page allows no script.
PROBE = """<script>const all = (x) => [...document.querySelectorAll(x)];
document.title = JSON.stringify({
 wide: document.documentElement.scrollWidth, window: innerWidth,
 back: getComputedStyle(document.body).backgroundColor,
 scripts: document.scripts.length,
 tables: all('.wide').some(x => x.scrollWidth > x.clientWidth),
 charts: all('svg').map(x => x.getBoundingClientRect().height),
 paths: all('path').map(x => x.getTotalLength()),
 image: [...document.images].map(x => x.naturalWidth)})</script>"""


@pytest.mark.nightly
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_on_a_phone_in_both_colors(tmp_path, dark):
    """Needs Chromium: `apt install chromium`."""
    points = make_ladder(seed=1, budgets=3, models=5)
    for i, (n, d, loss) in enumerate(zip(points.n, points.d, points.loss, strict=True)):
        write_run(tmp_path / f"{i} <i>", i, float(n), float(d), float(loss))
    text = render_report(tmp_path, "lmx report", draws=9)
    policy = search(r"<meta http-equiv.*?>", text)[0]
    file = tmp_path / "page.html"
    file.write_text(text.replace(policy, "").replace("</html>", f"{PROBE}</html>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, f"file://{file}"], capture_output=True, text=True, check=True
    )
    found = json.loads(html.unescape(search("<title>(.*?)</title>", done.stdout)[1]))
    assert found["wide"] <= found["window"]  # the page itself does not scroll sideways
    assert found["tables"]  # but a table does
    assert found["back"] == ("rgb(21, 21, 21)" if dark else "rgb(255, 255, 255)")
    assert found["scripts"] == 1  # the probe
    assert min(found["charts"]) > 100 and len(found["paths"]) == 30
    assert min(found["paths"][:15]) > 50 and found["image"][0] > 500
