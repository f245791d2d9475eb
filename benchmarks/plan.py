"""What `lmx plan` foretells beside what others have published of the same models.

`python benchmarks/plan.py` is arithmetic and takes seconds; with `--compile`, where
libtpu is, every row is compiled, which takes an hour. Each row has the published batch
and mesh, and of lmx's ways to recompute the nearest. No row has a constant of its own.
"""

import argparse
from typing import NamedTuple

import lmx
from lmx.plan import case, price, topology
from lmx.plan.compiled.compile import compile_forecast
from lmx.plan.forecast import Forecast, make_forecast

NEAR = 0.2  # what is called a hit: so far from the published figure, of it
# maxtext.readthedocs.io/en/maxtext-v0.2.0/reference/models/tiering.html; batches from
# MaxText's configs/v5p/{llama2_70b,64b}.sh and maxtext_trillium_model_configs.py.
TIERS = "MaxText, model tiering"
V5P = "MaxText, configs/v5p/README.md"
# Apple 2025, "AXLearn: Modular Large Model Training on Heterogeneous Infrastructure".
AXLEARN = "AXLearn, table of training performance"


class Row(NamedTuple):
    """A published figure: MFU, with attention as if every token saw all."""

    page: str
    machine: str
    mfu: float
    source: str
    words: tuple[str, ...]


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
        "Mesh.fsdp=256", "train/TextDataset.batch_size=1024", "Experiment.microbatches=1",
    )),
    Row("llama2_70b", "v6e-256", 0.438, TIERS, (
        "Mesh.fsdp=256", "train/TextDataset.batch_size=512", "Experiment.microbatches=1",
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


def foretell(row: Row, *, compiled: bool) -> Forecast:
    """The forecast of a row."""
    config = lmx.load_experiment(f"experiments/families/{row.page}.gin", row.words)
    opened = case.build_case(config.build(), topology.parse_machine(row.machine))
    said = make_forecast(opened, price.load_price(opened.machine.kind))
    return compile_forecast(config, said) if compiled else said


def main() -> None:
    """Prints the table, and how many rows are near."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    compiled = parser.parse_args().compile
    form = "{:<13} {:<10} {:>9} {:>9} {:>6}  {:<8} {:>5}  {}"
    print(form.format(*"model machine published foretold ratio bound GiB how".split()))
    near = 0
    for row in ROWS:
        said = foretell(row, compiled=compiled)
        ratio = said.mfu / row.mfu
        near += abs(ratio - 1) <= NEAR
        figures = f"{row.mfu:.1%}", f"{said.mfu:.1%}", f"{ratio:.2f}"
        gib = f"{said.memory.total / topology.GIB:.1f}"
        how = said.method if said.fits else f"does not fit; {said.method}"
        cells = (row.page, row.machine, *figures, said.seconds.bound, gib, how)
        print(form.format(*cells), flush=True)
    print(f"{near} of {len(ROWS)} within {NEAR:.0%}")


if __name__ == "__main__":
    main()
