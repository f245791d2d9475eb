"""Transforms of datasets: documents with sentinel tokens, and pause tokens."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from lmx.config.registry import ConfigError, NonNegative, configurable, require
from lmx.core.batch import Batch
from lmx.data.dataset import (
    Dataset,
    DatasetInfo,
    DatasetWrapper,
    DocumentSpan,
    WrapperConfig,
    require_text,
)
from lmx.data.sampling.packing import empty_batch
from lmx.data.schedule import RowRequest
from lmx.data.stateless_random import RandomStream, hash_u64

# A document, or a part of one: its tokens, and the loss weight of each as a target.
WEIGHTED_TOKEN = np.dtype([("token", np.int32), ("weight", np.float32)])


# Key of the random numbers of a document, unique in a run: the seed, the step, the row
# and the segment.
RandomKey = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class DocumentTransform(WrapperConfig):
    """A dataset with documents that are transformed one by one.

    Rows of the source are shorter by the tokens reserved for sentinels. A document is
    left unchanged if the transformed one does not fit, so nothing is cut off.
    BOS and EOS keep their positions.
    """

    @property
    @abstractmethod
    def sentinel_names(self) -> tuple[str | int | None, ...]:
        """Name or number of each sentinel token; None: a token added to the vocab."""

    @abstractmethod
    def source_length(self, length: int) -> int:
        """Tokens per row of the source, for rows of `length` tokens."""

    @abstractmethod
    def transform(
        self, document: np.ndarray, key: RandomKey, sentinels: tuple[int, ...]
    ) -> np.ndarray:
        """The transformed document, or the same one. Both are of WEIGHTED_TOKEN."""

    def open(self) -> "TransformedDataset":
        require_text(self.source, type(self).__name__)
        source = self.source.open()
        sentinels = find_sentinels(source, self.sentinel_names, type(self).__name__)
        return TransformedDataset(source=source, config=self, sentinels=sentinels)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformedDataset(DatasetWrapper):
    """The rows of a source with transformed documents."""

    config: DocumentTransform
    sentinels: tuple[int, ...]

    @cached_property
    def info(self) -> DatasetInfo:
        info, config = self.source.info, self.config
        names = [f.name for f in dataclasses.fields(config) if f.name != "source"]
        settings = {name: getattr(config, name) for name in names}
        settings["sentinels"] = self.sentinels
        return dataclasses.replace(
            info,
            vocab=max(info.vocab, *(token + 1 for token in self.sentinels)),
            fingerprint={**info.fingerprint, type(config).__name__: f"{settings}"},
        )

    def read(self, request: RowRequest) -> Batch:
        shorter, source = self._read_source(request)
        batch = empty_batch(len(request.rows), request.sequence_length)
        for index, row in enumerate(request.rows.tolist()):
            reserve, start = request.sequence_length - shorter.sequence_length, 0
            documents = split_documents(source, index).values()
            for segment, document in enumerate(documents, 1):
                key = (request.seed, request.step, row, segment)
                transformed = self._transform(document, key)
                if len(transformed) - len(document) > reserve:
                    transformed = document
                reserve -= len(transformed) - len(document)
                tokens, weights = transformed["token"], transformed["weight"]
                end = start + len(tokens) - 1
                positions = np.arange(end - start)
                columns = tokens[:-1], tokens[1:], weights[1:], positions, segment
                for field, column in zip(batch, columns, strict=True):
                    field[index, start:end] = column
                start = end
        return batch

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        shorter, source = self._read_source(request)
        new_segments = {
            (row, old): new
            for index, row in enumerate(request.rows.tolist())
            for new, old in enumerate(split_documents(source, index), 1)
        }
        return [
            span._replace(segment=new_segments[span[:2]])
            for span in self.source.locate(shorter)
            if span[:2] in new_segments
        ]

    def _read_source(self, request: RowRequest) -> tuple[RowRequest, Batch]:
        length = self.config.source_length(request.sequence_length)
        require(
            length >= 1,
            f"a row of {request.sequence_length} tokens has no room beside those"
            f" that {type(self.config).__name__} reserves for sentinels: set a"
            " larger sequence_length or a smaller reserved_tokens.",
        )
        shorter = request._replace(sequence_length=length)
        return shorter, self.source.read(shorter)

    def _transform(self, document: np.ndarray, key: RandomKey) -> np.ndarray:
        """Transforms what is between BOS and EOS."""
        low, high, tokenizer = 0, len(document), self.info.tokenizer
        if tokenizer is not None:
            low += int(document["token"][0] == tokenizer.bos)
            high -= int(document["token"][-1] == tokenizer.eos)
        inner = self.config.transform(document[low:high], key, self.sentinels)
        return np.concatenate([document[:low], inner, document[high:]])


def split_documents(batch: Batch, row: int) -> dict[int, np.ndarray]:
    """The documents of a row by segment, each with its last target if that has weight.

    A single token, the end of a document that began in another row, is left out. The
    first token has weight 1, for a transform that puts it after another.
    """
    tokens, targets, weights, _, segments = (field[row] for field in batch)
    borders = np.flatnonzero(np.diff(segments, prepend=0, append=0)).tolist()
    documents = {}
    for start, end in pairwise(borders):
        targets_end = end - int(weights[end - 1] == 0)
        document = np.empty(targets_end - start + 1, WEIGHTED_TOKEN)
        document["token"] = np.append(tokens[start], targets[start:targets_end])
        document["weight"] = np.append(1, weights[start:targets_end])
        if len(document) > 1:
            documents[int(segments[start])] = document
    return documents


def find_sentinels(
    source: Dataset, names: tuple[str | int | None, ...], label: str
) -> tuple[int, ...]:
    """The tokens of these names or numbers; None: the next token after the vocab."""
    vocab, tokenizer = source.info.vocab, source.info.tokenizer
    tokens = []
    for name in names:
        token = vocab + len(tokens) if name is None else name
        if isinstance(name, str):
            token = tokenizer.token_to_id(name) if tokenizer else None
        if token is None or name is not None and token not in range(vocab):
            raise ConfigError(
                f"{label}.sentinels names {name!r}, which is not a token of the source:"
                " name tokens of its tokenizer, or unset sentinels to add new tokens."
            )
        tokens.append(token)
    require(
        len(set(tokens)) == len(tokens),
        f"{label}.sentinels names a token twice: {names}.",
    )
    return tuple(tokens)


@configurable
@dataclass(frozen=True, kw_only=True)
class PauseTokens(WrapperConfig):
    """Another dataset, with pause tokens after random tokens.

    The pause token is added to the vocabulary. A pause belongs to the document around
    it, and positions count it. The next token is predicted at the last pause before it,
    and the loss leaves out pauses as targets. Rows keep their length: what no longer
    fits is cut off. To use pauses at inference, append them to the prompt. Goyal et al.
    2023, arXiv:2310.02226, section 3.1.

    Attributes:
        rate: pauses per token of a row, before its end is cut off.
    """

    rate: NonNegative[float] = 0.1

    def open(self) -> "PauseTokensDataset":
        require_text(self.source, "PauseTokens")
        return PauseTokensDataset(source=self.source.open(), rate=self.rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class PauseTokensDataset(DatasetWrapper):
    """The rows of a dataset, with pauses."""

    rate: float

    @property
    def pause_token(self) -> int:
        return self.source.info.vocab

    @cached_property
    def info(self) -> DatasetInfo:
        info = self.source.info
        fingerprint = {**info.fingerprint, "PauseTokens": f"{self.rate}"}
        return dataclasses.replace(info, vocab=info.vocab + 1, fingerprint=fingerprint)

    def read(self, request: RowRequest) -> Batch:
        rows, length = request.rows[:, None], request.sequence_length
        pauses = round(self.rate * length)
        candidates = np.arange(1, length + pauses)  # a row starts with a token
        stream = RandomStream.PAUSE
        drawn = hash_u64(request.seed, stream, request.step, rows, candidates)
        chosen = candidates[drawn.argsort(axis=1)[:, :pauses]]
        is_pause = np.zeros((len(rows), length + pauses + 1), bool)
        np.put_along_axis(is_pause, chosen, True, axis=1)
        batch = self.source.read(request)
        return insert_pauses(batch, is_pause[:, : length + 1], self.pause_token)

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        batch = self.read(request)
        text = np.where(batch.tokens == self.pause_token, 0, batch.segments)
        segments = dict(zip(request.rows.tolist(), text, strict=True))
        spans = [
            span._replace(length=int((segments[span.row] == span.segment).sum()))
            for span in self.source.locate(request)
        ]
        return [span for span in spans if span.length]


def insert_pauses(
    batch: Batch, is_pause: Bool[np.ndarray, "B S"], pause_token: int
) -> Batch:
    """A batch with pauses where `is_pause` is True. S is T + 1."""
    pauses = is_pause.cumsum(axis=1)[:, :-1]
    index = np.arange(pauses.shape[1]) - pauses  # of the token, or that before a pause
    tokens, targets, weights, positions, segments = (
        np.take_along_axis(x, index, axis=1) for x in batch
    )
    pause_now, pause_next = is_pause[:, :-1], is_pause[:, 1:]
    starts = np.diff(segments, axis=1, prepend=0) != 0
    before = np.maximum.accumulate(np.where(starts, pauses, 0), axis=1)
    shift = np.where(segments > 0, pauses - before, 0).astype(np.int32)
    return Batch(
        tokens=np.where(pause_now, np.int32(pause_token), tokens),
        targets=np.where(pause_next, np.int32(pause_token), targets),
        weights=np.where(pause_next, np.float32(0), weights),
        positions=positions + shift,
        segments=segments,
    )
