"""`lmx generate`: continues prompts with a trained run."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, option
from lmx.config.json_object import parse_object
from lmx.config.registry import require

if TYPE_CHECKING:
    from lmx.data.tokenizer.base import Tokenizer
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.sample import Sampler

_RULES = {
    "temperature": (float, "0: always the most likely token; higher: more random"),
    "top_k": (int, "sample from this many of the most likely tokens"),
    "top_p": (float, "sample from the most likely tokens with this total probability"),
    "min_p": (float, "drop tokens below this fraction of the highest probability"),
    "typical_p": (float, "sample from the most typical tokens of this probability"),
    "repetition_penalty": (float, "above 1: tokens used before are less likely"),
}
_FILE = 'many prompts: one per line, or {"prompt": ...} per line of a .jsonl'


@Command(
    "generate",
    "RUN",
    "text from a trained run",
    {
        "--prompt": option("the start of the text"),
        "--file": option(_FILE, Path),
        "--tokens": option("maximum new tokens (256)", int, 256),
        **{
            f"--{name.replace('_', '-')}": option(text, kind)
            for name, (kind, text) in _RULES.items()
        },
        "--seed": option("random seed (0)", int),
        "--stop": {
            "metavar": "TEXT",
            "action": "append",
            "default": [],
            "type": lambda text: text.replace("\\n", "\n"),
            "help": "stop before this text; \\n is a new line (repeatable)",
        },
        "--beams": option("beam search with this many beams", int),
        "--length-penalty": option("above 0: favors longer beams (1)", float),
        "--batch": option("prompts per batch (16)", int, 16),
    },
)
def generate(args: argparse.Namespace) -> int:
    """Continues a prompt with the latest checkpoint of a run.

    Prints the text as it is generated.

      lmx generate runs/quickstart-... --prompt "def "
      lmx generate runs/quickstart-... --prompt "class " --temperature 0
      lmx generate runs/quickstart-... --tokens 500 --top-k 40 --top-p 0.95 --seed 3
      lmx generate runs/quickstart-... --prompt "def " --stop "\\n\\n" --min-p 0.05
      lmx generate runs/quickstart-... --file prompts.txt --json   many prompts
      lmx generate runs/quickstart-... --prompt "def " --beams 4   beam search

    Sampling applies these rules in this order: --repetition-penalty, --temperature,
    --top-k, --top-p, --min-p, --typical-p. Each is off by default, except for a
    temperature of 0.8. Beam search does not sample and takes none of them.

    --json prints one object per line for each prompt: text, tokens, and the
    log-probability of each token in nats, as the model gives it before any of the
    rules. With --beams it has the beams, best first; a score is log-probability /
    tokens^length-penalty.
    """
    for name in ("tokens", "batch"):
        value = getattr(args, name)
        require(value >= 1, f"--{name} is {value}: it must be 1 or more.")
    require(
        args.file is None or args.prompt is None,
        "--prompt and --file exclude each other: give one of them.",
    )
    method = _make_sampler(args) if args.beams is None else _make_beam(args)
    texts = [args.prompt or ""] if args.file is None else read_prompts(args.file)
    streams = args.beams is None and args.file is None and not args.json
    results = _continue(args, method, texts, _print_piece if streams else str)
    for number, (text, result) in enumerate(zip(texts, results, strict=True)):
        if args.json:
            print(json.dumps({"prompt": text, **result}), flush=True)
        elif streams:
            print()
        else:
            print("---\n" * (number > 0) + text + result["text"], flush=True)
    return 0


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _make_sampler(args: argparse.Namespace) -> "Sampler":
    """A sampler with the rules that were given."""
    from lmx.infer.sample import Sampler

    require(
        args.length_penalty is None,
        "--length-penalty is for beam search: add --beams.",
    )
    rules = {name: getattr(args, name) for name in _RULES}
    return Sampler(**{name: rule for name, rule in rules.items() if rule is not None})


def _make_beam(args: argparse.Namespace) -> "BeamConfig":
    from lmx.infer.beam import BeamConfig

    for name in (*_RULES, "seed", "stop"):
        require(
            getattr(args, name) in (None, []),
            "beam search does not sample, and stops at stop tokens only: remove"
            f" --{name.replace('_', '-')}, or --beams.",
        )
    penalty = 1.0 if args.length_penalty is None else args.length_penalty
    return BeamConfig(beams=args.beams, length_penalty=penalty)


def _continue(
    args: argparse.Namespace,
    method: "Sampler | BeamConfig",
    texts: Sequence[str],
    emit: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """The continuation of each text; `emit` receives sampled text in pieces."""
    import lmx
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.text import encode_prompts, sample_texts

    trained = lmx.restore(args.names[0])
    if isinstance(method, BeamConfig):
        tokenizer, prompts = encode_prompts(trained, texts)
        search = BeamSearch(trained.graph, trained.params, method)
        yield from _search_beams(args, tokenizer, search, prompts)
        return
    yield from sample_texts(
        trained,
        texts,
        method,
        args.tokens,
        args.stop,
        seed=args.seed or 0,
        batch_size=args.batch,
        emit=emit,
    )


def _search_beams(
    args: argparse.Namespace,
    tokenizer: "Tokenizer",
    search: "BeamSearch",
    prompts: Sequence[Sequence[int]],
) -> Iterator[dict[str, Any]]:
    """The beams after each prompt, and the text of the best one."""
    for first in range(0, len(prompts), args.batch):
        batch = prompts[first : first + args.batch]
        found = search(batch, args.tokens, tokenizer.stop_tokens)
        for prompt, results in zip(batch, found, strict=True):
            beams = [
                {"text": tokenizer.decode_after(prompt, x.tokens), **x._asdict()}
                for x in results
            ]
            yield {"text": beams[0]["text"], "beams": beams}


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or those of the JSON objects of a `.jsonl`."""
    from lmx.data.corpus.corpus import decode_utf8
    from lmx.data.corpus.text import is_json_lines

    text = decode_utf8(path.read_bytes(), path).removeprefix("\ufeff")
    lines = enumerate(text.split("\n"), 1)
    prompts = {f"{path}:{n}": line.rstrip("\r") for n, line in lines if line.strip()}
    require(prompts, f"{path} has no prompts: write one per line.")
    if is_json_lines(path):
        kinds = {"prompt": str}
        objects = (
            parse_object(x.encode(), where, kinds) for where, x in prompts.items()
        )
        return [prompt["prompt"] for prompt in objects]
    return [*prompts.values()]
