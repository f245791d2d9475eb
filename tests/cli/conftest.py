"""A working folder with a page, and the command line within it."""

import shutil
from pathlib import Path

import pytest

from lmx.cli.main import main

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder but for `tiny.gin`; the cache lies elsewhere."""
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(TINY, work)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def lmx(capsys):
    """Runs a verb in this process; the exit status, what is said and moaned."""

    def lmx(*words):
        with pytest.raises(SystemExit) as stop:
            main(words)
        return (stop.value.code, *capsys.readouterr())

    return lmx
