"""The architectures, and what loading, saving and planning need to know of each."""

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
        config: the class of its configurations; `from_hf` makes one.
        module: makes its Linen module of a configuration.
        names: HF's names of the modules in our tree that begin so; `{}` stands for
            the number of a stacked layer. The longest beginning counts.
        unused: tensors, as a regular expression, that files may hold in vain.
        copies: tensors that files may hold although the model has them under another
            name, given here.
        head: layers that a file may lack, all of them together: they belong to one
            task, and are trained whole.
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
    # The heads of pretraining, and embeddings of positions that are switched off.
    unused=r"(cls|lm_predictions|mask_predictions)\..*"
    r"|deberta\.embeddings\.position_(ids|embeddings\.weight)"
    r"|deberta\.encoder\.(rel_embeddings|LayerNorm)\..*",
    head=("pooler/dense", "classifier"),
)
FAMILIES = (LLAMA, DEBERTA)


def family_of(config: Any) -> Family:
    """Finds the architecture that a configuration is of."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def with_outputs(config: Config, count: int) -> Config:
    """Gives the head of an architecture that has one so many outputs."""
    if not family_of(config).head:
        return config
    head: dict[str, Any] = {"num_labels": count}
    return dataclasses.replace(config, **head)


def read_config(values: Mapping[str, Any]) -> Config:
    """Reads the dictionary in HF's `config.json`, whichever architecture it is of.

    Raises:
        ValueError: no architecture here is that, or it is one with something that
            is not implemented.
    """
    kind = values.get("model_type")
    by_type = {name: family for family in FAMILIES for name in family.model_types}
    require(kind in list(by_type), "model_type", kind, " or ".join(by_type))
    layers = values.get("per_layer_config")
    require(not layers, "per_layer_config", layers, "none")
    return by_type[kind].config.from_hf(values)  # type: ignore[index]


def hf_names(module: str, num_layers: int) -> list[str]:
    """HF's names of one of our modules.

    Args:
        module: path in our tree, as `layers/self_attn/q_proj`.
        num_layers: how many layers are stacked under `layers`.

    Returns:
        One name, or one a layer for what is stacked.

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
    """The inverse of `hf_names`: the path in our tree of a module of HF's.

    Args:
        name: HF's name, as `model.layers.0.self_attn.q_proj`.

    Returns:
        The path, the same for all layers that are stacked.

    Raises:
        KeyError: no architecture here has such a module.

    Example:
        >>> tree_path("model.layers.1.mlp.up_proj")
        'layers/mlp/up_proj'
    """
    begins = {v: k for family in FAMILIES for k, v in family.names.items()}
    for theirs in sorted(begins, key=len, reverse=True):
        pattern = re.escape(theirs).replace(r"\{\}", r"\d+") + r"((?:\.\w+)*)"
        if found := re.fullmatch(pattern, name, re.ASCII):
            return begins[theirs] + found[1].replace(".", "/")
    raise KeyError(name)
