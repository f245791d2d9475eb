"""What a decoder remembers of the tokens it has read."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Int

from lmx.models.block import Past


class Cache(NamedTuple):
    """What every layer remembers; slot s of a row holds the s-th token read."""

    layers: Past  # leading dimension L
    segments: Int[Array, "B S"]  # 0 where nothing was read, or padding
    length: Int[Array, ""]  # slots filled so far

    def read(self, segments: Int[Array, "B T"]) -> "Cache":
        """With room taken for more tokens, which the layers are still to see."""
        put = jax.lax.dynamic_update_slice_in_dim
        return self._replace(
            segments=put(self.segments, segments, self.length, 1),
            length=self.length + segments.shape[1],
        )

    def rows(self, index: Int[Array, "M"]) -> "Cache":
        """The rows of that index, which may repeat or leave out some."""
        layers = jax.tree.map(lambda x: x[:, index], self.layers)
        return self._replace(layers=layers, segments=self.segments[index])
