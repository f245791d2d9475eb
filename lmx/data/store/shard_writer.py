"""Writes one shard of a token store, from the job and the spec of the shard alone."""

import array
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmx.core.files import write_atomic
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import apply_filters
from lmx.data.store.checksum import write_checksummed
from lmx.data.store.shard_plan import BuildJob, ShardSpec
from lmx.data.store.store import format_shard_name
from lmx.data.tokenizer.base import Tokenizer

MAX_LOCATIONS = 5  # of rejected documents that are recorded, per reason
ENCODE_CHARS = 2**20  # characters that are encoded at a time
REPORT_SECONDS = 0.5  # between reports of progress


@dataclass
class ShardCounts:
    """Counts of the documents of a shard: stored, removed by filters, and rejected."""

    shard: int
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


def write_shard(
    job: BuildJob, spec: ShardSpec, on_progress: Callable[[ShardCounts], None]
) -> ShardCounts:
    """Writes the tokens, the lengths of documents and the record of a shard.

    A file appears once it is complete, and the record is written last.
    """
    counts, lengths = ShardCounts(spec.number), array.array("q")

    def encode() -> Iterator[bytes]:
        reported = time.monotonic()
        for document in _read_documents(job, spec, counts):
            before = counts.tokens
            for tokens in encode_document(job.tokenizer, document.text):
                counts.tokens += len(tokens)
                yield tokens.astype(job.dtype).tobytes()
            lengths.append(counts.tokens - before)
            counts.documents += 1
            counts.bytes += len(document.text.encode())
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                on_progress(counts)

    path = job.folder / format_shard_name(spec.number)
    checksum = write_checksummed(path, encode())
    write_atomic(
        job.get_path(spec.number, "lengths"), np.array(lengths, "<i8").tobytes()
    )
    counts.done = True
    record = {"source": spec.source, **vars(counts), "checksum": checksum}
    record["spans"] = [span[:-1] for span in spec.spans]
    record["resume"] = {"recipe": job.describe(), "spans": spec.spans}
    write_atomic(job.get_path(spec.number, "json"), json.dumps(record).encode())
    on_progress(counts)
    return counts


def _read_documents(
    job: BuildJob, spec: ShardSpec, counts: ShardCounts
) -> Iterator[Document]:
    """Yields the documents of a shard that are stored, and counts the others."""
    for span in spec.spans:
        for item in job.sources[spec.source].read_span(span, job.split):
            if isinstance(item, Document):
                result, _ = apply_filters(job.filters, item)
                if isinstance(result, Document):
                    yield result
                else:
                    counts.filtered[result] += 1
            elif item.kind == "invalid" and not job.max_invalid_fraction:
                raise item.to_error()
            else:  # what differs between similar entries is in brackets
                reason = re.sub(r" \(.*\)", "", item.reason)
                locations = [f"{span.file}: {item.location}"]
                add_rejected(counts.rejected, reason, item.kind, 1, locations)


def add_rejected(
    rejected: dict[str, dict[str, Any]],
    reason: str,
    kind: str,
    count: int,
    locations: list[str],
) -> None:
    """Adds rejected documents to the counts by reason, with the first locations."""
    new = {"kind": kind, "count": 0, "locations": []}
    entry = rejected.setdefault(reason, new)
    entry["count"] += count
    entry["locations"] = [*entry["locations"], *locations][:MAX_LOCATIONS]


def encode_document(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """Yields the tokens of a document, between BOS and EOS if the tokenizer has them.

    A long text is encoded in parts: tokenizers take more time and memory per character
    for longer texts. A tokenizer that adds a leading space encodes all at once.
    """
    if tokenizer.bos is not None:
        yield np.array([tokenizer.bos])
    at_once = tokenizer.strip_leading_space
    begin = 0
    while len(text) - begin > ENCODE_CHARS and not at_once:
        end = begin + ENCODE_CHARS
        found = max(text.rfind("\n", begin, end), begin) or text.rfind(" ", begin, end)
        end = found + 1 if found > begin else end
        yield tokenizer.encode(text[begin:end])
        begin = end
    yield tokenizer.encode(text[begin:])
    if tokenizer.eos is not None:
        yield np.array([tokenizer.eos])
