"""Startup time of commands: `python benchmarks/startup.py`.

The commands are interleaved, for several rounds, and compared with an empty program.
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


def time_command(arguments: list[str]) -> float:
    """Returns the seconds of a new Python process with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints a table: seconds, and the ratio to an empty program."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(time_command(arguments))
    bare = statistics.median(times[BARE])
    print(f"{platform.machine()}, Python {platform.python_version()}, {ROUNDS} rounds")
    print(f"{'command':24} {'min':>7} {'median':>7} {'max':>7}  seconds; ratio")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{name:24} {min(seconds):7.3f} {median:7.3f} {max(seconds):7.3f}"
            f"  {median / bare:.1f}"
        )


if __name__ == "__main__":
    main()
