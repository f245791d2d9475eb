"""The folder of a run: it is complete or absent, and belongs to one run."""

import json
import math

import pytest

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.run import run_dir
from lmx.run.run_dir import (
    SCHEMA,
    RunDir,
    read_config,
    read_last_metrics,
    read_metadata,
    read_metrics,
)

INITIAL = {"schema": SCHEMA, "run_id": "old", "data": {"source": "echo"}}
NOISE = {**INITIAL, "run_id": "new", "data": {"source": "noise"}}


@pytest.fixture
def claim(tmp_path, tiny):
    """Claims `runs/a` for the tiny experiment; closes the claim before."""
    claimed = []

    def claim(*overrides, metadata=INITIAL, tokenizer=None, path="runs/a", allow=()):
        if claimed:
            claimed.pop().close()
        config = tiny(*overrides)
        claimed.append(
            RunDir.claim(tmp_path / path, config, metadata, tokenizer, allow)
        )
        return claimed[0]

    yield claim
    for directory in claimed:
        directory.close()


def list_files(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))


def read_json(path, name="metadata.json"):
    return json.loads((path / name).read_text())


def test_a_new_folder_has_the_config_the_metadata_and_the_tokenizer(claim, tiny):
    path = claim(tokenizer=ByteTokenizer()).path
    assert list_files(path) == [
        "experiment.gin", "experiment.json", "lock", "metadata.json",
        "tokenizer", "tokenizer/lmx_tokenizer.json",
    ]  # fmt: skip
    assert read_json(path, "experiment.json") == json.loads(tiny().to_json())
    assert read_json(path) == INITIAL


def test_a_claim_that_fails_leaves_no_files(claim, tmp_path, monkeypatch):
    def fail(path, config):
        (path / "half").write_text("written")
        raise OSError(28, "No space left on device", "half")

    monkeypatch.setattr(run_dir, "_write_config", fail)
    with pytest.raises(ConfigError, match="No space left on device.*name another"):
        claim(path="deep/er/run")
    assert list_files(tmp_path) == []


def test_an_empty_folder_can_be_claimed_and_one_with_other_files_cannot(
    claim, tmp_path
):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert claim().path.is_dir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("my only copy")
    with pytest.raises(ConfigError, match="b exists and is not a run: name another"):
        claim(path="b")
    assert list_files(tmp_path / "b") == ["thesis.tex"]


def test_another_experiment_is_refused_with_the_differences(claim):
    before = (claim().path / "experiment.json").read_text()
    with pytest.raises(ConfigError) as refused:
        claim("Experiment.seed=1", "Decoder.depth=3")
    assert "holds another run: name another folder" in str(refused.value)
    assert "  seed: 0 before, 1 now" in str(refused.value)
    assert "  model.depth: 2 before, 3 now" in str(refused.value)
    assert (claim().path / "experiment.json").read_text() == before


def test_other_data_with_the_same_experiment_are_refused(claim):
    claim()
    with pytest.raises(ConfigError, match="data have changed since.*restore the old"):
        claim(metadata=NOISE)


def test_allowed_changes_are_accepted_and_recorded_in_the_metadata(claim):
    claim()
    overrides = ["Experiment.seed=1", "RepeatTask.batch_size=4"]
    with pytest.raises(ConfigError, match="  seed: 0 before, 1 now"):
        claim(*overrides, metadata=NOISE, allow=["data"])
    with pytest.raises(ConfigError, match="no field 'Experiment.sed'"):
        claim("Experiment.seed=1", allow=["Experiment.sed"])
    path = claim(*overrides, metadata=NOISE, allow=["data", "Experiment.seed"]).path
    metadata = read_json(path)
    assert metadata["run_id"] == "new" and metadata["data"] == {"source": "noise"}
    assert {c["name"]: (c["from"], c["to"]) for c in metadata["allowed_changes"]} == {
        "seed": ("0", "1"),
        "data.batch_size": ("8", "4"),
        "data source": ("echo", "noise"),
    }
    claim(*overrides, metadata=NOISE)  # the changed run is now the recorded one
    claim(*overrides, "Experiment.steps=9", metadata=NOISE, allow=["steps"])
    assert len(read_json(path)["allowed_changes"]) == 4


def test_execution_settings_can_change(claim):
    path = claim().path
    claim("Mesh.fsdp=4", "CheckpointPolicy.every=2", "Experiment.log_every=3")
    assert "fsdp = 4" in (path / "experiment.gin").read_text()


@pytest.mark.parametrize("name", ["experiment.json", "metadata.json"])
def test_an_unreadable_file_is_named(claim, name):
    path = claim().path
    (path / name).write_text("{")
    with pytest.raises(ConfigError, match=f"{name} is not JSON.*restore it"):
        claim()


@pytest.mark.parametrize("name", ["quickstart", "quickstart-..."])
def test_a_name_without_its_id_suggests_the_run(claim, tmp_path, name):
    run = claim(path="quickstart-0123").path
    with pytest.raises(ConfigError, match=f"is not a run: .* Did you mean {run}"):
        read_metadata(tmp_path / name)


def test_runs_of_another_schema_are_refused(claim):
    path = claim().path
    metadata = path / "metadata.json"
    metadata.write_text(json.dumps(INITIAL | {"schema": SCHEMA + 1}))
    with pytest.raises(ConfigError, match=r"a newer lmx \(schema 5; this lmx reads"):
        claim()
    metadata.rename(path / "card.json")  # the name of the file in schema 3
    for read in (read_config, lambda _: claim()):
        with pytest.raises(ConfigError, match=r"older lmx \(schema 3; .*use that vers"):
            read(path)


def log(directory, *steps):
    directory.truncate_after(0)
    for step in steps:
        directory.log_metrics(step, {"loss": 1.0 / step})
    directory.close()


def test_metrics_after_the_restored_step_are_dropped(claim):
    run = claim()
    log(run, 1, 2, 3, 4)
    resumed = claim()
    resumed.truncate_after(2)
    resumed.log_metrics(3, {"loss": 5.0})
    resumed.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(run.path)] == [
        (1, 1.0), (2, 0.5), (3, 5.0),
    ]  # fmt: skip


def test_a_partial_line_is_dropped(claim):
    run = claim()
    log(run, 1, 2)
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2]
    resumed = claim()
    resumed.truncate_after(3)
    resumed.log_metrics(4, {"loss": 0.0})
    resumed.close()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [1, 2, 4]


def test_non_finite_numbers_are_strings_that_float_parses(claim):
    run = claim()
    run.truncate_after(0)
    values = {"a": math.nan, "b": math.inf, "c": [-math.inf, 1.0], "d": 0.1}
    run.log_metrics(1, values)
    run.close()
    line = (run.path / "metrics.jsonl").read_text().strip()
    expected = '{"step": 1, "a": "NaN", "b": "Infinity", "c": ["-Infinity", 1.0]'
    assert line == f'{expected}, "d": 0.1}}'
    assert math.isnan(float(read_last_metrics(run.path)["a"]))


def test_the_last_metrics_have_the_newest_value_of_each(claim):
    run = claim()
    run.truncate_after(0)
    run.log_metrics(1, {"loss": 2.0, "sample": "x"})
    run.log_metrics(2, {"loss": 1.0})
    run.close()
    assert read_last_metrics(run.path) == {"step": 2, "loss": 1.0, "sample": "x"}


def test_the_metadata_can_be_extended(claim):
    run = claim()
    assert not run.finished
    run.update_metadata(final={"loss": 1.0})
    assert read_json(run.path) == INITIAL | {"final": {"loss": 1.0}}
    assert run.finished


def test_a_process_that_is_not_the_leader_writes_no_files(tmp_path):
    follower = RunDir(tmp_path, writable=False)
    follower.truncate_after(0)
    follower.log_metrics(1, {"loss": 1.0})
    follower.update_metadata(final={})
    assert follower.flush() is None
    follower.close()
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "timing.jsonl"])
def test_a_link_in_place_of_a_file_of_the_run_is_refused(claim, tmp_path, name):
    run = claim()
    run.close()
    path = run.path
    (tmp_path / "thesis.tex").write_text("my only copy")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link.*remove the"):
        claim()
    assert (tmp_path / "thesis.tex").read_text() == "my only copy"


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "timing.jsonl"])
def test_a_run_with_a_damaged_line_can_be_resumed(claim, name):
    run = claim()
    for step in (1, 2):
        run.log_metrics(step, {"loss": 1.0})
        run.record_hook(step, "save", "due", metrics=1000)
        run.append("timing.jsonl", {"attempt": 1, "step": step})
    path = run.path / name
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0\0\0\n" + second)
    resumed = claim()
    resumed.truncate_after(2)
    assert path.read_bytes() == first + second
    assert path.with_name(f"{name}.damaged").read_bytes() == b"\0\0\0\n"


def test_a_run_that_resumes_shows_the_last_loss_of_each_evaluation(claim):
    directory = claim()
    directory.log_metrics(2, {"loss": 3.0, "validation/nats": 2.5, "books/loss": 4.0})
    directory.log_metrics(4, {"validation/nats": math.nan, "books/loss": 1.0})
    directory = claim()
    directory.truncate_after(2)
    assert directory.evaluated == {"validation": 2.5, "books": 4.0}
