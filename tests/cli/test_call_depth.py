"""Few files lie between `lmx train` and the attention product."""

import importlib.util
from pathlib import Path

from tests.cli.conftest import TINY

SCRIPT = Path(__file__).parents[2] / ".ci" / "call_depth.py"


def test_few_files_are_on_the_call_stack_and_run_in_a_training_command(tmp_path):
    spec = importlib.util.spec_from_file_location("call_depth", SCRIPT)
    assert spec and spec.loader
    call_depth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(call_depth)
    words = ["train", str(TINY), "Experiment.steps=1", "Mesh.data=1"]
    stack, called = call_depth.measure([*words, "--run", str(tmp_path / "run")])
    assert stack[0] == "cli/main.py" and stack[-1] == "layers/attention/reference.py"
    assert len(stack) <= 12, stack
    assert len(called) <= 80, called
