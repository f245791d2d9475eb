"""How well a model predicts given texts, however long they are."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float64, Int32

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.evals.perplexity import score_batch, score_batches
from lmx.infer.decode import check_causal
from lmx.models.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """How a long text is read: in rows of `length` tokens, each `stride` further on.

    Every token but the first is scored once, in the first row that has it, where it is
    predicted from the length - stride + 1 tokens before it or more, if there are so
    many. A `stride` of `length` reads each token once, as training and `Evaluate` do.
    """

    length: int
    stride: int
    batch_size: int = 8  # rows at a time

    def __post_init__(self):
        for name in ("length", "stride", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"SlidingWindow.{name} is {getattr(self, name)}: at least 1."
                )
        if self.stride > self.length:
            raise ConfigError(
                f"windows of {self.length} tokens, each {self.stride} after the last,"
                " leave tokens out: SlidingWindow.stride must be at most"
                " SlidingWindow.length."
            )

    def count_rows(self, tokens: int) -> int:
        """Rows of a text of so many tokens."""
        return 1 + max(0, -(-(tokens - 1 - self.length) // self.stride))

    def batch_at(self, stream: Int32[np.ndarray, " M"], step: int) -> Batch:
        """The rows of that batch of the stream; past its end is padding."""
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
    """The tokens of the longest rows in training, or else how many the model sees."""
    known = [
        length
        for name, value in trained.config.flatten()
        if re.fullmatch(r"data\.(.+\.)?sequence_length(\.values)?", name)
        for length in (value if isinstance(value, tuple) else (value,))
    ]
    length = max(
        (value for value in known if isinstance(value, int)),
        default=trained.model.max_length,
    )
    if not isinstance(length, int):
        raise ConfigError(
            "this run does not say how many tokens its rows had: say how many to"
            " read at once, as in --length 2048."
        )
    return length


class Scorer:
    """What a run makes of texts, by one compiled program."""

    def __init__(self, trained: TrainedModel, window: SlidingWindow):
        if trained.tokenizer is None:
            raise ConfigError("this run has learned no text: it has no tokenizer.")
        limit = trained.model.max_length
        if limit is not None and window.length > limit:
            raise ConfigError(
                f"windows of {window.length} tokens do not fit the {limit} that the"
                f" model sees: SlidingWindow.length must be at most {limit}."
            )
        check_causal(trained.model)
        self.tokenizer, self.window = trained.tokenizer, window
        self.params, self.token_bytes = trained.params, trained.tokenizer.token_bytes
        self.score = jax.jit(partial(score_batch, trained.graph))

    def __call__(self, text: str, name: str) -> Float64[np.ndarray, "3"]:
        """Nats, tokens and UTF-8 bytes of what is scored, each in total.

        A text is a document, between begin and end where the tokenizer has them.
        Without begin nothing predicts its first token, which then does not count.
        """
        codec, windows = self.tokenizer, self.window
        around = [[] if end is None else [end] for end in (codec.bos, codec.eos)]
        stream = np.concatenate([around[0], codec.encode(text), around[1]])
        if not text or len(stream) < 2:
            raise ConfigError(
                f"{name} has {len(text)} characters: there is nothing to predict in it."
            )
        return score_batches(
            lambda batch: self.score(self.params, batch, self.token_bytes),
            partial(windows.batch_at, stream.astype(np.int32)),
            -(-windows.count_rows(len(stream)) // windows.batch_size),
            name,
        )
