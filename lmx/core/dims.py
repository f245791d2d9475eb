"""One alphabet of dimensions, used everywhere.

A letter means the same as the suffix of a local array (`q_BTNH`), in an einsum
equation, in a jaxtyping annotation and, through `logical`, in a sharding rule.

    B  batch              D  model width         E  experts
    T  query position     F  feed-forward width  C  choices: experts per token
    S  key position       H  head dim            R  low rank
    V  vocabulary         N  query heads         L  layers
    P  channel pairs      K  key/value heads     G  query heads per key head, N / K
    M  rows: any leading dimensions, flattened into one
    I  context of a convolution or memory: tokens before the first one
    J  head dim of values, if it is not H
    W  beams: the continuations of one prompt that a search keeps
    A  replicas of DiLoCo
    Z  rank of an adapter: a low-rank change of a weight
    U  microbatches of a pipeline
"""

LOGICAL = {
    "B": "batch", "T": "length", "S": "kv_length", "V": "vocab", "L": "layers",
    "D": "embed", "F": "mlp", "H": "head_dim", "N": "heads", "K": "kv_heads",
    "G": "head_group", "E": "experts", "C": "choices", "R": "rank", "P": "pairs",
    "M": "rows", "I": "reach", "J": "value_dim", "W": "beams",
    "U": "microbatches", "A": "replicas", "Z": "adapter_rank",
}  # fmt: skip
LETTERS = {axis: letter for letter, axis in LOGICAL.items()}


def logical(dims: str) -> tuple[str, ...]:
    """Logical axis names, as in `logical("BTD") == ("batch", "length", "embed")`."""
    return tuple(LOGICAL[d] for d in dims)


def letters(axes: tuple[str, ...]) -> str:
    """The letters of logical axes: the inverse of `logical`."""
    return "".join(LETTERS[axis] for axis in axes)
