"""`lmx sweep`: the table of a plan, and what its numbers assume."""

import json

import pytest

SWEEP = """
Sweep.experiment = 'tiny.gin'
Sweep.points = @Grid()
Grid.values = {'Experiment.seed': (0, 1)}
Sweep.settings = {'Mesh.data': 1}
"""


@pytest.fixture
def sweep(work):
    (work / "sweep.gin").write_text(SWEEP)


@pytest.mark.parametrize("machine", ["cpu", "v5e-1"])
def test_a_plan_says_what_its_hours_assume_and_agrees_with_lmx_plan(
    lmx, sweep, machine
):
    status, out, _ = lmx("sweep", "plan", "sweep.gin", "--on", machine)
    assert status == 0 and out.endswith("next: lmx sweep run sweep.gin\n")
    first = out.splitlines()[0]
    for words in (machine, "without compilation, evaluation and saves"):
        assert words in first
    _, out, _ = lmx("sweep", "plan", "sweep.gin", "--on", machine, "--json")
    words = ("Mesh.data=1", "--on", machine, "--analytic", "--json")
    one = json.loads(lmx("plan", "tiny.gin", *words)[1])
    total = json.loads(out)["total"]
    for name in ("hours", "dollars"):
        assert total[name] == pytest.approx(2 * one[name])


def test_an_override_of_the_experiment_is_refused_with_where_it_goes(lmx, sweep):
    status, _, err = lmx("sweep", "plan", "sweep.gin", "Experiment.steps=5")
    assert status == 2 and "Experiment.steps: settings of all runs are in Sweep" in err
    status, out, _ = lmx(
        "sweep",
        "plan",
        "sweep.gin",
        "Sweep.settings={'Mesh.data': 1, 'Experiment.steps': 5}",
        "--json",
    )
    assert json.loads(out)["total"]["tokens"] == 2 * 5 * 8 * 16


def test_a_note_is_printed_once(lmx, sweep, work):
    text = "include 'tiny.gin'\nDecoder.mlp = @GELU\nGELU.hidden = 32\n"
    (work / "gelu.gin").write_text(text)
    _, _, err = lmx("config", "diff", "gelu.gin", "gelu.gin")
    assert err.count("nothing uses SwiGLU.hidden") == 1
