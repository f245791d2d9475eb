"""`lmx import hf`, `lmx export hf`: models of Hugging Face as runs, and back."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from lmx.config.registry import ConfigError

_IMPORT = """\
Makes a run of a model in a folder of Hugging Face transformers (config.json, weights in
*.safetensors, tokenizer files), so that every verb on runs works on it. Nothing is
dropped or left random: what does not map is an error that lists the names. Pickled
weights (*.bin, *.pt) are refused, since reading them runs code.

  lmx import hf Llama-3.2-1B runs/llama
  lmx import hf Llama-3.2-1B runs/llama --dtype float32
  lmx generate runs/llama --prompt "The capital of France is"
  lmx config show runs/llama                         the model as lmx composes it
"""
_EXPORT = """\
Writes the newest state of a run as a folder that transformers reads with
AutoModelForCausalLM.from_pretrained. The run may be imported or trained here; a model
that no family can express is refused, with what is in the way: the short convolutions
of the quickstart, for one.

  lmx export hf runs/llama llama-again
"""
_ABOUT = {
    "import": ("a model of Hugging Face, as a run", _IMPORT, ("FOLDER", "RUN")),
    "export": ("a run, as a model of Hugging Face", _EXPORT, ("RUN", "FOLDER")),
}


def add(parsers: Any) -> None:
    """Adds both verbs to what `ArgumentParser.add_subparsers` returned."""
    for name, (short, long, (first, second)) in _ABOUT.items():
        usage = f"lmx {name} hf {first} {second} [options]"
        parser = parsers.add_parser(
            name,
            help=short,
            description=long,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=usage,
        )
        parser.set_defaults(run=run, exchange=name, usage=usage)
        parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
        if name == "import":
            parser.add_argument("--dtype", help="of the parameters (as in the files)")
        parser.add_argument(
            "--json", action="store_true", help="print it for a machine"
        )


def run(args: argparse.Namespace) -> int:
    """Imports or exports. Returns the exit status."""
    try:
        kind, *folders = args.words
        if kind != "hf" or len(folders) != 2:
            raise ConfigError(f"got {' '.join(args.words)!r}: write {args.usage}")
        source, target = map(Path, folders)
        if args.exchange == "import":
            said, facts = _import(source, target, args.dtype)
        else:
            said, facts = _export(source, target)
        print(json.dumps(facts) if args.json else said)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _import(folder: Path, run: Path, dtype: Any) -> tuple[str, dict[str, Any]]:
    import jax

    from lmx.core.precision import Dtype
    from lmx.train.import_hf import import_hf

    if dtype not in (None, *get_args(Dtype)):
        raise ConfigError(f"--dtype is {dtype}: one of {', '.join(get_args(Dtype))}.")
    began = time.monotonic()
    with jax.enable_x64(True):  # weights that are float64 stay so; no others change
        trained = import_hf(folder, run, dtype)
    facts = {
        "run": str(run),
        "family": trained.config["family"],
        "dtype": trained.config["model.precision.params"],
        "parameters": trained.num_parameters,
        "tokens": trained.tokenizer and trained.tokenizer.vocab,
        "seconds": time.monotonic() - began,
    }
    text = (
        "no tokenizer" if trained.tokenizer is None else f"{facts['tokens']:,} tokens"
    )
    said = (
        f"{run}: {facts['family']}, {facts['parameters']:,} parameters in"
        f" {facts['dtype']}, {text}, {facts['seconds']:.0f} s"
    )
    return said, facts


def _export(run: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    import jax

    import lmx

    with jax.enable_x64(True):  # as in import
        trained = lmx.restore(run)
        lmx.save_hf(trained, folder)
    files = sorted(file.name for file in folder.iterdir())
    if trained.tokenizer and not trained.tokenizer.hf_files:
        print(
            f"note: transformers has nothing like the tokenizer of {run}, which stays"
            " there",
            file=sys.stderr,
        )
    said = f"{folder}: {trained.num_parameters:,} parameters of step {trained.step}"
    return said, {"folder": str(folder), "step": trained.step, "files": files}
