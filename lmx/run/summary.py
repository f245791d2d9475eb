"""What a run came to, and where everything is."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from lmx.run.run_dir import read_last_metrics
from lmx.run.timing import total_seconds


def format_summary(path: Path) -> str:
    """A few lines for the terminal, from the files of the run."""
    card = json.loads((path / "card.json").read_text())
    found = read_last_metrics(path)
    lines = [
        f"{card['name']}: {found['step']:,} steps, {found['tokens_seen']:,} tokens,"
        f" {card['parameters']:,} parameters, on {card['devices']}",
        f"  training    {found['nats']:.4f} nats per token",
    ]
    if "validation/nats" in found:
        lines.append(
            f"  validation  {found['validation/nats']:.4f} nats per token,"
            f" perplexity {found['validation/perplexity']:.2f}"
        )
    if "validation/bits_per_byte" in found:
        lines.append(f"  validation  {_format_bits(found)}")
    if "fresh/excess" in found:
        lines.append(
            f"  fresh       {found['fresh/nats']:.4f} nats per token, of which"
            f" {found['fresh/entropy']:.4f} are chance: an excess of"
            f" {found['fresh/excess']:.4f} (standard error"
            f" {found['fresh/standard_error']:.4f})"
        )
    lines += [
        f"  time        {_format_time(total_seconds(path))}",
        f"  curves      {path / 'plots' / 'loss.png'}",
        f"  metrics     {path / 'metrics.jsonl'} (and: tensorboard --logdir {path})",
        f"  states      {path / 'checkpoints'}",
    ]
    lmx = sys.argv[0] if Path(sys.argv[0]).name == "lmx" else "lmx"
    lines.append(
        f"  look back   {lmx} why|replay {path} --step N, {lmx} reproduce {path}"
    )
    if any(path.glob("tokenizer.*")):
        lines.append(f'  try         {lmx} generate {path} --prompt "def "')
    return "\n".join(lines)


def _format_time(seconds: Mapping[str, float]) -> str:
    """All of it, and the states that took a hundredth of it or more."""
    whole = sum(seconds.values())
    shares = sorted(((n / whole, state) for state, n in seconds.items()), reverse=True)
    parts = ", ".join(f"{state} {n:.0%}" for n, state in shares if n >= 0.01)
    return f"{tqdm.format_interval(whole)}: {parts}"


def _format_bits(found: dict) -> str:
    """The model's bits per byte beside those of the compressors, where they are."""
    text = f"{found['validation/bits_per_byte']:.4f} bits per byte"
    others = [
        f"{name} {found[key]:.4f}"
        for name in ("zlib", "xz")
        if (key := f"validation/{name}_bits_per_byte") in found
    ]
    return f"{text} ({', '.join(others)})" if others else text
