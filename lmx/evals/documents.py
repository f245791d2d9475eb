"""Scores texts of any length with a sliding window."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float64, Int32

from lmx.config.registry import ConfigError, check_fields, require
from lmx.core.batch import Batch
from lmx.evals.perplexity import score_batches, score_rows
from lmx.infer.generate import check_causal
from lmx.models.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Rows of `length` tokens of a text, each `stride` tokens after the last.

    Every token but the first is scored once, in the first row that contains it. Its
    context is at least length - stride + 1 tokens, or all tokens before it. With
    `stride` equal to `length` each token is read once, as in training and `Evaluate`.
    """

    length: int
    stride: int
    batch_size: int = 8  # rows at a time

    def __post_init__(self):
        names = ("length", "stride", "batch_size")
        check_fields(self, **{n: (getattr(self, n) >= 1, "at least 1") for n in names})
        require(
            self.stride <= self.length,
            f"windows of {self.length} tokens, each {self.stride} after the last,"
            " leave tokens out: SlidingWindow.stride must be at most"
            " SlidingWindow.length.",
        )

    def count_rows(self, tokens: int) -> int:
        """The number of rows of a text with that many tokens."""
        return 1 + max(0, -(-(tokens - 1 - self.length) // self.stride))

    def batch_at(self, stream: Int32[np.ndarray, " M"], step: int) -> Batch:
        """A batch of rows of the stream, padded after its end."""
        row_B1 = (step * self.batch_size + np.arange(self.batch_size))[:, None]
        at_1T = np.arange(self.length, dtype=np.int32)[None]
        index_BT = row_B1 * self.stride + at_1T
        live_BT = (index_BT + 1 < len(stream)) & (row_B1 < self.count_rows(len(stream)))
        reached_B1 = np.where(row_B1, (row_B1 - 1) * self.stride + self.length, 0)
        index_BT = np.where(live_BT, index_BT, 0)
        return Batch(
            tokens=np.where(live_BT, stream[index_BT], 0),
            targets=np.where(live_BT, stream[index_BT + 1], 0),
            weights=(live_BT & (index_BT + 1 > reached_B1)).astype(np.float32),
            positions=np.where(live_BT, at_1T, 0),
            segments=live_BT.astype(np.int32),
        )


def find_training_length(trained: TrainedModel) -> int:
    """The longest sequence length of training, or else the maximum of the model."""
    length = trained.training_length or trained.model.max_length
    if length is None:
        raise ConfigError(
            "the run has no sequence length: give the length of the window, as in"
            " --length 2048."
        )
    return length


class Scorer:
    """Scores texts with a trained model and one compiled program."""

    def __init__(self, trained: TrainedModel, window: SlidingWindow):
        if trained.tokenizer is None:
            raise ConfigError("the run was not trained on text: it has no tokenizer.")
        limit = trained.model.max_length
        require(
            limit is None or window.length <= limit,
            f"windows of {window.length} tokens exceed the maximum length of the"
            f" model: SlidingWindow.length must be at most {limit}.",
        )
        check_causal(trained.model)
        self.tokenizer, self.window = trained.tokenizer, window
        self.params, self.token_bytes = trained.params, trained.tokenizer.token_bytes
        self.vocab = trained.model.vocab
        self.score = jax.jit(partial(score_rows, trained.graph))

    def __call__(self, text: str, name: str) -> Float64[np.ndarray, "3"]:
        """Total nats, tokens and UTF-8 bytes of a text.

        The text is one document, with bos and eos tokens if the tokenizer has them.
        Without a bos token the first token has no context and is not scored.
        """
        tokenizer, window = self.tokenizer, self.window
        bos, eos = (
            [] if token is None else [token] for token in (tokenizer.bos, tokenizer.eos)
        )
        stream = np.concatenate([bos, tokenizer.encode(text), eos]).astype(np.int32)
        require(
            text and len(stream) >= 2,
            f"{name} has {len(text)} characters: it needs at least 2 tokens.",
        )
        require(
            stream.max() < self.vocab,
            f"{name} has token {stream.max()} and the model knows {self.vocab} tokens:"
            " use the tokenizer that the model was trained with.",
        )
        return score_batches(
            lambda batch: self.score(self.params, batch, self.token_bytes),
            partial(window.batch_at, stream),
            -(-window.count_rows(len(stream)) // window.batch_size),
            name,
        ).sum(axis=1)
