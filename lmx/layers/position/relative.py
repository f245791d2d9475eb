"""Positions that attention knows by the distance of two tokens."""

from jaxtyping import Array, Bool, Float, Int

from lmx.layers.mask import Place

Length = int | Int[Array, ""]  # tokens that a call has, or will have come to


class Relative:
    """Anything that turns queries and keys by position, or changes their logits."""

    @property
    def moves_logits(self) -> bool:
        """Whether `scored` changes anything."""
        return type(self).scored is not Relative.scored

    def check(self, head_width: int) -> None:
        """Refuses a head that it cannot serve."""
        del head_width

    def rotate(
        self,
        x: Float[Array, "B T N H"],
        positions: Int[Array, "B T"],
        length: Length = 0,
    ) -> Float[Array, "B T N H"]:
        """Queries or keys, turned, in a call that comes to `length` tokens."""
        del positions, length
        return x

    def scored(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: Place,
        key: Place,
    ) -> Float[Array, "B K G T S"]:
        """The logits of each query for each key, changed."""
        del q, mask, query, key
        return logits


def distance(query: Place, key: Place) -> Int[Array, "B T S"]:
    """Tokens from key s to query t, 0 for the query itself."""
    return query.positions[:, :, None] - key.positions[:, None, :]
