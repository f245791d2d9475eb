"""Weights that compile faster than random ones: a hash of their key and index."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.config.registry import configurable
from lmx.layers.init import FanIn

HASHED = "Decoder.init=@HashInit()"  # as an override


@configurable
@dataclass(frozen=True, kw_only=True)
class HashInit(FanIn):
    """`FanIn`, but uniform, and without a program of random numbers for each shape."""

    def sample(self, key, shape, std):
        return hash_uniform(jax.random.key_data(key), tuple(shape)) * std


@partial(jax.jit, static_argnums=1)
def hash_uniform(key, shape):
    """Numbers of mean 0 and deviation 1."""
    bits = jnp.arange(math.prod(shape), dtype="uint32") * np.uint32(0x9E3779B1) + key[0]
    bits = (bits ^ (bits >> 15)) * np.uint32(0x85EBCA6B) + key[1]
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    unit = (bits ^ (bits >> 16)).astype(float) / 2.0**32
    return ((unit - 0.5) * math.sqrt(12)).reshape(shape)
