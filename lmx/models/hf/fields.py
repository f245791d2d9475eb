"""Maps fields of a config.json to gin bindings and back; tensors of most families."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmx.config.gin import Ref
from lmx.config.registry import ConfigError, require
from lmx.config.value import Config, format_value, to_jsonable

Values = Mapping[str, Any]


class FieldMap(NamedTuple):
    """Maps a few fields of a config.json to bindings and back.

    Attributes:
        names: the fields that it reads.
        with_defaults: the fields as transformers reads them, defaults filled in.
        to_bindings: the bindings of these fields, as `{"Class.parameter": value}`.
        to_hf: the fields of a configuration; none if it lacks the parameters.
    """

    names: tuple[str, ...]
    with_defaults: Callable[[Values], dict[str, Any]]
    to_bindings: Callable[[Values], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]


class TensorMap(NamedTuple):
    """Maps one tensor of a checkpoint to one or more parameters.

    Attributes:
        hf: the name of the tensor, with `{layer}` and `{expert}` if each has its own.
        param: the parameter's path in a layer or decoder; several share a tensor.
        layout: the dimensions of the tensor and of the parameter, as for einops,
            without layers and experts: "(N H) D -> D N H". Parameters that share a
            tensor are indexed by a digit: "D (3 N H) -> 3 D N H".
    """

    hf: str
    param: str | tuple[str, ...]
    layout: str


def map_field(
    name: str,
    binding: str,
    default: Any | Callable[[Values], Any] = None,
    *,
    values: Mapping[Any, Any] | None = None,
    aliases: tuple[str, ...] = (),
    nullable: bool = False,
    path: str = "",
) -> FieldMap:
    """Maps one field to one parameter.

    `default` replaces a missing field or a null (unless `nullable`); a function
    receives the fields mapped before. `values` translates the field, `aliases` are its
    other names. `path` is where to read the parameter, if several modules have one.
    """
    names = (name, *aliases)

    def with_defaults(fields: Values) -> dict[str, Any]:
        present = (fields[n] for n in names if n in fields)
        value = next((v for v in present if nullable or v is not None), default)
        return {name: value(fields) if callable(value) else value}

    def to_bindings(fields: Values) -> dict[str, Any]:
        value = fields[name]
        if values is None:
            return {binding: value}
        known = ", ".join(map(repr, values))
        require(value in values, f"{name} = {value!r}: lmx supports only {known}.")
        return {binding: values[value]}

    def to_hf(config: Config) -> dict[str, Any]:
        found = find_values(config, path or binding)
        if not found:
            return {}
        if values is None:
            return {name: to_jsonable(found[0])}
        hf_values = {format_value(value): key for key, value in values.items()}
        text = format_value(found[0])
        return {name: hf_values[text]} if text in hf_values else {}

    return FieldMap(names, with_defaults, to_bindings, to_hf)


def map_fields(
    defaults: Values,
    to_bindings: Callable[[Values], dict[str, Any]],
    to_hf: Callable[[Config], dict[str, Any]],
) -> FieldMap:
    """Maps several fields whose defaults are constants."""

    def with_defaults(fields: Values) -> dict[str, Any]:
        values = {name: fields.get(name) for name in defaults}
        return {n: defaults[n] if v is None else v for n, v in values.items()}

    return FieldMap(tuple(defaults), with_defaults, to_bindings, to_hf)


def derive(binding: str, compute: Callable[[Values], Any]) -> FieldMap:
    """Binds a parameter that follows from fields mapped before."""
    return map_fields({}, lambda fields: {binding: compute(fields)}, lambda config: {})


def ref(name: str, called: bool = False, scope: str = "") -> Ref:
    """The reference `@scope/name`, or `@scope/name()`."""
    return Ref((scope,) if scope else (), name, called)


def find_values(config: Config, binding: str) -> list[Any]:
    """The values of a parameter in all parts of the model."""
    try:
        paths = config.find_paths(binding.rpartition("/")[2])
    except ConfigError:
        return []
    return [config[path] for path in paths if path.startswith("model.")]


def list_layers(config: Config, part: str) -> list[Config]:
    """The `attention` or `mlp` of each layer."""
    first = config["model.first_mlps"] if part == "mlp" else ()
    cycle = config[f"model.{part}"]
    cycle = cycle if isinstance(cycle, tuple) else (cycle,)
    rest = range(config["model.depth"] - len(first))
    return [*first, *(cycle[i % len(cycle)] for i in rest)]


def find_cycle(kinds: list[str]) -> list[str]:
    """The shortest cycle that gives `kinds` when repeated; the end may be cut."""
    periods = range(1, len(kinds) + 1)
    return next(kinds[:n] for n in periods if kinds[n:] == kinds[: len(kinds) - n])


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


def map_experts(prefix: str, gate: str, up: str, down: str) -> tuple[TensorMap, ...]:
    """Tensors of experts that have one for each of their three matrices."""
    return (
        TensorMap(f"{prefix}.{gate}.weight", "mlp.gate", "F D -> D F"),
        TensorMap(f"{prefix}.{up}.weight", "mlp.up", "F D -> D F"),
        TensorMap(f"{prefix}.{down}.weight", "mlp.down", "D F -> F D"),
    )


EXPERTS = (
    TensorMap(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
    *map_experts(f"{MLP}.experts.{{expert}}", "gate_proj", "up_proj", "down_proj"),
)
# The names of most families: a model has those of its layers.
LLAMA_TENSORS = (
    *EMBEDDING_AND_HEAD,
    *ATTENTION_TENSORS,
    *GATED_MLP,
    *NORMS,
    *QK_NORMS,
    *EXPERTS,
)
ROPE_FREQUENCIES = r".*\.rotary_emb\.inv_freq"  # buffers in old files, not weights

BIAS_LAYERS = {False: ref("Einsum"), True: ref("EinsumBias")}
HEADS = {False: ref("LMHead"), True: ref("TiedLMHead")}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def preset(*sizes: int, **fields: Any) -> dict[str, Any]:
    """The fields of a published model: the first of `SIZES`, in order, and others."""
    return dict(zip(SIZES, sizes, strict=False)) | fields


def divide_width(fields: Values) -> int:
    """The default `head_dim`: the width divided by the number of heads."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    require(
        type(width) is int and type(heads) is int and heads >= 1,
        f"hidden_size = {width!r} and num_attention_heads = {heads!r} must be"
        " whole numbers above 0.",
    )
    return width // heads


def map_decoder(
    vocab: int,
    width: int,
    layers: int,
    *,
    heads: int,
    kv_heads: int | Callable[[Values], Any] = lambda fields: fields[SIZES[3]],
    head_dim: int | Callable[[Values], Any] = divide_width,
    epsilon: float = 1e-6,
    norm: str = "RMSNorm",
    tied: bool = False,
) -> list[FieldMap]:
    """Maps the sizes of a decoder, its norms and its head, with these defaults."""
    return [
        map_field("vocab_size", "Decoder.vocab", vocab),
        map_field("hidden_size", "Decoder.width", width),
        map_field("num_hidden_layers", "Decoder.depth", layers),
        map_field("num_attention_heads", "Attention.heads", heads),
        map_field("num_key_value_heads", "Attention.kv_heads", kv_heads),
        map_field("head_dim", "Attention.head_dim", head_dim),
        map_field("rms_norm_eps", f"{norm}.epsilon", epsilon),
        map_head(tied),
    ]


def map_head(tied: bool) -> FieldMap:
    """Maps whether the embedding is also the output head."""
    return map_field("tie_word_embeddings", "Decoder.head", tied, values=HEADS)


def map_attention_bias(default: bool) -> list[FieldMap]:
    """Maps whether all four projections of attention have a bias."""
    return [
        map_field("attention_bias", f"Attention.{part}", default, values=BIAS_LAYERS)
        for part in ("qkv", "out")
    ]


def map_router(
    routers: tuple[str, str], parameters: Mapping[str, tuple[str, Any]], default: bool
) -> FieldMap:
    """Maps `norm_topk_prob`, which selects one of two routers, and their parameters.

    `parameters` has the parameter and the default of each field.
    """

    def to_bindings(fields: Values) -> dict[str, Any]:
        router = routers[not fields["norm_topk_prob"]]
        bindings = {
            f"{router}.{p}": fields[name] for name, (p, _) in parameters.items()
        }
        return {"MoE.router": ref(router), **bindings}

    def to_hf(config: Config) -> dict[str, Any]:
        for router in find_values(config, "MoE.router"):
            if router.name in routers:
                values = {n: router.fields[p] for n, (p, _) in parameters.items()}
                fields = {n: to_jsonable(value) for n, value in values.items()}
                return {"norm_topk_prob": router.name == routers[0], **fields}
        return {}

    defaults = {name: value for name, (_, value) in parameters.items()}
    return map_fields({"norm_topk_prob": default, **defaults}, to_bindings, to_hf)
