"""`lmx generate`: text from what a run has learned."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lmx.config.names import ConfigError

_ABOUT = """\
Continues a prompt with the newest state of a run, and prints the text as it comes.

  lmx generate runs/quickstart-... --prompt "def "
  lmx generate runs/quickstart-... --prompt "class " --temperature 0
  lmx generate runs/quickstart-... --tokens 500 --top-k 40 --top-p 0.95 --seed 3
"""


def add(parsers: Any) -> None:
    """Adds the verb `generate` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "generate",
        help="text from what a run has learned",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx generate RUN [--prompt TEXT] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs=1, metavar="RUN", help="the folder of a run")
    parser.add_argument("--prompt", default="", help="what the text begins with")
    parser.add_argument("--tokens", type=int, default=256, help="at most (256)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token (0.8)"
    )
    parser.add_argument("--top-k", type=int, help="draw from so many tokens only")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from this much probability (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--json", action="store_true", help="print it for a machine")


def run(args: argparse.Namespace) -> int:
    """Generates. Returns the exit status."""
    try:
        return _generate(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _generate(args: argparse.Namespace) -> int:
    import lmx
    from lmx.infer.generate import Generator, prompt_of
    from lmx.infer.sample import Sampler

    if args.tokens < 1:
        raise ConfigError(f"--tokens is {args.tokens}: it must be 1 or more.")
    sampler = Sampler(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    trained = lmx.restore(Path(args.words[0]))
    codec, text = trained.codec, []
    if codec is None:
        raise ConfigError(f"{args.words[0]} has learned no text: it has no tokenizer.")
    prompt = prompt_of(codec, args.prompt)
    generator = Generator(trained.graph, trained.params, sampler, args.seed)
    decode = codec.stream()
    if not args.json:
        print(args.prompt, end="", flush=True)
    for token in generator.stream(prompt, args.tokens, codec.end):
        text.append(decode(token))
        if not args.json:
            print(text[-1], end="", flush=True)
    text.append(decode.rest())
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": "".join(text)}))
    else:
        print(text[-1])
    return 0
