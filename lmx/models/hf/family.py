"""Model families of Hugging Face: one table each for config.json and weights."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmx.config.gin import BindingKey, Bindings, Location, bind, parse_text
from lmx.config.json_object import WRONG_KIND
from lmx.config.registry import ConfigError, config_fields, find, require, suggest
from lmx.config.resolve import resolve
from lmx.config.value import Config, diff, format_value, map_nodes, to_jsonable
from lmx.models.hf.fields import LLAMA_TENSORS, FieldMap, TensorMap, Values, ref

# Fields that change no logit of any model.
IGNORED_FIELDS = frozenset(
    "architectures model_type dtype torch_dtype transformers_version use_cache"
    " initializer_range attention_dropout max_position_embeddings bos_token_id"
    " eos_token_id pad_token_id _name_or_path output_attentions output_hidden_states"
    " return_dict output_router_logits max_sequence_length tokenizer_class"
    " task_specific_params id2label label2id problem_type chunk_size_feed_forward"
    " _attn_implementation_autoset router_aux_loss_coef router_jitter_noise".split()
)
# Those of them that an export writes itself.
EXPORT_FIELDS = {"architectures", "model_type", "dtype", "torch_dtype"}
# The only supported values, if a file has the field.
REQUIRED: Mapping[str, Any] = {"quantization_config": None, "is_encoder_decoder": False}
# Parameters that do not change the logits of a trained model.
NOT_MATH = {"init", "dropout", "precision"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything about a family: import, export and experiments use it.

    Attributes:
        template: its layers where they differ from the defaults of `Decoder`, in gin.
        field_maps: maps of config.json fields, each after those that it needs.
        tensor_maps: the parameter of each tensor.
        required: fields of which only one value is supported.
        ignored_fields: fields, besides `IGNORED_FIELDS`, that change no logit.
        ignored_tensors: patterns of tensors that are not weights of `{depth}` layers.
        prefix: of tensor names, missing in files of the model without its head.
        presets: published models, as the fields that differ from the defaults.
    """

    model_type: str
    architecture: str
    template: str
    field_maps: tuple[FieldMap, ...]
    tensor_maps: tuple[TensorMap, ...] = LLAMA_TENSORS
    required: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    ignored_fields: frozenset[str] = frozenset()
    ignored_tensors: tuple[str, ...] = ()
    prefix: str = "model."
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_config(
        self, fields: Values, where: str, extra: Mapping[str, Any] | None = None
    ) -> Config:
        """The configuration of a config.json, with `extra` bindings."""
        known = {*REQUIRED, *self.required}
        known.update(name for each in self.field_maps for name in each.names)
        self._check_fields(fields, known, where)
        bindings = parse_text(self.template, f"the template of {self.model_type}")
        complete: dict[str, Any] = {}
        try:
            for each in self.field_maps:
                complete |= each.with_defaults({**fields, **complete})
                for key, value in each.to_bindings(complete).items():
                    names = ", ".join(each.names) or key
                    _bind(bindings, key, value, f"{where}: {names}")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except WRONG_KIND as error:
            present = {name: fields[name] for name in each.names if name in fields}
            raise ConfigError(
                f"{where}: lmx cannot read {present or 'the sizes'}, a value is of a"
                f" wrong kind ({error}): restore the file from its source."
            ) from error
        rest = {n: v for n, v in fields.items() if n not in known | EXPORT_FIELDS}
        own = {
            "Pretrained.model": ref("Decoder"),
            "Pretrained.family": self.model_type,
            "Pretrained.hf_fields": rest,
        }
        for key, value in (own | dict(extra or {})).items():
            _bind(bindings, key, value, where)
        return resolve(bindings, "Pretrained")

    def to_hf(self, config: Config) -> dict[str, Any]:
        """The config.json fields of `config`, as far as the family expresses it."""
        fields = dict(self.required)
        for each in self.field_maps:
            fields |= each.to_hf(config)
        return fields

    def is_ignored(self, tensor: str, depth: int) -> bool:
        """Whether a tensor is not a weight of a model of `depth` layers."""
        patterns = (p.replace("{depth}", str(depth)) for p in self.ignored_tensors)
        return any(re.fullmatch(pattern, tensor) for pattern in patterns)

    def _check_fields(self, fields: Values, known: set[str], where: str) -> None:
        """Refuses unsupported values and unknown fields."""
        required = {**REQUIRED, **self.required}
        known = known | self.ignored_fields
        for name, value in fields.items():
            want = required.get(name, value)
            require(
                value == want or not (value or want),
                f"{where}: {name} = {value!r} is not supported in"
                f" {self.architecture}: it must be {want!r}.",
            )
            if name not in known | IGNORED_FIELDS:
                raise ConfigError(
                    f"{where}: {name} = {value!r} is an unknown field of"
                    f" {self.architecture}{suggest(name, known)}: remove it if it"
                    " changes no logit."
                )


def _bind(bindings: Bindings, key: str, value: Any, where: str) -> None:
    scoped, _, parameter = key.rpartition(".")
    *scope, name = scoped.split("/")
    bind(bindings, BindingKey(tuple(scope), name, parameter), value, Location(where, 0))


@functools.cache
def load_families() -> dict[str, Family]:
    """The family of each `model_type`."""
    families = importlib.import_module("lmx.models.families")
    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    modules = [importlib.import_module(f"{families.__name__}.{name}") for name in names]
    values = [value for module in modules for value in vars(module).values()]
    return {value.model_type: value for value in values if isinstance(value, Family)}


def find_family(fields: Values, where: str) -> Family:
    """The family that a config.json names."""
    known, model_type = load_families(), f"{fields.get('model_type')}"
    require(
        model_type in known,
        f"{where}: model_type = {model_type!r} is not supported"
        f"{suggest(model_type, known)}. Supported are {', '.join(known)}.",
    )
    family = known[model_type]
    architectures = fields.get("architectures") or [family.architecture]
    require(
        isinstance(architectures, list) and family.architecture in architectures,
        f"{where}: architectures = {architectures}: of {model_type} models only"
        f" {family.architecture} is supported.",
    )
    return family


def match_family(
    config: Config, own: str | None = None
) -> tuple[Family, dict[str, Any]]:
    """A family that expresses a model without loss, its `own` first, and the fields."""
    own = own or config.fields.get("family")
    known = sorted(load_families().values(), key=lambda each: each.model_type != own)
    losses: list[tuple[int, str]] = []
    for family in known:
        try:
            fields = family.to_hf(config)
            again = family.to_config(fields, family.architecture)
        except ConfigError as error:
            losses.append((len(IGNORED_FIELDS), f"{error}"))
            continue
        models = (extract_math_config(each["model"]) for each in (config, again))
        lost = diff(*models)
        if not lost:
            return family, to_jsonable(fields)
        sides = [f"{p} = {_format(a)}, not {_format(b)}" for p, (a, b) in lost.items()]
        losses.append((len(lost), f"{family.architecture} lacks " + "; ".join(sides)))
    raise ConfigError(f"no family expresses this model: {min(losses)[1]}.")


def _format(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)


def extract_math_config(node: Config) -> Config:
    """The part of a model's configuration that decides its logits."""
    known = config_fields(find(node.name, "model"))
    fields = {
        name: map_nodes(value, extract_math_config)
        for name, value in node.fields.items()
        if name not in NOT_MATH and not known[name].execution
    }
    return Config(node.name, node.called, fields)
