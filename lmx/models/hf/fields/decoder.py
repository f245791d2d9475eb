"""Names of tensors, and fields, that many families share."""

from collections.abc import Callable
from typing import Any

from lmx.models.hf.fields.field import (
    DirectField,
    FieldMap,
    Values,
    default_to_field,
    default_to_quotient,
    ref,
)
from lmx.models.hf.layout import TensorMap

BLOCK = "model.layers.{layer}"
ATTENTION, MLP = f"{BLOCK}.self_attn", f"{BLOCK}.mlp"

EMBEDDING_AND_HEAD = (
    TensorMap("model.embed_tokens.weight", "embedding", "V D -> V D"),
    TensorMap("lm_head.weight", "head.out.w", "V D -> D V"),
)
ATTENTION_TENSORS = (
    TensorMap(f"{ATTENTION}.q_proj.weight", "attention.q.w", "(N H) D -> D N H"),
    TensorMap(f"{ATTENTION}.k_proj.weight", "attention.k.w", "(K H) D -> D K H"),
    TensorMap(f"{ATTENTION}.v_proj.weight", "attention.v.w", "(K H) D -> D K H"),
    TensorMap(f"{ATTENTION}.o_proj.weight", "attention.out.w", "D (N H) -> N H D"),
    TensorMap(f"{ATTENTION}.q_proj.bias", "attention.q.b", "(N H) -> N H"),
    TensorMap(f"{ATTENTION}.k_proj.bias", "attention.k.b", "(K H) -> K H"),
    TensorMap(f"{ATTENTION}.v_proj.bias", "attention.v.b", "(K H) -> K H"),
    TensorMap(f"{ATTENTION}.o_proj.bias", "attention.out.b", "D -> D"),
)
GATED_MLP = (
    TensorMap(f"{MLP}.gate_proj.weight", "mlp.gate.w", "F D -> D F"),
    TensorMap(f"{MLP}.up_proj.weight", "mlp.up.w", "F D -> D F"),
    TensorMap(f"{MLP}.down_proj.weight", "mlp.down.w", "D F -> F D"),
    TensorMap(f"{MLP}.gate_proj.bias", "mlp.gate.b", "F -> F"),
    TensorMap(f"{MLP}.up_proj.bias", "mlp.up.b", "F -> F"),
    TensorMap(f"{MLP}.down_proj.bias", "mlp.down.b", "D -> D"),
)
NORMS = (
    TensorMap(f"{BLOCK}.input_layernorm.weight", "attention_norm.scale", "D -> D"),
    TensorMap(f"{BLOCK}.post_attention_layernorm.weight", "mlp_norm.scale", "D -> D"),
    TensorMap("model.norm.weight", "norm.scale", "D -> D"),
)
QK_NORMS = (
    TensorMap(f"{ATTENTION}.q_norm.weight", "attention.q_norm.scale", "H -> H"),
    TensorMap(f"{ATTENTION}.k_norm.weight", "attention.k_norm.scale", "H -> H"),
)
# Tensors of old files that are no weights.
ROPE_FREQUENCIES = r".*\.rotary_emb\.inv_freq"

BIAS_LAYERS = {False: ref("Einsum"), True: ref("EinsumBias")}


SAME_AS_HEADS = default_to_field("num_attention_heads")
WIDTH_PER_HEAD = default_to_quotient("hidden_size", "num_attention_heads")


def map_sizes(
    vocab: int,
    width: int,
    depth: int,
    *,
    heads: int,
    kv_heads: int | Callable[[Values], Any] = SAME_AS_HEADS,
    head_dim: int | Callable[[Values], Any] = WIDTH_PER_HEAD,
) -> tuple[FieldMap, ...]:
    """The sizes of a decoder and its attention, with what they are by default."""
    return (
        DirectField("vocab_size", "Decoder.vocab", vocab),
        DirectField("hidden_size", "Decoder.width", width),
        DirectField("num_hidden_layers", "Decoder.depth", depth),
        DirectField("num_attention_heads", "Attention.heads", heads),
        DirectField("num_key_value_heads", "Attention.kv_heads", kv_heads),
        DirectField("head_dim", "Attention.head_dim", head_dim),
    )


def map_tied_head(default: bool) -> DirectField:
    """Whether the embedding is the head too."""
    heads = {False: ref("LMHead"), True: ref("TiedLMHead")}
    return DirectField("tie_word_embeddings", "Decoder.head", default, heads)


def map_attention_bias(default: bool) -> tuple[FieldMap, ...]:
    """Whether all four projections have offsets."""
    return tuple(
        DirectField("attention_bias", f"Attention.{part}", default, BIAS_LAYERS)
        for part in ("qkv", "out")
    )
