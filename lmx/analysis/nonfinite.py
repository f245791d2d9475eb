"""Finds the first tensor of a training step that is not finite, by replaying it."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from lmx.analysis.replay import RecordedRun
from lmx.config.value import Config
from lmx.core.batch import AnyBatch
from lmx.core.console import print_line
from lmx.core.hardware import set_up_jax
from lmx.core.sharding import is_variable
from lmx.layers.tap import Records, TapRequest, record
from lmx.train import trainer
from lmx.train.experiment import Experiment
from lmx.train.guard.nonfinite import FaultError
from lmx.train.step import StepConfig, merge_params, split_rows
from lmx.train.trainer import RunOptions

Checks = tuple[Records, Records, Bool[Array, ""], Records]


def train_run(
    experiment: Config[Experiment],
    run: str | Path,
    options: RunOptions = RunOptions(),
    name: str | None = None,
) -> Path:
    """Trains an experiment in the folder `run`, or resumes it, and returns the folder.

    Raises ConfigError, `StoppedError` once a signal stopped the run and it is saved,
    and `FaultError`, with a note that names the first tensor that is not finite. For
    that the run is replayed from its newest checkpoint.
    """
    folder = Path(run)
    set_up_jax(experiment)
    try:
        trainer.train_run(name or folder.name, experiment, folder, options)
        return folder
    except FaultError as error:
        fault = error.with_traceback(None)  # whose frames hold the state
    explain_fault(fault, folder)
    raise fault


def explain_fault(fault: FaultError, run: Path) -> None:
    """Adds the first tensor that is not finite to the notes, if the fault is one.

    Not in several processes, of which one might fail alone and leave others waiting.
    """
    if fault.nonfinite_step is None or jax.process_count() > 1:
        return
    print_line(f"replaying step {fault.nonfinite_step}; Ctrl-C skips this")
    try:
        recorded = RecordedRun.open(run)
        fault.add_note(explain_step(recorded, fault.nonfinite_step))
    except (Exception, KeyboardInterrupt) as error:  # it ends as it would without
        fault.add_note(f"The step was not replayed: {error!r}")


def explain_step(recorded: RecordedRun, step: int) -> str:
    """Names the first tensor that is not finite in that step of a run."""
    state, _ = recorded.train(recorded.restore_before(step), step - 1)
    batch = recorded.load_batch(state)
    return describe_checks(recorded.run_by_replica(check_finite, state, batch))


def describe_checks(replicas: Sequence[Checks]) -> str:
    """The first tensor that is not finite, by `check_finite` of each replica.

    Parameters come first, then activations, the loss, and the gradients, of which that
    of the last layer is computed first.
    """
    for parameters, activations, loss, gradients in jax.device_get(replicas):
        found = [
            *list_nonfinite(parameters),
            *list_nonfinite(activations),
            *([] if loss else ["loss"]),
            *reversed(list_nonfinite(gradients)),
        ]
        if found:
            return f"The first tensor that is not finite: {found[0]}."
    return "All parameters, activations and gradients of this step are finite."


def check_finite(
    config: StepConfig, params: PyTree, batch: AnyBatch, keys: Key[Array, "B"]
) -> Checks:
    """Whether parameters, activations, loss and gradients are finite."""
    loss_fn = record(config.bind_loss(), TapRequest(None, reduce=_is_finite))

    def check(part: tuple[AnyBatch, Key[Array, "B"]]) -> tuple[Records, Array, Records]:
        def total(params: PyTree) -> tuple[Array, Records]:
            (loss, _), records = loss_fn(config.build_model(params), *part)
            return loss.total, records

        (loss, records), grads = jax.value_and_grad(total, has_aux=True)(params)
        return records, _is_finite(loss), check_parameters("gradient", grads)

    checks = jax.lax.map(check, split_rows((batch, keys), config.microbatches))
    checks = jax.tree.map(lambda x: x.all(axis=0), checks)
    everything = merge_params(params, config.frozen.params)
    return check_parameters("parameter", everything), *checks


def _is_finite(x: Array) -> Bool[Array, ""]:
    return jnp.isfinite(x).all()


def check_parameters(kind: str, params: PyTree) -> Records:
    """Whether each parameter is finite, by layer, in the order of a forward pass."""
    order = {"embedding": 0, "position": 0, "stack": 1}
    leaves = jax.tree.leaves_with_path(params, is_leaf=is_variable)
    leaves.sort(key=lambda leaf: order.get(leaf[0][0].key, 2))
    records: Records = OrderedDict()
    for path, leaf in leaves:
        layers = leaf.get_metadata().get("layers", ())
        flags = jnp.isfinite(leaf[...]).all(axis=tuple(range(bool(layers), leaf.ndim)))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        records[f"{kind} {name}"] = {layers: flags}
    return records


def list_nonfinite(records: Records) -> list[str]:
    """The tensors that are not finite, layer after layer."""
    group, rows = 0, []
    for index, (name, parts) in enumerate(records.items()):
        group += () in parts
        for layers, flags in parts.items():
            for layer, flag in zip(layers or (-1,), np.atleast_1d(flags), strict=True):
                where = name if layer < 0 else f"{name} of layer {layer}"
                if flag is not None and not flag:
                    rows.append((group, layer, index, where))
    return [where for *_, where in sorted(rows)]
