"""Counts the files of lmx that a tiny `lmx train` runs through.

Prints the files on the call stack while JAX traces the attention product, and all files
whose functions run during the whole command: `python .ci/call_depth.py`.
"""

import inspect
import os
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
LMX = f"{ROOT / 'lmx'}{os.sep}"
CONFIG = ROOT / "tests" / "train" / "tiny.gin"
PRODUCT = ("layers/attention/reference.py", "attend")  # where attention is computed


def measure(command: list[str]) -> tuple[list[str], list[str]]:
    """The files on the deepest call stack at the product, and all files that run."""
    stacks: list[list[str]] = []
    called: set[str] = set()

    def profile(frame, event, argument):
        del argument
        if event != "call" or not frame.f_code.co_filename.startswith(LMX):
            return
        code = frame.f_code
        if code.co_flags & inspect.CO_OPTIMIZED:  # not the body of a class or module
            called.add(code.co_filename.removeprefix(LMX))
        if (code.co_filename.removeprefix(LMX), code.co_name) == PRODUCT:
            files: dict[str, None] = {}
            while frame is not None:
                if frame.f_code.co_filename.startswith(LMX):
                    files[frame.f_code.co_filename.removeprefix(LMX)] = None
                frame = frame.f_back
            stacks.append([*files][::-1])

    sys.path.insert(0, f"{ROOT}")
    from lmx.cli.main import main

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        main(command)
    except SystemExit as exited:
        if exited.code:
            raise RuntimeError(f"lmx train exited with {exited.code}") from exited
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return max(stacks, key=len), sorted(called)


def main() -> None:
    """Trains `tiny.gin` and prints both lists."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", f"{CONFIG}", "Mesh.data=1", "--run", f"{folder}/run"]
        stack, called = measure(command)
    print(f"{len(stack)} files on the call stack at the attention product:")
    print("\n".join(stack))
    print(f"{len(called)} files run during lmx train:")
    print("\n".join(called))


if __name__ == "__main__":
    main()
