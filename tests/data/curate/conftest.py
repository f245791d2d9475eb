"""Corpora of JSON lines, and the output of passes over them."""

import json

import pytest

from lmx.data.corpus.corpus import Document
from lmx.data.corpus.text import Text
from lmx.data.curate.document_pass import read_all_splits


def read_documents(corpus) -> list[Document]:
    """Returns the documents of both splits."""
    return [item for item in read_all_splits(corpus) if isinstance(item, Document)]


@pytest.fixture
def make_corpus(tmp_path):
    """Returns a corpus of these texts, in a file with that name."""

    def make_corpus(name, texts):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        return Text(path=f"{path}")

    return make_corpus


@pytest.fixture
def run_pass(tmp_path):
    """Returns the kept texts of a source, the log and the report of a pass."""

    def run_pass(document_pass, source="web"):
        folder = tmp_path / "out"
        report = document_pass.write(folder)
        kept, log = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for name in (f"kept/{source}.jsonl", "removed.jsonl")
        )
        return [document["text"] for document in kept], log, report

    return run_pass
