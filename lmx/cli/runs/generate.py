"""`lmx generate`: continues prompts with a trained run."""

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.data.tokenizer.base import Tokenizer
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.generate import Generator
    from lmx.infer.sample import Sampler

_ABOUT = """\
Continues a prompt with the latest checkpoint of a run, and prints the text as it is
generated.

  lmx generate runs/quickstart-... --prompt "def "
  lmx generate runs/quickstart-... --prompt "class " --temperature 0
  lmx generate runs/quickstart-... --tokens 500 --top-k 40 --top-p 0.95 --seed 3
  lmx generate runs/quickstart-... --prompt "def " --stop "\\n\\n" --min-p 0.05
  lmx generate runs/quickstart-... --file prompts.txt --json   many prompts
  lmx generate runs/quickstart-... --prompt "def " --beams 4   beam search

Sampling applies these rules in this order: --repetition-penalty, --temperature,
--top-k, --top-p, --min-p, --typical-p. Each is off by default, except for a temperature
of 0.8. Beam search does not sample and takes none of them.

--json prints one object per line for each prompt: text, tokens, and the log-probability
of each token in nats, as the model gives it before any of the rules. With --beams it
has the beams, best first; a score is log-probability / tokens^length-penalty.
"""
_SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0: always the most likely token; higher: more random"),
    "top_k": (int, "sample from this many of the most likely tokens"),
    "top_p": (float, "sample from the most likely tokens with this total probability"),
    "min_p": (float, "drop tokens below this fraction of the highest probability"),
    "typical_p": (float, "sample from the most typical tokens of this probability"),
    "repetition_penalty": (float, "above 1: tokens used before are less likely"),
    "seed": (int, "random seed (0)"),
}
_OPTIONS = {
    "--prompt": {"help": "the start of the text"},
    "--file": {
        "type": Path,
        "help": 'many prompts: one per line, or {"prompt": ...} per line of a .jsonl',
    },
    "--tokens": {"type": int, "default": 256, "help": "maximum new tokens (256)"},
    **{
        f"--{name.replace('_', '-')}": {"type": kind, "help": text}
        for name, (kind, text) in _SAMPLING.items()
    },
    "--stop": {
        "metavar": "TEXT",
        "action": "append",
        "default": [],
        "type": lambda text: text.replace("\\n", "\n"),
        "help": "stop before this text; \\n is a new line (repeatable)",
    },
    "--beams": {"type": int, "help": "beam search with this many beams"},
    "--length-penalty": {"type": float, "help": "above 0: favors longer beams (1)"},
    "--batch": {"type": int, "default": 16, "help": "prompts per batch (16)"},
}


def _generate(args: argparse.Namespace) -> int:
    import lmx
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.generate import Generator, encode_prompt

    for name in ("tokens", "batch"):
        if (value := getattr(args, name)) < 1:
            raise ConfigError(f"--{name} is {value}: it must be 1 or more.")
    if args.file is not None and args.prompt is not None:
        raise ConfigError("--prompt and --file exclude each other: give one of them.")
    method = _make_sampler(args) if args.beams is None else _make_beam(args)
    texts = [args.prompt or ""] if args.file is None else read_prompts(args.file)
    trained = lmx.restore(args.names[0])
    if (tokenizer := trained.tokenizer) is None:
        raise ConfigError(f"{args.names[0]} has no tokenizer: it cannot generate text.")
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    if isinstance(method, BeamConfig):
        search = BeamSearch(trained.graph, trained.params, method)
        print_results(args, texts, _search_beams(args, tokenizer, search, prompts))
        return 0
    generator = Generator(trained.graph, trained.params, method, args.seed or 0)
    if args.file is not None or args.json:
        print_results(args, texts, _sample(args, tokenizer, generator, prompts))
        return 0
    emit = functools.partial(print, end="", flush=True)
    list(_sample(args, tokenizer, generator, prompts, emit))
    print()
    return 0


def print_results(
    args: argparse.Namespace, texts: Sequence[str], results: Iterator[dict[str, Any]]
) -> None:
    """Prints each prompt with its continuation as soon as it is complete."""
    for number, (text, result) in enumerate(zip(texts, results, strict=True)):
        if args.json:
            print(json.dumps({"prompt": text, **result}), flush=True)
        else:
            print("---\n" * (number > 0) + text + result["text"], flush=True)


def _make_sampler(args: argparse.Namespace) -> "Sampler":
    """A sampler with the rules that were given."""
    from lmx.infer.sample import Sampler

    if args.length_penalty is not None:
        raise ConfigError("--length-penalty is for beam search: add --beams.")
    rules = {name: getattr(args, name) for name in _SAMPLING if name != "seed"}
    return Sampler(**{name: rule for name, rule in rules.items() if rule is not None})


def _make_beam(args: argparse.Namespace) -> "BeamConfig":
    from lmx.infer.beam import BeamConfig

    for name in (*_SAMPLING, "stop"):
        if getattr(args, name) not in (None, []):
            raise ConfigError(
                f"beam search does not sample, and stops at stop tokens only: remove"
                f" --{name.replace('_', '-')}, or --beams."
            )
    penalty = 1.0 if args.length_penalty is None else args.length_penalty
    return BeamConfig(beams=args.beams, length_penalty=penalty)


def _sample(
    args: argparse.Namespace,
    tokenizer: "Tokenizer",
    generator: "Generator",
    prompts: Sequence[Sequence[int]],
    emit: Callable[[str], object] = str,
) -> Iterator[dict[str, Any]]:
    """A sampled continuation of each prompt; `emit` receives all text in pieces."""
    from lmx.infer.stop import StopStringFilter

    stop = tokenizer.stop_tokens
    for first in range(0, len(prompts), args.batch):
        batch = prompts[first : first + args.batch]
        texts = [StopStringFilter(tokenizer, args.stop) for _ in batch]
        emit(args.prompt or "")
        for chunk in generator(batch, args.tokens, stop, first):
            for text, tokens, logprobs, active in zip(texts, *chunk, strict=True):
                for token, logprob in zip(
                    tokens[active], logprobs[active], strict=True
                ):
                    emit(text(token, logprob))
            if all(text.stopped for text in texts):
                break
        for text in texts:
            emit(text.flush())
            logprobs = [round(logprob, 6) for logprob in text.logprobs]
            yield {"text": text.text, "tokens": text.tokens, "logprobs": logprobs}


def _search_beams(
    args: argparse.Namespace,
    tokenizer: "Tokenizer",
    search: "BeamSearch",
    prompts: Sequence[Sequence[int]],
) -> Iterator[dict[str, Any]]:
    """The beams after each prompt, and the text of the best one."""
    stop = tokenizer.stop_tokens
    for first in range(0, len(prompts), args.batch):
        for results in search(prompts[first : first + args.batch], args.tokens, stop):
            beams = [
                {
                    "text": tokenizer.decode(x.tokens),
                    "score": x.score,
                    "tokens": x.tokens,
                }
                for x in results
            ]
            yield {"text": beams[0]["text"], "beams": beams}


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or those of the JSON objects of a `.jsonl`."""
    from lmx.data.corpus.file_corpus import decode_utf8

    lines = enumerate(decode_utf8(path.read_bytes(), path).split("\n"), 1)
    prompts = [(number, line.rstrip("\r")) for number, line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} has no prompts: write one per line.")
    if path.suffix != ".jsonl":
        return [line for _, line in prompts]
    return [_parse_prompt(line, f"{path}:{number}") for number, line in prompts]


def _parse_prompt(line: str, location: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (json.JSONDecodeError, TypeError, KeyError):
        prompt = None
    if not isinstance(prompt, str):
        raise ConfigError(f'{location}: each line must be {{"prompt": "..."}} in JSON.')
    return prompt


COMMANDS = (
    Command("generate", "RUN", "text from a trained run", _ABOUT, _generate, _OPTIONS),
)
