"""The state of a run on disk: saved beside the training, listed from what is there."""

import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from lmx.config.names import ConfigError
from lmx.core import process
from lmx.data.cache import discard

State = TypeVar("State")

SCHEMA = 2  # of what a checkpoint holds; a reader refuses any other


class Checkpoints:
    """The checkpoints of one run, one folder a step, complete or not there at all."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder.absolute(), keep
        # Not compressed: a quarter at most is gained on weights, and compressing takes
        # as much memory again as they do and six times as long as writing them.
        self.writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.PyTreeCheckpointHandler(use_compression=False),
                meta=ocp.JsonCheckpointHandler(),
            )
        )

    def steps(self) -> list[int]:
        """The steps whose commit is on disk now, oldest first.

        Of many processes the first looks, so that all see the same.
        """
        return process.from_first(self._listed)

    def _listed(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if p.name.isdigit()]
        return sorted(
            int(p.name) for p in found if ocp.utils.is_checkpoint_finalized(p)
        )

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state and returns; writes it while training goes on.

        Waits for the save before it, so that at most one is on its way.
        """
        self.wait()
        self.writer.save(
            self._path(step),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(_named(state)),
                meta=ocp.args.JsonSave({"schema": SCHEMA, "step": step}),
            ),
            force=True,
        )

    def wait(self) -> None:
        """Until what was saved is committed; then only the newest few are kept."""
        self.writer.wait_until_finished()
        process.from_first(self._thin)

    def _thin(self) -> None:
        for step in self._listed()[: -self.keep]:
            discard(self._path(step))

    def clean(self) -> None:
        """Takes away what a process that was killed left half written or removed."""
        process.from_first(self._clean)

    def _clean(self) -> None:
        for path in self.folder.glob("*"):
            if not path.name.isdigit():
                shutil.rmtree(path)

    def remove(self, step: int) -> None:
        """Takes the state of that step away."""
        process.from_first(lambda: discard(self._path(step)))

    def restore(self, step: int, like: State) -> State:
        """The state of that step, in the shapes and on the devices of `like`.

        `like` may be a part of it, as in `{"params": shapes}`.
        """
        wanted = _named(like)
        meta = self.writer.restore(
            self._path(step), args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )["meta"]
        if meta["schema"] != SCHEMA:
            other = "a newer" if meta["schema"] > SCHEMA else "an older"
            raise ConfigError(
                f"{self._path(step)} was written by {other} lmx (schema"
                f" {meta['schema']}, and this one reads {SCHEMA}): use that one."
            )
        state = self.writer.restore(
            self._path(step),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=True,
                )
            ),
        )["state"]
        leaves = [state[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"


def _named(tree: Any) -> dict[str, Any]:
    """Every array by its path, as in `params.stack.cycles.0.blocks.0.attention.q.w`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves
    ]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))
