"""`lmx data tokenizer`: its report and its files agree."""

import inspect
import json
import re
import textwrap
from pathlib import Path

import pytest

from lmx.cli.main import main
from lmx.data.corpus.text import Text
from lmx.data.tokenizer.pretrained import PretrainedTokenizer, load_tokenizer

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
CODE = inspect.getsource(textwrap) + "äöü 漢字 " * 20
KINDS = {
    "bpe": ["SentencePiece.vocab=400"],
    "unigram": ["SentencePiece.vocab=400", "SentencePiece.model_type=unigram"],
    "pairs": ["TextDataset.tokenizer=@BPE()", "BPE.vocab=400"],
    "characters": ["TextDataset.tokenizer=@CharTokenizer()"],
    "bytes": ["TextDataset.tokenizer=@ByteTokenizer()"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def lmx(*words):
    with pytest.raises(SystemExit) as done:
        main(["data", "tokenizer", *words])
    return done.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_describes_the_written_tokenizer(kind, tmp_path, capsys):
    assert lmx("text.txt", "out", "--json", *KINDS[kind]) == 0
    report = json.loads(capsys.readouterr().out)
    tokenizer = PretrainedTokenizer(path=str(tmp_path / "out")).open(
        Text(path="text.txt")
    )
    assert (
        tokenizer.digest == load_tokenizer(tmp_path / "out").digest == report["digest"]
    )
    held_out = CODE[int(len(CODE) * 0.9) :]
    tokens = tokenizer.encode(held_out).tolist()
    assert tokenizer.decode(tokens) == held_out
    assert report["vocab"] == tokenizer.vocab
    assert report["bytes"] == len(held_out.encode())
    assert report["tokens"] == len(tokens)
    assert report["bytes_per_token"] == report["bytes"] / len(tokens)
    assert report["tokens_used"] == len(set(tokens))
    parts = sum(
        len(p) for t in tokens if not is_complete(p := tokenizer.vocab_bytes[t])
    )
    assert report["coverage"] == pytest.approx(1 - parts / report["bytes"])
    assert (report["coverage"] == 1.0) == (kind == "characters")
    lengths = [
        len(piece.decode()) for piece in tokenizer.vocab_bytes if is_complete(piece)
    ]
    assert [len(text) for text in report["longest"]] == sorted(lengths)[::-1][:10]
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == {name: out for name, out in report.items() if name != "folder"}


def is_complete(piece):
    try:
        return bool(piece.decode()) or not piece
    except UnicodeDecodeError:
        return False


def test_configs_of_experiments_and_of_stores_name_a_tokenizer(tmp_path, capsys):
    words = ["BPE.vocab=300", "Text.path='text.txt'", "Text.holdout=@HoldoutTail()"]
    line = "tokenizer = @BPE()\n  "
    (tmp_path / "build.gin").write_text(
        f"BuildTokenStore:\n  {line}sources = {{'one': @Text()}}\n"
    )
    (tmp_path / "run.gin").write_text(
        f"include '{TINY}'\nExperiment.data = @PauseTokens()\n"
        f"PauseTokens.source = @TextDataset()\nTextDataset:\n  {line}corpus = @Text()\n"
        "  batch_size = 1\n  sequence_length = 8\n"
    )
    assert lmx("build.gin", "a", *words) == lmx("run.gin", "b", *words) == 0
    assert (
        load_tokenizer(tmp_path / "a").digest == load_tokenizer(tmp_path / "b").digest
    )
    assert "@BPE(), 300 tokens" in capsys.readouterr().out


REFUSED = {
    "error: there is no nowhere": ["nowhere", "out"],
    "write lmx data tokenizer CORPUS": ["text.txt"],
    "full exists and is not empty": ["text.txt", "full"],
    "has no corpus with a tokenizer": [str(TINY), "out"],
    "set SentencePiece.vocab to": ["text.txt", "out", "SentencePiece.vocab=90000"],
    "split of .* is empty": [
        "text.txt",
        "out",
        *KINDS["bpe"],
        "HoldoutTail.fraction=0.0",
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_input_is_refused_and_leaves_nothing(message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert lmx(*REFUSED[message]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert re.search(message, out.err)
    assert not (tmp_path / "out").exists()
