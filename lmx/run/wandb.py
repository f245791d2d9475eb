"""Sends metrics to Weights & Biases; a run continues without them if that fails."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmx.config.registry import configurable
from lmx.core.console import print_line
from lmx.data.optional import import_optional

TIMEOUT = 60.0  # seconds for an API key, for the server, and for uploads at the end


@configurable
@dataclass(frozen=True, kw_only=True)
class WandB:
    """Sends what `metrics.jsonl` gets to Weights & Biases, with the config.

    Attributes:
        group: of runs; None: the folder that has the run, as that of a sweep.
        mode: `offline` writes files in the folder of the run, which `wandb sync`
            uploads; None: `online`, unless WANDB_MODE says otherwise.
    """

    project: str = "lmx"
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None

    def check(self) -> None:
        """Raises ConfigError if the library is not installed."""
        import_optional("wandb", "wandb", "for Experiment.wandb")


class WandBWriter:
    """One attempt at a run; those of the same `run_id` are one run there."""

    def __init__(
        self, config: WandB, path: Path, run_id: str, settings: Mapping[str, Any]
    ):
        self.path, self.run = path, None  # a run of W&B
        with self._disable_on_error():
            wandb = import_optional("wandb", "wandb", "for Experiment.wandb")
            self.run = wandb.init(
                id=run_id,
                resume="allow",
                project=config.project,
                group=config.group or path.absolute().parent.name,
                name=path.name,
                tags=config.tags,
                config=dict(settings),
                dir=path,
                mode=config.mode,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    save_code=False,
                    login_timeout=TIMEOUT,
                    init_timeout=TIMEOUT,
                    finish_timeout=TIMEOUT,
                ),
            )

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds numbers, lists of numbers, and texts."""
        with self._disable_on_error():
            if self.run:
                self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there, as failed if an exception ends the run here."""
        with self._disable_on_error():
            run, self.run = self.run, None
            if run:
                run.finish(exit_code=int(sys.exc_info()[0] is not None))

    @contextlib.contextmanager
    def _disable_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.run = None
            print_line(
                f"warning: nothing more is sent to Weights & Biases ({error!r});"
                f" {self.path / 'metrics.jsonl'} has all metrics"
            )
