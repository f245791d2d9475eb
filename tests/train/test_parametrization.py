"""muP and CompleteP: each factor is that of the papers, and the base stays as it is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError, configurable
from lmx.core.sharding import is_variable
from lmx.models.params import flatten_params
from lmx.train.optim import optimizer as optim
from lmx.train.optim.parametrization import NO_TRANSFER
from lmx.train.trainer import train_run

BASE = [
    "Experiment.parametrization=@CompleteP()",
    "CompleteP.base=@base/Decoder",
    "base/Decoder.width=8",
    "base/Decoder.depth=1",
    "base/Decoder.attention=@base/Attention",
    "base/Decoder.mlp=@base/SwiGLU",
    "base/Attention.heads=2",
    "base/Attention.kv_heads=1",
    "base/Attention.head_dim=4",
    "base/SwiGLU.hidden=16",
]
LARGE = [  # width x 4, fan-in of the output projection x 4, hidden width x 3, depth x 4
    "Decoder.width=32",
    "Decoder.depth=4",
    "Attention.heads=4",
    "Attention.kv_heads=2",
    "Attention.head_dim=8",
    "SwiGLU.hidden=48",
]
SELF = ["Experiment.parametrization=@CompleteP()", "CompleteP.base=@Decoder"]
TIED = ["Decoder.head=@TiedLMHead", "Decoder.init=@GPT2Init()"]
MUON = ["Experiment.optimizer=@muon", "muon.weight_decay=0.1"]
DECAY = ["adamw.weight_decay=0.3", "adamw.clip=None"]
HALF = 0.5**0.5
# Initial deviation, multiplier, rate, decay and eps: Dey et al. 2025, table 1.
TABLE = {
    "embedding": (0.02, 1, 1, 1, 1 / 4),
    "attention.q.w": (0.02 / 2, HALF, 1 / 4, 4, 1 / 16),
    "attention.k.w": (0.02 / 2, 1, 1 / 4, 4, 1 / 16),
    "attention.v.w": (0.02 / 2, 1, 1 / 4, 4, 1 / 16),
    "attention.out.w": (0.02 * HALF / 2, 1 / 4, 1 / 4, 4, 1 / 16),
    "mlp.gate.w": (0.02 / 2, 1, 1 / 4, 4, 1 / 16),
    "mlp.up.w": (0.02 / 2, 1, 1 / 4, 4, 1 / 16),
    "mlp.down.w": (0.02 * HALF / 3**0.5, 1 / 4, 1 / 3, 3, 1 / 16),
    "attention_norm.scale": (None, 1, 1, 1, 1 / 16),
    "mlp_norm.scale": (None, 1, 1, 1, 1 / 16),
    "norm.scale": (None, 1, 1, 1, 1 / 4),
    "head.out.w": (0.02, 1 / 4, 1, 1, 1 / 4),
}


def params_of(state):
    """The parameters by the last parts of their paths, as arrays of NumPy."""
    params = flatten_params(state.params, is_variable)
    return {path.split(".0.")[-1]: np.asarray(p[...]) for path, p in params.items()}


def train(config, steps=3):
    """The states of a run, from that of step 0 on."""
    experiment = config.build()
    program = experiment.build_program(jax.devices()[:1])
    data, states = experiment.data.open(), [program.init()]
    step = jax.jit(
        lambda state, batch: program.step_fn(program.step_config, state, batch)
    )
    for number in range(steps):
        states.append(step(states[-1], data.batch_at(experiment.seed, number))[0])
    return states


def test_initial_weights_are_those_of_the_papers_table(tiny):
    found = params_of(train(tiny(*BASE, *LARGE, *TIED[1:]), 0)[0])
    plain = params_of(train(tiny(*LARGE, *TIED[1:]), 0)[0])
    assert found.keys() == TABLE.keys()
    for name, (std, multiplier, *_) in TABLE.items():
        by_init = 0.02 * (8**-0.5 if name in ("attention.out.w", "mlp.down.w") else 1)
        factor = multiplier * std / by_init if std else 1
        np.testing.assert_allclose(found[name], plain[name] * factor, rtol=1e-6)


@pytest.mark.study
def test_steps_are_those_of_adamw_in_numpy_with_the_papers_table(tiny):
    b1, b2, eps, rate = 0.9, 0.95, 1e-3, 0.01
    config = tiny(*BASE, *LARGE, *TIED[1:], *DECAY, f"adamw.eps={eps}")
    optimizer = config.build().build_optimizer()
    states = train(config, 1)[:1]
    params, moments = states[0].params, {}
    state, stored = optimizer.init(params), params_of(states[0])
    weights = {name: x / TABLE[name][1] for name, x in stored.items()}
    noise = np.random.default_rng(0)
    for step in range(1, 4):
        # Gradients of about eps, so that its factor matters.
        grads = jax.tree.map(
            lambda x: jnp.asarray(noise.normal(size=x.shape) * eps, x.dtype), params
        )
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        given = params_of(states[0]._replace(params=grads))
        for name, (_, multiplier, lr, decay, eps_factor) in TABLE.items():
            g = given[name] * multiplier
            m, v = moments.get(name, (0.0, 0.0))
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            moments[name] = m, v
            mean, power = m / (1 - b1**step), v / (1 - b2**step)
            change = mean / (np.sqrt(power) + eps * eps_factor)
            change += 0.3 * decay * weights[name] * (not name.endswith("scale"))
            weights[name] = weights[name] - rate * lr * change
    found = params_of(states[0]._replace(params=params))
    for name, weight in weights.items():
        wanted = weight * TABLE[name][1]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-7)


MOE = ["Decoder.mlp=@MoE", "MoE.router=@TopKRouter", "TopKRouter.top_k=2"]
MOE += ["MoE.experts=4", "NextToken.aux={'balance': 0.01, 'router_z': 0.0}"]
MOE_BASE = [x for x in BASE if "SwiGLU" not in x]
MOE_BASE += ["base/Decoder.mlp=@base/MoE", "base/MoE.hidden=8"]


@pytest.mark.study
def test_folded_weights_are_the_papers_multipliers_of_activations(tiny):
    tied = [*MOE, "MoE.hidden=24", *MOE_BASE, *LARGE[:5], *TIED]
    tied += ["Attention.qk_norm=@RMSNorm"]
    experiment = tiny(*tied).build()
    model = experiment.init_model(nnx.Rngs(0))
    graph, params = nnx.split(model)
    rules = experiment.parametrization.compare(model)
    plain = rules.map(lambda rule, x: x / rule.multiplier, params)
    factors = {"attention.out": 1 / 4, "mlp.out": 1 / 4, "router.logits": 1 / 4}
    factors |= {"attention.q": HALF, "final_norm": 1 / 4}
    tokens = jnp.arange(16).reshape(2, 8) % 8
    wanted, _ = lmx.capture(
        nnx.merge(graph, plain),
        tokens,
        replace={n: lambda x, f=f: x * f for n, f in factors.items()},
    )
    np.testing.assert_allclose(model(tokens), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.study
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(MUON, marks=pytest.mark.nightly),
        pytest.param([*MOE, "MoE.hidden=24", *TIED, *MUON], marks=pytest.mark.nightly),
    ],
    ids=["adamw", "muon", "experts and a tied head"],
)
def test_at_the_size_of_the_base_training_is_the_same_to_the_bit(tiny, overrides):
    plain, states = train(tiny(*overrides)), train(tiny(*overrides, *SELF))
    for wanted, found in zip(plain, states, strict=True):
        chex.assert_trees_all_equal(found, wanted)


def test_the_last_norm_of_a_branch_or_the_last_weights_have_its_multiplier(tiny):
    for block, ends in {
        "SandwichNorm": {"attention_out_norm.offset", "mlp_out_norm.offset"},
        "ReorderedNorm": {"attention_norm.offset", "mlp_norm.offset"},
        "PostNorm": {"attention.out.w", "attention.out.b", "mlp.down.w"},
    }.items():
        config = tiny(
            *BASE,
            "Decoder.depth=4",
            f"Decoder.block=@{block}",
            "Decoder.norm=@OffsetRMSNorm",
            "Attention.out=@EinsumBias",
        )
        experiment = config.build()
        rules = experiment.parametrization.compare(experiment.abstract_model()).rules
        found = {path for path, rule in rules.items() if rule.multiplier == 1 / 4}
        assert {path.split(".0.")[-1] for path in found} == ends
        if block == "SandwichNorm":  # a gain of 1 + offset
            initial = params_of(train(config, 0)[0])
            np.testing.assert_allclose(initial["mlp_out_norm.offset"], -3 / 4)
            np.testing.assert_allclose(initial["mlp_norm.offset"], 0)


def test_muons_steps_transfer_or_a_warning_names_the_first_that_do_not(tiny, capsys):
    def steps(*overrides):
        experiment = tiny(*BASE, *LARGE, *MUON, *overrides).build()
        return experiment.build_optimizer() and capsys.readouterr().err

    assert steps("muon.scaling=spectral") == ""
    found = steps("muon.scaling=rms")
    assert "attention.q.w are 2 times" in found and "transfers with 1:" in found


def test_optimizers_without_rules_are_refused_by_name(tiny):
    for name in ("lion", "adafactor", "sgd"):
        with pytest.raises(ConfigError, match=f"{name} has no rules for CompleteP"):
            tiny(*BASE, f"Experiment.optimizer=@{name}").build().make_init()


@configurable
def decayed_signs(learning_rate, transfer=NO_TRANSFER, *, weight_decay: float = 0.5):
    """An optimizer of a user: Adam without memory, by the protocol of `Transfer`."""
    signs = optax.chain(
        optax.scale_by_sign(),
        optax.add_decayed_weights(weight_decay, optim.matrix_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return transfer.fold(transfer.adam(signs))


def test_an_optimizer_of_a_users_own_takes_part(tiny):
    config = tiny(*BASE, *LARGE, "Experiment.optimizer=@decayed_signs")
    old, new = map(params_of, train(config, 1))
    w, step = old["attention.out.w"], (new["attention.out.w"] - old["attention.out.w"])
    change = step / 0.01 * 4 * 4 + 0.5 * 4 * w * 4  # multiplier 1/4, rate 1/4, decay 4
    np.testing.assert_allclose(np.abs(change), 1, rtol=1e-3)


@pytest.mark.nightly
def test_duration_and_batch_size_follow_the_sde_rules(tiny):
    # 8 x 16 tokens a batch, 10 steps: 4 times the base's batch, 16 times its tokens.
    options = ["CompleteP.base_batch=32", "CompleteP.base_tokens=80"]
    plain = ["adamw.b1=0.98", "adamw.b2=0.99", "adamw.eps=4e-3", *DECAY]
    by_hand = ["adamw.b1=0.92", "adamw.b2=0.96", "adamw.eps=2e-3", "adamw.clip=None"]
    by_hand += ["adamw.weight_decay=0.6", f"Constant.peak_lr={0.01 * 2 * 16**-0.3}"]
    found = train(tiny(*SELF, *plain, *options))[-1].params
    chex.assert_trees_all_close(found, train(tiny(*by_hand))[-1].params, atol=1e-6)


def test_a_base_with_other_parameters_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"other parameters.* embedding_norm|sizes"):
        tiny(*BASE, "base/Decoder.head=@TiedLMHead").build().make_init()


@pytest.mark.nightly
def test_a_run_is_resumed_restored_and_exported_with_its_multipliers(tiny, tmp_path):
    llama = [*BASE, *LARGE, "Experiment.steps=4", "CheckpointPolicy.every=2"]
    run = train_run("tiny", tiny(*llama, "Mesh.data=1"), tmp_path / "run")
    trained = lmx.restore(run.path)
    tokens = jnp.arange(16).reshape(2, 8) % 8
    wanted = train(tiny(*llama), 4)[-1]
    chex.assert_trees_all_close(trained.params, wanted.params, rtol=1e-4, atol=1e-6)
    lmx.save_hf(trained, tmp_path / "hf")
    again = lmx.load_hf(tmp_path / "hf").model
    np.testing.assert_array_equal(again(tokens), trained.model(tokens))
