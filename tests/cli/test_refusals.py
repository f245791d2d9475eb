"""Wrong input is refused with its cause and a fix, and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmx import load_experiment as experiment
from lmx.cli.main import COMMANDS
from lmx.run.run_dir import SCHEMA, RunDir

ROOT = Path(__file__).parents[2]
TEXT = [
    "Experiment.data=@TextDataset()",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@ByteTokenizer()",
    "TextDataset.batch_size=8",
    "TextDataset.sequence_length=16",
    "Text.path=text.txt",
    "Text.holdout=@HoldoutTail()",
    "Decoder.vocab=258",
]
PIECES = [*TEXT, "TextDataset.tokenizer=@SentencePiece()", "SentencePiece.vocab=5000"]
MOE = ["Decoder.mlp=@MoE", "MoE.experts=4", "MoE.hidden=8", "MoE.router=@TopKRouter"]
FILES = {
    "text.txt": b"To be or not to be, that is the question. " * 9,
    "empty.txt": b"",
    "latin.txt": b"caf\xe9 " * 90,
    "taken.txt": b"mine",
    "docs/thesis.tex": b"my only copy",
    "broken/experiment.json": b"{",
    "broken/metadata.json": b"{",
    "sweep.gin": b"Sweep.experiment = 'tiny.gin'\nSweep.points = @Grid()\n",
    "lost.gin": b"include 'gone.gin'\n",
    "bare.gin": b"Experiment.steps = 3\n",
    "binary.gin": b"\xff\xfe\x00",
    "echo.gin": b"include 'tiny.gin'\nAttention.heads = 5\n",
}

# The problem: the arguments, and the cause and the fix that the message names.
CONFIGS = {  # `lmx config show` refuses these as `lmx train` does
    "unknown binding": (["tiny.gin", "Attention.head=2"], "'head'", "'heads'"),
    "unknown class": (["tiny.gin", "Atention.heads=2"], "Atention", "'Attention'"),
    "unknown optimizer": (
        ["tiny.gin", "Experiment.optimizer=@adamv"],
        "nothing configurable is named 'adamv'",
        "did you mean 'adamw'?",
    ),
    "wrong type": (
        ["tiny.gin", "Decoder.depth=two"],
        "Decoder.depth must be int",
        "two",
    ),
    "wrong reference": (
        ["tiny.gin", "Decoder.mlp=@LMHead"],
        "override 'Decoder.mlp=@LMHead'",
        "must be Callable[..., FeedForward] or tuple",
    ),
    "undefined macro": (["tiny.gin", "Decoder.depth=%DEPHT"], "DEPHT", "override"),
    "missing config": (["tinny.gin"], "there is no file tinny.gin", "tiny.gin"),
    "missing include": (["lost.gin"], "gone.gin", "lost.gin:1"),
    "nothing set": (["bare.gin"], "needs Experiment.model", "set them"),
    "a folder for a config": (["docs"], "docs is a folder", "name the .gin file in it"),
    "no text in a config": (["binary.gin"], "binary.gin is not text", "utf-8"),
    "unknown import": (
        ["tiny.gin", "--import", "nowhere"],
        "--import nowhere",
        "No mo",
    ),
    "unknown option": (["tiny.gin", "--jsn"], "--jsn", "usage: lmx"),
    "no config": ([], "required: CONFIG.gin", "usage: lmx"),
    "heads not divisible": (
        ["tiny.gin", "Attention.kv_heads=3"],
        "4 query heads cannot share 3 key/value heads evenly",
        "Attention.kv_heads = 3 set by override 'Attention.kv_heads=3'",
    ),
    "heads not divisible in a file": (
        ["echo.gin"],
        "heads must be a multiple of kv_heads",
        "Attention.heads = 5 set at echo.gin:2",
    ),
    "odd head width": (
        ["tiny.gin", "Attention.head_dim=5"],
        "cannot rotate 5 channels in pairs",
        "make head_dim",
    ),
    "too many choices": (
        ["tiny.gin", *MOE, "TopKRouter.top_k=9"],
        "cannot choose 9 of 4 experts",
        "at most MoE.experts",
    ),
    "all warm-up": (
        ["tiny.gin", "Constant.warmup_steps=10"],
        "a warmup of 10 steps leaves none of 10",
        "schedule.warmup_steps = 10\n    override 'Constant.warmup_steps=10'",
    ),
    "no steps": (["tiny.gin", "Experiment.steps=0"], "steps is 0", "above 0"),
    "no lines": (
        ["tiny.gin", "Experiment.log_every=0"],
        "Experiment.log_every is 0: it must be above 0",
        "override 'Experiment.log_every=0'",
    ),
    "no saves": (
        ["tiny.gin", "CheckpointPolicy.every=0"],
        "CheckpointPolicy.every",
        "must be above 0",
    ),
    "impossible sampler": (
        ["tiny.gin", "Experiment.hooks=[@Sample()]", "Sampler.top_p=2"],
        "top_p is 2",
        "above 0, and at most 1",
    ),
    "no heads": (["tiny.gin", "Attention.kv_heads=0"], "is 0", "must be above 0"),
    "no width": (
        ["tiny.gin", "Decoder.width=-8"],
        "Decoder.width is -8",
        "must be above 0",
    ),
}
RUNS = {  # found only by training
    "aux loss not named": (
        ["tiny.gin", *MOE, "TopKRouter.top_k=2"],
        "the model returns ['balance', 'router_z']",
        "which may be 0.0",
    ),
    "longer than its positions": (
        [
            *["tiny.gin", "Decoder.position=@LearnedPosition"],
            "LearnedPosition.max_length=8",
        ],
        "16 tokens exceed 8 learned positions",
        "model.position.max_length = 8\n    override 'LearnedPosition.max_length=8'",
    ),
    "vocabulary too small": (
        ["tiny.gin", *TEXT, "Decoder.vocab=100"],
        "data has 258 different tokens and the model 100",
        "set Decoder.vocab=258",
    ),
    "vocabulary larger than the text": (
        ["tiny.gin", *PIECES],
        "5000",
        "SentencePiece.vocab",
    ),
    "empty corpus": (
        ["tiny.gin", *TEXT, "Text.path=empty.txt"],
        "no documents in the train split",
        "1 empty text",
    ),
    "missing text": (
        ["tiny.gin", *TEXT, "Text.path=texd.txt"],
        "there is no texd.txt",
        "did you mean 'text.txt'?",
    ),
    "one document by document": (
        ["tiny.gin", *TEXT, "Text.holdout=@HoldoutDocuments()"],
        "text.txt is one document",
        "set Text.holdout = @HoldoutTail()",
    ),
    "not UTF-8": (
        ["tiny.gin", *TEXT, "Text.path=latin.txt"],
        "latin.txt: not UTF-8 (0xe9) at byte 3",
        "save it as UTF-8",
    ),
    "shorter than a window": (
        [
            *["tiny.gin", *TEXT, "TextDataset.order=@RandomWindows()"],
            "TextDataset.sequence_length=900",
        ],
        "too few for a window of 900",
        "set sequence_length to",
    ),
    "batch not divisible": (
        ["tiny.gin", "RepeatTask.batch_size=6"],
        "'batch' of size 6 cannot be split evenly",
        "change the mesh",
    ),
    "width not divisible": (
        ["tiny.gin", "Mesh.data=1", "Mesh.fsdp=5"],
        "cannot be split evenly over mesh axes ('fsdp',) (5 parts)",
        "change the mesh",
    ),
    "too many devices": (
        ["tiny.gin", "Mesh.data=16"],
        "data=16 needs 16 devices and there are 8",
        "make an axis smaller",
    ),
    "microbatches not dividing": (
        ["tiny.gin", "Experiment.microbatches=3"],
        "8 rows cannot be split into 3 equal parts",
        "must divide the batch size.\n  microbatches = 3\n    override",
    ),
    "samples without text": (
        ["tiny.gin", "Experiment.hooks=[@Sample()]"],
        "needs data that are text",
        "remove the hook",
    ),
    "evaluation not divisible": (
        [
            "tiny.gin",
            "Experiment.hooks=[@Evaluate()]",
            "Evaluate.data=@other/RepeatTask()",
            "Evaluate.batches=1",
            "other/RepeatTask.batch_size=3",
        ],
        "'batch' of size 3 cannot be split evenly",
        "change the mesh",
    ),
    "a folder that is no run": (
        ["tiny.gin", "--run", "docs"],
        "docs exists and is not a run",
        "name another folder with --run",
    ),
    "a file for a folder": (
        ["tiny.gin", "--run", "taken.txt"],
        "taken.txt exists and is not a run",
        "name another folder with --run",
    ),
    "a folder below a file": (
        ["tiny.gin", "--run", "taken.txt/run"],
        "no run can be written at taken.txt/run: Not a directory",
        "name another folder with --run",
    ),
    "an unwritable folder": (
        ["tiny.gin", "--run", "/proc/lmx/run"],
        "no run can be written at /proc/lmx/run",
        "name another folder with --run",
    ),
    "an endless name": (
        ["tiny.gin", "--run", f"deep/{'x' * 300}"],
        "File name too long",
        "name another folder with --run",
    ),
    "a broken record": (
        ["tiny.gin", "--run", "broken"],
        "broken/metadata.json is not JSON",
        "restore it from its source",
    ),
}  # fmt: skip


@pytest.fixture
def listed(work):
    """Lists the working folder, which has configs, texts and what is in the way."""
    for name, content in FILES.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    return lambda: {
        path: path.is_file() and path.read_bytes() for path in work.rglob("*")
    }


def check(outcome, *parts):
    status, out, err = outcome
    assert (status, out) == (2, ""), err
    assert "error: " in err and "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(("words", "cause", "cure"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", [["train"], ["config", "show"]], ids=" ".join)
def test_an_invalid_config_is_refused(lmx, listed, command, words, cause, cure):
    before = listed()
    check(lmx(*command, *words), cause, cure)
    assert listed() == before


@pytest.mark.parametrize(("words", "cause", "cure"), RUNS.values(), ids=RUNS)
def test_a_run_that_cannot_start_is_refused(lmx, listed, words, cause, cure):
    before = listed()
    check(lmx("train", *words), cause, cure)
    assert listed() == before


@pytest.mark.parametrize(
    ("command", "config", "other"),
    [
        ("train", "sweep.gin", "lmx sweep run sweep.gin"),
        ("config show", "sweep.gin", "lmx sweep run sweep.gin"),
        ("sweep run", "tiny.gin", "lmx train tiny.gin"),
        ("sweep plan", "echo.gin", "lmx train echo.gin"),
    ],
)
def test_a_config_of_another_root_is_refused_with_its_command(
    lmx, listed, command, config, other
):
    check(lmx(*command.split(), config), f"{config} is a config of @", other)


def test_the_folder_of_another_experiment_is_refused(lmx, listed, work):
    other = experiment("tiny.gin", ["Experiment.seed=7"])
    RunDir.claim(work / "theirs", other, {"schema": SCHEMA, "data": {}}, None).close()
    before = listed()
    parts = (
        "theirs holds another run",
        "name another folder with --run",
        "--allow-change",
    )
    found = lmx("train", "tiny.gin", "--run", "theirs")
    check(found, *parts, "seed: 7 before, 0 now")
    assert listed() == before


@pytest.mark.parametrize(
    ("words", "cause", "cure"),
    [
        (["tarin"], "invalid choice: 'tarin'", "choose from"),
        ([], "required: COMMAND", "usage: lmx"),
        (["config", "shwo", "tiny.gin"], "invalid choice: 'shwo'", "choose from"),
    ],
)
def test_an_unknown_command_is_refused(lmx, words, cause, cure):
    check(lmx(*words), cause, cure)


@pytest.mark.parametrize("path", ["x" * 5000, "loop", "loop/x"], ids=len)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_path_that_is_too_long_or_a_loop_is_refused(lmx, listed, command, path):
    """By every command that takes one, and as the folder of a run."""
    os.symlink("loop", "loop")
    names = [path] * len(command.arguments.replace(" ...", "").split())
    words = [*command.name.split(), *names]
    for flag, value in (("--step", "1"), ("--on", "cpu")):
        words += [flag, value] if command.options.get(flag, {}).get("required") else []
    before = listed()
    check(lmx(*words))
    if command.name == "train":
        check(lmx("train", "tiny.gin", "--run", path), path)
    assert listed() == before


def test_a_process_refuses_the_same(listed):
    before = listed()
    words, *parts = RUNS["too many devices"]
    ran = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", "train", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    check((ran.returncode, ran.stdout, ran.stderr), *parts)
    assert listed() == before
