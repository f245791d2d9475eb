"""Models of the parity test, as config.json fields. Imports no package.

Sizes are odd on purpose: 6 query heads on 2 key/value heads, `head_dim` different from
width over heads, vocabularies that are no multiple of 8, depths that end within a cycle
of layers, windows shorter than the text, epsilons and caps with visible effect.
"""

from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model, and the length of its text.

    `published`: config.json has exactly the fields of published files; otherwise
    transformers saves it.
    """

    name: str
    config: Fields
    published: bool = False
    text: int = 40


NO_IDS: Fields = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
OLD: Fields = dict(
    attention_dropout=0.0,
    hidden_act="silu",
    initializer_range=0.02,
    torch_dtype="float32",
    transformers_version="4.40.0",
    use_cache=True,
)


def sizes(vocab: int, layers: int, width: int, heads: int, kv: int, ff: int) -> Fields:
    return NO_IDS | dict(
        vocab_size=vocab,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=ff,
        max_position_embeddings=256,
    )


PLAIN = sizes(61, 2, 32, 4, 4, 48)
GROUPED = sizes(157, 3, 36, 6, 2, 40) | dict(head_dim=8)
NARROW = sizes(90, 3, 30, 6, 2, 52) | dict(head_dim=4, rms_norm_eps=1e-2)
