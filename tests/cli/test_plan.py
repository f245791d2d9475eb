"""What a plan says, and how it ends."""

import json
import shutil
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "experiments" / "families"
SEVENTY = [
    "Decoder.width=8192",
    "Decoder.depth=80",
    "Attention.heads=64",
    "SwiGLU.hidden=28672",
]


def page(name):
    return str(PAGES / f"{name}.gin")


def test_llama3_8b_fits_256_chips_of_v5e(lmx, tmp_path):
    words = ["Mesh.fsdp=256", "Experiment.microbatches=2", "--on", "v5e-256"]
    drawn = tmp_path / "plan.png"
    status, said, _ = lmx("plan", page("llama3_8b"), *words, "--png", str(drawn))
    assert status == 0 and "analytic" in said and "\nfits: " in said
    assert drawn.read_bytes()[1:4] == b"PNG"


def test_seventy_billion_do_not_fit_16_chips_of_v5e_and_it_says_what_would(lmx):
    words = [*SEVENTY, "Mesh.fsdp=16", "--on", "v5e-16"]
    status, said, _ = lmx("plan", page("llama3_8b"), *words)
    assert status == 1 and "does not fit" in said and "--on " in said


def test_what_is_said_to_fit_does(lmx):
    """The words of the remedy, given back."""
    words = ["plan", page("llama3_8b"), *SEVENTY, "Mesh.fsdp=16", "--json", "--on"]
    status, said, _ = lmx(*words, "v5e-16")
    [better] = json.loads(said)["would_fit"].values()
    on, machine, *changes = better.split()
    assert (status, on) == (1, "--on")
    status, said, _ = lmx(*words[:-1], *changes, on, machine)
    assert status == 0 and json.loads(said)["fits"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny.gin", "--on", "v5w-8"], "did you mean 'v5"),
        (["tiny.gin", "Mesh.fsdp=3", "--on", "v5e-8"], "do not part into groups of 3"),
        (["tiny.gin", "Mesh.fdsp=8", "--on", "v5e-8"], "fsdp"),
        (["none.gin", "--on", "v5e-8"], "none.gin"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_cure(lmx, work, words, said):
    status, _, moaned = lmx("plan", *words)
    assert status == 2 and said in moaned and "Traceback" not in moaned


def test_a_plan_reads_no_data_and_leaves_nothing(lmx, work):
    shutil.copy(page("llama3_8b"), work)
    lmx("plan", "llama3_8b.gin", "--on", "h100-8x4")
    assert sorted(p.name for p in work.iterdir()) == ["llama3_8b.gin", "tiny.gin"]
