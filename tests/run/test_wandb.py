"""Weights & Biases gets what the metrics file gets, and cannot end or change a run."""

import importlib
import json
import struct
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import lmx
from lmx.run.run_dir import SCHEMA, RunDir, read_metadata, read_metrics
from lmx.run.wandb import WandB
from lmx.train.experiment import load_experiment
from lmx.train.hooks.preemption import StoppedError
from lmx.train.trainer import RunOptions
from tests.train.conftest import PAGE as TINY

METADATA = {"schema": SCHEMA, "run_id": "r", "commit": "c0ffee", "devices": "1 x cpu"}


class Fake(ModuleType):
    """Stands for the library: records calls, and fails where it is told to."""

    def __init__(self, failing=()):
        super().__init__("wandb")
        self.failing, self.starts, self.lines, self.statuses = failing, [], [], []
        self.Settings = dict

    def _fail(self, call):
        if call in self.failing:
            raise OSError(f"no network in {call}")

    def init(self, **keywords):
        self.starts.append(keywords)
        self._fail("init")
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step):
        self._fail("log")
        self.lines.append({"step": step, **values})

    def finish(self, exit_code):
        self._fail("finish")
        self.statuses.append(exit_code)


@pytest.fixture
def claim(tmp_path):
    """Opens the folder of a run, from a step on, with a tracker."""

    def claim(step, **settings):
        config = load_experiment(TINY)
        metadata = {**METADATA, "run_id": config.run_id()}
        run_dir = RunDir.claim(tmp_path / "rates" / "a", config, metadata, None)
        run_dir.wandb = WandB(**settings)
        run_dir.truncate_after(step)
        return run_dir

    return claim


def test_metrics_go_there_with_settings_and_group_and_resume_one_run(
    claim, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
    for step in (0, 2):
        run_dir = claim(step, tags=("width", "x"), mode="offline")
        run_dir.log_metrics(step + 1, {"loss": 2.0, "norms": [1.0, 2.0]})
        run_dir.log_metrics(step + 2, {"loss": float("nan"), "sample": "text"})
        run_dir.close()
    assert [line["step"] for line in fake.lines] == [1, 2, 3, 4]
    assert [x["step"] for x in read_metrics(run_dir.path)] == [1, 2, 3, 4]
    assert fake.lines[0] == {"step": 1, "loss": 2.0, "norms": [1.0, 2.0]}
    first, second = fake.starts
    assert first["id"] == second["id"] == read_metadata(run_dir.path)["wandb_id"]
    assert first["resume"] == "allow" and first["mode"] == "offline"
    assert (first["group"], first["name"]) == ("rates", "a")
    assert first["tags"] == ("width", "x")
    assert first["config"]["schedule.peak_lr"] == 0.01
    assert first["config"]["commit"] == "c0ffee"
    assert fake.statuses == [0, 0]
    other = RunDir(run_dir.path, writable=False)  # as in a process that does not lead
    other.wandb = WandB()
    other.truncate_after(4)
    other.log_metrics(5, {"loss": 1.0})
    assert len(fake.starts) == 2 and len(fake.lines) == 4


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_its_failure_is_one_warning_and_the_metrics_stay(
    claim, monkeypatch, capsys, failing
):
    monkeypatch.setitem(sys.modules, "wandb", Fake([failing]))
    run_dir = claim(0)
    for step in (1, 2):
        run_dir.log_metrics(step, {"loss": 2.0})
    run_dir.close()
    assert [row["step"] for row in read_metrics(run_dir.path)] == [1, 2]
    err = capsys.readouterr().err
    assert err.count("nothing more is sent to Weights & Biases") == 1
    assert f"no network in {failing}" in err


def test_a_run_that_an_exception_ends_is_failed_there(claim, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
    with pytest.raises(ZeroDivisionError):
        run_dir = claim(0)
        try:
            _ = 1 / 0
        finally:
            run_dir.close()
    assert fake.statuses == [1]


def test_without_the_library_nothing_runs_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_experiment(TINY, ["Experiment.wandb=@WandB()", "Mesh.data=1"])
    assert config.run_id() == load_experiment(TINY).run_id()  # not of its identity
    with pytest.raises(ValueError, match=r"pip install 'lmx\[wandb\]'"):
        lmx.train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def read_records(file):
    """The records of a file of W&B: LevelDB's log format after 7 bytes."""
    wandb_internal_pb2 = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block is empty
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or its last part
            record: Any = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


@pytest.mark.nightly
@pytest.mark.wandb
def test_the_library_records_a_resumed_run_offline_and_changes_no_bit_of_it(
    tmp_path, monkeypatch
):
    """Its files are read by their format, and held against the metrics of the run."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    path = tmp_path / "rates" / "a"
    words = ["Mesh.data=1", "Experiment.wandb=@WandB()", "WandB.mode=offline"]
    config = load_experiment(TINY, [*words, "WandB.tags=('x',)"])
    with pytest.raises(StoppedError):
        lmx.train_run(config, path, RunOptions(stop_after=6))
    lmx.train_run(config, path)
    lmx.train_run(load_experiment(TINY, words[:1]), tmp_path / "plain")
    assert read_metadata(path)["losses"] == read_metadata(tmp_path / "plain")["losses"]
    files = sorted((path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    history: dict[int, dict[str, Any]] = {}
    for file in files:
        records = read_records(file)
        [run] = [record.run for record in records if record.HasField("run")][:1]
        assert run.run_id == read_metadata(path)["wandb_id"]
        assert (run.project, run.run_group, [*run.tags]) == ("lmx", "rates", ["x"])
        settings = {x.key: json.loads(x.value_json) for x in run.config.update}
        assert settings["schedule.peak_lr"] == 0.01
        for record in records:
            items = record.history.item
            line = {
                x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in items
            }
            if line:
                history.setdefault(line["_step"], {}).update(line)
        exits = [record.exit for record in records if record.HasField("exit")]
        assert len(exits) == 1
    rows = [*read_metrics(path)]
    assert len(rows) == 10
    for row in rows:
        line = history[row["step"]]
        assert {name: line[name] for name in row if name != "step"} == {
            name: value for name, value in row.items() if name != "step"
        }


@pytest.mark.nightly
@pytest.mark.wandb
def test_a_server_that_does_not_answer_delays_a_run_and_does_not_end_it(
    claim, monkeypatch, capsys
):
    monkeypatch.setattr("lmx.run.wandb.TIMEOUT", 5.0)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    began = time.monotonic()
    run_dir = claim(0, mode="online")
    run_dir.log_metrics(1, {"loss": 2.0})
    run_dir.close()
    assert time.monotonic() - began < 60
    assert [row["step"] for row in read_metrics(run_dir.path)] == [1]
    assert capsys.readouterr().err.count("nothing more is sent") == 1
