"""`lmx import hf`, `lmx export hf`: Hugging Face models as runs, and runs as models."""

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

from lmx.cli.command import Command, Output
from lmx.config.registry import require


@Command(
    "import hf",
    "FOLDER RUN",
    "a Hugging Face model as a run",
    {"--dtype": {"help": "dtype of the parameters (as in the files)"}},
)
def import_model(args: argparse.Namespace) -> Output:
    """Makes a run of a model in a folder of Hugging Face transformers.

    The folder has config.json, weights in *.safetensors, and tokenizer files. Every
    command on runs then works on it. No tensor is dropped or left at random values:
    names that do not match are an error that lists them. Pickled weights (*.bin, *.pt)
    are refused, since reading them executes code.

      lmx import hf Llama-3.2-1B runs/llama
      lmx import hf Llama-3.2-1B runs/llama --dtype float32
      lmx generate runs/llama --prompt "The capital of France is"
      lmx config show runs/llama                         the config of the model
    """
    import jax

    from lmx.core.precision import Dtype
    from lmx.train.checkpoint.import_hf import import_hf

    folder, run = map(Path, args.names)
    dtypes = get_args(Dtype)
    message = f"--dtype is {args.dtype}: must be one of {', '.join(dtypes)}."
    require(args.dtype in (None, *dtypes), message)
    started = time.monotonic()
    with jax.enable_x64(True):  # keeps float64 weights, and changes no others
        trained = import_hf(folder, run, args.dtype)
    data = {
        "run": str(run),
        "family": trained.config["family"],
        "dtype": trained.config["model.precision.params"],
        "parameters": trained.num_parameters,
        "tokens": trained.tokenizer and trained.tokenizer.vocab,
        "seconds": time.monotonic() - started,
    }
    vocab = f"{data['tokens']:,} tokens" if data["tokens"] else "no tokenizer"
    text = (
        f"{run}: {data['family']}, {data['parameters']:,} parameters in"
        f" {data['dtype']}, {vocab}, {data['seconds']:.0f} s"
    )
    return Output(text, data)


@Command("export hf", "RUN FOLDER", "a run as a Hugging Face model")
def export_model(args: argparse.Namespace) -> Output:
    """Writes the latest checkpoint of a run as a folder of Hugging Face transformers.

    AutoModelForCausalLM.from_pretrained reads it. The run may be imported, or trained
    with lmx. A model that no supported family can express is refused, and the message
    names the reason: the short convolutions of quickstart, for example.

      lmx export hf runs/llama exported/llama
    """
    import jax

    import lmx

    run, folder = map(Path, args.names)
    with jax.enable_x64(True):  # as in import
        trained = lmx.restore(run)
        lmx.save_hf(trained, folder)
    files = sorted(file.name for file in folder.iterdir())
    if trained.tokenizer and not trained.tokenizer.files:
        note = f"note: transformers has no equivalent of the tokenizer of {run}"
        print(f"{note}, which is not exported", file=sys.stderr)
    text = f"{folder}: {trained.num_parameters:,} parameters of step {trained.step}"
    data = {"folder": str(folder), "step": trained.step, "files": files}
    return Output(text, data)
