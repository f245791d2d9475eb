"""`lmx data`, from a page to a store and what is said of it."""

import json

import pytest

from lmx.data.store.store import format_shard_name

PAGE = """
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
def page(tmp_path, monkeypatch):
    """A page in the working folder, and two sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}" * number)
    rows = ['{"text": "one"}', '{"text": ""}', '{"text": "hi"}', '{"text": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "page.gin").write_text(PAGE)
    return "page.gin"


def test_a_store_is_built_looked_at_and_verified(lmx, page, tmp_path):
    status, said, _ = lmx("data", "build", page, "out", "--json")
    told = json.loads(said)
    assert status == 0 and told["documents"] == 21 and told["shards"] == 2
    assert told["excluded"]["lines"]["filtered"] == {"fewer than 3 characters": 1}
    assert told["excluded"]["a"]["rejected"]["empty text"]["count"] == 1
    status, said, _ = lmx("data", "inspect", "out", "--json", "--samples", "5")
    looked = json.loads(said)
    assert status == 0 and len(looked["samples"]) == 5
    for name in ("documents", "tokens", "bytes", "excluded", "fingerprint"):
        assert looked[name] == told[name]
    assert looked["plot"] == "out.png" and (tmp_path / "out.png").is_file()
    status, said, _ = lmx("data", "inspect", "out", "--verify")
    assert status == 0 and "every byte of 2 shards" in said


def test_what_is_said_to_a_person_has_what_was_left_out(lmx, page):
    status, said, _ = lmx("data", "build", page, "out")
    assert status == 0
    assert said.splitlines()[0].startswith("out: 21 documents, ")
    assert "rejected from a: 1 empty text, first 0.txt: byte 0" in said
    assert "filtered from lines: 1 fewer than 3 characters" in said
    status, said, _ = lmx("data", "inspect", "out", "--row", "8", "--plot", "a.png")
    assert status == 0 and said.endswith("lengths: a.png\n")
    assert "autocorrelation of source, in sequences of 8 tokens: " in said
    assert "rejected from a: 1 empty text, first 0.txt: byte 0" in said


def test_damage_is_a_fault_that_verify_finds(lmx, page, tmp_path):
    lmx("data", "build", page, "out")
    path = tmp_path / "out" / format_shard_name(1)
    path.write_bytes(b"??" + path.read_bytes()[2:])
    status, said, _ = lmx("data", "inspect", "out", "--verify", "--json")
    (damage,) = json.loads(said)["damages"]
    assert status == 1 and f"{format_shard_name(1)} is damaged between byte 0" in damage
    status, _, moaned = lmx("data", "inspect", "out")
    assert status == 2 and "is damaged between byte 0" in moaned


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("build", "page.gin"), "write lmx data build PAGE.gin OUT"),
        (
            ("build", "page.gin", "out", "Text.pat=x"),
            "Text has no parameter 'pat'",
        ),
        (
            ("build", "page.gin", "texts"),
            "texts is not empty and no token store",
        ),
        (
            ("build", "page.gin", "out", "BuildTokenStore.max_empty_fraction=0"),
            "BuildTokenStore.max_empty_fraction = 0.0",
        ),
        (("build", "page.gin", "out", "Text.path=gone"), "there is no gone"),
        (("inspect", "texts"), "texts is no token store, it has no manifest.json"),
        (("inspect",), "WORD"),
        (("inspect", "a", "b"), "name one STORE"),
        (("inspect", "a", "--row", "0"), "--row is 0: at least 1"),
    ],
)
def test_wrong_words_are_refused_with_what_would_do(lmx, page, words, said):
    status, _, moaned = lmx("data", *words)
    assert status == 2 and said in moaned
