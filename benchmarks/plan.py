"""Predictions of `lmx plan` compared with published training performance.

`python benchmarks/plan.py` is analytic and takes seconds; with `--compile`, which needs
libtpu, every row is compiled, which takes an hour. Each row has the published batch and
mesh, and the most similar setting of remat. No constant is fitted to a row.
"""

import argparse
from typing import NamedTuple

import lmx
from lmx.plan import case, topology
from lmx.plan.compile import compile_forecast
from lmx.plan.forecast import Forecast, make_forecast

FUSED = "Attention.backend=@SplashAttention()"  # as those measured
TOLERANCE = 0.2  # relative, of an accurate prediction
# maxtext.readthedocs.io/en/maxtext-v0.2.0/reference/models/tiering.html; batches from
# MaxText's configs/v5p/{llama2_70b,64b}.sh and maxtext_trillium_model_configs.py.
TIERS = "MaxText, model tiering"
V5P = "MaxText, configs/v5p/README.md"
# Apple 2025, "AXLearn: Modular Large Model Training on Heterogeneous Infrastructure".
AXLEARN = "AXLearn, table of training performance"


class Row(NamedTuple):
    """A published MFU, with FLOPs of attention without a mask."""

    experiment: str
    machine: str
    mfu: float
    source: str
    overrides: tuple[str, ...]


DENSE_64B = (
    "Decoder.depth=64",
    "Attention.kv_heads=64",
    "LENGTH=2048",
    "Mesh.fsdp=16",
    "Mesh.tensor=4",
    "train/TextDataset.batch_size=192",
    "Decoder.remat=keep_weight_dots",
    "Experiment.microbatches=1",
)
ROWS = (
    Row("llama2_70b", "v5p-512", 0.654, TIERS, (
        "Mesh.fsdp=256", "train/TextDataset.batch_size=1024",
        "Experiment.microbatches=1",
    )),
    Row("llama2_70b", "v6e-256", 0.438, TIERS, (
        "Mesh.fsdp=256", "train/TextDataset.batch_size=512",
        "Experiment.microbatches=1",
    )),
    Row("llama3_8b", "v6e-256", 0.455, TIERS, (
        "Mesh.fsdp=256", "train/TextDataset.batch_size=1024", "NextToken.chunk=1024",
    )),
    Row("llama3_70b", "v6e-256", 0.503, TIERS, ("Experiment.microbatches=1",)),
    Row("llama3_405b", "v6e-256", 0.386, TIERS, (
        "Mesh.fsdp=64", "Mesh.tensor=4", "train/TextDataset.batch_size=256",
        "Experiment.microbatches=1",
    )),
    Row("mixtral_8x7b", "v6e-256", 0.352, TIERS, (
        "Mesh.fsdp=256", "LENGTH=4096", "train/TextDataset.batch_size=3072",
        "NextToken.chunk=1024",
    )),
    Row("llama2_70b", "4xv5e-256", 0.599, AXLEARN, (
        "Mesh.replica=4", "Mesh.fsdp=256", "train/TextDataset.batch_size=1024",
        "Experiment.microbatches=1",
    )),
    Row("llama2_70b", "v5p-128", 0.703, V5P, DENSE_64B),
)  # fmt: skip


def predict(row: Row, *, compiled: bool) -> Forecast:
    """Returns the forecast of a row."""
    config = lmx.load_experiment(
        f"experiments/families/{row.experiment}.gin", (FUSED, *row.overrides)
    )
    planned = case.build_case(config.build(), topology.parse_machine(row.machine))
    forecast = make_forecast(planned, topology.load_price(planned.machine.kind))
    return compile_forecast(config, forecast) if compiled else forecast


def main() -> None:
    """Prints the table, and the number of accurate rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    compiled = parser.parse_args().compile
    form = "{:<13} {:<10} {:>9} {:>9} {:>6}  {:<8} {:>5}  {}"
    print(form.format(*"model machine published predicted ratio bound GiB how".split()))
    accurate = 0
    for row in ROWS:
        forecast = predict(row, compiled=compiled)
        ratio = forecast.mfu / row.mfu
        accurate += abs(ratio - 1) <= TOLERANCE
        figures = f"{row.mfu:.1%}", f"{forecast.mfu:.1%}", f"{ratio:.2f}"
        gib = f"{forecast.memory.total / topology.GIB:.1f}"
        how = forecast.method if forecast.fits else f"does not fit; {forecast.method}"
        cells = (
            row.experiment,
            row.machine,
            *figures,
            forecast.seconds.bound,
            gib,
            how,
        )
        print(form.format(*cells), flush=True)
    print(f"{accurate} of {len(ROWS)} within {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
