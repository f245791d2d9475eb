"""`lmx train` processes that a test interferes with."""

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
TIMEOUT = 300.0  # seconds, on a busy machine
MAIN = ("-m", "lmx.cli.main")


def copy_config(work: Path) -> Path:
    """Copies the config of the experiment to the folder."""
    shutil.copy(ROOT / "tests" / "train" / "tiny.gin", work)
    return work


def start(
    work: Path, name: str, *words: object, program: tuple[str, ...] = MAIN
) -> subprocess.Popen:
    """Trains the run of that name in the folder, on one device."""
    return _launch(work, program, [*words, "--run", name], {})


def _launch(
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


def wait_for_exit(process: subprocess.Popen) -> tuple[int, str]:
    """The exit status and stderr of a process, once it exits."""
    _, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stderr


class Trainer:
    """Starts runs of `tiny.gin` in a folder, with gates at chosen steps."""

    def __init__(self, work: Path):
        self.work, self.started = copy_config(work), []
        shutil.copy(ROOT / "tests" / "faults" / "gates.py", work)

    def start(self, *words: object, **environment: str) -> subprocess.Popen:
        """Starts `lmx train tiny.gin` with these arguments."""
        self.started.append(_launch(self.work, MAIN, words, environment))
        return self.started[-1]

    def gated(self, *words: object, at: str, **environment: str) -> subprocess.Popen:
        """Starts a run with gates at these steps, as in "4, 8"."""
        gates = ["--import", "gates", "Experiment.hooks=[@Gate()]", "Gate.folder=."]
        return self.start(*gates, f"Gate.at=({at},)", *words, **environment)

    def go(self, step: int, how: str = "") -> None:
        """Opens the gate."""
        (self.work / f"go-{step}").write_text(how)

    def reach(self, process: subprocess.Popen, step: int) -> None:
        """Waits until a run reaches the gate."""
        self.wait(process, (self.work / f"at-{step}").exists)

    def wait(self, process: subprocess.Popen, when: Callable[[], bool]) -> None:
        """Waits for a condition while the process is alive."""
        late = time.monotonic() + TIMEOUT
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < late
            time.sleep(0.01)

    def end(self) -> None:
        """Kills all processes, and those that a supervisor among them started."""
        for process in self.started:
            for pid in children(process):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()


def children(process: subprocess.Popen) -> list[int]:
    """The child processes of a process."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []
