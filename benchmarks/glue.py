"""GLUE with a small random DeBERTa: the way from files to metrics, learnt or not.

Makes a folder as microsoft/deberta-v3-base has it, with random weights and a tokenizer
trained on the task's own texts, then runs ``ivon-jax train`` and ``evaluate`` on it.
Nothing is pretrained, so only tasks that single words give away can be learnt.

    python -m benchmarks.glue --data-dir DATA --tasks sst2 cola --out runs/glue
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ivon_jax.models import Deberta, DebertaConfig
from ivon_jax.models.save import save
from ivon_jax.train.cli import evaluate, train
from ivon_jax.train.config import DataConfig, MethodConfig, TrainConfig
from ivon_jax.train.data import load_examples
from ivon_jax.train.tasks import get_task

# As deberta-v3, but small.
SHAPE = DebertaConfig(
    vocab_size=4000,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    relative_attention=True,
    pos_att_type=("c2p", "p2c"),
    share_att_key=True,
    norm_rel_ebd=True,
    position_buckets=32,
    position_biased_input=False,
    max_position_embeddings=128,
)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Trains a Unigram tokenizer, and gives it the special tokens of DeBERTa-v3."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        unk_token="[UNK]",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = [(piece, score) for piece, score in vocab]
    unk = [piece for piece, _ in pieces].index("[UNK]")
    return transformers.DebertaV2Tokenizer(vocab=pieces, unk_id=unk)


def write_model(folder: Path, shape: DebertaConfig, tokenizer: Any) -> None:
    """Writes a random model without a head, in HF's layout.

    Kernels have variance 1 / inputs, embeddings 1: signals keep their size.
    """
    shape = dataclasses.replace(shape, vocab_size=len(tokenizer))
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Deberta(shape).init, jax.random.key(0), tokens)
    rng = np.random.default_rng(0)

    def leaf(path: Any, value: Any) -> np.ndarray:
        kind, size = path[-1].key, value.shape
        if kind in ("scale", "bias"):
            return np.full(size, kind == "scale", np.float32)
        std = 1.0 if kind == "embedding" else size[-2] ** -0.5
        return rng.normal(scale=std, size=size).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, shapes["params"])
    base = {k: v for k, v in params.items() if k not in ("pooler", "classifier")}
    save(folder, shape, base, tokenizer)


def majority(labels: list[int]) -> float:
    """Accuracy of always giving the most frequent class."""
    return max(labels.count(label) for label in set(labels)) / len(labels)


def main(
    data_dir: Path,
    out: Path,
    tasks: tuple[str, ...] = ("sst2", "cola", "rte", "mrpc", "stsb"),
    steps: int = 400,
    rank: int = 32,
    learning_rate: float = 0.05,
    train_examples: int = 4000,
    samples: int = 4,
) -> None:
    """Trains and evaluates each task; prints the table, and the majority class's."""
    for name in tasks:
        task = get_task(name)
        examples = load_examples(task, "train", data_dir=data_dir)
        texts = [text for example in examples for text in example.texts]
        base = out / f"{name}-base"
        write_model(base, SHAPE, make_tokenizer(texts, SHAPE.vocab_size))
        config = TrainConfig(
            model=str(base),
            data=DataConfig(
                task=name,
                data_dir=data_dir,
                train_examples=min(train_examples, len(examples)),
            ),
            hyper=MethodConfig(steps=steps, learning_rate=learning_rate),
        )
        lora = dataclasses.replace(config.lora, rank=rank, targets=("all-linear",))
        config = dataclasses.replace(config, lora=lora)
        train(config, out / name)
        evaluate(out / name, samples=samples)
        if task.words:
            answers = load_examples(task, "eval", data_dir=data_dir)
            share = majority([int(example.label) for example in answers])
            print(f"{name}: the majority class alone has {100 * share:.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
