"""The stores of experiments that name a corpus: made once, kept in the cache."""

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from pathlib import Path

from lmx.config.registry import ConfigError
from lmx.core.files import create_dir_once, get_cache_dir, remove_dir
from lmx.data.corpus.corpus import Corpus, Split
from lmx.data.store import shard_plan
from lmx.data.store.build import build_shards, describe
from lmx.data.store.commit import commit
from lmx.data.store.executor import ProcessPool
from lmx.data.store.shard_writer import BuildJob
from lmx.data.store.store import FORMAT_VERSION, Store, StoreDamageError, open_store
from lmx.data.tokenizer.base import Tokenizer

ATTEMPTS = 3  # another process may discard what this one has just made
SHARD_BYTES = 64 * 2**20  # bytes of text in a shard


def open_cached_store(corpus: Corpus, codec: Tokenizer, split: Split) -> Store:
    """The tokens of a split, from the cache or made now. Damage is made good."""
    made_of = {
        "corpus": corpus.compute_digest(),
        "tokenizer": codec.digest,
        "split": split,
    }
    words = json.dumps([FORMAT_VERSION, *made_of.values()])
    key = hashlib.sha256(words.encode()).hexdigest()[:32]
    path = get_cache_dir("stores") / key
    fill = functools.partial(_build, corpus, codec, split)
    for _ in range(ATTEMPTS):
        if not path.is_dir():
            create_dir_once(path, fill)
        try:
            return dataclasses.replace(open_store(path), fingerprint=made_of)
        except StoreDamageError as damage:
            logging.getLogger(__name__).warning("%s: made anew", damage)
            remove_dir(path)
    raise ConfigError(
        f"{path} does not stay as it is written: set LMX_CACHE to a sound disk."
    )


def _build(corpus: Corpus, codec: Tokenizer, split: Split, folder: Path) -> None:
    """Builds the store in the new folder, in this process."""
    sources = {"corpus": corpus}
    job = BuildJob(folder=folder, sources=sources, codec=codec, split=split)
    job.work_dir.mkdir(parents=True)
    todo = shard_plan.plan_shards(sources, SHARD_BYTES, 0, {})
    build_shards(job, todo, ProcessPool(workers=1), f"tokenising {split}")
    commit(job, todo, {}, {"corpus": describe(corpus)}, {"empty": 1.0})
    shutil.rmtree(job.work_dir)
