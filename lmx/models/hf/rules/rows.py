"""Names of tensors, and fields, that many families share."""

from collections.abc import Callable
from typing import Any

from lmx.models.hf.rules.field import Field, Rule, Values, at, quotient, same
from lmx.models.hf.table import Weight

BLOCK = "model.layers.{layer}"
ATTENTION, MLP = f"{BLOCK}.self_attn", f"{BLOCK}.mlp"

ENDS = (
    Weight("model.embed_tokens.weight", "table", "V D -> V D"),
    Weight("lm_head.weight", "head.out.w", "V D -> D V"),
)
PROJECTIONS = (
    Weight(f"{ATTENTION}.q_proj.weight", "attention.q.w", "(N H) D -> D N H"),
    Weight(f"{ATTENTION}.k_proj.weight", "attention.k.w", "(K H) D -> D K H"),
    Weight(f"{ATTENTION}.v_proj.weight", "attention.v.w", "(K H) D -> D K H"),
    Weight(f"{ATTENTION}.o_proj.weight", "attention.out.w", "D (N H) -> N H D"),
    Weight(f"{ATTENTION}.q_proj.bias", "attention.q.b", "(N H) -> N H"),
    Weight(f"{ATTENTION}.k_proj.bias", "attention.k.b", "(K H) -> K H"),
    Weight(f"{ATTENTION}.v_proj.bias", "attention.v.b", "(K H) -> K H"),
    Weight(f"{ATTENTION}.o_proj.bias", "attention.out.b", "D -> D"),
)
GATED = (
    Weight(f"{MLP}.gate_proj.weight", "mlp.gate.w", "F D -> D F"),
    Weight(f"{MLP}.up_proj.weight", "mlp.up.w", "F D -> D F"),
    Weight(f"{MLP}.down_proj.weight", "mlp.down.w", "D F -> F D"),
    Weight(f"{MLP}.gate_proj.bias", "mlp.gate.b", "F -> F"),
    Weight(f"{MLP}.up_proj.bias", "mlp.up.b", "F -> F"),
    Weight(f"{MLP}.down_proj.bias", "mlp.down.b", "D -> D"),
)
NORMS = (
    Weight(f"{BLOCK}.input_layernorm.weight", "attention_norm.scale", "D -> D"),
    Weight(f"{BLOCK}.post_attention_layernorm.weight", "mlp_norm.scale", "D -> D"),
    Weight("model.norm.weight", "norm.scale", "D -> D"),
)
QK_NORMS = (
    Weight(f"{ATTENTION}.q_norm.weight", "attention.q_norm.scale", "H -> H"),
    Weight(f"{ATTENTION}.k_norm.weight", "attention.k_norm.scale", "H -> H"),
)
# Tensors of old files that are no weights.
TURNS = r".*\.rotary_emb\.inv_freq"

OFFSETS = {False: at("Einsum"), True: at("Affine")}


ALL_HEADS = same("num_attention_heads")
SPLIT = quotient("hidden_size", "num_attention_heads")


def sizes(
    vocab: int,
    width: int,
    depth: int,
    *,
    heads: int,
    kv_heads: int | Callable[[Values], Any] = ALL_HEADS,
    head_width: int | Callable[[Values], Any] = SPLIT,
) -> tuple[Rule, ...]:
    """The sizes of a decoder and its attention, with what they are by default."""
    return (
        Field("vocab_size", "Decoder.vocab", vocab),
        Field("hidden_size", "Decoder.width", width),
        Field("num_hidden_layers", "Decoder.depth", depth),
        Field("num_attention_heads", "Attention.heads", heads),
        Field("num_key_value_heads", "Attention.kv_heads", kv_heads),
        Field("head_dim", "Attention.head_width", head_width),
    )


def tied(default: bool) -> Field:
    """Whether the embedding is the head too."""
    heads = {False: at("Untied"), True: at("Tied")}
    return Field("tie_word_embeddings", "Decoder.head", default, heads)


def attention_bias(default: bool) -> tuple[Rule, ...]:
    """Whether all four projections have offsets."""
    return tuple(
        Field("attention_bias", f"Attention.{part}", default, OFFSETS)
        for part in ("qkv", "out")
    )
