"""Continues texts with a trained model: prompts in, text out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import Tokenizer
from lmx.infer.generate import Generator, encode_prompt
from lmx.infer.sample import Sampler
from lmx.infer.stop import StopStringFilter
from lmx.models.trained_model import TrainedModel
from lmx.train.checkpoint.restore import restore


def generate(
    run: str | Path | TrainedModel,
    prompts: str | Sequence[str],
    *,
    tokens: int = 256,
    seed: int = 0,
    stop: Sequence[str] = (),
    **rules: Any,
) -> list[str]:
    """The sampled continuation of each prompt, of at most `tokens` tokens.

    It ends before the first string of `stop`. `rules` are the fields of `Sampler`, as
    in `temperature=0.0`.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    trained, sampler = restore(run), Sampler(**rules)
    return [
        result["text"]
        for result in sample_texts(trained, prompts, sampler, tokens, stop, seed=seed)
    ]


def encode_prompts(
    trained: TrainedModel, prompts: Sequence[str]
) -> tuple[Tokenizer, list[list[int]]]:
    """The tokenizer, and the tokens of each prompt."""
    if (tokenizer := trained.tokenizer) is None:
        raise ConfigError("the run has no tokenizer: it cannot generate text.")
    return tokenizer, [encode_prompt(tokenizer, text) for text in prompts]


def sample_texts(
    trained: TrainedModel,
    prompts: Sequence[str],
    sampler: Sampler,
    max_tokens: int,
    stop: Sequence[str] = (),
    *,
    seed: int = 0,
    batch_size: int = 16,
    emit: Callable[[str], object] = str,
) -> Iterator[dict[str, Any]]:
    """The continuation of each prompt: its text, tokens and log-probabilities in nats.

    `emit` receives the first prompt, then the text in pieces as it is sampled.
    """
    tokenizer, encoded = encode_prompts(trained, prompts)
    generator = Generator(trained.graph, trained.params, sampler, seed)
    for first in range(0, len(encoded), batch_size):
        batch = encoded[first : first + batch_size]
        texts = [StopStringFilter(tokenizer, stop) for _ in batch]
        emit(prompts[first])
        for chunk in generator(batch, max_tokens, tokenizer.stop_tokens, first):
            for text, tokens, logprobs, active in zip(texts, *chunk, strict=True):
                for new in zip(tokens[active], logprobs[active], strict=True):
                    emit(text(*new))
            if all(text.stopped for text in texts):
                break
        for text in texts:
            emit(text.flush())
            logprobs = [round(logprob, 6) for logprob in text.logprobs]
            yield {"text": text.text, "tokens": text.tokens, "logprobs": logprobs}
