"""`lmx train`, from its arguments to the files of the run."""


def test_json_is_the_newest_value_of_every_metric(trained):
    work, _, summary = trained
    assert summary["step"] == 3 and summary["tokens_seen"] == 3 * 8 * 16
    assert summary["nats"] > 0 and summary["validation/bits_per_byte"] > 0
    assert (work / summary["run"] / "metrics.jsonl").is_file()


def test_the_run_is_in_the_working_folder_and_named_after_its_config(trained):
    work, _, summary = trained
    (run,) = (work / "runs").iterdir()
    assert summary["run"] == f"runs/{run.name}" and run.name.startswith("tiny-")
    assert sorted(path.name for path in work.iterdir()) == ["runs", "text.txt"]


def test_the_same_command_again_prints_the_summary_of_the_finished_run(
    trained, lmx, monkeypatch, tmp_path
):
    work, words, summary = trained
    monkeypatch.setenv("LMX_CACHE", str(tmp_path))
    monkeypatch.chdir(work)
    status, out, _ = lmx(*words)
    assert status == 0
    assert f"training    {summary['nats']:.4f} nats per token" in out
    assert f"{summary['validation/bits_per_byte']:.4f} bits per byte" in out
    assert f"lmx generate {summary['run']} --prompt" in out
