"""Verdicts on published losses of many seeds, and how often equal settings differ.

    python benchmarks/compare.py DATA_DIR

DATA_DIR has nanogpt_track3_seeds.csv: final validation losses of modded-nanogpt's track
3, a competition for few steps. It scores a new setting by (old - new + 4.5e-5 x (old
steps - new steps)) / sqrt(1 / seeds of old + 1 / seeds of new), and from .004 on it is
better. lmx tests the same losses by Student's t. The seeds of two settings have nothing
in common there, so that pairs are by the order in the file; Welch's interval, of all
seeds, is printed beside it.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from lmx.study.comparison import Difference, find_level, judge

PER_STEP = 4.5e-5  # loss that a step is worth
LEAST = 0.004  # score of a better setting
SEEDS, DRAWS = 8, 100  # of an experiment against itself
PUBLISHED = {
    ("20260430_muonh", "20260430_normuonh"): ".0067, better",
    ("20260501_skylight001", "20260501_contra_muon"): "-.0007, undecided",
    ("20260501_contra_muon", "20260504_muloco_normuonh"): ".0017, undecided",
    ("20260430_normuonh", "20260501_contra_muon"): "-",
    ("20260507_pmuon", "20260509_contra_muon_split_cooldown"): "-",
    ("20260505_newton_muon", "20260430_normuonh"): "-",
}


def read_settings(file: Path) -> dict[tuple[str, int], np.ndarray]:
    """The losses of each setting: its name and its steps."""
    losses = defaultdict(list)
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            losses[row["result"], int(row["steps"])].append(float(row["val_loss"]))
    return {setting: np.array(values) for setting, values in losses.items()}


def format_test(test: Difference) -> str:
    """The difference, its interval and the verdict."""
    return "{:+.4f} ({:+.4f} to {:+.4f}) ".format(*test.mean) + test.verdict


def run_pairs(settings: dict[tuple[str, int], np.ndarray]) -> None:
    """The benchmark's score of some pairs of settings beside the tests."""
    steps = {name: number for name, number in settings}
    for (old, new), published in PUBLISHED.items():
        before, after = settings[old, steps[old]], settings[new, steps[new]]
        worth = PER_STEP * (steps[old] - steps[new])
        gain = before.mean() - after.mean() + worth
        score = gain / math.sqrt(1 / len(before) + 1 / len(after))
        pairs = min(len(before), len(after))
        test = judge((after[:pairs] - worth - before[:pairs]).tolist())
        plain = judge((after[:pairs] - before[:pairs]).tolist())
        welch = stats.ttest_ind(after - worth, before, equal_var=False)
        names = [name.partition("_")[2] for name in (old, new)]
        print(f"{names[0]} {steps[old]} to {names[1]} {steps[new]}")
        verdict = "better" if score >= LEAST else "undecided"
        print(f"  score             {score:+.4f} {verdict:20} published {published}")
        print(f"  lmx, {pairs:2} pairs     {format_test(test)}")
        low, high = welch.confidence_interval(0.95)
        print(f"  Welch, all seeds  {-gain:+.4f} ({low:+.4f} to {high:+.4f})")
        print(f"  lmx, loss alone   {format_test(plain)}")


def run_null(losses: np.ndarray) -> None:
    """How often two halves of the seeds of one setting are called different."""
    rng, counts = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(DRAWS):
        drawn = rng.choice(losses, 2 * SEEDS, replace=False)
        differences = (drawn[:SEEDS] - drawn[SEEDS:]).tolist()
        looks = [judge(differences[:n], SEEDS) for n in range(3, SEEDS + 1)]
        counts[0] += judge(differences).verdict != "cannot tell"
        counts[1] += any(look.verdict != "cannot tell" for look in looks)
    print(f"against itself, {SEEDS} pairs of {len(losses)} seeds, {DRAWS} draws:")
    print(
        f"  called different  {counts[0]} (looking once), {counts[1]} (after each seed)"
    )


def run_simulation(most: int, count: int = 20_000) -> None:
    """The error rate and the power of a sequential test of normal differences."""
    levels = [find_level(pairs, most) for pairs in range(3, most + 1)]
    looks = range(3, most + 1)
    for effect in (0.0, 0.5, 1.0, 1.5):
        x = np.random.default_rng(1).normal(effect, size=(count, most))
        p = np.array([stats.ttest_1samp(x[:, :n], 0, axis=1)[1] for n in looks])
        hits = p.T < levels
        pairs = np.where(hits.any(axis=1), hits.argmax(axis=1) + 3, most).mean()
        rates = hits.any(axis=1).mean(), (p[-1] < 0.05).mean()
        print(
            f"  effect {effect:.1f}        different in {rates[0]:6.1%},"
            f" {pairs:4.1f} pairs on average; looking once at {most}: {rates[1]:6.1%}"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    settings = read_settings(parser.parse_args().data / "nanogpt_track3_seeds.csv")
    several = [losses for losses in settings.values() if len(losses) > 1]
    squares = sum(float(losses.var()) * len(losses) for losses in several)
    freedom = sum(len(losses) - 1 for losses in several)
    print(f"{len(several)} settings, {freedom + len(several)} losses")
    print(f"pooled deviation    {math.sqrt(squares / freedom):.4f}, published .0011")
    run_pairs(settings)
    limit = LEAST / math.sqrt(squares / freedom)
    print(
        f"The score asks for {limit:.1f} known deviations, lmx for t = 2.3 of 9 pairs:"
        " between them\nlmx says better and the score does not. A loss alone has no"
        " merit of fewer steps."
    )
    run_null(max(several, key=len))
    print("sequential test of at most 10 pairs, simulated, by effect in deviations:")
    run_simulation(10)


if __name__ == "__main__":
    main()
