"""A summary of a run: its results, its time, and its files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.run.goodput import total_seconds
from lmx.run.run_dir import read_last_metrics, read_metadata


def format_summary(path: Path) -> str:
    """A few lines for the terminal, from the files of the run."""
    metadata, last = read_metadata(path), read_last_metrics(path)
    lines = [
        f"{metadata['name']}: {last['step']:,} steps, {last['tokens_seen']:,} tokens,"
        f" {metadata['parameters']:,} parameters, on {metadata['devices']}",
        f"  training    {_format_loss(last)}",
    ]
    if "validation/nats" in last:
        lines.append(
            f"  validation  {last['validation/nats']:.4f} nats per token,"
            f" perplexity {last['validation/perplexity']:.2f}"
        )
    if "validation/bits_per_byte" in last:
        lines.append(f"  validation  {_format_bits(last)}")
    if "fresh/excess" in last:
        lines.append(
            f"  fresh       {last['fresh/nats']:.4f} nats per token, of which"
            f" {last['fresh/entropy']:.4f} are entropy: an excess of"
            f" {last['fresh/excess']:.4f} (standard error"
            f" {last['fresh/standard_error']:.4f})"
        )
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


def _format_loss(last: Mapping[str, Any]) -> str:
    """The nats of the last step; its loss, if that is not of tokens."""
    has_nats = "nats" in last
    return (
        f"{last['nats']:.4f} nats per token" if has_nats else f"loss {last['loss']:.4f}"
    )


def _format_time(seconds: Mapping[str, float]) -> str:
    """The total, and the phases that took at least 1% of it."""
    total = sum(seconds.values())
    shares = sorted(((n / total, phase) for phase, n in seconds.items()), reverse=True)
    parts = ", ".join(f"{phase} {n:.0%}" for n, phase in shares if n >= 0.01)
    return f"{tqdm.format_interval(total)}: {parts}"


def _format_bits(last: Mapping[str, Any]) -> str:
    """The bits per byte of the model, and of compressors if they were measured."""
    text = f"{last['validation/bits_per_byte']:.4f} bits per byte"
    others = [
        f"{name} {last[key]:.4f}"
        for name in ("zlib", "xz")
        if (key := f"validation/{name}_bits_per_byte") in last
    ]
    return f"{text} ({', '.join(others)})" if others else text
