"""A cache per test."""

import subprocess
import sys
from pathlib import Path

import pytest

NAMES = """
import hashlib
from lmx.data.corpus.corpus import HoldoutDocuments, HoldoutTail
from lmx.data.corpus.text import Text
from lmx.data.tokenizer.sentencepiece import SentencePiece
from lmx.data.store.build import open_cached_store
from lmx.data.tokenizer.base import ByteTokenizer
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    """Writes a file below the test's own folder and gives its path as a string."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def at_once():
    """Runs code in three processes at a time; what each of them prints."""

    def at_once(code: str) -> list[str]:
        command = [sys.executable, "-c", NAMES + code]
        root = Path(__file__).parents[2]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
            for _ in range(3)
        ]
        outputs = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0]
        return outputs

    return at_once
