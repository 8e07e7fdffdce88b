"""Operations of a training step, counted from shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ivon_jax.lora import low_rank
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.families import Config, family_of
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.problem import adapted
from ivon_jax.train.trainable import TRAINABLES


def flops(
    config: TrainConfig, model_config: Config, seq_length: int, classes: int | None
) -> float:
    """Counts the operations of one step's matrix products, over all devices.

    The backward pass has one product for each frozen kernel, two for each trained
    kernel, adapter or head and each product of attention. Full rematerialisation
    repeats the forward pass.

    Args:
        config: the resolved run.
        model_config: configuration of the model.
        seq_length: tokens of a prompt.
        classes: number of label words, or outputs of the head; None for text, of which
            every token is assumed to be learnt.

    Returns:
        Multiplications and additions.
    """
    assert config.hyper.batch_size is not None
    tokens = config.hyper.batch_size * seq_length
    frozen = TRAINABLES[config.train].adapters  # the base
    base = family_of(model_config).module(model_config)
    model = TRAINABLES[config.train].module(
        base, adapted(config.lora, model_config), low_rank
    )
    example = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(
        lambda key: model.init({"params": key, "lora": key}, example),
        jax.random.key(0),
    )
    params, lora = (variables.get(k, {}).get("layers", {}) for k in ("params", "lora"))
    kernels, adapters = _count(params, "kernel"), _count(lora, "")
    back = 1 if frozen else 2
    heads = model_config.num_attention_heads * model_config.head_dim
    attention = 2 * seq_length * heads * model_config.num_hidden_layers
    forward = tokens * (kernels + adapters + attention)
    backward = tokens * (back * kernels + 2 * adapters + 2 * attention)
    # The logits of text are computed twice, see `token_log_probs`.
    logits = config.hyper.batch_size * (classes or 0)
    if classes is None:
        logits = tokens * model_config.vocab_size
    once = (1 + back + (classes is None)) * logits * model_config.hidden_size
    if isinstance(model_config, DebertaConfig):
        more = _positions(model_config, params, lora, tokens, seq_length, frozen)
        forward, backward = forward + more[0], backward + more[1]
        head = model_config.hidden_size * (model_config.hidden_size + (classes or 0))
        first = {k: variables["params"].get(k, {}) for k in ("embeddings", "conv")}
        # No gradient passes below the first adapter.
        passes = tokens * (1 if frozen else 3)
        once = 3 * config.hyper.batch_size * head + passes * _count(first, "kernel")
    again = forward if config.remat == "full" else 0
    gradients = make_method(config).gradients
    return 2.0 * gradients * (forward + backward + again + once)


def _positions(
    model_config: DebertaConfig,
    params: Any,
    lora: Any,
    tokens: int,
    seq_length: int,
    frozen: bool,
) -> tuple[int, int]:
    """Counts the products that relative positions add, forward and backward.

    Position embeddings are projected once for all prompts, by the projections of keys
    and queries or by layers of their own, which `flops` counted as if applied to all
    tokens. Frozen embeddings have no gradient. Scores are of all distances between two
    tokens of a prompt, twice its length.
    """
    count, forward, backward = 2 * model_config.position_span, 0, 0
    passed = 0 if model_config.share_att_key else tokens
    scores = 2 * seq_length * tokens * model_config.hidden_size
    scores *= model_config.num_hidden_layers
    for term in model_config.pos_att_type if model_config.relative_attention else ():
        name = {"c2p": "key_proj", "p2c": "query_proj"}[term]
        if not model_config.share_att_key:
            name = f"pos_{name}"
        kernel, adapter = (
            _count(tree.get("attention", {}).get("self", {}).get(name, {}), suffix)
            for tree, suffix in ((params, "kernel"), (lora, ""))
        )
        forward += (count - passed) * (kernel + adapter) + scores
        trained = adapter if frozen else kernel
        backward += 2 * (count - passed) * trained - (passed * kernel if frozen else 0)
        backward += scores * (2 if trained else 1)
    return forward, backward


def _count(tree: PyTree, suffix: str) -> int:
    """Counts the entries of leaves whose name ends in a suffix."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if path[-1].key.endswith(suffix))
