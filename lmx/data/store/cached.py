"""The stores of experiments that name a corpus: made once, kept in the cache."""

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from pathlib import Path

from lmx.config.names import ConfigError
from lmx.data.cache import build_folder, cache_folder, discard
from lmx.data.corpora.corpus import Corpus, Split
from lmx.data.store import plan
from lmx.data.store.build import described, shards
from lmx.data.store.engine import Processes
from lmx.data.store.finish import finish
from lmx.data.store.shard import Job
from lmx.data.store.store import LAYOUT, DamageError, Store, open_folder
from lmx.data.tokenizers.codec import Codec

ATTEMPTS = 3  # another process may discard what this one has just made
SIZE = 64 * 2**20  # bytes of text in a shard


def open_store(corpus: Corpus, codec: Codec, split: Split) -> Store:
    """The tokens of a split, from the cache or made now. Damage is made good."""
    made_of = {"corpus": corpus.digest(), "tokenizer": codec.digest, "split": split}
    words = json.dumps([LAYOUT, *made_of.values()])
    key = hashlib.sha256(words.encode()).hexdigest()[:32]
    path = cache_folder("stores") / key
    fill = functools.partial(_fill, corpus, codec, split)
    for _ in range(ATTEMPTS):
        if not path.is_dir():
            build_folder(path, fill)
        try:
            return dataclasses.replace(open_folder(path), fingerprint=made_of)
        except DamageError as damage:
            logging.getLogger(__name__).warning("%s: made anew", damage)
            discard(path)
    raise ConfigError(
        f"{path} does not stay as it is written: set LMX_CACHE to a sound disk."
    )


def _fill(corpus: Corpus, codec: Codec, split: Split, folder: Path) -> None:
    """Builds the store in the new folder, in this process."""
    sources = {"corpus": corpus}
    job = Job(folder=folder, sources=sources, codec=codec, split=split)
    job.work.mkdir(parents=True)
    todo = plan.pieces(sources, SIZE, 0, {})
    shards(job, todo, Processes(count=1), f"tokenising {split}")
    finish(job, todo, {}, {"corpus": described(corpus)}, {"empty": 1.0})
    shutil.rmtree(job.work)
