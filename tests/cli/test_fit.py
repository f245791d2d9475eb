"""`lmx fit`: a report of a ladder made from known parameters."""

import json
import re

import numpy as np
import pytest
from matplotlib.axes import Axes

from lmx.cli.main import main
from lmx.cli.study.fit import FIELDS, FORMS
from lmx.study import points
from lmx.study.law import LAWS
from lmx.study.points import COLUMNS
from tests.study.test_check import TRUTH, make_ladder
from tests.study.test_law import draw_points


@pytest.fixture
def table(tmp_path):
    """A ladder as CSV, with two spoiled rows of another set."""
    made = make_ladder(seed=1)
    rows = zip(made.n, made.d, made.loss, strict=True)
    lines = ["set,n,d,loss", *(f"a,{n},{d},{loss}" for n, d, loss in rows)]
    file = tmp_path / "points.csv"
    file.write_text("\n".join([*lines, "b,1e9,1e10,9", "b,2e9,2e10,9"]))
    return file


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *map(str, words), "--draws", "20"])
    return stop.value.code, *capsys.readouterr()


def test_the_report_has_the_parameters_the_points_were_made_with(table, capsys):
    words = ("--where", "set=a", "--predict", "1e10,1e11", "--budget", "1e22", "--json")
    status, out, _ = run(capsys, table, *words)
    assert status == 0
    report = json.loads(out)
    assert report["points"] == 40
    for name, value in TRUTH.items():
        found = report["parameters"][name]
        assert found["low"] < value < found["high"]
        assert found["bootstrap_low"] < found["value"] < found["bootstrap_high"]
    [run_of_1e10] = report["predictions"]
    loss = TRUTH["E"] + 406.4 / 1e10**0.34 + 410.7 / 1e11**0.28
    assert run_of_1e10["loss"]["low"] < loss < run_of_1e10["loss"]["high"]
    [optimum] = report["optima"]
    assert optimum["n"]["value"] * optimum["tokens"] * 6 == pytest.approx(1e22)
    assert len(report["next_runs"]) == 3
    assert {x["held_out"] for x in report["backtests"]} == {"budgets", "models"}
    assert report["warnings"] == []


@pytest.fixture
def legends(monkeypatch):
    """The texts of each legend that is drawn."""
    drawn, draw = [], Axes.legend

    def record(axes, *args, **kwargs):
        legend = draw(axes, *args, **kwargs)
        drawn.append([text.get_text() for text in legend.get_texts()])
        return legend

    monkeypatch.setattr(Axes, "legend", record)
    return drawn


def test_the_text_names_outliers_which_an_option_drops(
    table, tmp_path, capsys, legends
):
    image = tmp_path / "fit.png"
    against = ",".join(f"{name}={value}" for name, value in TRUTH.items())
    status, out, _ = run(capsys, table, "--png", image, "--against", against)
    assert status == 0
    assert "2 outliers" in out and "rows 43 (loss 9.000), 42 (loss 9.000)" in out
    assert "within the joint 95% region" in out
    assert image.read_bytes().startswith(b"\x89PNG")
    (legend, *_) = legends
    assert len(legend) == 7 + 2  # budgets; fitted curve and optimum
    assert legend[0] == "C = $10^{18.0}$" and legend[-2:] == ["fitted curve", "optimum"]
    status, out, _ = run(capsys, table, "--drop-outliers")
    assert "40 runs" in out and "outliers" not in out
    for section in ("alpha", "optimal N", "isoFLOP", "Backtest", "Next runs"):
        assert section in out


def test_the_compute_form_fits_the_frontier_with_a_pinned_asymptote(table, capsys):
    words = ("--where", "set=a", "--form", "compute", "--pin", "E=1.69", "--json")
    status, out, _ = run(capsys, table, *words)
    assert status == 0
    report = json.loads(out)
    assert report["pinned"] == {"E": 1.69}
    # a beta / (alpha + beta) of E + A / N^alpha + B / D^beta along the optimum
    gamma = TRUTH["alpha"] * TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    assert report["parameters"]["gamma"]["value"] == pytest.approx(gamma, abs=0.01)
    assert report["points"] < 40


def test_the_compute_form_predicts_the_loss_of_a_budget(table, capsys):
    words = (table, "--where", "set=a", "--form", "compute", "--pin", "E=1.69")
    _, out, _ = run(capsys, *words, "--budget", "1e22", "--json")
    (found,) = json.loads(out)["predictions"]
    assert found["c"] == 1e22 and found["n"] is found["d"] is None
    # the lowest loss of E + A / N^alpha + B / D^beta, on a grid of N
    n = np.geomspace(1e6, 1e14, 10_000)
    losses = TRUTH["E"] + 406.4 / n**0.34 + 410.7 / (1e22 / 6 / n) ** 0.28
    assert found["loss"]["value"] == pytest.approx(losses.min(), rel=0.01)
    assert found["run"]["low"] < losses.min() < found["run"]["high"]
    assert found["loss"]["low"] < found["loss"]["value"] < found["loss"]["high"]
    status, out, _ = run(capsys, *words)  # the largest budget, and ten times it
    assert status == 0 and "C 1e+21: loss " in out and "C 1e+22: loss " in out


def test_the_finished_runs_of_a_folder_are_points(tmp_path, capsys, monkeypatch):
    made = make_ladder()
    rows = [
        {
            **{"run": f"{i}", "state": "done", "parameters": n, "tokens": d},
            **{"loss": 9.0, "validation/nats": loss},  # of the last batch, and of all
        }
        for i, (n, d, loss) in enumerate(zip(made.n, made.d, made.loss, strict=True))
    ]
    rows.append({"run": "40", "state": "running", "parameters": 9, "tokens": 9})
    monkeypatch.setattr(points, "list_runs", lambda folder: rows)
    status, out, _ = run(capsys, tmp_path, "--json")
    assert status == 0
    report = json.loads(out)
    assert report["points"] == 40
    assert report["parameters"]["E"]["value"] == pytest.approx(TRUTH["E"], rel=0.02)


def test_every_law_can_be_named():
    assert FORMS == tuple(LAWS)
    assert FIELDS.keys() == COLUMNS.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pin", "E=-1"], "E is pinned to -1.0, and must be above 0"),
        (["--against", "E=-1,A=1,B=1,alpha=1,beta=1"], "E, A, B must be above 0"),
        (["--predict", "1e9"], "--predict: '1e9' must be 2 numbers with a comma"),
        (["--budget", "-1"], "--budget: '-1' must be a number, above 0"),
        (["--pin", "E"], "--pin: 'E' must be NAME=VALUE"),
        (["--pin", "A=1"], "A cannot be pinned: one of E, alpha, beta can"),
        (["--against", "E=1"], "A, B, alpha, beta is missing"),
        (["--delta", "0"], "delta is 0.0, and must be above 0"),
        (["--n", "size"], "no column 'size'"),
        (["--form", "repeated"], "fewer unique tokens than tokens: name their column"),
    ],
)
def test_what_is_wrong_is_named(table, capsys, words, message):
    status, _, err = run(capsys, table, *words)
    assert status == 2
    assert re.search(message, err), err


@pytest.mark.study
def test_the_few_points_of_the_docs_have_a_report_with_undecided_ends(tmp_path, capsys):
    rows = ["n,d,loss", "1e6,2e7,5.92", "1e6,2e8,5.02", "4e6,8e7,4.57", "4e6,8e8,3.96"]
    rows += ["16e6,3e8,3.78", "16e6,3e9,3.31", "64e6,1e9,3.16"]
    (tmp_path / "few.csv").write_text("\n".join(rows))
    status, out, _ = run(capsys, tmp_path / "few.csv", "--draws", "20")
    assert status == 0
    assert "do not decide the asymptote" in out


def test_a_law_of_experts_has_a_report(tmp_path, capsys):
    made = draw_points("routed", size=40)
    rows = zip(made.n, made.d, made.experts, made.loss, strict=True)
    lines = ["n,d,experts,loss", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "routed.csv").write_text("\n".join(lines))
    words = ("--form", "routed", "--against", "a=-0.082,b=-0.1,c=0.009,d=1.1")
    status, _, err = run(capsys, tmp_path / "routed.csv", *words)
    assert status == 2 and "E_start, E_max is missing" in err
    words = ("--form", "routed", "--budget", "1e21")
    status, _, err = run(capsys, tmp_path / "routed.csv", *words)
    assert status == 2 and "does not say which N and D are optimal for a budget" in err
    status, out, _ = run(capsys, tmp_path / "routed.csv", "--form", "routed")
    assert status == 0 and "E_start" in out


def test_a_run_without_a_loss_that_others_have_is_named(tmp_path, capsys, monkeypatch):
    rows = [
        {"state": "done", "parameters": 9 + i, "tokens": 9 * i + 1, "val_loss": 3.0}
        for i in range(9)
    ]
    del rows[4]["val_loss"]
    monkeypatch.setattr(points, "list_runs", lambda folder: rows)
    status, _, err = run(capsys, tmp_path)
    assert status == 2 and ":5: val_loss is None" in err
    monkeypatch.setattr(points, "list_runs", lambda folder: [])
    status, _, err = run(capsys, tmp_path)
    assert status == 2 and "has no finished runs" in err


def test_one_budget_and_equal_models_are_refused(tmp_path, capsys):
    made = make_ladder()
    file = tmp_path / "one.csv"
    for which, name in ((made.budgets == 0, "C"), (np.arange(40) % 8 == 0, "N")):
        some = made.select(which)
        n = some.n if name == "C" else np.full(len(some), 1e9)
        rows = zip(n, some.d, some.loss, strict=True)
        lines = ["n,d,loss", *(f"{n},{d},{loss}" for n, d, loss in rows)]
        file.write_text("\n".join(lines))
        status, _, err = run(capsys, file)
        assert status == 2 and f"several values of {name}" in err
