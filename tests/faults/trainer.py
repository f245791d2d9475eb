"""`lmx train` as processes of their own, which a test disturbs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.xla_flags import FLAGS

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds, on a machine that has much else to do
MAIN = ("-m", "lmx.cli.main")


def place(work: Path) -> Path:
    """The folder, with the page of the experiment in it."""
    shutil.copy(ROOT / "tests" / "train" / "tiny.gin", work)
    return work


def start(
    work: Path, name: str, *words: object, program: tuple[str, ...] = MAIN
) -> subprocess.Popen:
    """Trains the run of that name in the folder, on one device."""
    return _launched(work, program, [*words, "--run", name], {})


def _launched(
    work: Path, program: Sequence[str], words: Sequence[object], more: dict[str, str]
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, "train", "tiny.gin", *map(str, words)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "XLA_FLAGS": FLAGS}
        | {"JAX_PLATFORMS": "cpu", **more},
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The status of a process that comes to its end, and what it moaned."""
    _, moaned = process.communicate(timeout=PATIENCE)
    return process.returncode, moaned


class Trainer:
    """Starts runs of `tiny.gin` in a folder, with gates at steps that a test names."""

    def __init__(self, work: Path):
        self.work, self.started = place(work), []
        shutil.copy(ROOT / "tests" / "faults" / "gates.py", work)

    def start(self, *words: object, **environment: str) -> subprocess.Popen:
        """`lmx train tiny.gin` with these words."""
        self.started.append(_launched(self.work, MAIN, words, environment))
        return self.started[-1]

    def gated(self, *words: object, at: str, **environment: str) -> subprocess.Popen:
        """A run whose gates are at these steps, as in "4, 8"."""
        gates = ["--import", "gates", "Experiment.hooks=[@Gate()]", "Gate.folder=."]
        return self.start(*gates, f"Gate.at=({at},)", *words, **environment)

    def go(self, step: int, how: str = "") -> None:
        """Opens the gate."""
        (self.work / f"go-{step}").write_text(how)

    def reach(self, process: subprocess.Popen, step: int) -> None:
        """Waits until a run stands at the gate."""
        self.wait(process, (self.work / f"at-{step}").exists)

    def wait(self, process: subprocess.Popen, when: Callable[[], bool]) -> None:
        """Until something is so, the process being alive."""
        late = time.monotonic() + PATIENCE
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < late
            time.sleep(0.01)

    def end(self) -> None:
        """None of them is left, nor what a supervisor among them started."""
        for process in self.started:
            for pid in children(process):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()


def children(process: subprocess.Popen) -> list[int]:
    """The processes that another has started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []
