"""What the telling of progress must keep."""

import pytest

from lmx.core import console
from lmx.data.store.build_progress import BuildProgress
from lmx.data.store.shard_writer import ShardProgress

WORDS = [
    ShardProgress(0, 2, 50, 60, False),
    ShardProgress(0, 4, 90, 99, True),
    ShardProgress(1, 1, 7, 9, True),
]


def tell(words) -> None:
    with BuildProgress("building", 300, 100) as meter:
        for word in words:
            meter.update(word, 100)


def test_a_short_pass_says_nothing(capsys):
    tell(WORDS)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_long_pass_says_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 0.0)
    tell(WORDS)
    out, lines = capsys.readouterr()
    first, _, last = lines.splitlines()
    assert out == "" and "\r" not in lines
    assert first.startswith("building: 2 documents, ") and "tokens/s" in first
    assert last.startswith("building: 5 documents, ")
    assert last.endswith(" 0 minutes left")


def test_on_a_terminal_a_bar_counts_from_what_was_there_before(capsys, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    tell(WORDS)
    bar = capsys.readouterr().err
    assert "building: 100%" in bar and "300/300" in bar and "5 documents" in bar


@pytest.mark.parametrize("stop", [0, 1])
def test_a_pass_may_be_left(stop):
    tell(WORDS[:stop])
