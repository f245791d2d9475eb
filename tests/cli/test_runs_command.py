"""`lmx runs`, and `lmx train` of a run by its folder."""

import csv
import io
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure

from lmx import read_runs, restore
from lmx.cli.supervise import newest_step
from lmx.run.plots import plot_run
from lmx.run.run_dir import RunDir, read_last_metrics, read_metadata
from lmx.run.summary import format_summary


@pytest.fixture
def runs(trained, tmp_path):
    """Four copies of a run: done, stopped, running and unreadable."""
    folder = tmp_path / "runs"
    for name in ("done", "stopped", "deep/running", "unreadable"):
        run = shutil.copytree(trained.run, folder / name)
        if name in ("done", "unreadable"):
            continue
        metadata = json.loads((run / "metadata.json").read_text())
        del metadata["final"]
        (run / "metadata.json").write_text(json.dumps(metadata))
        config = (run / "experiment.json").read_text()
        config = config.replace('"peak_lr": 0.01', '"peak_lr": 0.5')
        (run / "experiment.json").write_text(config)
    (folder / "unreadable" / "metadata.json").write_text('{"schema": 99}')
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": "now"}
    (folder / "deep" / "running" / "lock").write_text(json.dumps(holder))
    (folder / "stopped" / "lock").write_text(json.dumps(holder | {"pid": 1 << 30}))
    return folder


def test_a_table_of_runs_has_what_differs_and_the_losses(lmx, runs):
    status, out, _ = lmx("runs", f"{runs}", "--csv")
    rows = {Path(row["run"]).name: row for row in csv.DictReader(io.StringIO(out))}
    last, metadata = read_last_metrics(runs / "done"), read_metadata(runs / "done")
    assert status == 0
    assert {name: row["state"].split(":")[0] for name, row in rows.items()} == {
        "done": "done",
        "stopped": "stopped",
        "running": "running",
        "unreadable": "unreadable",
    }
    assert rows["stopped"] == {
        "run": f"{runs / 'stopped'}",
        "state": "stopped",
        "step": "3",
        "steps": "3",
        "parameters": f"{metadata['parameters']}",
        "non_embedding_parameters": f"{metadata['non_embedding_parameters']}",
        "tokens": f"{3 * 8 * 16}",
        "flops": f"{int(metadata['flops'])}",
        "own_flops": f"{int(metadata['flops'])}",
        "seconds": rows["done"]["seconds"],  # its copies have the same times
        "schedule.peak_lr": "0.5",
        "loss": f"{last['loss']}",
        "validation/nats": f"{last['validation/nats']}",
    }
    assert rows["done"]["schedule.peak_lr"] == "0.01"
    seconds = metadata["seconds"]
    spent = sum(seconds.values()) - seconds.get("down", 0.0)
    assert float(rows["done"]["seconds"]) == pytest.approx(spent, rel=0.05)
    status, text, _ = lmx("runs", f"{runs}")
    assert status == 0 and f"{last['validation/nats']:.4f}" in text
    status, _, err = lmx("runs", f"{runs / 'nothing'}")
    assert status == 2 and "has no runs" in err


def test_a_frame_of_runs_and_parquet_have_the_numbers_of_the_csv(lmx, runs, tmp_path):
    log = runs / "stopped" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "loss": "NaN"}\n')
    metadata = json.loads((runs / "done" / "metadata.json").read_text())
    metadata["flops"] = 1e25  # beyond 64 bits
    (runs / "done" / "metadata.json").write_text(json.dumps(metadata))
    file = tmp_path / "runs.parquet"
    status, out, _ = lmx("runs", f"{runs}", "--csv", "--parquet", f"{file}")
    expected = pandas.read_csv(io.StringIO(out))
    assert status == 0
    for frame in (read_runs(runs), pandas.read_parquet(file)):
        pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)
        kinds = {name: frame[name].dtype.kind for name in frame}
        assert kinds["schedule.peak_lr"] == kinds["loss"] == kinds["flops"] == "f"


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_without_pandas_the_extra_that_has_it_is_named(
    lmx, runs, tmp_path, monkeypatch, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = lmx("runs", f"{runs}", "--parquet", f"{tmp_path / 'x'}")
    assert status == 2 and f"{missing} is needed" in err
    assert "pip install 'lmx[data]'" in err and not (tmp_path / "x").exists()


def test_a_folder_that_is_no_step_disturbs_no_command(lmx, trained, tmp_path):
    """`²` is a digit of Unicode that int() refuses."""
    run = shutil.copytree(trained.run, tmp_path / "runs" / "a")
    expected = lmx("ckpt", "list", f"{run}")
    for name in ("²", "٣", "00000004.tmp"):
        (run / "checkpoints" / name).mkdir()
    assert lmx("ckpt", "list", f"{run}") == expected
    for words in (["verify"], ["lineage"], ["diff", f"{run}"]):
        status, out, _ = lmx("ckpt", *words, f"{run}")
        assert status == 0 and "²" not in out
    status, out, _ = lmx("runs", f"{run.parent}")
    assert status == 0 and "done" in out
    assert lmx("config", "show", f"{run}")[0] == 0
    assert restore(run).step == 3 == newest_step(run)


def test_losses_of_evaluations_of_any_name_are_kept_shown_and_plotted(
    runs, monkeypatch
):
    run_dir = RunDir(runs / "done")
    run_dir.log_metrics(3, {"held/nats": 1.5, "held/perplexity": 4.48, "x/loss": 2.0})
    run_dir.close()
    assert run_dir.evaluated == {"held": 1.5, "x": 2.0}
    lines = format_summary(runs / "done").splitlines()
    assert "  held        1.5000 nats per token, perplexity 4.48" in lines
    assert "  x           loss 2.0000" in lines
    labels = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **kw: (
            labels.extend(self.axes[0].get_legend_handles_labels()[1]),
            save(self, *args, **kw),
        ),
    )
    plot_run(runs / "done")
    assert labels == ["training", "validation", "held", "x"]


def test_a_run_is_named_by_its_folder_and_stays_in_it(lmx, trained, monkeypatch):
    monkeypatch.chdir(trained.work)
    status, out, err = lmx("train", trained.run)
    assert status == 0 and "3 steps" in out and "a new run" not in err
    status, _, err = lmx("train", trained.run, "--run", "elsewhere")
    assert status == 2 and "is a run, which lmx train resumes in its own folder" in err
    status, _, err = lmx("train", trained.run, "Constant.peak_lr=0.5")
    assert status == 2 and "--allow-change" in err
    assert "schedule.peak_lr: 0.01 before, 0.5 now" in err
    status, _, err = lmx("train", "runs")
    assert status == 2 and "runs is a folder, and not that of a run" in err
    assert not Path("elsewhere").exists()


@pytest.mark.faults
def test_a_run_is_extended_and_a_new_one_is_compared_with_it(
    lmx, trained, tmp_path, monkeypatch
):
    run = shutil.copytree(trained.run, tmp_path / "runs" / Path(trained.run).name)
    shutil.copy(trained.work / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["Experiment.steps=5", "--allow-change", "Experiment.steps"]
    status, _, err = lmx("train", f"{run}", *words, "Evaluate.every=1")
    assert status == 0 and "a new run" not in err
    last = read_last_metrics(run)
    assert last["step"] == 5 and "validation/nats" in last
    (line,) = [line for line in err.splitlines() if "step 5/5" in line]
    assert ", validation " in line
    status, _, err = lmx(*trained.words, "Experiment.seed=1")
    (new,) = [line for line in err.splitlines() if line.endswith(": a new run")]
    assert status == 0 and new.split(":")[0] != f"{run}"
    assert f"{run.relative_to(tmp_path)} differs in steps, seed" in err
