"""Positions that attention knows by the distance of two tokens."""

from jaxtyping import Array, Bool, Float, Int

from lmx.layers.mask import TokenInfo

Length = int | Int[Array, ""]  # tokens that a call has, or will have come to


class RelativePosition:
    """Anything that turns queries and keys by position, or changes their logits."""

    @property
    def modifies_logits(self) -> bool:
        """Whether `scored` changes anything."""
        return type(self).modify_logits is not RelativePosition.modify_logits

    def check(self, head_dim: int) -> None:
        """Refuses a head that it cannot serve."""
        del head_dim

    def rotate(
        self,
        x: Float[Array, "B T N H"],
        positions: Int[Array, "B T"],
        length: Length = 0,
    ) -> Float[Array, "B T N H"]:
        """Queries or keys, turned, in a call that comes to `length` tokens."""
        del positions, length
        return x

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        """The logits of each query for each key, changed."""
        del q, mask, query, key
        return logits


def distance(query: TokenInfo, key: TokenInfo) -> Int[Array, "B T S"]:
    """Tokens from key s to query t, 0 for the query itself."""
    return query.positions[:, :, None] - key.positions[:, None, :]
