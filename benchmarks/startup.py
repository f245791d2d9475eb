"""How long a person waits before anything happens: `python benchmarks/startup.py`.

Each command in turn, several rounds, beside a Python that does nothing.
"""

import platform
import statistics
import subprocess
import sys
import time

ROUNDS = 15
BARE = "python -c pass"
COMMANDS = {
    BARE: ["-c", "pass"],
    "import lmx": ["-c", "import lmx"],
    "lmx --help": ["-m", "lmx.cli.main", "--help"],
    "lmx config show --help": ["-m", "lmx.cli.main", "config", "show", "--help"],
}


def seconds(words: list[str]) -> float:
    """How long a fresh Python takes for these words."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints a table: seconds, and the ratio to a Python that does nothing."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            taken[name].append(seconds(words))
    bare = statistics.median(taken[BARE])
    print(f"{platform.machine()}, Python {platform.python_version()}, {ROUNDS} rounds")
    print(f"{'command':24} {'min':>7} {'median':>7} {'max':>7}  seconds; ratio")
    for name, times in taken.items():
        middle = statistics.median(times)
        print(
            f"{name:24} {min(times):7.3f} {middle:7.3f} {max(times):7.3f}"
            f"  {middle / bare:.1f}"
        )


if __name__ == "__main__":
    main()
