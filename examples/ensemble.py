"""An ensemble of posterior samples under vmap, and where its members disagree.

Adapts a tiny random language model without the trainer: the model is a Linen module,
the adapters are a pytree, the optimizer is optax's. Its task is whether a text names a
colour or a number; texts with neither are unlike all that it was trained on.

    python examples/ensemble.py
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

import ivon_jax
from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import load
from ivon_jax.testing import LABELS, PROMPT, rows, write_model

STEPS, MEMBERS = 100, 16
KEY = jax.random.key(2)

base = load(str(write_model(Path(tempfile.mkdtemp()) / "model")))
model = Lora(base.model, LoraConfig(rank=4, dropout=0.0))
label_ids = jnp.array(base.tokenizer.convert_tokens_to_ids(["▁" + w for w in LABELS]))


class Texts(NamedTuple):
    """Token ids, padded on the right, and the place of the last one."""

    tokens: Int[Array, "n s"]
    last: Int[Array, " n"]


def encode(texts: list[str]) -> Texts:
    """Tokenises prompts."""
    ids = [base.tokenizer.encode(PROMPT.format(text=text)) for text in texts]
    padded = [row + [0] * (16 - len(row)) for row in ids]
    return Texts(jnp.array(padded), jnp.array([len(row) - 1 for row in ids]))


def logits(adapters: PyTree, texts: Texts) -> Float[Array, "n c"]:
    """Computes the label words' logits after each prompt."""
    hidden: Any = model.apply({"params": base.params, "lora": adapters}, texts.tokens)
    last = jnp.take_along_axis(hidden, texts.last[:, None, None], axis=1)[:, 0]
    return base.model.apply({"params": base.params}, last, label_ids, method="unembed")


def train(texts: Texts, labels: Int[Array, " n"]) -> ivon_jax.Posterior:
    """Learns a posterior over the adapters."""

    def loss(adapters: PyTree) -> Float[Array, ""]:
        outputs = logits(adapters, texts)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    tx = ivon_jax.ivon_lora(0.3, ess=2000.0, clip_radius=0.02)

    def step(carry: PyTree, key: Array) -> tuple[PyTree, Array]:
        adapters, state = carry
        theta = ivon_jax.sample(key, adapters, state)
        value, grads = jax.value_and_grad(loss)(theta)
        updates, state = tx.update(grads, state, adapters, key=key)
        return (optax.apply_updates(adapters, updates), state), value

    adapters = init_adapters(model, jax.random.key(0), texts.tokens)
    keys = jax.random.split(jax.random.key(1), STEPS)
    scan = jax.jit(lambda start: jax.lax.scan(step, start, keys))
    (adapters, state), losses = scan((adapters, tx.init(adapters)))
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.3f} at last")
    return ivon_jax.Posterior.from_state(adapters, state)


def main() -> dict[str, Any]:
    """Returns the NLL of each member and of their average, and the disagreement."""

    def draw(count: int, seed: int) -> tuple[Texts, Int[Array, " n"]]:
        drawn = rows(count, seed)
        labels = jnp.array([LABELS.index(row["label"]) for row in drawn])
        return encode([row["text"] for row in drawn]), labels

    posterior = train(*draw(64, seed=1))
    texts, labels = draw(40, seed=2)

    # Members along a leading axis: every product with the base is one large product.
    members = posterior.sample(KEY, MEMBERS)
    predict = jax.jit(jax.vmap(logits, in_axes=(0, None)))
    log_probs = jax.nn.log_softmax(predict(members, texts))
    single = [float(ivon_jax.metrics.nll(member, labels)) for member in log_probs]
    average = ivon_jax.ensemble.average(log_probs)
    nll = float(ivon_jax.metrics.nll(average, labels))
    print(f"NLL of members {min(single):.3f} to {max(single):.3f}, average {nll:.3f}")

    # The same four at a time, where memory is short.
    chunked = ivon_jax.ensemble.ensemble_log_probs(
        lambda adapters: logits(adapters, texts), posterior, KEY, MEMBERS, chunk_size=4
    )
    strange = encode(["big old", "small", "new new old", "old big small new"])
    known, unknown = (
        float(ivon_jax.metrics.mutual_information(found).mean())
        for found in (chunked, jax.nn.log_softmax(predict(members, strange)))
    )
    print(f"disagreement: {known:.3f} nats on such texts, {unknown:.3f} on others")
    return {"single": single, "nll": nll, "known": known, "unknown": unknown}


if __name__ == "__main__":
    main()
