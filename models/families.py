"""The table of architectures, for loading, saving and planning."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ivon_jax.models.config_fields import require
from ivon_jax.models.deberta import Deberta
from ivon_jax.models.deberta_config import DEBERTA_TYPES, DebertaConfig
from ivon_jax.models.llama import Llama
from ivon_jax.models.llama_config import MODEL_TYPES, LlamaConfig

Config = LlamaConfig | DebertaConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        model_types: HF's names of it.
        config: class of its configurations.
        module: maps a configuration to the Linen module.
        names: HF's module names by prefix of the path in our tree; `{}` stands for the
            index of a stacked layer. The longest prefix counts.
        unused: regex of tensor names to ignore.
        copies: tensors that may be stored although the model has them under another
            name, given here.
        head: task-specific layers, trained in full; a file may lack all of them.
    """

    model_types: tuple[str, ...]
    config: Any
    module: Callable[..., Any]
    names: Mapping[str, str]
    unused: str
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: tuple[str, ...] = ()


LLAMA = Family(
    MODEL_TYPES,
    LlamaConfig,
    Llama,
    {
        "embed_tokens": "model.embed_tokens",
        "layers": "model.layers.{}",
        "norm": "model.norm",
        "lm_head": "lm_head",
    },
    unused=r".*rotary_emb\.inv_freq",  # in old files
    copies={"lm_head.weight": "model.embed_tokens.weight"},  # if the two are tied
)
DEBERTA = Family(
    DEBERTA_TYPES,
    DebertaConfig,
    Deberta,
    {
        "embeddings": "deberta.embeddings",
        "layers/attention": "deberta.encoder.layer.{}.attention",
        "layers/intermediate": "deberta.encoder.layer.{}.intermediate",
        "layers/output": "deberta.encoder.layer.{}.output",
        "rel_embeddings": "deberta.encoder.rel_embeddings",
        "LayerNorm": "deberta.encoder.LayerNorm",
        "conv": "deberta.encoder.conv",
        "pooler": "pooler",
        "classifier": "classifier",
    },
    # Pretraining heads, and position embeddings that are switched off.
    unused=r"(cls|lm_predictions|mask_predictions)\..*"
    r"|deberta\.embeddings\.position_(ids|embeddings\.weight)"
    r"|deberta\.encoder\.(rel_embeddings|LayerNorm)\..*",
    head=("pooler/dense", "classifier"),
)
FAMILIES = (LLAMA, DEBERTA)


def family_of(config: Any) -> Family:
    """Returns the architecture of a configuration."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def with_outputs(config: Config, count: int) -> Config:
    """Sets the number of outputs of the head, if the architecture has one."""
    if not family_of(config).head:
        return config
    head: dict[str, Any] = {"num_labels": count}
    return dataclasses.replace(config, **head)


def read_config(values: Mapping[str, Any]) -> Config:
    """Reads the dictionary in HF's `config.json` of any architecture.

    Raises:
        ValueError: the architecture, or one of its settings, is not implemented.
    """
    model_type = values.get("model_type")
    by_type = {name: family for family in FAMILIES for name in family.model_types}
    require(model_type in list(by_type), "model_type", model_type, " or ".join(by_type))
    layers = values.get("per_layer_config")
    require(not layers, "per_layer_config", layers, "none")
    return by_type[model_type].config.from_hf(values)  # type: ignore[index]


def hf_names(module: str, num_layers: int) -> list[str]:
    """Returns HF's names of a module in our tree.

    Args:
        module: its path, as `layers/self_attn/q_proj`.
        num_layers: number of layers stacked under `layers`.

    Returns:
        One name, or one for each stacked layer.

    Example:
        >>> hf_names("layers/mlp/up_proj", 2)
        ['model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj']
        >>> hf_names("layers/output/dense", 1)
        ['deberta.encoder.layer.0.output.dense']
    """
    names = {k: v for family in FAMILIES for k, v in family.names.items()}
    parts = module.split("/")
    for length in range(len(parts), 0, -1):
        if (name := names.get("/".join(parts[:length]))) is not None:
            whole = ".".join([name, *parts[length:]])
            if "{}" in whole:
                return [whole.format(i) for i in range(num_layers)]
            return [whole]
    raise KeyError(module)


def tree_path(name: str) -> str:
    """Returns the path in our tree of one of HF's modules: the inverse of `hf_names`.

    Raises:
        KeyError: no architecture has such a module.

    Example:
        >>> tree_path("model.layers.1.mlp.up_proj")
        'layers/mlp/up_proj'
    """
    prefixes = {v: k for family in FAMILIES for k, v in family.names.items()}
    for theirs in sorted(prefixes, key=len, reverse=True):
        pattern = re.escape(theirs).replace(r"\{\}", r"\d+") + r"((?:\.\w+)*)"
        if found := re.fullmatch(pattern, name, re.ASCII):
            return prefixes[theirs] + found[1].replace(".", "/")
    raise KeyError(name)
