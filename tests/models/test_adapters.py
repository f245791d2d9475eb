"""Weights that are stored in another way give the numbers of their dense form."""

import functools
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import lmx
from lmx.core.partitioning import with_partitioning
from lmx.core.precision import Precision
from lmx.core.sharding import RULES, Mesh, is_variable, shardings
from lmx.layers.conv import ShortConv
from lmx.layers.init import Init
from lmx.layers.linear import (
    TiedLMHead,
    Weight,
    contract,
    contract_grouped,
    lookup,
    slice_weight,
)
from lmx.layers.mask import describe_tokens
from lmx.layers.moe.dispatch import CapacityDispatch
from lmx.layers.moe.moe import ClampedMoE, ExpertChoice
from lmx.layers.position import CoPE, LearnedPosition
from lmx.models.adapters import Int8, LoRA, replace_weights
from lmx.models.decoder import Decoder
from lmx.models.mtp import MultiTokenPrediction, mtp_hidden_states
from tests.hash_init import HashInit
from tests.models.conftest import (
    ATTENTION,
    DENSE,
    LATENT_ATTENTION,
    OFFSET,
    SPARSE,
    VARIANTS,
)
from tests.parity.weights import weights

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 16, (8, 6)), "int32")
PLACES = jnp.broadcast_to(jnp.arange(6)[None], TOKENS.shape)
ONES = jnp.ones_like(TOKENS)
FAMILIES = sorted((Path(__file__).parents[1] / "golden" / "families").glob("*.json"))
NUMBERS = np.random.default_rng(2)
SIZES = dict(E=4, D=8, N=2, H=6, F=4, R=5, V=7, T=3, M=6)


class Sealed(Weight):
    """A weight that only the reader of weights can multiply."""

    def __init__(self, weight):
        super().__init__(weight)
        self.weight = weight

    def __getitem__(self, index):
        raise AssertionError(f"a matrix of {self.axes} is read outside of its reader")

    @property
    def shape(self):
        return self.weight.shape

    def contract(self, equation, x):
        return contract(equation, x, self.weight)

    def contract_grouped(self, matmul, x):
        return contract_grouped(matmul, x, self.weight)

    def lookup(self, index):
        return lookup(self.weight, index)


def add_noise(name, weight):
    """LoRA of rank 2, with both matrices random."""
    lora = LoRA(weight, 2, jax.random.key(len(name)), scale=0.5)
    lora.up.set_value(jax.random.normal(jax.random.key(7), lora.up.shape))
    return lora


def quantize(name, weight):
    return Int8(weight)


def make_dense(name, weight):
    """A parameter with the same numbers."""
    axes = dict(axes=weight.axes, in_dims=weight.in_dims, out_dims=weight.out_dims)
    return nnx.Param(weight[...], **axes, layers=getattr(weight, "layers", ()))


def make_param(letters, into):
    init = Init(nnx.Rngs(0), HashInit(), depth=2)
    out = "".join(d for d in letters if d not in into + "E")
    return init.weight(letters, SIZES, in_dims=into, out_dims=out)


@pytest.mark.parametrize(
    "equation, letters, into",
    [
        ("BTNH,NHD->BTD", "NHD", "NH"),
        ("BTNH,RNH->BTNR", "RNH", "R"),
        ("BTNR,RNJ->BTNJ", "RNH", "R"),
        ("BTD,VD->BTV", "VD", "V"),
    ],
)
def test_a_product_with_a_low_rank_sum_equals_that_with_the_dense_weight(
    exact, equation, letters, into
):
    weight = add_noise("", make_param(letters, into))
    x_dims = equation.partition(",")[0]
    x = NUMBERS.normal(size=[(SIZES | dict(B=2))[d] for d in x_dims])
    want = np.einsum(equation, x, weight[...])
    got = contract(equation, jnp.asarray(x), weight)
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("change", [add_noise, quantize])
def test_rows_parts_and_products_of_experts_equal_those_of_the_dense_weight(
    exact, change
):
    table = change("", make_param("VD", "V"))
    rows = jnp.array([[3, 0], [6, 3]])
    np.testing.assert_allclose(lookup(table, rows), table[...][rows], atol=1e-12)
    up = change("", make_param("RNH", "R"))
    part = slice_weight(up, "head_dim", 2, 5)
    np.testing.assert_allclose(part[...], up[...][:, :, 2:5], atol=1e-12)
    experts = change("", make_param("EDF", "D"))
    x = NUMBERS.normal(size=(4, 3, 8))
    got = contract_grouped(jnp.matmul, jnp.asarray(x), experts)
    np.testing.assert_allclose(got, np.matmul(x, experts[...]), atol=1e-12)


@functools.cache
def make_mesh():
    return Mesh(fsdp=2, expert=2, tensor=2).build(jax.devices(), RULES)


def trace(model, mesh):
    """The program of the logits, of decoding and of later tokens, as text."""

    def run(model):
        keys = jax.random.split(jax.random.key(0), len(TOKENS))
        forward = partial(mtp_hidden_states, model) if model.mtp else model.forward
        results = [forward(TOKENS, PLACES, ONES, keys)]
        if all(block.mlp.causal for block, _ in model.stack.kinds()):
            cache = model.init_cache(len(TOKENS), 8)
            results.append(model.decode(cache, TOKENS, PLACES, ONES))
        return results

    program = jax.make_jaxpr(with_partitioning(mesh, RULES, run))(model)
    return re.sub("0x[0-9a-f]+", "", str(program))


def check_reader(make_model, mesh=None):
    """Another reader of a matrix fails; the program is the same to the letter."""
    model = nnx.eval_shape(make_model)
    sealed = replace_weights(model, "*", lambda _, weight: Sealed(weight))
    mesh = mesh or make_mesh()
    assert trace(sealed, mesh) == trace(model, mesh)


MIXED = dict(
    attention=(partial(OFFSET, position=CoPE), partial(LATENT_ATTENTION, q_rank=5)),
    mlp=(
        partial(ClampedMoE, **SPARSE.keywords),
        partial(SPARSE, dispatch=CapacityDispatch(), shared=DENSE),
    ),
    depth=2,
    head=TiedLMHead,
    position=partial(LearnedPosition, max_length=8),
)
CHOICE = dict(
    mlp=partial(ExpertChoice, experts=4, hidden=8, capacity_factor=2),
    mtp=MultiTokenPrediction,
)


def test_only_the_reader_of_weights_multiplies_by_a_matrix(make):
    check_reader(lambda: make("sandwich rope dense", vocab=16, **MIXED))


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*VARIANTS, "expert choice"])
def test_only_the_reader_multiplies_by_a_matrix_in_every_variant(make, name):
    known = name in VARIANTS
    options = {} if known else CHOICE
    check_reader(lambda: make(*[name] * known, vocab=16, **options))


@pytest.mark.nightly
@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_only_the_reader_multiplies_by_a_matrix_in_every_family(path, tmp_path):
    case = json.loads(path.read_text())
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    save_file(weights(case["shapes"]), tmp_path / "model.safetensors")
    one_device = Mesh(data=1).build(jax.devices(), RULES)
    model = lmx.load_hf(tmp_path).model
    check_reader(lambda: model, one_device)


def test_another_reader_of_a_matrix_is_found(make):
    class AnotherHead(TiedLMHead):
        def __call__(self, x, embedding):
            return x @ embedding[...].T

    with pytest.raises(AssertionError, match="is read outside of its reader"):
        check_reader(lambda: make(vocab=16, head=AnotherHead))


MODELS = {
    "dense grouped-query": dict(attention=ATTENTION, mlp=DENSE),
    "experts": dict(attention=ATTENTION, mlp=SPARSE),
    "tied latent": dict(attention=LATENT_ATTENTION, mlp=DENSE, head=TiedLMHead),
}


def build(options):
    precision = Precision(params="float64", compute="float64")
    sizes = dict(vocab=16, width=16, depth=2, precision=precision, init=HashInit())
    return Decoder(nnx.Rngs(0), **sizes, **options)


@partial(jax.jit, static_argnums=0)
def run_on_mesh(graph, params):
    """Logits of a batch without and with a cache."""

    def run(params):
        model = nnx.merge(graph, params)
        cache = model.init_cache(len(TOKENS), 8)
        return model(TOKENS), model.decode(cache, TOKENS, PLACES, ONES)[0]

    return with_partitioning(make_mesh(), RULES, run)(params)


@pytest.mark.meshes
@pytest.mark.parametrize("name", MODELS)
def test_low_rank_sums_and_int8_codes_equal_dense_weights_under_scan_on_a_mesh(
    exact, name
):
    def run(model):
        graph, params = nnx.split(model)
        placed = jax.device_put(params, shardings(params, make_mesh(), RULES))
        return run_on_mesh(graph, placed)

    model = build(MODELS[name])
    before = run(replace_weights(model, "*", make_dense))
    for change, atol in ((add_noise, 1e-10), (quantize, 0.0)):
        changed = replace_weights(model, "*", change)
        results = run(changed), run(replace_weights(changed, "*", make_dense))
        for got, want, other in zip(*results, before, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=atol)
            assert jnp.abs(got - other).max() > 1e-3


def test_only_factors_have_a_gradient_where_asked_and_it_is_that_of_differences(exact):
    model = replace_weights(build(MODELS["tied latent"]), "*.attention.*.w", add_noise)
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten_with_path(params, is_leaf=is_variable)
    named = {jax.tree_util.keystr(path): param for path, param in leaves}
    factors = {
        name: param[...]
        for name, param in named.items()
        if re.search(r"'w'.*'(down|up)'", name)
    }

    @jax.jit
    @jax.value_and_grad
    def loss(factors):
        new = {name: named[name].replace(value) for name, value in factors.items()}
        params = jax.tree.unflatten(tree, (named | new).values())
        return jnp.square(nnx.merge(graph, params)(TOKENS)).mean()

    grads = loss(factors)[1]
    assert len(grads) == 8 and grads.keys() == factors.keys()
    for name, grad in grads.items():
        step = 1e-5 * NUMBERS.normal(size=grad.shape)
        up, down = (
            loss(factors | {name: factors[name] + sign * step})[0] for sign in (1, -1)
        )
        np.testing.assert_allclose((grad * step).sum(), (up - down) / 2, rtol=1e-4)


@pytest.fixture(scope="module")
def model(make):
    return make()


def test_a_low_rank_sum_is_at_first_the_weight_which_may_be_quantized(model):
    model = replace_weights(model, "*.w", quantize)
    both = replace_weights(
        model, "*.mlp.up.w", lambda _, weight: LoRA(weight, 3, jax.random.key(0))
    )
    (old, _), (new, _) = next(model.stack.kinds()), next(both.stack.kinds())
    assert isinstance(old.mlp.up.w, Int8) and new.mlp.up.w.base is not None
    assert (new.mlp.up.w.down.axes, new.mlp.up.w.up.axes) == (
        ("layers", "embed", "adapter_rank"),
        ("layers", "adapter_rank", "mlp"),
    )
    np.testing.assert_array_equal(new.mlp.up.w[...], old.mlp.up.w[...])
    assert new.mlp.up.w.shape == (3, 16, 16) and new.mlp.up.w.down.layers == (0, 1, 2)


@pytest.mark.parametrize("change", [Sealed, Int8])
def test_a_convolution_reads_and_multiplies_through_the_reader_alone(change):
    layer = ShortConv(8, Init(nnx.Rngs(0), HashInit(), depth=2), reach=2)
    dense = nnx.Param(
        jax.random.normal(jax.random.key(0), (2, 8)),
        axes=("reach", "embed"),
        in_dims=(),
        out_dims=(),
    )
    x = jax.random.normal(jax.random.key(1), (8, 6, 8))
    tokens = describe_tokens(PLACES, ONES)
    layer.w = cast(Any, change(dense))
    got, _ = layer(x, tokens, None)
    layer.w = dense if change is Sealed else nnx.Param(layer.w[...])
    np.testing.assert_array_equal(got, layer(x, tokens, None)[0])


def test_what_is_no_matrix_and_a_rank_of_zero_are_refused(model):
    with pytest.raises(
        ValueError,
        match="no matrix of the model matches 'embeding'; did you mean 'embedding'",
    ):
        replace_weights(model, "embeding", quantize)
    with pytest.raises(ValueError, match="matches 'norm.scale'"):
        replace_weights(model, "norm.scale", quantize)
    with pytest.raises(ValueError, match="rank of LoRA is 0: it must be 1 or more"):
        LoRA(model.embedding, 0, jax.random.key(0))
