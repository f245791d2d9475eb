"""FLOPs against counts by hand."""

from functools import partial

import pytest
from flax import nnx

from lmx.layers.linear import TiedLMHead
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import ClampedMoE, ExpertChoice, MoE
from lmx.layers.moe.router import SigmoidRouter, TopKRouter
from lmx.models import params

D, L, V, T = 16, 3, 11, 8
ATTENTION = L * (D * 4 * 4 + 2 * D * 2 * 4 + 4 * 4 * D)  # q; k and v; out
DENSE = L * 3 * D * 16  # gate, up and down
QUADRATIC = 12 * L * 4 * 4 * T  # of 4 heads of width 4, forward and backward


@pytest.fixture
def shape(make):
    """Makes a decoder of shapes only."""
    return lambda *args, **options: nnx.eval_shape(lambda: make(*args, **options))


@pytest.mark.parametrize(
    "variant", ["post learned dense", "pre waves dense", "sandwich rope dense"]
)
def test_flops_of_a_dense_model_count_every_matrix(shape, variant):
    """Neither embedding lookups nor gains count."""
    want = 6 * (ATTENTION + DENSE + D * V) + QUADRATIC
    assert params.train_flops_per_token(shape(variant), T) == want


def test_flops_count_a_tied_embedding_once(shape):
    dense = "sandwich rope dense"
    assert params.train_flops_per_token(
        shape(dense, head=TiedLMHead), T
    ) == params.train_flops_per_token(shape(dense), T)


@pytest.mark.parametrize("choices", [1, 2, 4])
def test_flops_count_the_chosen_experts_and_the_router(shape, choices):
    mlp = partial(MoE, experts=4, hidden=8, router=partial(TopKRouter, top_k=choices))
    sparse = L * (D * 4 + choices * 3 * D * 8)
    want = 6 * (ATTENTION + sparse + D * V) + QUADRATIC
    assert params.train_flops_per_token(shape("sandwich waves moe", mlp=mlp), T) == want


def test_flops_count_the_shared_expert_and_no_biases(shape):
    shared, router = partial(SwiGLU, hidden=5), partial(SigmoidRouter, top_k=2)
    mlp = partial(ClampedMoE, experts=4, hidden=8, router=router, shared=shared)
    sparse = L * (D * 4 + 2 * 3 * D * 8 + 3 * D * 5)
    want = 6 * (ATTENTION + sparse + D * V) + QUADRATIC
    assert params.train_flops_per_token(shape("sandwich waves moe", mlp=mlp), T) == want


def test_flops_of_expert_choice_count_the_average_number_of_experts(shape):
    mlp = partial(ExpertChoice, experts=4, hidden=8, capacity_factor=2)
    sparse = L * (D * 4 + 2 * 3 * D * 8)
    want = 6 * (ATTENTION + sparse + D * V) + QUADRATIC
    assert params.train_flops_per_token(shape("sandwich waves moe", mlp=mlp), T) == want


def test_only_attention_grows_with_the_length(shape):
    model = shape("sandwich rope dense")
    longer = params.train_flops_per_token(model, 5 * T) - params.train_flops_per_token(
        model, T
    )
    assert longer == 4 * QUADRATIC
