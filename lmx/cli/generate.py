"""`lmx generate`: text from what a run has learned."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.data.tokenizer.base import Tokenizer
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.generate import Generator
    from lmx.infer.sample import Sampler

_ABOUT = """\
Continues a prompt with the newest state of a run, and prints the text as it comes.

  lmx generate runs/quickstart-... --prompt "def "
  lmx generate runs/quickstart-... --prompt "class " --temperature 0
  lmx generate runs/quickstart-... --tokens 500 --top-k 40 --top-p 0.95 --seed 3
  lmx generate runs/quickstart-... --prompt "def " --stop "\\n\\n" --min-p 0.05
  lmx generate runs/quickstart-... --file prompts.txt --json   many at once
  lmx generate runs/quickstart-... --prompt "def " --beams 4   the likeliest found

Tokens are drawn under these rules, in this order: --repetition-penalty, --temperature,
--top-k, --top-p, --min-p, --typical-p. Each is off unless given, but for a temperature
of 0.8. Beam search draws nothing, so it takes none of them.

--json prints one object a line for each prompt: text, tokens, and the log-probability
of each token in nats, as the model has it before any of the rules. With --beams it has
the beams, best first; a score is log-probability / tokens^length-penalty.
"""

_SAMPLING = {  # the options that say how a token is drawn, and their help
    "temperature": (float, "0: the likeliest token; below 1: safer, above: wilder"),
    "top_k": (int, "draw from so many of the likeliest tokens"),
    "top_p": (float, "draw from the likeliest that have this probability together"),
    "min_p": (float, "draw from those at least so many times as likely as the first"),
    "typical_p": (float, "draw from the least surprising in sum of this probability"),
    "repetition_penalty": (float, "above 1: tokens that were there are less likely"),
    "seed": (int, "of the draws (0)"),
}


def add(parsers: Any) -> None:
    """Adds the verb `generate` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "generate",
        help="text from what a run has learned",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx generate RUN [--prompt TEXT | --file PROMPTS] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs=1, metavar="RUN", help="the folder of a run")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--prompt", default="", help="what the text begins with")
    begin.add_argument(
        "--file",
        type=Path,
        help='many prompts: one a line, or {"prompt": ...} a line of a .jsonl',
    )
    parser.add_argument("--tokens", type=int, default=256, help="at most (256)")
    for name, (kind, said) in _SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=said)
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        type=_unescaped,
        help="end before this text; \\n is a new line (may be repeated)",
    )
    parser.add_argument("--beams", type=int, help="search, keeping so many")
    parser.add_argument(
        "--length-penalty", type=float, help="above 0: prefers longer beams (1)"
    )
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time (16)")
    parser.add_argument("--json", action="store_true", help="print it for a machine")


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n")


def run(args: argparse.Namespace) -> int:
    """Generates. Returns the exit status."""
    try:
        _generate(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _generate(args: argparse.Namespace) -> None:
    import lmx
    from lmx.infer.beam import BeamConfig, BeamSearch
    from lmx.infer.generate import Generator, encode_prompt

    for name in ("tokens", "batch"):
        if (value := getattr(args, name)) < 1:
            raise ConfigError(f"--{name} is {value}: it must be 1 or more.")
    how = _sampler(args) if args.beams is None else _beam(args)
    texts = [args.prompt] if args.file is None else read_prompts(args.file)
    trained = lmx.restore(args.words[0])
    if (codec := trained.tokenizer) is None:
        raise ConfigError(f"{args.words[0]} has learned no text: it has no tokenizer.")
    prompts = [encode_prompt(codec, text) for text in texts]
    if isinstance(how, BeamConfig):
        search = BeamSearch(trained.graph, trained.params, how)
        print_results(args, texts, _search_beams(args, codec, search, prompts))
        return
    generator = Generator(trained.graph, trained.params, how, args.seed or 0)
    if args.file is None and not args.json:
        _stream(args, codec, generator, prompts[0])
    else:
        print_results(args, texts, _sample_batches(args, codec, generator, prompts))


def print_results(
    args: argparse.Namespace, texts: Sequence[str], said: Iterator[dict]
) -> None:
    """Prints what is said after each text, as soon as it is."""
    for number, (text, new) in enumerate(zip(texts, said, strict=True)):
        if args.json:
            print(json.dumps({"prompt": text, **new}), flush=True)
            continue
        if number:
            print("---")
        print(f"{text}{new['text']}", flush=True)


def _sampler(args: argparse.Namespace) -> "Sampler":
    """The rules that were given; the others are off."""
    from lmx.infer.sample import Sampler

    if args.length_penalty is not None:
        raise ConfigError("--length-penalty is of beam search: give --beams with it.")
    rules = {name: getattr(args, name) for name in _SAMPLING if name != "seed"}
    return Sampler(**{name: rule for name, rule in rules.items() if rule is not None})


def _beam(args: argparse.Namespace) -> "BeamConfig":
    from lmx.infer.beam import BeamConfig

    given = [
        name for name in (*_SAMPLING, "stop") if getattr(args, name) not in (None, [])
    ]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"beam search draws nothing, and ends at stop tokens only: leave out"
            f" --{option}, or --beams."
        )
    penalty = 1.0 if args.length_penalty is None else args.length_penalty
    return BeamConfig(beams=args.beams, length_penalty=penalty)


def _stream(
    args: argparse.Namespace,
    codec: "Tokenizer",
    generator: "Generator",
    prompt: Sequence[int],
) -> None:
    """Prints the prompt, and what comes after it as it comes."""
    from lmx.infer.generate import get_stop_tokens
    from lmx.infer.stop_strings import StopStringFilter

    telling = StopStringFilter(codec, args.stop)
    print(args.prompt, end="", flush=True)
    for token in generator.stream(prompt, args.tokens, get_stop_tokens(codec)):
        print(telling(token), end="", flush=True)
        if telling.stopped:
            break
    print(telling.flush())


def _sample_batches(
    args: argparse.Namespace,
    codec: "Tokenizer",
    generator: "Generator",
    prompts: Sequence[Sequence[int]],
) -> Iterator[dict[str, Any]]:
    """What is drawn after each prompt."""
    from lmx.infer.generate import get_stop_tokens
    from lmx.infer.stop_strings import StopStringFilter

    for first in range(0, len(prompts), args.batch):
        few = prompts[first : first + args.batch]
        tellings = [StopStringFilter(codec, args.stop) for _ in few]
        for made in generator(few, args.tokens, get_stop_tokens(codec), first):
            for telling, tokens, logprobs, live in zip(tellings, *made, strict=True):
                for token, logprob in zip(tokens[live], logprobs[live], strict=True):
                    telling(token, logprob)
            if all(telling.stopped for telling in tellings):
                break
        for telling in tellings:
            telling.flush()
            yield {
                "text": telling.text,
                "tokens": telling.tokens,
                "logprobs": [round(logprob, 6) for logprob in telling.logprobs],
            }


def _search_beams(
    args: argparse.Namespace,
    codec: "Tokenizer",
    search: "BeamSearch",
    prompts: Sequence[Sequence[int]],
) -> Iterator[dict[str, Any]]:
    """The beams after each prompt, the text of the best first."""
    from lmx.infer.generate import get_stop_tokens

    for first in range(0, len(prompts), args.batch):
        few = prompts[first : first + args.batch]
        for results in search(few, args.tokens, get_stop_tokens(codec)):
            beams = [
                {"text": codec.decode(r.tokens), "score": r.score, "tokens": r.tokens}
                for r in results
            ]
            yield {"text": beams[0]["text"], "beams": beams}


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or those of the JSON objects of a `.jsonl`."""
    from lmx.data.corpus.file_corpus import decode_utf8

    lines = enumerate(decode_utf8(path.read_bytes(), path).split("\n"), 1)
    kept = [(number, line.rstrip("\r")) for number, line in lines if line.strip()]
    if not kept:
        raise ConfigError(f"{path} has no prompts: write one a line.")
    if path.suffix != ".jsonl":
        return [line for _, line in kept]
    return [_prompt(line, f"{path}:{number}") for number, line in kept]


def _prompt(line: str, where: str) -> str:
    """The prompt of one JSON object."""
    try:
        found = json.loads(line)["prompt"]
    except (json.JSONDecodeError, TypeError, KeyError):
        found = None
    if not isinstance(found, str):
        raise ConfigError(f'{where}: each line must be {{"prompt": "..."}}, in JSON.')
    return found
