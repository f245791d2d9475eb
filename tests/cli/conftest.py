"""A working folder with a config, a trained run, and the command line."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import lmx as library
from lmx.cli.main import main
from lmx.core.console import print_once
from lmx.evals import documents
from lmx.infer import beam, text

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
WORDS = [
    "Experiment.steps=3",
    "Experiment.data=@TextDataset()",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@CharTokenizer()",
    "TextDataset.sequence_length=16",
    "TextDataset.batch_size=8",
    "Text.path=text.txt",
    "Text.holdout=@HoldoutTail()",
    "Mesh.data=1",
    "Attention.logit_cap=20.0",  # no Hugging Face family has it with the rest
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@held/TextDataset()",
    "held/TextDataset.split=validation",
    "held/TextDataset.order=@Sequential()",
]
LINES = "a bead faded\n" * 40
VOCAB = f"Decoder.vocab={len(set(LINES))}"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with only `tiny.gin`; the cache is elsewhere."""
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(TINY, work)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def lmx(capsys):
    """Runs a command in this process; returns its exit status, output and errors."""

    def lmx(*words):
        print_once.cache_clear()  # a command is a process of its own elsewhere
        with pytest.raises(SystemExit) as stop:
            main(words)
        return (stop.value.code, *capsys.readouterr())

    return lmx


class Trained(NamedTuple):
    """A finished run."""

    work: Path  # the working folder
    words: list[str]  # arguments of `lmx`
    summary: dict[str, Any]

    @property
    def run(self) -> str:
        """Its folder."""
        return str(self.work / self.summary["run"])


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a config in another folder, on the lines of `text.txt`."""
    work = tmp_path_factory.mktemp("work")
    (work / "text.txt").write_text(LINES)
    words = ["train", str(TINY), *WORDS, VOCAB]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(work)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            with pytest.raises(SystemExit) as stop:
                main([*words, "--json"])
    assert stop.value.code == 0
    return Trained(work, words, json.loads(out.getvalue()))


MEMO: dict[tuple[Any, ...], Any] = {}


@pytest.fixture
def compile_once(monkeypatch):
    """Restores each run once, and compiles each sampler, search and window once."""

    def memoize(owner, name, find_key):
        make = getattr(owner, name)

        def find(*args):
            key = (name, *find_key(*args))
            if key not in MEMO:
                MEMO[key] = make(*args)
            return MEMO[key]

        monkeypatch.setattr(owner, name, find)

    memoize(library, "restore", lambda run: (f"{run}",))
    memoize(text, "Generator", lambda graph, params, *rest: (id(params), *rest))
    memoize(beam, "BeamSearch", lambda graph, params, *rest: (id(params), *rest))
    memoize(documents, "Scorer", lambda trained, *rest: (id(trained), *rest))
