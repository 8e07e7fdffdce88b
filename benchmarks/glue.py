"""GLUE with a small random DeBERTa: an end-to-end test from files to metrics.

Makes a model folder like microsoft/deberta-v3-base, with random weights and a tokenizer
trained on the task's own texts, then trains and evaluates as ``ivon-jax`` does. Nothing
is pretrained, so only cues of single words can be learnt, and few examples memorised.
The metrics are correlations: a constant prediction, as the majority class, has 0.

    python -m benchmarks.glue --data-dir DATA --out runs/glue
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import machine, write
from ivon_jax.kinds import Distribution
from ivon_jax.lora import LoraConfig
from ivon_jax.models import Deberta, DebertaConfig
from ivon_jax.models.save import save
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.examples import load_examples
from ivon_jax.train.keys import Streams
from ivon_jax.train.loop import train
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.objectives.head import HeadClass
from ivon_jax.train.predict import predict, score
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.tasks.registry import get_task

# Like deberta-v3, but small. Wide random embeddings are nearly orthogonal, so that an
# adapter on their projection can distinguish words.
SHAPE = DebertaConfig(
    vocab_size=4000,
    embedding_size=1024,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    relative_attention=True,
    pos_att_type=("c2p", "p2c"),
    share_att_key=True,
    norm_rel_ebd=True,
    position_buckets=16,
    position_biased_input=False,
    max_position_embeddings=48,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=64**-0.5,
)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
LORA = LoraConfig(rank=16, alpha=16.0, dropout=0.0, targets=("all-linear",))
SEEN = 512  # training examples that are scored too
# An untrained model needs larger steps than a pretrained one, and IVON less noise than
# with the paper's lambda.
METHODS: dict[str, Hyper] = {
    "adam": AdamHyper(batch_size=64, learning_rate=2e-3),
    "ivon-lora": IvonLoraHyper(
        batch_size=64, learning_rate=0.1, ess=1e8, hess_init=5e-4
    ),
}


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Trains a Unigram tokenizer with the special tokens of DeBERTa-v3."""
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


def write_model(folder: Path, model_config: DebertaConfig, tokenizer: Any) -> None:
    """Writes a random model without a head, in HF's layout.

    Kernels have variance 1 / inputs and embeddings variance 1, which preserves the
    scale of activations.
    """
    model_config = dataclasses.replace(model_config, vocab_size=len(tokenizer))
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Deberta(model_config).init, jax.random.key(0), tokens)
    rng = np.random.default_rng(0)

    def leaf(path: Any, value: Any) -> np.ndarray:
        name, size = path[-1].key, value.shape
        if name in ("scale", "bias"):
            return np.full(size, name == "scale", np.float32)
        std = 1.0 if name == "embedding" else size[-2] ** -0.5
        return rng.normal(scale=std, size=size).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, shapes["params"])
    base = {k: v for k, v in params.items() if k not in ("pooler", "classifier")}
    save(folder, model_config, base, tokenizer)


@dataclasses.dataclass(frozen=True)
class Result:
    """Correlations of one method's predictions with the labels."""

    train: float
    mean: float
    samples: float


def first(encoded: Encoded, count: int) -> Encoded:
    """Returns the first examples."""
    return encoded.take(np.arange(min(count, len(encoded))))


def correlation(
    problem: Problem, encoded: Encoded, posterior: Distribution, predictor: Predictor
) -> float:
    """Returns Matthews' correlation of classes, or Spearman's of numbers."""
    name, objective = "spearman", problem.objective
    if problem.task.label_words:
        name, classes = "matthews", cast(HeadClass, objective)
        objective = dataclasses.replace(classes, metrics=(name,))
    problem = dataclasses.replace(problem, objective=objective)
    streams = Streams.from_seed(0)
    predictions = predict(
        problem, encoded, posterior, predictor, streams, batch_size=256, show=False
    )
    value = score(problem, "", predictor, predictions, encoded)[name]
    return 0.0 if math.isnan(value) else value  # the predictions are constant


def run(problem: Problem, config: TrainConfig, out: Path, samples: int) -> Result:
    """Trains one method, and scores it on training and test examples."""
    seen, unseen = problem.splits["train"], problem.splits["test"]
    config = resolve(config, problem.task.preset, len(seen))
    posterior = train(problem, config, out)
    sampled = Samples(samples) if posterior.spread else Mean()
    return Result(
        train=correlation(problem, first(seen, SEEN), posterior, Mean()),
        mean=correlation(problem, unseen, posterior, Mean()),
        samples=correlation(problem, unseen, posterior, sampled),
    )


def measure(
    name: str, data: DataConfig, steps: int, out: Path, samples: int
) -> dict[str, Any]:
    """Makes a task's model and trains it with each method."""
    task = get_task(name)
    examples: list[Any] = load_examples(task, "train", data_dir=data.data_dir)
    texts = [text for example in examples for text in example.texts]
    base = out / f"{name}-base"
    write_model(base, SHAPE, make_tokenizer(texts, SHAPE.vocab_size))
    count = min(data.train_examples or len(examples), len(examples))
    data = dataclasses.replace(data, task=name, train_examples=count)
    config = TrainConfig(model=str(base), data=data, lora=LORA)
    problem = prepare(config)
    results = {}
    for method, hyper in METHODS.items():
        hyper = dataclasses.replace(hyper, steps=steps)
        chosen = dataclasses.replace(config, method=method, hyper=hyper)
        results[method] = run(problem, chosen, out / f"{name}-{method}", samples)
    count = len(problem.splits["test"])
    return {
        "metric": "Matthews" if task.label_words else "Spearman",
        "train_examples": len(problem.splits["train"]),
        "eval_examples": count,
        "standard_error": (count - 2) ** -0.5,  # of a correlation near 0
        **{method: dataclasses.asdict(result) for method, result in results.items()},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Renders the results."""
    names = ("majority", "Adam", "IVON mean", "IVON samples", "±", "Adam", "IVON mean")
    lines = ["| task | metric | " + " | ".join(names) + " |", "|---" * 9 + "|"]
    for name, row in rows.items():
        adam, ivon = row["adam"], row["ivon-lora"]
        values = (0, adam["mean"], ivon["mean"], ivon["samples"], row["standard_error"])
        shown = [f"{value:.2f}" for value in (*values, adam["train"], ivon["train"])]
        lines.append(" | ".join([f"| {name}", row["metric"], *shown]) + " |")
    return "\n".join(lines)


def main(
    data_dir: Path,
    out: Path,
    tasks: tuple[str, ...] = ("sst2", "cola", "mrpc", "rte", "stsb"),
    train_examples: int = 20000,
    steps: int = 150,
    samples: int = 4,
) -> None:
    """Trains and evaluates each task, and prints the table.

    Its last two columns are of training examples.

    Args:
        data_dir: folder with the tasks' files.
        out: new folder for the runs, and results.json.
        tasks: names of the tasks.
        train_examples: maximal number of a task's training examples.
        steps: training steps of 64 examples.
        samples: posterior samples to average.
    """
    found: dict[str, Any] = {"machine": machine(), "tasks": {}}
    data = DataConfig(data_dir=data_dir, train_examples=train_examples)
    for name in tasks:
        start = time.perf_counter()
        row = measure(name, data, steps, out, samples)
        found["tasks"][name] = row | {"seconds": time.perf_counter() - start}
        write(out / "results.json", found)
    print(table(found["tasks"]))


if __name__ == "__main__":
    tyro.cli(main)
