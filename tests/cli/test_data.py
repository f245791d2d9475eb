"""`lmx data build` and `lmx data inspect`."""

import json

import pytest

from lmx.data.store.store import format_shard_name

CONFIG = """
BuildTokenStore:
  sources = {'a': @Text(), 'lines': @lines/Text()}
  tokenizer = @ByteTokenizer()
  filters = [@LengthFilter()]
  executor = @ProcessPool()
ProcessPool.workers = 1
LengthFilter.min_chars = 3
Text.path = 'texts'
Text.holdout = @HoldoutDocuments()
HoldoutDocuments.fraction = 0.0
lines/Text.path = 'a.jsonl'
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config in the working folder, and two sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}" * number)
    rows = ['{"text": "one"}', '{"text": ""}', '{"text": "hi"}', '{"text": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "config.gin").write_text(CONFIG)
    return "config.gin"


def test_a_store_is_built_inspected_and_verified(lmx, config, tmp_path):
    status, out, _ = lmx("data", "build", config, "out", "--json")
    built = json.loads(out)
    assert status == 0 and built["documents"] == 21 and built["shards"] == 2
    assert built["excluded"]["lines"]["filtered"] == {"fewer than 3 characters": 1}
    assert built["excluded"]["a"]["rejected"]["empty text"]["count"] == 1
    status, out, _ = lmx("data", "inspect", "out", "--json", "--samples", "5")
    inspected = json.loads(out)
    assert status == 0 and len(inspected["samples"]) == 5
    for name in ("documents", "tokens", "bytes", "excluded", "fingerprint"):
        assert inspected[name] == built[name]
    assert inspected["plot"] == "out.png" and (tmp_path / "out.png").is_file()
    status, out, _ = lmx("data", "inspect", "out", "--verify")
    assert status == 0 and "all bytes of 2 shards" in out


def test_the_text_output_lists_excluded_documents(lmx, config):
    status, out, _ = lmx("data", "build", config, "out")
    assert status == 0
    assert out.splitlines()[0].startswith("out: 21 documents, ")
    assert "rejected from a: 1 empty text, first 0.txt: byte 0" in out
    assert "filtered from lines: 1 fewer than 3 characters" in out
    status, out, _ = lmx("data", "inspect", "out", "--row", "8", "--plot", "a.png")
    assert status == 0 and out.endswith("lengths: a.png\n")
    assert "autocorrelation of source, in sequences of 8 tokens: " in out
    assert "rejected from a: 1 empty text, first 0.txt: byte 0" in out


def test_verify_finds_damage(lmx, config, tmp_path):
    lmx("data", "build", config, "out")
    path = tmp_path / "out" / format_shard_name(1)
    path.write_bytes(b"??" + path.read_bytes()[2:])
    status, out, _ = lmx("data", "inspect", "out", "--verify", "--json")
    (damage,) = json.loads(out)["damages"]
    assert status == 1 and f"{format_shard_name(1)} is damaged between byte 0" in damage
    status, _, err = lmx("data", "inspect", "out")
    assert status == 2 and "is damaged between byte 0" in err


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("build", "config.gin"), "write lmx data build CONFIG.gin OUT"),
        (
            ("build", "config.gin", "out", "Text.pat=x"),
            "Text has no parameter 'pat'",
        ),
        (
            ("build", "config.gin", "texts"),
            "texts is not empty and not a token store",
        ),
        (
            ("build", "config.gin", "out", "BuildTokenStore.max_empty_fraction=0"),
            "BuildTokenStore.max_empty_fraction = 0.0",
        ),
        (("build", "config.gin", "out", "Text.path=gone"), "there is no gone"),
        (("inspect", "texts"), "texts is not a token store, it has no manifest.json"),
        (("inspect",), "STORE"),
        (("inspect", "a", "b"), "write lmx data inspect STORE"),
        (("inspect", "a", "--row", "0"), "--row is 0: at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_a_fix(lmx, config, words, out):
    status, _, err = lmx("data", *words)
    assert status == 2 and out in err
