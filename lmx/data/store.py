"""A tokenised split on disk: made once, mapped into memory, never seen half-made."""

import array
import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt

from lmx.config.names import ConfigError
from lmx.data.cache import build_folder, cache_folder, discard
from lmx.data.corpus import Corpus, Document, Split
from lmx.data.progress import watched
from lmx.data.tokenizers.codec import Codec

LAYOUT = 1  # raise it when the files below change
ATTEMPTS = 3  # another process may discard what this one has just made
CHEAP = 64 * 2**20  # bytes that are hashed each time they are opened
TOKENS, STARTS, MANIFEST = "tokens.bin", "starts.bin", "manifest.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """The tokens of all documents in one stream, and where each document begins."""

    tokens: UInt[np.ndarray, " M"]
    starts: Int64[np.ndarray, " _"]  # of the documents, then where all end
    bytes: int  # of UTF-8 text
    fingerprint: Mapping[str, str]

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.tokens)

    def read(self, begin: int, end: int) -> UInt[np.ndarray, " M"]:
        """The tokens of [begin, end)."""
        return self.tokens[begin:end]


class DamageError(Exception):
    """What is wrong with a store."""


def open_store(corpus: Corpus, codec: Codec, split: Split) -> Store:
    """The tokens of a split, from the cache or made now. Damage is made good."""
    fingerprint = {
        "corpus": corpus.digest(),
        "tokenizer": codec.digest,
        "split": split,
    }
    words = json.dumps([LAYOUT, *fingerprint.values()])
    key = hashlib.sha256(words.encode()).hexdigest()[:32]
    path = cache_folder("stores") / key
    fill = functools.partial(_write, corpus, codec, split, fingerprint)
    for _ in range(ATTEMPTS):
        if not path.is_dir():
            build_folder(path, fill)
        try:
            return _read(path, fingerprint)
        except DamageError as damage:
            logging.getLogger(__name__).warning("%s: %s: made anew", path, damage)
            discard(path)
    raise ConfigError(
        f"{path} does not stay as it is written: set LMX_CACHE to a sound disk."
    )


def _write(
    corpus: Corpus, codec: Codec, split: Split, fingerprint: dict, folder: Path
) -> None:
    """Encodes every document into the new folder."""
    folder.mkdir()
    kind = "<u2" if codec.vocab <= 2**16 else "<u4"
    starts, size, sha = array.array("q", [0]), 0, hashlib.sha256()
    with (folder / TOKENS).open("wb") as file:
        for document in watched(corpus.documents(split), f"tokenising {split}"):
            tokens = _framed(codec, document).astype(kind)
            file.write(tokens.data)
            sha.update(tokens.data)
            starts.append(starts[-1] + len(tokens))
            size += len(document.text.encode())
    np.array(starts, "<i8").tofile(folder / STARTS)
    manifest = {
        **fingerprint,
        "layout": LAYOUT,
        "kind": kind,
        "tokens": starts[-1],
        "documents": len(starts) - 1,
        "bytes": size,
        "sha256": sha.hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _framed(codec: Codec, document: Document) -> np.ndarray:
    """The tokens of a document between begin and end, where the tokenizer has them."""
    begin = [] if codec.begin is None else [codec.begin]
    end = [] if codec.end is None else [codec.end]
    return np.concatenate([begin, codec.encode(document.text), end])


def _read(path: Path, fingerprint: dict) -> Store:
    """The store as it lies there, if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        kind, tokens = np.dtype(manifest["kind"]), manifest["tokens"]
        documents, size = manifest["documents"], manifest["bytes"]
        expected = {TOKENS: tokens * kind.itemsize, STARTS: (documents + 1) * 8}
        for name, wanted in expected.items():
            if (found := (path / name).stat().st_size) != wanted:
                raise DamageError(f"{name} has {found} bytes instead of {wanted}")
        if {name: manifest[name] for name in fingerprint} != fingerprint:
            raise DamageError(f"{MANIFEST} is of other data")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{error!r}") from error
    stream = np.memmap(path / TOKENS, kind, mode="r")
    if stream.nbytes <= CHEAP:
        if hashlib.sha256(stream.data).hexdigest() != manifest["sha256"]:
            raise DamageError(f"{TOKENS} is not what was written")
    return Store(
        tokens=np.asarray(stream),
        starts=np.fromfile(path / STARTS, "<i8"),
        bytes=size,
        fingerprint=fingerprint,
    )
