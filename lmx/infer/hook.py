"""Samples during training, to see what a loss sounds like."""

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx
from tqdm import tqdm

from lmx.config.names import ConfigError, configurable
from lmx.core import process
from lmx.infer.causal import check_causal
from lmx.infer.generate import Generator, ends_of, prompt_of
from lmx.infer.sample import Sampler
from lmx.train.hooks.periodic import Due, Periodic, due
from lmx.train.record.directory import Directory
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Sample(Periodic):
    """Continues a prompt every so many steps and at the end, by one seed."""

    prompt: str = ""
    tokens: int = 128
    every: int = 1000  # steps
    sampler: Sampler = Sampler()
    seed: int = 0

    def start(self, run: Run) -> Callable[[Directory], Due]:
        codec = run.data.tokenizer
        if codec is None:
            raise ConfigError("@Sample() needs data that are text: leave it out here.")
        prompt = prompt_of(codec, self.prompt)
        check_causal(nnx.merge(run.graph, run.like().params))
        is_due = due(self.every, run.steps)

        def sample(directory: Directory) -> Due:
            generator: Generator | None = None

            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                nonlocal generator
                del metrics
                if generator is None:
                    generator = Generator(
                        run.graph, state.params, self.sampler, self.seed
                    )
                generator.params = state.params
                made = generator.stream(prompt, self.tokens, ends_of(codec))
                text = self.prompt + codec.decode(made)
                generator.params = None  # the next step consumes them
                if process.first():
                    tqdm.write(f"--- step {done} ---\n{text}\n---")
                directory.log(done, {"sample": text})

            return Due(is_due, hook)

        return sample
