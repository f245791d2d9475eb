"""The command line. Each verb imports what it needs when it is called."""

import argparse
import sys
from collections.abc import Sequence

from lmx.cli import config, eval, generate, hf, launch, plan, train
from lmx.cli.data import verbs as data
from lmx.cli.runs import ckpt, faulttest, inspect, replay, reproduce

_ABOUT = """\
Language models in JAX. An experiment is a page of settings, a run is a folder.

  lmx train experiments/quickstart.gin             train, evaluate, sample, draw
  lmx train experiments/quickstart.gin STEPS=50    the same with a setting changed
  lmx generate runs/quickstart-... --prompt "def " text from what a run has learned
  lmx eval runs/quickstart-... essay.txt           how well it predicts a text
  lmx config show experiments/quickstart.gin       every setting, and who decided it
  lmx plan experiments/quickstart.gin --on v5e-16  whether it fits, how fast, how dear
  lmx why runs/quickstart-... --step 100           what a step of a run learned from
  lmx prove experiments/quickstart.gin --steps 60  kills it, and shows nothing is lost
  lmx import hf Llama-3.2-1B runs/llama            a model of Hugging Face, as a run
"""

_BACK = (ckpt, inspect, replay, reproduce, faulttest)
_VERBS = (train, generate, eval, config, data, plan, launch, hf, *_BACK)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits.

    0: done, 1: no, 2: wrong words, 75: try again, 130: Ctrl-C, 143: SIGTERM.
    """
    parser = argparse.ArgumentParser(
        prog="lmx",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(
        required=True, metavar="VERB", parser_class=config.Words
    )
    for verb in _VERBS:
        verb.add(verbs)
    args = parser.parse_args(arguments)
    args.typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(args.run(args))
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
