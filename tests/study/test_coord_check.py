"""The coordinate check passes for CompleteP, and fails for each mistake in it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lmx
from lmx.cli.main import main
from lmx.config.registry import configurable
from lmx.study.coord_check import CoordCheck, check_coordinates, list_failures
from lmx.train.optim.parametrization import CompleteP

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
SIZE = {"Decoder.width": 32, "Decoder.depth": 2, "Attention.heads": 4}
SIZE |= {"Attention.kv_heads": 4, "Attention.head_dim": 8}
# A quarter of the smallest width: products of random weights, which vanish with the
# width as 1 / sqrt(m), are small in all models.
BASE = {"Decoder.width": 8, "Attention.heads": 1, "Attention.kv_heads": 1}
DATA = ["Decoder.vocab=64", "RepeatTask.vocab=64", "RepeatTask.sequence_length=32"]
DATA += ["Constant.peak_lr=0.03"]
MOE = ["Decoder.mlp=@MoE", "MoE.experts=4", "MoE.router=@TopKRouter"]
MOE += ["TopKRouter.top_k=2", "NextToken.aux={'balance': 0.01, 'router_z': 0.001}"]
TIED = ["Decoder.head=@TiedLMHead", "FanIn.embed=0.1", "Decoder.init=@FanIn()"]
MUON = ["Experiment.optimizer=@muon", "muon.scaling=spectral", "muon.weight_decay=0.1"]

ONE_HEAD = [f"Attention.{x}" for x in ("heads=1", "kv_heads=1", "head_dim=32")]


class Mistaken(CompleteP):
    """CompleteP with other rules for parameters whose path ends so."""

    ends = ("",)
    mistake: dict

    def compare(self, model):
        transfer = super().compare(model)
        rules = {
            path: rule._replace(**self.mistake) if path.endswith(self.ends) else rule
            for path, rule in transfer.rules.items()
        }
        return replace(transfer, rules=rules)


@configurable
class RootOfHeadDim(Mistaken):
    """Attention logits / sqrt(head_dim)."""

    ends, mistake = ("attention.q.w",), {"multiplier": 1.0}


@configurable
class LogitsNotScaled(Mistaken):
    """Logits without 1/m."""

    ends, mistake = ("head.out.w",), {"multiplier": 1.0}


@configurable
class DecayNotScaled(Mistaken):
    """Weight decay without m, which the rate takes away."""

    mistake = {"weight_decay": 1.0}


@configurable
class ExpertWidthForgotten(Mistaken):
    """The fan-in of the experts' last matrix stays that of the base."""

    ends, mistake = ("mlp.down",), {"lr": 1.0, "weight_decay": 1.0}


@configurable
class BranchNotScaled(Mistaken):
    """Outputs of branches without 1/mL."""

    ends, mistake = ("attention.out.w", "mlp.down.w"), {"multiplier": 1.0}


MISTAKES = {
    "RootOfHeadDim": ("attention.logits", ONE_HEAD, {"head_dim": True}),
    "LogitsNotScaled": ("logits", [], {}),
    "DecayNotScaled": ("weight decay", [], {}),
    "ExpertWidthForgotten": ("mlp branch", [], {"kind": "MoE"}),
    "BranchNotScaled": ("mlp branch", [], {"widths": (32, 64), "depths": (2, 8, 32)}),
}


def load(parametrization, kind="SwiGLU"):
    """Settings of the tiny experiment."""
    size = {**SIZE, f"{kind}.hidden": 64}
    settings = [f"{name}={value}" for name, value in size.items()]
    settings += [*DATA, *(MOE if kind == "MoE" else [])]
    if parametrization:
        base = {**size, **BASE, f"{kind}.hidden": 16}
        settings += [f"base/{name}={value}" for name, value in base.items()]
        settings += [f"Experiment.parametrization=@{parametrization}()"]
        settings += [f"{parametrization}.base=@base/Decoder"]
        settings += ["base/Decoder.attention=@base/Attention"]
        settings += [f"base/Decoder.mlp=@base/{kind}"]
    return settings


def check(parametrization, *overrides, kind="SwiGLU", **options):
    """The quantities that fail."""
    config = lmx.load_experiment(TINY, [*load(parametrization, kind), *overrides])
    checks = check_coordinates(config, **options)
    return {x.name for x in list_failures(checks)}


def test_slopes_and_intervals_are_those_of_a_line_through_each_seed():
    widths, exponents = (16, 32, 64), np.array([0.1, 0.2, 0.3])
    sizes = np.array(widths)[:, None, None] ** exponents[None, :, None]
    [slope] = CoordCheck("width", widths, {"logits": sizes}).slopes()
    half = 4.302653 * 0.1 / 3**0.5  # the t quantile of 2 degrees of freedom
    np.testing.assert_allclose(slope[3:], [0.2, 0.2 - half, 0.2 + half], rtol=1e-6)


@pytest.mark.study
def test_a_decoder_passes_and_a_mistake_fails_at_three_widths():
    options = {"widths": (32, 64, 256), "depths": (), "steps": 2}
    assert not check("MuP", **options)
    assert "logits" in check("LogitsNotScaled", **options)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], {}),
        (ONE_HEAD, {"head_dim": True}),
        (TIED, {}),
        ([], {"kind": "MoE"}),
        (MUON, {}),
    ],
    ids=["decoder", "head_dim", "tied", "experts", "muon"],
)
def test_completep_passes_over_widths_and_depths(overrides, options):
    assert not check("CompleteP", *overrides, **options)


@pytest.mark.nightly
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_fails(mistake):
    quantity, overrides, options = MISTAKES[mistake]
    options = {"widths": (32, 128, 512), "depths": (), **options}
    assert quantity in check(mistake, *overrides, **options)


@pytest.mark.nightly
def test_the_standard_parametrization_fails(tmp_path, capsys):
    plot = tmp_path / "check.png"
    words = ["coord-check", str(TINY), *load(None), "--json", "--png", str(plot)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    data = json.loads(capsys.readouterr().out)
    failed = {x["name"] for x in data["slopes"] if not x["passes"]}
    assert stop.value.code == 1 and not data["passes"]
    assert failed >= {"attention branch", "mlp branch", "logits"}
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
