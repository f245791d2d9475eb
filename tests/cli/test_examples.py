"""Every command line of the help, README and docs works, with small models and texts.

What needs other hardware, or minutes, is never run (`NEVER_RUN`), and what compiles a
model is run by `make nightly` only (`RUN_NIGHTLY`). Of both the arguments are parsed
and the config is resolved; the tables say which test runs the command.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lmx.analysis.replay import load_run_config
from lmx.analysis.reproduce import RunMetadata, override_execution
from lmx.cli.load import load_config
from lmx.cli.main import COMMANDS, build_parser, main
from tests.data.tokenizer.test_hf_folder import by_bytes
from tests.study.test_check import make_ladder

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "tests" / "train" / "tiny.gin").read_text()
MODEL = [
    *["Decoder.width=16", "Decoder.depth=1", "Decoder.unroll=1", "Decoder.vocab=258"],
    *["Decoder.mlp=@SwiGLU", "SwiGLU.hidden=16", "Attention.head_dim=8"],
    *["Attention.heads=2", "Attention.kv_heads=2"],
]
DATA = [
    *["TextDataset.corpus=@Text()", "TextDataset.tokenizer=@ByteTokenizer()"],
    *["TextDataset.sequence_length=16", "train/TextDataset.batch_size=8"],
    *["Text.path=texts", "Text.holdout=@HoldoutDocuments()", "Text.suffixes=('.txt',)"],
]
RUN = [
    *["Experiment.steps=2", "Experiment.hooks=[]", "CheckpointPolicy.every=1"],
    *["Experiment.schedule=@WSD()", "WSD.warmup_steps=1", "WSD.peak_lr=0.01"],
    *["WSD.decay_fraction=0.5", "Mesh.data=1"],
]


def make_points_csv():
    """A ladder of models, with the columns that examples name."""
    points = make_ladder()
    rows = zip(points.n, points.d, points.loss, strict=True)
    return "\n".join(["params,tokens,val_loss", *(f"{n},{d},{x}" for n, d, x in rows)])


SMALL = {  # arguments that make an example small, by command
    "train": [*MODEL, *DATA, *RUN, "Experiment.log_every=1"],
    "generate": ["--tokens", "3"],
    "eval": ["--length", "16", "--stride", "16"],
    "fit": ["--draws", "9"],
    "plan": ["--analytic"],
    "coord-check": ["--steps", "1", "--seeds", "2"],
    "data build": ["ProcessPool.workers=1"],
    "inspect": ["--top", "2"],
    "faulttest": [*MODEL, *DATA, *RUN, "--steps", "4", "--kills", "1"],
}
NAMES = {  # what an example names, and what stands for it here
    "/tmp/again": "again",
    "runs/a@800": "runs/a@1",
    "runs/a@1000": "runs/a@2",
    "metadata.json": "runs/quickstart/metadata.json",
    "SentencePiece.vocab=8000": "SentencePiece.vocab=280",
    "SentencePiece.vocab=8192": "SentencePiece.vocab=280",
    "SentencePiece.model_type=unigram": "SentencePiece.vocab=280",
    "BPE.vocab=2000": "BPE.vocab=265",
    "Experiment.steps=900": "Experiment.steps=4",
    "800": "1",
    "1200": "2",
    "100": "2",
    "50": "2",
    "runs/x": "runs/a",
    "sweeps/rate": "runs",
    "sweeps/ladder": "points.csv",  # tests/cli/test_fit.py has a folder
    "mymodule": "mine",
}
NEVER_RUN = {  # by a part of the example
    "--processes 2": "two processes: tests/train/test_processes.py runs them",
    "X.gin Mesh.fsdp=8": "SLURM or Kubernetes",
    "--restarts 20": "starts processes: tests/cli/test_supervise.py runs it",
    "@RayExecutor()": "a Ray cluster",
    "@WandB()": "a library of its own: tests/run/test_wandb.py runs it",
    "lmx compare": "starts processes: tests/study/test_comparison.py runs it",
    "lmx sweep run": "starts processes: tests/faults/test_sweep.py runs it",
    "lmx faulttest": "minutes: tests/faults/test_soak.py runs it",
}
RUN_NIGHTLY = {  # by command: the tests that run it with all of its options
    "train": "tests/cli/test_train.py",
    "generate": "tests/cli/test_generate.py",
    "eval": "tests/cli/test_eval.py",
    "plan": "tests/cli/test_plan.py",
    "coord-check": "tests/study/test_coord_check.py",
    "inspect": "tests/cli/test_replay_commands.py",
    "replay": "tests/cli/test_replay_commands.py",
    "reproduce": "tests/cli/test_replay_commands.py",
}
FILES = {
    "essay.txt": "a bead faded in the dark\n" * 40,
    "input.txt": "to be or not to be\n" * 40,
    "prompts.txt": "a bead\nthe dark\n",
    "X.gin": TINY,
    "experiments/x.gin": TINY + "RepeatTask.batch_size = 32\n",
    "a.jsonl": "".join(f'{{"body": "line {n} of a log"}}\n' for n in range(99)),
    "web.jsonl": "".join(f'{{"text": "page {n} of the web"}}\n' for n in range(9)),
    "quiz.jsonl": '{"text": "which page of the web is it"}\n',
    "my.gin": TINY,
    "mine.py": "",
    "points.csv": make_points_csv(),
    "sweep.gin": "Sweep.experiment = 'X.gin'\nSweep.points = @Grid()\n"
                 "Grid.values = {'Decoder.depth': (1, 2)}\n",
    "sbatch": "#!/bin/sh\n",
    **{f"{name}/{n}.txt": f"{name} {n} " * 30 for n in range(40) for name in
       ("texts", "books", "fineweb", "examples/good", "examples/bad")},
}  # fmt: skip


def find_examples():
    """The command lines of all help texts and docs, in order, without their remarks."""
    parser = build_parser()
    texts = [parser.description, *(command.description for command in COMMANDS)]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL)
        texts += re.findall(r"^(?:\$ )?(lmx .*)", "\n".join(blocks), re.MULTILINE)
    lines = "\n".join(filter(None, texts)).replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:  )?(?:\w+   +(?:srun.*? )?)?(lmx .*)", x) for x in lines]
    examples = [re.split(r"(?<=\S)\s{2,}(?=[a-z])", m[1])[0] for m in found if m]
    return list(dict.fromkeys(" ".join(example.split()) for example in examples))


def find_config_of(command):
    """The first config in the description of a command: its indented bindings."""
    lines = command.description.splitlines()
    texts = [line[2:] for line in lines if line[:2] == "  " and "  lmx " not in line]
    return "\n".join(line for line in texts if re.search(r"[:=@]|^ ", line)) + "\n"


def run(*arguments):
    """The exit status, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    return stop.value.code, out.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Files, a run, a store and a model as the examples name them."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    (folder / "sbatch").chmod(0o755)
    (folder / "web").mkdir()
    table = pyarrow.table({"text": [f"page {n} of the web " * 20 for n in range(200)]})
    pyarrow.parquet.write_table(table, folder / "web" / "web.parquet")
    configs = {"build": "books", "dedup": "dedup", "filter": "rules"}
    configs["decontaminate"] = "tests"
    for command in COMMANDS:
        if file := configs.get(command.name.removeprefix("data ")):
            (folder / f"{file}.gin").write_text(find_config_of(command))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert run("train", "quickstart", *SMALL["train"])[0] == 0
        (path,) = Path("runs").iterdir()
        for name in ("a", "b", "quickstart"):
            shutil.copytree(path, f"runs/{name}")
    return folder


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    return folder


def parse(example):
    """The arguments of an example, with names that exist here, and the parsed ones."""
    command, *_ = example.replace("quickstart-...", "quickstart").split(" > ")
    words = shlex.split(command)[1:]
    words = [NAMES.get(word, word) for word in words]
    words = [
        file
        for word in words
        for file in (map(str, Path().glob(word)) if word[0] == "*" else [word])
    ]
    args = build_parser().parse_args(words)
    args.command.split_words(args)
    return words, args


EXAMPLES = find_examples()
ALWAYS_RUN, NIGHTLY, PARSED = [], [], []
for example in EXAMPLES:
    if any(part in example for part in NEVER_RUN):
        PARSED.append(example)
    elif example.split()[1] in RUN_NIGHTLY:
        NIGHTLY.append(example)
    else:
        ALWAYS_RUN.append(example)


def shrink(words, args, tmp_path, llama):
    """The arguments made small, with their inputs there and a new output folder."""
    name, texts = args.command.name, " ".join(words)
    if args.command.arguments.endswith((" OUT", "FOLDER RUN", "RUN FOLDER")):
        words[words.index(args.names[1])] = str(tmp_path / "out")
    if name == "import hf":
        words[words.index("Llama-3.2-1B")] = str(llama())
    elif "runs/llama" in words and not Path("runs/llama").exists():
        model = llama(vocab_size=310, eos_token_id=1)
        by_bytes().save(str(model / "tokenizer.json"))
        assert run("import", "hf", str(model), "runs/llama")[0] == 0
    if name == "data inspect":
        run("data", "build", "books.gin", "stores/books", *SMALL["data build"])
    extra = {
        "data tokenizer quickstart": [*DATA[:1], *DATA[4:]],
        "data tokenizer a.jsonl": ["SentencePiece.vocab=280"],
        "reproduce": ["--run", str(tmp_path / "out")],
    }
    more = [word for start, x in extra.items() if texts.startswith(start) for word in x]
    words = [word.replace("Mesh.data=32", "Mesh.data=8") for word in words]
    end = len(words) - (words[-1] == "--plan")  # which takes the next word as its value
    is_small = name == "train" and words[1].startswith(("runs/", "my.gin"))
    small = ["Mesh.data=1"] if is_small else SMALL.get(name, [])
    return [*words[:end], *more, *small, *words[end:]]


def check_run(example, tmp_path, llama):
    words, args = parse(example)
    status, _ = run(*shrink(words, args, tmp_path, llama))
    judges = args.command.name in ("plan", "coord-check")  # status 1: a negative answer
    assert status in ((0, 1) if judges else (0,))


@pytest.mark.parametrize("example", ALWAYS_RUN)
def test_an_example_runs(example, place, tmp_path, llama):
    check_run(example, tmp_path, llama)


@pytest.mark.nightly
@pytest.mark.parametrize("example", NIGHTLY)
def test_an_example_that_compiles_a_model_runs(example, place, tmp_path, llama):
    check_run(example, tmp_path, llama)


@pytest.mark.parametrize("example", [*NIGHTLY, *PARSED])
def test_an_example_is_parsed_and_its_config_resolved(example, place):
    _, args = parse(example)
    if args.command.name in ("train", "plan", "faulttest"):
        assert load_config(args.names[0], args.overrides).name == "Experiment"
    elif args.command.name in ("inspect", "replay"):
        load_run_config(Path(args.names[0]), args.overrides)
    elif args.command.name == "reproduce":
        metadata = RunMetadata.load(Path(args.names[0]))
        override_execution(metadata.config, args.overrides)


def test_each_command_has_an_example():
    names = [" ".join(example.split()[1:3]) for example in EXAMPLES]
    for command in COMMANDS:
        assert any(f"{name} ".startswith(f"{command.name} ") for name in names)


def test_each_reason_not_to_run_is_of_an_example():
    for part in (*NEVER_RUN, *(f"lmx {name} " for name in RUN_NIGHTLY)):
        assert any(part in example for example in EXAMPLES)
    assert all((ROOT / test).is_file() for test in RUN_NIGHTLY.values())
