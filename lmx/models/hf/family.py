"""A family of published models: its configuration and its weights, in one table."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmx.config.parse import Binding, BindingKey, Bindings, Location, parse_text
from lmx.config.registry import ConfigError, config_fields, find, suggest
from lmx.config.resolve import resolve
from lmx.config.value import Config, diff, format_value, map_nodes, to_jsonable
from lmx.models import families
from lmx.models.hf.fields.field import FieldMap, Values
from lmx.models.hf.layout import TensorMap

# Fields of any config.json that change no logit of the whole model.
IGNORED_FIELDS = frozenset(
    "architectures model_type dtype torch_dtype transformers_version use_cache"
    " initializer_range attention_dropout max_position_embeddings bos_token_id"
    " eos_token_id pad_token_id _name_or_path output_attentions output_hidden_states"
    " return_dict output_router_logits max_sequence_length tokenizer_class"
    " task_specific_params id2label label2id problem_type chunk_size_feed_forward"
    " _attn_implementation_autoset".split()
)
# Of these, the ones that an export says anew.
EXPORT_FIELDS = {"architectures", "model_type", "dtype", "torch_dtype"}
# What they must be, where they are at all.
REQUIRED: Mapping[str, Any] = {"quantization_config": None, "is_encoder_decoder": False}
# What does not change the logits of a model that is trained already.
NOT_MATH = {"init", "dropout", "precision"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that is known of a family; import, export and pages are made of it.

    Attributes:
        model_type, architecture: how a config.json names it.
        page: the parts it is made of, as a `.gin` page whose root is `Pretrained`.
        rules: which fields bind what, in the order in which they need each other.
        fixed: fields whose other values would be another model.
        idle: fields, beside `IDLE`, that change no logit.
        weights: which tensor is which parameter.
        ignored: patterns of tensors that are no weights; `{depth}` is how many layers
            there are.
        prefix: what the names of files written without a head lack.
        presets: published sizes, in the fields that are no defaults.
    """

    model_type: str
    architecture: str
    template: str
    field_maps: tuple[FieldMap, ...]
    tensor_maps: tuple[TensorMap, ...]
    required: Mapping[str, Any] = field(default_factory=dict)
    ignored_fields: frozenset[str] = frozenset()
    ignored_tensors: tuple[str, ...] = ()
    prefix: str = "model."
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_config(
        self, fields: Values, where: str, extra: Mapping[str, Any] | None = None
    ) -> Config:
        """The configuration that a config.json describes, with `more` bindings."""
        self._check_fields(fields, where)
        bindings = parse_text(self.template, f"the page of {self.model_type}")
        settled: dict[str, Any] = {}
        try:
            for rule in self.field_maps:
                settled |= rule.with_defaults({**fields, **settled})
            for rule in self.field_maps:
                for key, value in rule.to_bindings(settled).items():
                    _bind(
                        bindings, key, value, f"{where}: {', '.join(rule.names) or key}"
                    )
        except (ConfigError, TypeError) as error:  # the latter of a value's kind
            raise ConfigError(f"{where}: {error}") from error
        ruled = {name for rule in self.field_maps for name in rule.names}
        known = ruled | EXPORT_FIELDS | self.required.keys() | REQUIRED.keys()
        facts = {name: value for name, value in fields.items() if name not in known}
        also = {"Pretrained.family": self.model_type, "Pretrained.hf_fields": facts}
        for key, value in (also | dict(extra or {})).items():
            _bind(bindings, key, value, where)
        return resolve(bindings, "Pretrained")

    def to_hf(self, config: Config) -> dict[str, Any]:
        """The fields of the config.json that would compose to `config`, if any does."""
        read: dict[str, Any] = {}
        for rule in self.field_maps:
            read |= rule.to_hf(config)
        return {**self.required, **read}

    def _check_fields(self, given: Values, where: str) -> None:
        """Refuses what would change the numbers, and what nobody knows."""
        if how := given.get("quantization_config"):
            raise ConfigError(
                f"{where}: quantization_config = {how!r}: the weights are quantized,"
                " and lmx reads floats. Save the model in bfloat16 (transformers:"
                " from_pretrained, dequantized, and save_pretrained)."
            )
        fixed = {**REQUIRED, **self.required}
        ruled = {name for rule in self.field_maps for name in rule.names}
        for name, value in given.items():
            if name in fixed and value != fixed[name] and (value or fixed[name]):
                raise ConfigError(
                    f"{where}: {name} = {value!r} makes it another model than"
                    f" {self.architecture} is here, where it is {fixed[name]!r}."
                )
            if name not in {*fixed, *ruled, *self.ignored_fields, *IGNORED_FIELDS}:
                near = suggest(name, {*fixed, *ruled, *self.ignored_fields})
                raise ConfigError(
                    f"{where}: {name} = {value!r} is a field that {self.architecture}"
                    f" does not have here{near}: it may change the numbers. Take it"
                    " away if it does not."
                )

    def is_ignored(self, tensor: str, depth: int) -> bool:
        """Whether a tensor is no weight of a model of that many layers."""
        patterns = [
            pattern.replace("{depth}", str(depth)) for pattern in self.ignored_tensors
        ]
        return any(re.fullmatch(pattern, tensor) for pattern in patterns)


def _bind(bindings: Bindings, key: str, value: Any, where: str) -> None:
    scoped, _, parameter = key.rpartition(".")
    *scope, name = scoped.split("/")
    at = BindingKey(tuple(scope), name, parameter)
    bindings[at] = Binding(value, Location(where, 0), False, bindings.get(at))


@functools.cache
def load_families() -> dict[str, Family]:
    """The family of each `model_type`."""
    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    found = [importlib.import_module(f"{families.__name__}.{n}").FAMILY for n in names]
    return {family.model_type: family for family in found}


def find_family(given: Values, where: str) -> Family:
    """The family that a config.json names."""
    known, kind = load_families(), given.get("model_type")
    if kind not in known:
        raise ConfigError(
            f"{where}: model_type = {kind!r} is no family known here"
            f"{suggest(f'{kind}', known)}."
        )
    family = known[kind]
    stated = given.get("architectures") or [family.architecture]
    if family.architecture not in stated:
        raise ConfigError(
            f"{where}: architectures = {stated}: of {kind} models only"
            f" {family.architecture} can be had here."
        )
    return family


def match_family(config: Config) -> tuple[Family, dict[str, Any]]:
    """The family that can say all of a model, and the fields that say it.

    The model's own family is asked first. Nothing is lost: the fields compose to the
    same model again.
    """
    own = config.fields.get("family")
    known = sorted(
        load_families().values(), key=lambda family: family.model_type != own
    )
    losses: list[tuple[int, str]] = []
    for family in known:
        try:
            fields = family.to_hf(config)
            again = family.to_config(fields, family.architecture)
        except ConfigError as error:
            losses.append((len(IGNORED_FIELDS), f"{error}"))
            continue
        lost = diff(
            extract_math_config(config["model"]), extract_math_config(again["model"])
        )
        if not lost:
            return family, to_jsonable(fields)
        told = [
            f"{path} = {_format_value(a)}, not {_format_value(b)}"
            for path, (a, b) in lost.items()
        ]
        losses.append((len(lost), f"{family.architecture} lacks " + "; ".join(told)))
    raise ConfigError(f"no family can say what this model is: {min(losses)[1]}.")


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)


def extract_math_config(node: Config) -> Config:
    """What decides the logits of a model, given its parameters."""
    known = config_fields(find(node.name, "essence"))
    fields = {
        name: map_nodes(value, extract_math_config)
        for name, value in node.fields.items()
        if name not in NOT_MATH and not known[name].execution
    }
    return Config(node.name, node.called, fields)
