"""`lmx eval`: how well a run predicts given texts."""

import argparse
from pathlib import Path

from lmx.cli.command import Command, Output, format_table

_ABOUT = """\
Scores text files with the latest checkpoint of a run and the run's own tokenizer: nats
per token, perplexity (their exponential), and bits per byte of UTF-8, which compares
runs with different tokenizers. Each file is one document.

A long text is read in windows of --length tokens that start --stride tokens apart.
Every token is scored once, in the first window that contains it, with at least length -
stride tokens before it: a smaller stride gives more context and takes more time.
Evaluation during training uses a stride equal to the length.

  lmx eval runs/quickstart-... essay.txt
  lmx eval runs/quickstart-... *.txt --length 512 --stride 64
  lmx eval runs/quickstart-... essay.txt --json
"""
_OPTIONS = {
    "--length": {"type": int, "help": "tokens per window (as in training)"},
    "--stride": {"type": int, "help": "tokens between windows (half a window)"},
    "--batch": {"type": int, "default": 8, "help": "windows per batch (8)"},
}


def _eval(args: argparse.Namespace) -> Output:
    import numpy as np

    import lmx
    from lmx.data.corpus.file_corpus import decode_utf8
    from lmx.evals.documents import Scorer, SlidingWindow, find_training_length
    from lmx.evals.perplexity import summarize

    folder, *files = args.names
    texts = {file: decode_utf8(Path(file).read_bytes(), Path(file)) for file in files}
    trained = lmx.restore(folder)
    length = find_training_length(trained) if args.length is None else args.length
    stride = max(1, length // 2) if args.stride is None else args.stride
    window = SlidingWindow(length=length, stride=stride, batch_size=args.batch)
    score = Scorer(trained, window)
    totals = {file: score(text, file) for file, text in texts.items()}
    results = {file: summarize(total) for file, total in totals.items()}
    every = summarize(np.sum(list(totals.values()), axis=0))
    settings = {"step": trained.step, "length": length, "stride": stride}
    head = f"{folder} at step {trained.step:,}, {length} tokens every {stride}"
    rows = results | ({"all": every} if len(results) > 1 else {})
    table = format_table(
        ("text", "nats/token", "perplexity", "bits/byte", "tokens", "bytes"),
        [
            (
                name,
                f"{row['nats']:.4f}",
                f"{row['perplexity']:.2f}",
                f"{row['bits_per_byte']:.4f}",
                f"{row['tokens']:,.0f}",
                f"{row['bytes']:,.0f}",
            )
            for name, row in rows.items()
        ],
    )
    data = {"run": folder, **settings, "files": results, "all": every}
    return Output(f"{head}\n{table}", data)


COMMANDS = (
    Command(
        "eval", "RUN FILE ...", "how well a run predicts texts", _ABOUT, _eval, _OPTIONS
    ),
)
