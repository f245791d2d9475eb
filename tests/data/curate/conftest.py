"""Documents by the line, and what became of them."""

import json

import pytest

from lmx.data.corpus.text import Text


@pytest.fixture
def lines(tmp_path):
    """A corpus of these texts, in a file of that name."""

    def lines(name, texts):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        return Text(path=f"{path}")

    return lines


@pytest.fixture
def sifted(tmp_path):
    """What a sieve keeps of a source, what it says of the rest, and its report."""

    def sifted(sieve, source="web"):
        folder = tmp_path / "out"
        report = sieve.write(folder)
        kept = [
            json.loads(line)["text"]
            for line in (folder / "kept" / f"{source}.jsonl").read_text().splitlines()
        ]
        log = [
            json.loads(line)
            for line in (folder / "removed.jsonl").read_text().splitlines()
        ]
        return kept, log, report

    return sifted
