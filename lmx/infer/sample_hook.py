"""Logs text samples during training."""

import sys
from dataclasses import dataclass
from typing import Annotated

from lmx.config.registry import ConfigError, Positive, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.rng import SEEDS
from lmx.infer.generate import Generator, encode_prompt
from lmx.infer.sample import Sampler
from lmx.run.run_dir import Values
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Sample(HookConfig):
    """Continues a prompt after each `every` steps and at the end, with one seed."""

    prompt: str = ""
    tokens: Positive[int] = 128
    every: Positive[int] = 1000  # steps
    sampler: Sampler = Sampler()
    seed: Annotated[int, SEEDS] = 0

    def build(self, run: RunContext) -> Hook:
        tokenizer = run.data.info.tokenizer
        if tokenizer is None:
            raise ConfigError("@Sample() needs data that are text: remove the hook.")
        prompt = encode_prompt(tokenizer, self.prompt)
        params = run.abstract_state().all_params
        generator = Generator(run.graph, params, self.sampler, self.seed)

        def sample(step: int, state: TrainState, metrics: Metrics) -> Values:
            del metrics
            generator.params = state.all_params
            tokens = generator.stream(prompt, self.tokens, tokenizer.stop_tokens)
            text = self.prompt + tokenizer.decode_after(prompt, [*tokens])
            generator.params = params  # the next step donates those of the state
            if distributed.is_leader():
                print_line(f"--- step {step} ---\n{text}\n---", sys.stdout)
            return {"sample": text}

        return Hook(call=sample, is_due=every_steps(self.every, run.steps))
