"""From a page to a token store: what is to be built, and the building of it."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.names import ConfigError, Execution, configurable
from lmx.config.reader import Reader
from lmx.config.tree import Config
from lmx.data.cache import write_whole
from lmx.data.corpora.corpus import Corpus, Document, Split
from lmx.data.store import plan
from lmx.data.store.engine import Engine, Processes
from lmx.data.store.filter import Filter
from lmx.data.store.finish import finish
from lmx.data.store.meter import Meter
from lmx.data.store.shard import WORK, Job, Piece
from lmx.data.store.store import MANIFEST, Store, manifest, open_folder
from lmx.data.tokenizers.codec import Tokenizer


@configurable
@dataclass(frozen=True, kw_only=True)
class Build:
    """What a token store is made of, and how.

    Attributes:
        sources: corpora by the names that the store knows them by.
        filters: each in turn sees what those before it left.
        shard: bytes of text that make one file, roughly: what is done again after a
            kill, and what one process does at a time.
        broken: the fraction of documents that may be no text, before the store is
            refused. They are counted and left out; at 0 the first is refused.
        empty: the same of documents without a character.
    """

    sources: Mapping[str, Corpus]
    tokenizer: Tokenizer
    filters: tuple[Filter, ...] = ()
    split: Split = "train"
    shard: int = 64 * 2**20
    broken: Execution[float] = 0.0
    empty: Execution[float] = 0.1
    engine: Execution[Engine] = Processes()

    def __post_init__(self):
        if not self.sources:
            raise ConfigError("Build.sources names no corpus: {'books': @Text()}")
        if self.shard < 1:
            raise ConfigError(f"Build.shard is {self.shard}: at least 1 byte.")
        for name in ("broken", "empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Build.{name} is {getattr(self, name)}: 0 to 1.")

    def write(self, folder: Path) -> Store:
        """Builds the store, or goes on with it, or adds what it does not have yet.

        The bytes depend on the sources, the tokenizer, the filters and `shard`: not on
        the engine, nor on how often the building was stopped.
        """
        with _alone(folder):
            codec = self.tokenizer.open(Joined(tuple(self.sources.values())))
            job = Job(
                folder=folder,
                sources=self.sources,
                codec=codec,
                split=self.split,
                filters=self.filters,
                broken=self.broken,
            )
            recipe = {
                "tokenizer": codec.digest,
                "split": self.split,
                "filters": [described(rule) for rule in self.filters],
                "shard": self.shard,
            }
            names = {name: described(c) for name, c in self.sources.items()}
            _write(job, recipe, names, self)
        return open_folder(folder)


@dataclass(frozen=True)
class Joined(Corpus):
    """Corpora one after the other, as a tokenizer learns from them."""

    corpora: tuple[Corpus, ...]

    def read(self, split: Split) -> Iterator[Document]:
        for number, corpus in enumerate(self.corpora):
            for name, text in corpus.read(split):
                yield Document(f"{number}/{name}", text)


def described(thing: Any) -> str:
    """A configurable value in words that are the same where it means the same."""
    config = Reader({}).default(thing, (), type(thing).__name__)
    return config.identity().json() if isinstance(config, Config) else repr(thing)


def _write(
    job: Job, recipe: Mapping[str, Any], sources: Mapping[str, str], build: Build
) -> None:
    """Builds what is missing in the folder of the job."""
    old = manifest(job.folder) if (job.folder / MANIFEST).is_file() else None
    if old is not None:
        plan.check_recipe(recipe, old["recipe"], job.folder)
        plan.check_sources(sources, old["sources"], job.folder)
    first = 0 if old is None else len(old["shards"])
    todo = plan.pieces(build.sources, build.shard, first, plan.taken(job.folder))
    if todo:
        _begin(job, recipe, todo)
        shards(job, todo, build.engine, f"building {job.folder}")
        known = {**(old["sources"] if old else {}), **sources}
        finish(job, todo, recipe, known, {"broken": build.broken, "empty": build.empty})
    sweep(job)
    shutil.rmtree(job.work, ignore_errors=True)


def sweep(job: Job) -> None:
    """Takes away the halves of files that a kill has left."""
    for left in (*job.folder.glob(".*"), *job.work.glob(".*")):
        if left.is_file():
            left.unlink(missing_ok=True)


def _begin(job: Job, recipe: Mapping[str, Any], todo: Sequence[Piece]) -> None:
    """Says what is begun, or that this is what was begun."""
    path = job.work / plan.PLAN
    if path.is_file():
        plan.agree(recipe, todo, json.loads(path.read_text()), job.work)
        sweep(job)
        return
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir()
    write_whole(path, json.dumps({"recipe": recipe, "pieces": todo}).encode())


def shards(job: Job, todo: Sequence[Piece], engine: Engine, title: str) -> None:
    """Writes the shards of those pieces that have none yet."""
    missing = [piece for piece in todo if not plan.finished(job, piece)]
    total = {piece.number: piece.bytes for piece in todo}
    done = sum(total.values()) - sum(piece.bytes for piece in missing)
    with Meter(title, sum(total.values()), done) as meter:
        engine.run(job, missing, lambda word: meter.hear(word, total[word.piece]))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder of a store for one builder at a time, made if it is not there."""
    if folder.is_dir():
        there = {path.name for path in folder.iterdir()}
        if there and not there & {MANIFEST, WORK}:
            raise ConfigError(
                f"{folder} holds something that is no token store: name a folder that"
                " is empty or not there."
            )
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"{folder} is being built by another process.") from None
    finally:
        os.close(handle)
