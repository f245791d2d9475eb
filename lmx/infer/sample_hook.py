"""Samples during training, to see what a loss sounds like."""

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx
from tqdm import tqdm

from lmx.config.registry import ConfigError, configurable
from lmx.core import distributed
from lmx.infer.causal import check_causal
from lmx.infer.generate import Generator, encode_prompt, get_stop_tokens
from lmx.infer.sample import Sampler
from lmx.run.run_dir import RunDir
from lmx.train.hook import Hook, ScheduledHook, make_schedule
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Sample(Hook):
    """Continues a prompt every so many steps and at the end, by one seed."""

    prompt: str = ""
    tokens: int = 128
    every: int = 1000  # steps
    sampler: Sampler = Sampler()
    seed: int = 0

    def start(self, run: RunContext) -> Callable[[RunDir], ScheduledHook]:
        codec = run.data.info.tokenizer
        if codec is None:
            raise ConfigError("@Sample() needs data that are text: leave it out here.")
        prompt = encode_prompt(codec, self.prompt)
        check_causal(nnx.merge(run.graph, run.abstract_state().params))
        is_due = make_schedule(self.every, run.steps)

        def sample(directory: RunDir) -> ScheduledHook:
            generator: Generator | None = None

            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                nonlocal generator
                del metrics
                if generator is None:
                    generator = Generator(
                        run.graph, state.params, self.sampler, self.seed
                    )
                generator.params = state.params
                made = generator.stream(prompt, self.tokens, get_stop_tokens(codec))
                text = self.prompt + codec.decode(made)
                generator.params = None  # the next step consumes them
                if distributed.is_leader():
                    tqdm.write(f"--- step {done} ---\n{text}\n---")
                directory.log_metrics(done, {"sample": text})

            return ScheduledHook(is_due, hook)

        return sample
