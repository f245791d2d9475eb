"""`lmx train`, from words to files."""


def test_json_is_the_newest_value_of_every_metric(trained):
    work, _, summary = trained
    assert summary["step"] == 3 and summary["tokens_seen"] == 3 * 8 * 16
    assert summary["nats"] > 0 and summary["validation/bits_per_byte"] > 0
    assert (work / summary["run"] / "metrics.jsonl").is_file()


def test_the_run_lies_where_one_stands_under_the_name_of_the_page(trained):
    work, _, summary = trained
    (run,) = (work / "runs").iterdir()
    assert summary["run"] == f"runs/{run.name}" and run.name.startswith("tiny-")
    assert sorted(path.name for path in work.iterdir()) == ["runs", "text.txt"]


def test_the_same_words_again_say_the_same_for_a_person(
    trained, lmx, monkeypatch, tmp_path
):
    work, words, summary = trained
    monkeypatch.setenv("LMX_CACHE", str(tmp_path))
    monkeypatch.chdir(work)
    status, said, _ = lmx(*words)
    assert status == 0
    assert f"training    {summary['nats']:.4f} nats per token" in said
    assert f"{summary['validation/bits_per_byte']:.4f} bits per byte" in said
    assert f"lmx generate {summary['run']} --prompt" in said
