"""`lmx eval`: how well a run predicts given texts."""

import argparse

from lmx.cli.command import Command, Output, option
from lmx.core.console import format_table


@Command(
    "eval",
    "RUN FILE ...",
    "how well a run predicts texts",
    {
        "--length": option("tokens per window (as in training)", int),
        "--stride": option("tokens between windows (half a window)", int),
        "--batch": option("windows per batch (8)", int, 8),
    },
)
def evaluate(args: argparse.Namespace) -> Output:
    """Scores text files with the latest checkpoint of a run and its tokenizer.

    Nats per token, perplexity (their exponential), and bits per byte of UTF-8, which
    compares runs with different tokenizers. Each file is one document; of a .jsonl
    file, the "text" of each line is one.

    A long text is read in windows of --length tokens that start --stride tokens apart.
    Every token is scored once, in the first window that contains it, with at least
    length - stride tokens before it: a smaller stride gives more context and takes more
    time. Evaluation during training uses a stride equal to the length.

      lmx eval runs/quickstart-... essay.txt
      lmx eval runs/quickstart-... *.txt --length 512 --stride 64
      lmx eval runs/quickstart-... essay.txt --json
    """
    import numpy as np

    import lmx
    from lmx.data.corpus.corpus import HoldoutDocuments
    from lmx.data.corpus.text import Text
    from lmx.evals.documents import Scorer, SlidingWindow, find_training_length
    from lmx.evals.perplexity import summarize

    folder, *files = args.names
    everything = HoldoutDocuments(fraction=0.0)
    texts = {
        file: [d.text for d in Text(path=file, holdout=everything).read("train")]
        for file in files
    }
    trained = lmx.restore(folder)
    length = find_training_length(trained) if args.length is None else args.length
    stride = max(1, length // 2) if args.stride is None else args.stride
    window = SlidingWindow(length=length, stride=stride, batch_size=args.batch)
    score = Scorer(trained, window)
    totals = {
        file: np.sum([score(text, file) for text in documents or [""]], axis=0)
        for file, documents in texts.items()
    }
    results = {file: summarize(total) for file, total in totals.items()}
    every = summarize(np.sum(list(totals.values()), axis=0))
    head = f"{folder} at step {trained.step:,}, {length} tokens every {stride}"
    table = _format(results | ({"all": every} if len(results) > 1 else {}))
    settings = {"step": trained.step, "length": length, "stride": stride}
    data = {"run": folder, **settings, "files": results, "all": every}
    return Output(f"{head}\n{table}", data)


def _format(results: dict[str, dict[str, float]]) -> str:
    formats = {
        "nats": "{:.4f}",
        "perplexity": "{:.2f}",
        "bits_per_byte": "{:.4f}",
        "tokens": "{:,.0f}",
        "bytes": "{:,.0f}",
    }
    rows = [
        (name, *(form.format(row[key]) for key, form in formats.items()))
        for name, row in results.items()
    ]
    header = ("text", "nats/token", "perplexity", "bits/byte", "tokens", "bytes")
    return format_table(header, rows)
