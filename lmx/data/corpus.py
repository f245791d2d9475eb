"""Texts to learn from, and which of them are held out."""

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lmx.config.names import ConfigError, Execution, configurable

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Document(NamedTuple):
    """One text, never empty, and a name that is its own within the corpus."""

    name: str
    text: str


class Corpus(ABC):
    """Documents in an order that is always the same, in two splits."""

    @abstractmethod
    def read(self, split: Split) -> Iterator[Document]:
        """The documents of the split, which may be none."""

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of the split; a refusal if there are none."""
        document = None
        for document in self.read(split):
            yield document
        if document is None:
            raise ConfigError(
                f"the {split} split of {self} is empty: give more documents, or hold"
                f" out a {'larger' if split == 'validation' else 'smaller'} fraction."
            )

    def digest(self) -> str:
        """SHA-256 over the split, name and text of every document."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for name, text in self.read(split):
                for part in (split, name, text):
                    data = part.encode("utf-8", "surrogateescape")
                    sha.update(b"%d:" % len(data))
                    sha.update(data)
        return sha.hexdigest()


def chosen(name: str, fraction: float) -> bool:
    """Whether the name is among that fraction of all names; the same everywhere."""
    head = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]
    return int.from_bytes(head, "big") < fraction * 2**64


def check_fraction(label: str, fraction: float) -> None:
    """Refuses what is no fraction that leaves something to train on."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"{label} is {fraction}: at least 0 and less than 1.")


class Holdout(ABC):
    """Which part of a corpus is for validation."""

    @abstractmethod
    def part(self, documents: Iterable[Document], split: Split) -> Iterator[Document]:
        """Those of the documents, or of their text, that belong to the split."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ByDocument(Holdout):
    """Whole documents, chosen by a hash of their names: no other document matters."""

    fraction: float = 0.04

    def __post_init__(self):
        check_fraction("ByDocument.fraction", self.fraction)

    def part(self, documents: Iterable[Document], split: Split) -> Iterator[Document]:
        for document in documents:
            if chosen(document.name, self.fraction) == (split == "validation"):
                yield document


@configurable
@dataclass(frozen=True, kw_only=True)
class Tail(Holdout):
    """The last characters of each document, as nanoGPT cuts its one."""

    fraction: float = 0.1

    def __post_init__(self):
        check_fraction("Tail.fraction", self.fraction)

    def part(self, documents: Iterable[Document], split: Split) -> Iterator[Document]:
        for name, text in documents:
            cut = int(len(text) * (1 - self.fraction))
            text = text[:cut] if split == "train" else text[cut:]
            if text:
                yield Document(name, text)


@configurable
@dataclass(frozen=True, kw_only=True)
class Text(Corpus):
    """Text that lies on disk: a file, a folder of files, or JSON objects by the line.

    A file is one document; a `.jsonl` is one document a line. In a folder, hidden
    files and folders are passed over. Where it all lies changes nothing.
    """

    path: Execution[str]
    split: Holdout = ByDocument()
    suffixes: tuple[str, ...] = (".txt", ".md", ".py")  # which files of a folder
    text_field: str = "text"  # of each JSON object

    def read(self, split: Split) -> Iterator[Document]:
        root = Path(self.path).expanduser()
        if not root.exists():
            raise ConfigError(f"there is no {root}{_near(root)}")
        if root.is_dir():
            return self.split.part(self._folder(root), split)
        if root.suffix != ".jsonl" and isinstance(self.split, ByDocument):
            raise ConfigError(
                f"{root} is one document, and one document cannot be split by"
                " document: set Text.split = @Tail()"
            )
        return self.split.part(self._file(root, "text"), split)

    def _folder(self, root: Path) -> Iterator[Document]:
        found = False
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.suffix in self.suffixes and path.is_file() and not hidden:
                found = True
                yield from self._file(path, name.as_posix())
        if not found:
            raise ConfigError(
                f"no file of {root} ends in {' or '.join(self.suffixes)}: set"
                " Text.suffixes to what its files end in."
            )

    def _file(self, path: Path, name: str) -> Iterator[Document]:
        if path.suffix == ".jsonl":
            yield from self._lines(path, name)
        elif text := decoded(path.read_bytes(), path):
            yield Document(name, text)

    def _lines(self, path: Path, name: str) -> Iterator[Document]:
        begin = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    text = self._text(decoded(line, path, begin), f"{path}:{number}")
                    if text:
                        yield Document(f"{name}:{number}", text)
                begin += len(line)

    def _text(self, line: str, where: str) -> str:
        """The text of one JSON object."""
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error.msg}") from None
        if not isinstance(item, dict):
            raise ConfigError(f"{where}: each line must be a JSON object, {{...}}")
        if self.text_field not in item:
            raise ConfigError(
                f"{where}: no field {self.text_field!r}, there are"
                f" {', '.join(map(repr, item)) or 'none'}: set Text.text_field"
            )
        text = item[self.text_field]
        if not isinstance(text, str):
            raise ConfigError(f"{where}: {self.text_field!r} holds no text: {text!r}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(
                f"{where}: {self.text_field!r} has half a surrogate pair, which is no"
                " character: leave the line out or repair it."
            )
        return text


def decoded(raw: bytes, path: Path, begin: int = 0) -> str:
    """The text of bytes that lie in the file from byte `begin` on, newlines kept."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {begin + error.start}"
            f" (0x{raw[error.start]:02x}): save it as UTF-8 or leave it out."
        ) from None


def _near(path: Path) -> str:
    """What exists and has nearly that name, for a message."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {folder}"
    names = [entry.name for entry in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else ""
