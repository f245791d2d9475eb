"""The Python standard library and language reference, a corpus on every machine."""

import ast
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import (
    Corpus,
    Document,
    Span,
    Split,
    check_fraction,
    is_selected,
    read_stamp,
)

TOPICS = "pydoc_data/topics.py"
EXCLUDED_DIRS = frozenset({
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test",
    "encodings",  # generated tables, so similar that the splits would overlap
})  # fmt: skip
MACHINE_SPECIFIC = ("config-", "_sysconfigdata_", "sitecustomize.py", TOPICS)


@configurable
@dataclass(frozen=True, kw_only=True)
class Stdlib(Corpus):
    """The sources of the running Python's standard library, and its language reference.

    A module is one document and belongs to one split, by a hash of its name. The topics
    of the reference repeat one another and are all for training. Tests, code pages,
    installed packages, descriptions of this machine, and files that are not UTF-8 are
    excluded.
    """

    holdout_fraction: float = 0.04  # of the modules, for validation

    def __post_init__(self):
        check_fraction(self, "holdout_fraction")

    def list_spans(self, size: int) -> Sequence[Span]:
        root = _find_root()
        topics = [TOPICS] if (root / TOPICS).is_file() else []
        return [
            Span(name, 0, 1, (root / name).stat().st_size, read_stamp(root / name))
            for name in (*_list_modules(root), *topics)
        ]

    def read_span(self, span: Span, split: Split) -> Iterator[Document]:
        path = _find_root() / span.file
        if span.file == TOPICS:
            return _read_topics(path) if split == "train" else iter(())
        held_out = is_selected(span.file, self.holdout_fraction)
        wanted = held_out == (split == "validation")
        return _read_module(path, span.file) if wanted else iter(())


def _find_root() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").is_file():
        raise ConfigError(
            f"this Python has no sources in {root}: use another corpus, such as"
            " @Text()."
        )
    return root


def _list_modules(root: Path) -> list[str]:
    """Returns the modules that every machine with this Python has, in order."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_DIRS]
        inner = Path(folder).relative_to(root)
        names += [(inner / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(name for name in names if not name.startswith(MACHINE_SPECIFIC))


def _read_module(path: Path, name: str) -> Iterator[Document]:
    """Yields the module, unless it is empty or not UTF-8."""
    try:
        text = path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return
    if text:
        yield Document(name, text)


def _read_topics(path: Path) -> Iterator[Document]:
    """Yields the chapters of the language reference, from the table of pydoc."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(f"{TOPICS}:{name}", text)
