"""`lmx eval`: how well a run predicts given texts."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError

_ABOUT = """\
Scores text files with the newest state of a run and the run's own tokenizer: nats per
token, perplexity (their exponential), and bits per byte of UTF-8, which compares runs
whose tokenizers differ. Each file is one document.

A long text is read in windows of --length tokens, each --stride further on than the
last. Every token is scored once, in the first window that has it, where at least
length - stride others stand before it: a smaller stride is fairer, and more work.
--stride equal to --length is what evaluation during training does.

  lmx eval runs/quickstart-... essay.txt
  lmx eval runs/quickstart-... *.txt --length 512 --stride 64
  lmx eval runs/quickstart-... essay.txt --json
"""


def add(parsers: Any) -> None:
    """Adds the verb `eval` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "eval",
        help="how well a run predicts given texts",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx eval RUN TEXT_FILE ... [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument(
        "--length", type=int, help="tokens of a window (as in training)"
    )
    parser.add_argument(
        "--stride", type=int, help="tokens from one window to the next (half a window)"
    )
    parser.add_argument("--batch", type=int, default=8, help="windows at a time (8)")
    parser.add_argument("--json", action="store_true", help="print it for a machine")


def run(args: argparse.Namespace) -> int:
    """Scores. Returns the exit status."""
    try:
        print(_scored(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _scored(args: argparse.Namespace) -> str:
    import numpy as np

    import lmx
    from lmx.data.corpus.file_corpus import decode_utf8
    from lmx.evals.documents import Scorer, SlidingWindow, find_training_length
    from lmx.evals.perplexity import summarize

    folder, *files = args.words
    if not files:
        raise ConfigError("which text? lmx eval RUN TEXT_FILE ...")
    texts = {file: decode_utf8(Path(file).read_bytes(), Path(file)) for file in files}
    trained = lmx.restore(folder)
    length = find_training_length(trained) if args.length is None else args.length
    stride = max(1, length // 2) if args.stride is None else args.stride
    score = Scorer(
        trained, SlidingWindow(length=length, stride=stride, batch_size=args.batch)
    )
    totals = {file: score(text, file) for file, text in texts.items()}
    found = {file: summarize(total) for file, total in totals.items()}
    every = summarize(np.sum(list(totals.values()), axis=0))
    said = {"run": folder, "step": trained.step, "length": length, "stride": stride}
    if args.json:
        return json.dumps({**said, "files": found, "all": every}, indent=2)
    head = f"{folder} at step {trained.step:,}, {length} tokens every {stride}"
    rows = found | ({"all": every} if len(found) > 1 else {})
    return f"{head}\n{table(rows)}"


def table(rows: dict[str, dict[str, float]]) -> str:
    """The numbers of each text under one another."""
    name, width = "text", max(map(len, ("text", *rows)))
    lines = [
        f"{name:{width}}  nats/token  perplexity  bits/byte      tokens       bytes"
    ]
    for name, row in rows.items():
        lines.append(
            f"{name:{width}}  {row['nats']:10.4f}  {row['perplexity']:10.2f}"
            f"  {row['bits_per_byte']:9.4f}  {row['tokens']:10,.0f}"
            f"  {row['bytes']:10,.0f}"
        )
    return "\n".join(lines)
