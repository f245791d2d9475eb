"""What a plan says, and how it ends."""

import json
import shutil
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "experiments" / "families"


def page(name):
    return str(PAGES / f"{name}.gin")


def test_llama3_8b_fits_256_chips_of_v5e(lmx, tmp_path):
    words = ["Mesh.fsdp=256", "Experiment.microbatches=2", "--on", "v5e-256"]
    words.append("--analytic")
    drawn = tmp_path / "plan.png"
    status, said, _ = lmx("plan", page("llama3_8b"), *words, "--png", str(drawn))
    assert status == 0 and "Analytic" in said and "\nfits: " in said
    assert drawn.read_bytes()[1:4] == b"PNG"


def test_seventy_billion_do_not_fit_16_chips_of_v5e_and_it_says_what_would(lmx):
    status, said, _ = lmx("plan", page("llama2_70b"), "Mesh.fsdp=16", "--on", "v5e-16")
    assert status == 1 and "does not fit" in said and "--on " in said


def test_what_is_said_to_fit_does(lmx):
    """The words of the remedy, given back."""
    words = ["plan", page("llama3_70b"), "Mesh.fsdp=16"]
    words += ["--json", "--analytic", "--on"]
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


def test_a_search_prints_what_fits_in_the_order_of_speed(lmx, work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--analytic", "--search", "5"]
    status, said, _ = lmx(*words, "--json")
    found = json.loads(said)["ranking"]
    seconds = [each["seconds"]["step"] for each in found]
    assert status == 0 and len(found) == 5 and seconds == sorted(seconds)
    assert all(each["fits"] for each in found)
    status, said, _ = lmx(*words)
    assert status == 0 and said.startswith("settings") and found[0]["settings"] in said


def test_the_user_may_have_prices_of_their_own(lmx, work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--analytic", "--json", "--prices"]
    (work / "mine").write_text("v5e 2.5  # by contract\n")
    _, said, _ = lmx(*words, "mine")
    told = json.loads(said)
    assert told["dollars"] == pytest.approx(told["hours"] * 4 * 2.5)
    (work / "mine").write_text("v5e cheap\n")
    status, _, moaned = lmx(*words, "mine")
    assert status == 2 and "mine:1" in moaned
    (work / "mine").write_text("v6e 1.0\n")
    status, _, moaned = lmx(*words, "mine")
    assert status == 2 and "no price of v5e" in moaned


def test_training_refuses_what_does_not_fit_and_says_what_would(lmx, work):
    huge = ["train", "tiny.gin", "Decoder.width=16384", "SwiGLU.hidden=65536"]
    status, _, moaned = lmx(*huge, "--plan", "v5e-8")
    assert status == 1 and "does not fit" in moaned and " fits (" in moaned
    status, _, moaned = lmx(*huge, "Mesh.data=1", "--plan")
    assert status == 1 and "does not fit" in moaned
    assert not (work / "runs").exists()


@pytest.mark.tpu
def test_a_search_compiles_the_best(lmx, work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--search", "1", "--json"]
    status, said, _ = lmx(*words)
    told = json.loads(said)
    [best] = told["ranking"]
    assert status == 0 and best["how"].startswith("Compiled by libtpu")
    assert told["seconds"] == best["seconds"] and told["compiling"]["seconds"] > 0


@pytest.mark.tpu
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "machine", "words"),
    [
        (
            "llama3_8b",
            "v5e-256",
            ["Mesh.fsdp=256", "NextToken.chunk=2048", "Experiment.microbatches=2"],
        ),
        ("llama2_70b", "v5p-128", []),
        (
            "mixtral_8x7b",
            "v6e-256",
            [
                "Mesh.fsdp=256",
                "LENGTH=4096",
                "NextToken.chunk=1024",
                "DroplessDispatch.grouped_matmul=@Megablox()",
            ],
        ),
        (
            "llama3_8b",
            "2xv5e-256",
            ["Mesh.replica=2", "Mesh.fsdp=256", "NextToken.chunk=2048"],
        ),
        ("llama3_405b", "v5p-1024", []),
    ],
)
def test_large_models_compile_in_ten_minutes_and_fit(lmx, name, machine, words):
    words = [*words, "Attention.backend=@SplashAttention()", "--on", machine, "--json"]
    status, said, _ = lmx("plan", page(name), *words)
    told = json.loads(said)
    assert status == 0 and told["fits"] and told["how"].startswith("Compiled")
    assert told["compiling"]["seconds"] < 600
