"""A summary of a run: its results, its time, and its files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.run.goodput import total_seconds
from lmx.run.run_dir import find_losses, read_last_metrics, read_metadata

SHOWN = {
    "nats": "{:.4f} nats per token",
    "loss": "loss {:.4f}",
    "perplexity": "perplexity {:.2f}",
    "bits_per_byte": "{:.4f} bits per byte",
    "zlib_bits_per_byte": "zlib {:.4f}",
    "xz_bits_per_byte": "xz {:.4f}",
    "entropy": "of which {:.4f} are entropy",
    "excess": "an excess of {:.4f}",
    "standard_error": "standard error {:.4f}",
}


def format_summary(path: Path) -> str:
    """A few lines for the terminal, from the files of the run."""
    metadata, last = read_metadata(path), read_last_metrics(path)
    lines = [
        f"{metadata['name']}: {last['step']:,} steps, {last['tokens_seen']:,} tokens,"
        f" {metadata['parameters']:,} parameters, on {metadata['devices']}",
        f"  training    {_format_loss(last, '')}",
        *(
            f"  {name:11} {_format_loss(last, f'{name}/')}"
            for name in find_losses(last)
        ),
    ]
    lmx = sys.argv[0] if Path(sys.argv[0]).name == "lmx" else "lmx"
    lines += [
        f"  time        {_format_time(total_seconds(path))}",
        f"  curves      {path / 'plots' / 'loss.png'}",
        f"  metrics     {path / 'metrics.jsonl'} (and: tensorboard --logdir {path})",
        f"  checkpoints {path / 'checkpoints'}",
        f"  analyze     {lmx} inspect|replay {path} --step N, {lmx} reproduce {path}",
    ]
    if (path / TOKENIZER_DIR).is_dir():
        lines.append(f'  try         {lmx} generate {path} --prompt "def "')
    return "\n".join(lines)


def _format_time(seconds: Mapping[str, float]) -> str:
    """The total, and the phases that took at least 1% of it."""
    total = sum(seconds.values())
    shares = sorted(((n / total, phase) for phase, n in seconds.items()), reverse=True)
    parts = ", ".join(f"{phase} {n:.0%}" for n, phase in shares if n >= 0.01)
    return f"{tqdm.format_interval(total)}: {parts}"


def _format_loss(last: Mapping[str, Any], prefix: str) -> str:
    """The last loss of an evaluation, or of training for an empty prefix."""
    names = {name: f"{prefix}{name}" for name in SHOWN if f"{prefix}{name}" in last}
    return ", ".join(SHOWN[name].format(last[key]) for name, key in names.items())
