"""What a watched pass must keep."""

import pytest

from lmx.data import progress
from lmx.data.corpus import Document

DOCUMENTS = [Document(f"{number}", "text") for number in range(5)]


def test_watching_changes_no_document_and_a_short_pass_says_nothing(capsys):
    assert list(progress.watched(DOCUMENTS, "reading")) == DOCUMENTS
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_long_pass_says_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    assert list(progress.watched(DOCUMENTS, "reading")) == DOCUMENTS
    out, lines = capsys.readouterr()
    assert out == "" and "\r" not in lines
    assert lines.splitlines()[-1].startswith("reading: 5 documents, 0 MB")


def test_on_a_terminal_a_long_pass_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.watched(DOCUMENTS, "reading")) == DOCUMENTS
    assert "reading: 20.0B" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [0, 3])
def test_a_pass_may_be_left(stop):
    documents = progress.watched(DOCUMENTS, "reading")
    assert [next(documents) for _ in range(stop)] == DOCUMENTS[:stop]
    documents.close()
