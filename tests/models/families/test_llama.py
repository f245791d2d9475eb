"""Llama against a forward pass in NumPy, straight from the files' tensors."""

import math

import jax
import numpy as np
import pytest

import lmx
from lmx.models.families.llama import FAMILY
from lmx.models.hf.api import init_abstract

TOKENS = np.random.default_rng(1).integers(0, 37, (2, 9))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_405b": 405_853_388_800,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "llama33_70b": 70_553_706_496,
}


def norm(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def speeds(scaling):
    """Radians per token of each pair of a head of 6, as each rope_type has it."""
    found = []
    for pair in range(3):
        speed = 10_000.0 ** (-2 * pair / 6)
        turns = 16 * speed / (2 * math.pi)
        slow = speed / 8.0
        if scaling is None or turns > 4.0:
            found.append(speed)
        elif scaling["rope_type"] == "linear":
            found.append(speed / scaling["factor"])
        elif turns < 1.0:
            found.append(slow)
        else:
            share = (turns - 1.0) / (4.0 - 1.0)
            found.append((1 - share) * slow + share * speed)
    return np.array(found)


def rotated(x, speed):
    """`x`, of positions and 6 channels, each pair turned."""
    angle = np.arange(len(x))[:, None] * speed
    a, b = x[:, :3], x[:, 3:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], 1)


def attention(x, w, at, speed):
    q, k, v = (x @ w[f"{at}.{name}_proj.weight"].T for name in "qkv")
    heads = []
    for head in range(4):
        group = head // 2
        q_h, k_h, v_h = (
            y[:, 6 * n : 6 * n + 6] for y, n in ((q, head), (k, group), (v, group))
        )
        scores = rotated(q_h, speed) @ rotated(k_h, speed).T / math.sqrt(6)
        scores[np.triu_indices(len(x), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v_h)
    return np.concatenate(heads, 1) @ w[f"{at}.o_proj.weight"].T


def logits(tokens, w, scaling):
    w = {name: tensor.astype(np.float64) for name, tensor in w.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(3):
        at = f"model.layers.{layer}"
        y = norm(x, w[f"{at}.input_layernorm.weight"])
        x = x + attention(y, w, f"{at}.self_attn", speeds(scaling))
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        gate, up = (y @ w[f"{at}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + gate / (1 + np.exp(-gate)) * up @ w[f"{at}.mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "scaling",
    [None, LLAMA3, {"rope_type": "linear", "factor": 4.0}],
    ids=["plain", "llama3", "linear"],
)
def test_logits_are_those_of_a_loop_in_numpy(llama, weights, scaling, tied):
    folder = llama(rope_scaling=scaling, tie_word_embeddings=tied)
    if tied:
        del weights["lm_head.weight"]
    model = lmx.load_hf(folder).model
    found = jax.jit(lambda model, tokens: model(tokens))(model, TOKENS)
    for row, tokens in zip(found, TOKENS, strict=True):
        want = logits(tokens, weights, scaling)
        np.testing.assert_allclose(row, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_a_preset_has_the_published_number_of_parameters(preset):
    model = init_abstract(FAMILY.to_config(FAMILY.presets[preset], preset))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
    assert count == PUBLISHED[preset]
