"""Comparisons of two experiments by the runs of some seeds."""

import json
import math
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from lmx.cli.main import main
from lmx.core import rng
from lmx.models.params import flatten_params
from lmx.run.run_dir import METRICS, SCHEMA, write_initial_files
from lmx.study.comparison import count_equal_tensors
from lmx.train.experiment import load_experiment
from tests.study.test_sweep import TINY

TEXT = f"""
include '{TINY}'
Experiment.data = @train/Markov()
Experiment.hooks = [@Evaluate()]
Experiment.steps = 100
CheckpointPolicy.every = 100
Decoder.depth = 1
Markov.vocab = 8
Markov.sequence_length = 16
Markov.order = 2
train/Markov.batch_size = 8
validation/Markov.batch_size = 64
Evaluate.data = @validation/Markov()
Evaluate.every = 10
Evaluate.batches = 2
Mesh.data = 1
"""
NOISE = {0: 0.03, 1: -0.02, 2: 0.01, 3: -0.04}  # of seeds, in both experiments


@pytest.fixture
def config(tmp_path):
    (tmp_path / "A.gin").write_text(TEXT)
    return tmp_path / "A.gin"


@pytest.fixture
def write_run(config):
    """Writes a finished run whose loss is 2 / sqrt(rate * step), and noise."""

    def write_run(name, seed, rate=1.0, overrides=(), flops=1e9, final=True):
        words = [*overrides, f"Experiment.seed={seed}"]
        experiment = load_experiment(config, words)
        path = config.parent / name
        path.mkdir(parents=True)
        steps = experiment.fields["steps"]
        metadata = {"schema": SCHEMA, "run_id": experiment.run_id(), "flops": flops}
        metadata |= {"tokens": steps * 128} | ({"final": {}} if final else {})
        write_initial_files(path, experiment, metadata, None)
        rows = [
            {
                "step": step,
                "validation/nats": 2 / math.sqrt(rate * step) + NOISE[seed],
                "tokens_per_second": 1000.0 * rate,
            }
            for step in range(10, steps + 1, 10)
        ]
        (path / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    return write_run


def compare(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, words)])
    out, err = capsys.readouterr()
    return stop.value.code, str(out), str(err)


def write_sides(write_run, rate=1.0, overrides=("Decoder.depth=2",), **fields):
    for seed in NOISE:
        write_run(f"a/{seed}", seed)
        write_run(f"b/{seed}", seed, rate * (1 + NOISE[seed] / 9), overrides, **fields)


def test_runs_of_two_folders_are_compared_by_seed(write_run, tmp_path, capsys):
    write_sides(write_run, rate=1.44, flops=2e9)
    words = (tmp_path / "a", tmp_path / "b", "--png", tmp_path / "c.png")
    status, out, _ = compare(capsys, *words, "--json")
    result = json.loads(out)
    assert status == 0 and result["difference"]["verdict"] == "better"
    assert result["difference"]["mean"]["value"] == pytest.approx(
        0.2 / 1.2 - 0.2, abs=1e-3
    )
    tokens, flops, speed, time = (x["value"] for x in result["ratios"].values())
    assert tokens == pytest.approx(1.44, rel=0.02)  # by interpolation between points
    assert flops == pytest.approx(tokens / 2)
    assert speed == pytest.approx(1.44, rel=0.01)
    assert time == pytest.approx(tokens * speed)
    matched = 2 / math.sqrt(1.44 * 50) - 0.2  # after half of the steps
    assert result["at_equal_flops"]["mean"]["value"] == pytest.approx(matched, abs=1e-3)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert any("no parametrization scales" in note for note in result["notes"])


def test_fewer_seeds_than_a_verdict_needs_are_counted(write_run, tmp_path, capsys):
    write_sides(write_run)
    words = (tmp_path / "a", tmp_path / "b", "--max-seeds", 9)
    status, out, _ = compare(capsys, *words)
    assert status == 0 and "cannot tell (" in out
    assert "more seeds would decide such a difference" in out
    assert "validation/nats: cannot tell" in out and "model.depth  1  2" in out


@pytest.mark.study
def test_tensors_that_begin_with_equal_values_are_those_of_the_built_models(config):
    def make(experiment):
        model = experiment.model(nnx.Rngs(params=rng.key(0, "params")))
        return flatten_params(nnx.split(model)[1])

    for change in ("Attention.heads=2", "Constant.peak_lr=0.02"):
        pair = [load_experiment(config, words).build() for words in ((), (change,))]
        a, b = (jax.jit(partial(make, experiment))() for experiment in pair)
        both = [name for name in a if name in b and a[name].shape == b[name].shape]
        equal = [np.array_equal(*jax.device_get((a[x], b[x]))) for x in both]
        assert count_equal_tensors(*pair) == (sum(equal), len(both)), change
    assert all(equal)  # of the same model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "A and B are the same experiment"),
        (("--with", "Experiment.seed=1"), "A and B are the same experiment"),
        (
            ("--with", "Markov.order=1"),
            "not of the same tokens: give both an @Evaluate",
        ),
        (("--with", "Decoder.dpth=1"), "did you mean 'depth'"),
        (("--with", "Decoder.depth=2", "--seeds", 1), "1 pairs of seeds: a test has 2"),
        (
            ("--with", "Decoder.depth=2", "--max-seeds", 2),
            "at most 2 seeds: a sequential test has 3 to 50",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    config, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(config.parent)
    status, _, err = compare(capsys, "A.gin", *words)
    assert status == 2 and message in err
    assert [*config.parent.iterdir()] == [config]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"seed": 3, "final": False}, "is not finished: resume it"),
        ({"seed": 2}, "is a second run of seed 2"),
        ({"seed": 3, "overrides": ["Experiment.steps=90"]}, "differ in steps"),
        ({"seed": 3, "overrides": ["Constant.peak_lr=0.1"]}, "in schedule.peak_lr"),
    ],
)
def test_folders_with_other_runs_are_refused(write_run, tmp_path, capsys, run, message):
    for seed in (0, 1, 2):
        write_run(f"a/{seed}", seed)
    write_run("a/odd", **run)
    write_run("b/0", 0, overrides=["Decoder.depth=2"])
    status, _, err = compare(capsys, tmp_path / "a", tmp_path / "b")
    assert status == 2 and message in err
    (tmp_path / "none").mkdir()
    status, _, err = compare(capsys, tmp_path / "b", tmp_path / "none")
    assert status == 2 and "has no runs" in err
    status, _, err = compare(capsys, tmp_path / "b", tmp_path / "b")
    assert status == 2 and "same experiment" in err


@pytest.mark.nightly
def test_ten_percent_fewer_tokens_are_worse(config, tmp_path, capsys):
    """Of a small model that is trained for 40 or 36 steps, by at most 6 seeds."""
    settings = ("Experiment.steps=40", "Constant.peak_lr=0.001")
    words = (config, *settings, "--with", "Experiment.steps=36", "--max-seeds", 6)
    out = ("--out", tmp_path / "out", "--json")
    status, text, err = compare(capsys, *words, *out)
    result = json.loads(text)
    assert status == 0 and result["difference"]["verdict"] == "worse"
    assert 3 <= len(result["losses"]) <= 6 and "3 seeds: " in err
    assert result["ratios"]["tokens to equal loss, A / B"]["high"] < 1.1
    again, same, later = compare(capsys, *words, *out)
    assert (again, same) == (status, text)
    assert "A/seed=0: " in err and "A/seed=0: " not in later  # nothing runs twice
    sides = (tmp_path / "out" / "A", tmp_path / "out" / "B")
    assert compare(capsys, *sides, "--max-seeds", 6, "--json")[1] == text
