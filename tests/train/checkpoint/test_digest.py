"""A digest is a function of the name, dtype, shape and elements of a tensor alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core.sharding import RULES, Mesh
from lmx.train.checkpoint import digest
from lmx.train.checkpoint.digest import (
    add_checksums,
    checksum_part,
    checksum_parts,
    combine_digests,
    flatten_by_path,
    format_digest,
    get_local_parts,
)

KINDS = ("float32", "bfloat16", "float16", "int32", "uint8", "bool", "float8_e4m3fn")
SPECS = [(), ("fsdp",), (None, "fsdp"), ("data", "fsdp"), (("data", "fsdp"),)]


def make_values(kind, shape=(16, 20, 12), seed=0):
    noise = np.random.default_rng(seed).normal(size=shape) * 100
    return jnp.asarray(noise).astype(kind)


def checksum(x):
    return checksum_part(np.asarray(x), (slice(None),) * np.ndim(x), np.shape(x))


def compute_digests(state):
    return {
        name: format_digest(name, leaf, checksum(leaf))
        for name, leaf in flatten_by_path(state).items()
    }


def splitmix64(number):
    """Steele, Lea and Flood 2014, figure 16, one number at a time."""
    number = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def checksum_slowly(x):
    """The two sums, word by word, with Python's integers."""
    size = min(4, x.itemsize)
    words = np.asarray(x).reshape(-1).view(f"<u{size}").tolist()
    total = [0, 0]
    for place, word in enumerate(words):
        block, inner = divmod(place, digest.BLOCK_WORDS)
        for lane in range(2):
            weight = splitmix64(inner) | 1
            weight *= splitmix64(block ^ (lane + 1) << 60) | 1
            total[lane] = (total[lane] + word * weight) % 2**64
    return total


@pytest.fixture(scope="module")
def mesh():
    return Mesh(data=2, fsdp=4).build(jax.devices(), RULES)


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_equal_those_of_a_loop_over_words(kind):
    x = make_values(kind)
    assert checksum(x) == checksum_slowly(x)


def test_a_word_of_64_bits_counts_as_two(x64):
    x = make_values("float64", (3, 5000))
    assert checksum(x) == checksum_slowly(x)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shards_on_any_mesh_add_up_to_the_same_checksums(mesh, kind, spec):
    x = make_values(kind)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    parts = get_local_parts({"x": sharded})["x"]
    assert checksum(x) == checksum_parts(parts, x.shape)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 1, 9)])
def test_any_shape_has_checksums(shape):
    x = make_values("int32", shape)
    assert checksum(x) == checksum_slowly(x)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("max_words", [50, 1 << 16])
def test_checksums_of_parts_add_up(monkeypatch, axis, max_words):
    monkeypatch.setattr(digest, "MAX_WORDS", max_words)
    x = np.asarray(make_values("bfloat16"))
    parts = []
    for begin, end in [(0, 5), (5, 6), (6, x.shape[axis])]:
        index = [slice(None)] * 3
        index[axis] = slice(begin, end)
        parts.append(checksum_part(x[tuple(index)], tuple(index), x.shape))
    assert checksum(x) == add_checksums(parts)


def test_one_flipped_bit_anywhere_changes_the_checksums():
    x = np.asarray(make_values("uint8", (20_000,)))
    found = {tuple(checksum(x))}
    for place in range(0, x.size, 397):
        for bit in (0, 7):
            other = x.copy()
            other[place] ^= 1 << bit
            found.add(tuple(checksum(other)))
    assert len(found) == 1 + 2 * len(range(0, x.size, 397))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: -x,
        lambda x: x.at[0].set(x[1]).at[1].set(x[0]),
        lambda x: x.at[0, 0].set(x[8, 0]).at[8, 0].set(x[0, 0]),
        lambda x: x.at[3:5, 7].multiply(-1),
        lambda x: jnp.roll(x, 1),
        lambda x: x.T.reshape(x.shape),
        lambda x: x.at[5].set(0),
    ],
)
def test_signs_places_and_missing_rows_change_the_digest(change):
    x = make_values("float32", (16, 4000))
    assert compute_digests([x]) != compute_digests([change(x)])


def test_name_dtype_and_shape_change_the_digest():
    x = jnp.zeros(6, "int32")
    states = [{"w": x}, {"v": x}, {"w": x.reshape(2, 3)}, {"w": x.astype("uint32")}]
    found = [d for state in states for d in compute_digests(state).values()]
    assert len(set(found)) == 4 and all(len(d) == 32 for d in found)


def test_the_combined_digest_depends_on_names_and_digests_and_not_on_their_order():
    digests = compute_digests({"a": make_values("int32"), "b": make_values("bool")})
    swapped = {"a": digests["b"], "b": digests["a"]}
    combined = combine_digests(digests)
    assert combined == combine_digests(dict(reversed(digests.items())))
    assert combined != combine_digests(swapped)
    assert combined != combine_digests({"a": digests["a"]})


def test_digests_of_this_schema_do_not_change():
    x = np.arange(20_000, dtype="<f4").reshape(2, -1)
    digests = compute_digests({"w": x, "step": np.int32(7)})
    assert combine_digests(digests) == "c8a76f55445849b943d9a6013a3cc069"
