"""Base class of relative position schemes, which act on queries, keys or logits."""

from jaxtyping import Array, Bool, Float, Int

from lmx.layers.mask import TokenInfo

Length = int | Int[Array, ""]  # tokens of a call, or of a cache once it is complete


class RelativePosition:
    """Rotates queries and keys by position, or modifies attention logits."""

    @property
    def modifies_logits(self) -> bool:
        """Whether `modify_logits` is overridden."""
        return type(self).modify_logits is not RelativePosition.modify_logits

    def check(self, head_dim: int) -> None:
        """Raises ValueError for an unsupported head size."""

    def rotate(
        self,
        x: Float[Array, "B T N H"],
        positions: Int[Array, "B T"],
        length: Length = 0,
    ) -> Float[Array, "B T N H"]:
        """Rotated queries or keys of a text of `length` tokens."""
        return x

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        """Modified attention logits."""
        return logits


def distance(query: TokenInfo, key: TokenInfo) -> Int[Array, "B T S"]:
    """Tokens from key s to query t, 0 for the query itself."""
    return query.positions[:, :, None] - key.positions[:, None, :]
