"""One alphabet of dimensions, used everywhere.

A letter means the same thing as the suffix of a local array (`q_BTNH`), in an einsum
equation, in a jaxtyping annotation and, through `logical_axes`, in a sharding rule.

    B  batch              D  model width         E  experts
    T  query position     F  feed-forward width  C  choices: experts per token
    S  key position       H  head width          R  low rank
    V  vocabulary         N  query heads         L  layers
    P  channel pairs      K  key/value heads     G  query heads per key head, N / K
    M  rows: any leading dimensions, flattened into one
    I  reach: tokens before   J  head width of values, where it is not H
    W  beams: the continuations of one prompt that a search keeps
    A  replicas that learn apart
    U  microbatches: parts of a batch that follow each other through stages of layers
"""

LOGICAL = {
    "B": "batch", "T": "length", "S": "kv_length", "V": "vocab", "L": "layers",
    "D": "embed", "F": "mlp", "H": "head_dim", "N": "heads", "K": "kv_heads",
    "G": "head_group", "E": "experts", "C": "choices", "R": "rank", "P": "pairs",
    "M": "rows", "I": "reach", "J": "value_dim", "W": "beams",
    "U": "microbatches", "A": "replicas",
}  # fmt: skip


def logical(dims: str) -> tuple[str, ...]:
    """Logical axis names, as in `logical("BTD") == ("batch", "length", "embed")`."""
    return tuple(LOGICAL[d] for d in dims)
