"""`lmx plan`: its output and its exit status."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lmx.cli.main import build_parser

FAMILIES = Path(__file__).parents[2] / "experiments" / "families"
FUSED = "Attention.backend=@SplashAttention()"
HUGE = ["tiny.gin", "Decoder.width=16384", "SwiGLU.hidden=65536"]


def find_family(name):
    return str(FAMILIES / f"{name}.gin")


def test_llama3_8b_fits_256_chips_of_v5e(lmx, tmp_path):
    words = ["Mesh.fsdp=256", "Experiment.microbatches=2", FUSED, "--on", "v5e-256"]
    plot = tmp_path / "plan.png"
    words += ["--analytic", "--png", str(plot)]
    status, out, _ = lmx("plan", find_family("llama3_8b"), *words)
    assert status == 0 and "Analytic" in out and out.startswith("fits v5e-256: ")
    assert plot.read_bytes()[1:4] == b"PNG"


def test_a_plan_that_does_not_fit_suggests_one_that_does(lmx):
    words = ["plan", find_family("llama3_8b"), "Mesh.fsdp=4", "--analytic", "--on"]
    status, out, _ = lmx(*words, "v5e-4")
    assert (
        status == 1
        and out.startswith("does not fit v5e-4: ")
        and "SplashAttention" in out
    )
    [changes] = re.findall(r"--on (.*) fits \(", out)
    machine, *overrides = shlex.split(changes)
    status, out, _ = lmx(*words, machine, *overrides, "--json")
    assert status == 0 and json.loads(out)["fits"]


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["tiny.gin", "--on", "v5w-8"], "did you mean 'v5"),
        (["tiny.gin", "Mesh.fsdp=3", "--on", "v5e-8"], "are not a multiple of 3"),
        (["tiny.gin", "Mesh.fdsp=8", "--on", "v5e-8"], "fsdp"),
        (["none.gin", "--on", "v5e-8"], "none.gin"),
    ],
)
def test_an_invalid_plan_is_refused_with_a_fix(lmx, work, words, out):
    status, _, err = lmx("plan", *words)
    assert status == 2 and out in err and "Traceback" not in err


def test_a_plan_reads_no_data_and_writes_nothing(lmx, work):
    shutil.copy(find_family("llama3_8b"), work)
    lmx("plan", "llama3_8b.gin", "--on", "h100-8x4")
    assert sorted(p.name for p in work.iterdir()) == ["llama3_8b.gin", "tiny.gin"]


def test_a_search_prints_what_fits_in_order_of_speed(work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--analytic", "--search", "5"]
    args = build_parser().parse_args(words)
    args.command.split_words(args)
    text, data, status = args.command.run(args)
    ranking = data["ranking"]
    seconds = [forecast["seconds"]["step"] for forecast in ranking]
    assert status == 0 and len(ranking) == 5 and seconds == sorted(seconds)
    assert all(forecast["fits"] for forecast in ranking)
    assert text.startswith("fits v5e-4") and ranking[0]["settings"] in text


def test_the_user_can_give_prices(lmx, work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--analytic", "--json", "--prices"]
    (work / "mine").write_text("v5e = 2.5  # by contract\n")
    _, out, _ = lmx(*words, "mine")
    forecast = json.loads(out)
    assert forecast["dollars"] == pytest.approx(forecast["hours"] * 4 * 2.5)
    (work / "mine").write_text("v5e cheap\n")
    status, _, err = lmx(*words, "mine")
    assert status == 2 and "mine: " in err and "line 1" in err
    (work / "mine").write_text("v6e = 1.0\n")
    status, _, err = lmx(*words, "mine")
    assert status == 2 and "no price of v5e" in err


def test_training_refuses_what_does_not_fit_and_says_what_would(lmx, work):
    status, _, err = lmx("train", *HUGE, "--plan", "v5e-8")
    assert status == 1 and "does not fit" in err and " fits (" in err
    status, _, err = lmx("train", *HUGE, "Mesh.data=1", "--plan")
    assert status == 1 and "does not fit" in err
    assert not (work / "runs").exists()


@pytest.mark.tpu
def test_a_search_compiles_the_best(lmx, work):
    words = ["plan", "tiny.gin", "--on", "v5e-4", "--search", "1", "--json"]
    status, out, _ = lmx(*words)
    forecast = json.loads(out)
    [best] = forecast["ranking"]
    assert status == 0 and best["method"].startswith("Compiled by libtpu")
    assert (
        forecast["seconds"] == best["seconds"]
        and forecast["compile_cost"]["seconds"] > 0
    )


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
    words = [*words, FUSED, "--on", machine, "--json"]
    status, out, _ = lmx("plan", find_family(name), *words)
    forecast = json.loads(out)
    assert (
        status == 0 and forecast["fits"] and forecast["method"].startswith("Compiled")
    )
    assert forecast["compile_cost"]["seconds"] < 600
