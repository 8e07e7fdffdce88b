"""Encoders with a head, from their folder to metrics and to other libraries."""

import dataclasses
import json
import shutil
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from benchmarks.glue import SHAPE, make_tokenizer, write_model
from ivon_jax.lora import LoraConfig
from ivon_jax.models import DebertaConfig, load
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.data.batches import Batch, collate
from ivon_jax.train.data.encoding import encode_texts
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.data.task import Example
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.objectives.head import HeadClass, HeadNumber
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import run

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`", "ignore:Could not find a config file"
)

SMALL = DebertaConfig.from_hf(
    SHAPE.to_hf()
    | {
        "hidden_size": 16,
        "pooler_hidden_size": 16,
        "embedding_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "type_vocab_size": 2,
    }
)
METRICS = {"mrpc": {"accuracy", "f1"}, "stsb": {"pearson", "spearman", "mse"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base without a head, and data of a task of each kind."""
    place = tmp_path_factory.mktemp("glue")
    rows = tiny.rows(40, seed=0)
    texts = [row["text"] for row in rows]
    write_model(place / "base", SMALL, make_tokenizer(texts, 60))
    for task, kind in (("mrpc", int), ("stsb", float)):
        (place / task).mkdir()
        pairs = [
            {"sentence1": a, "sentence2": b, "label": kind(i % 2)}
            for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
        ]
        tiny.write_rows(place / task / "train.jsonl", pairs)
        tiny.write_rows(place / task / "validation.jsonl", pairs[:9])
    return place


def config_of(folder, task="mrpc", model="base", **changes):
    return TrainConfig(
        model=str(folder / model),
        data=DataConfig(task=task, data_dir=folder),
        hyper=Hyper(steps=2, batch_size=4),
        lora=LoraConfig(rank=2),
        **changes,
    )


@pytest.fixture(scope="module", params=METRICS)
def trained(request, folder):
    """A run of each kind of task."""
    cli.train(config_of(folder, request.param), folder / f"run-{request.param}")
    return request.param, folder / f"run-{request.param}"


def test_an_encoder_reads_one_text_a_row(folder):
    problem = prepare(config_of(folder, "mrpc"))
    layout = Layout.of(problem.splits["train"], 4, rows=2)
    assert (layout.rows, layout.texts) == (4, 1)


def test_a_run_is_trained_and_scored(trained, capsys):
    task, out = trained
    before, after = (
        Posterior.load(out / run.POSTERIOR).mean,
        prepare(run.read_config(out)[0]).shapes,
    )
    assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
    assert {"pooler", "classifier", "layers"} == before.keys()
    cli.evaluate(out, samples=2)
    printed = capsys.readouterr().out
    (mean, sampled) = json.loads((out / "evaluation-2.json").read_text())["rows"]
    assert METRICS[task] < mean.keys() == sampled.keys()
    assert all(np.isfinite(mean[name]) for name in METRICS[task])
    assert {"mrpc": "F1 %", "stsb": "Pearson %"}[task] in printed
    stored = load_file(out / "predictions-2.safetensors")
    if task == "stsb":
        numbers = stored["numbers"][..., 0].mean(axis=0)
        wanted = np.mean((numbers - stored["labels"]) ** 2)
        assert sampled["mse"] == pytest.approx(wanted, rel=1e-5)
    else:
        np.testing.assert_allclose(np.exp(stored["log_probs"]).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("qqp", ("question1", "question2")),
        pytest.param("qnli", ("question", "sentence"), marks=pytest.mark.slow),
    ],
)
def test_a_snapshot_of_the_hub_learns_its_examples(task, fields, tmp_path):
    """The tokenizer in spm.model alone, rows in parquet files of the hub's fields."""
    import pyarrow
    import pyarrow.parquet

    rows = tiny.rows(48, seed=1)
    texts = [row["text"] for row in rows]
    base = tmp_path / "base"
    write_model(base, SMALL, make_tokenizer(string.ascii_letters, 60))
    (base / "tokenizer.json").unlink()
    tiny.write_sentencepiece(base, texts, vocab_size=40)
    labels = [tiny.LABELS.index(row["label"]) for row in rows]
    (tmp_path / task).mkdir()
    columns = dict(zip(fields, (texts, texts[::-1]), strict=True))
    table = pyarrow.table({**columns, "label": labels, "idx": range(len(rows))})
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(table, tmp_path / task / f"{split}.parquet")
    config = TrainConfig(
        model=str(base),
        method="adam",
        data=DataConfig(task=task, data_dir=tmp_path),
        hyper=AdamHyper(steps=60, batch_size=16, learning_rate=2e-2),
    )
    cli.train(config, tmp_path / "run")
    cli.evaluate(tmp_path / "run")
    (file,) = (tmp_path / "run").glob("evaluation-*.json")
    (row,) = json.loads(file.read_text())["rows"]
    majority = max(np.mean(labels), 1 - np.mean(labels))
    assert row["accuracy"] > majority + 0.2


def torch_outputs(model, encoded):
    import torch

    batch = collate(encoded, np.arange(5)[:, None])
    index = np.arange(batch.tokens.shape[1])[None]
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(batch.tokens).long(),
            attention_mask=torch.tensor(index < batch.lengths).long(),
            token_type_ids=torch.tensor(index >= batch.second_starts).long(),
        )
    return out.logits.numpy()


@pytest.mark.parametrize("form", ["peft", "hf"])
def test_other_libraries_compute_the_same(form, trained, folder, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    _, run_folder = trained
    cli.export(run_folder, tmp_path / "out", format=form)
    auto = transformers.AutoModelForSequenceClassification
    problem = prepare(run.read_config(run_folder)[0])
    if form == "peft":
        labels = problem.task.outputs
        base = auto.from_pretrained(folder / "base", num_labels=labels)
        model = peft.PeftModel.from_pretrained(base, tmp_path / "out")
        values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert values["task_type"] == "SEQ_CLS"
        assert values["target_modules"] == [
            "attention.self.query_proj",
            "attention.self.value_proj",
        ]
    else:
        model = auto.from_pretrained(tmp_path / "out")
    adapters = Posterior.load(run_folder / run.POSTERIOR).mean
    encoded = problem.splits["test"]
    batch = jax.tree.map(jnp.asarray, collate(encoded, np.arange(5)[:, None]))
    bound = problem.network.bind(adapters, problem.frozen, {})
    ours = problem.objective.outputs(bound, batch)
    theirs = torch_outputs(model.float(), encoded)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_a_head_in_the_files_is_where_training_starts(folder, tmp_path):
    base = shutil.copytree(folder / "base", tmp_path / "base")
    assert not {"pooler", "classifier"} & load(str(base), tokenizer=False).params.keys()
    rng = np.random.default_rng(0)
    sizes = {"pooler.dense.weight": (16, 16), "pooler.dense.bias": (16,)}
    sizes |= {"classifier.weight": (2, 16), "classifier.bias": (2,)}
    head = {k: rng.normal(size=v).astype(np.float32) for k, v in sizes.items()}
    # And what pretraining leaves behind.
    extra = {"lm_predictions.lm_head.bias": np.zeros(5, np.float32)}
    weights = load_file(base / "model.safetensors")
    save_file(weights | head | extra, base / "model.safetensors")
    config = config_of(folder)
    start = prepare(TrainConfig(**vars(config) | {"model": str(base)})).start
    np.testing.assert_array_equal(
        start["classifier"]["kernel"], head["classifier.weight"].T
    )
    np.testing.assert_array_equal(
        start["pooler"]["dense"]["bias"], head["pooler.dense.bias"]
    )
    with pytest.raises(ValueError, match=r"classifier.weight is \(2, 16\), expected"):
        load(str(base), tokenizer=False, num_labels=3)
    del head["pooler.dense.bias"]
    save_file(weights | head, base / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: pooler\.dense\.bias$"):
        load(str(base), tokenizer=False)


def test_pairs_are_cut_and_told_apart(folder):
    tokenizer = load(str(folder / "base")).tokenizer
    pair = Example("", 1.5, ("red old", "blue one big new"))
    encoded = encode_texts(tokenizer, [pair], 100)
    (ids,), (second,) = encoded.tokens, encoded.second_starts
    assert tokenizer.decode(ids[:second]) == "[CLS] red old[SEP]"
    assert tokenizer.decode(ids[second:]) == "blue one big new[SEP]"
    assert encoded.labels.dtype == np.float32
    short = encode_texts(tokenizer, [pair], 7)
    assert len(short.tokens[0]) == 7
    assert short.tokens[0][-1] == tokenizer.sep_token_id
    single = encode_texts(tokenizer, [Example("red old", 1)], 100)
    assert single.tokens[0].tolist() == ids[:second].tolist()
    assert single.second_starts.tolist() == single.lengths.tolist()


def test_a_second_text_needs_a_type_of_its_own(folder, tmp_path):
    config = dataclasses.replace(SMALL, type_vocab_size=1)
    texts = [row["text"] for row in tiny.rows(40, seed=0)]
    write_model(tmp_path / "one", config, make_tokenizer(texts, 60))
    run = dataclasses.replace(config_of(folder), model=str(tmp_path / "one"))
    with pytest.raises(ValueError, match="one: reads one text, not two"):
        prepare(run)


def test_losses_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 3)).astype(np.float32)
    classes = rng.integers(3, size=6).astype(np.int32)
    numbers = rng.normal(size=6).astype(np.float32)
    weights = rng.uniform(size=6).astype(np.float32)
    functional, tensor = torch.nn.functional, torch.tensor

    def ours(objective, outputs, labels, weights):
        column = [jnp.asarray(values)[:, None] for values in (labels, weights)]
        lengths = jnp.ones((6, 1), jnp.int32)
        batch = Batch(lengths, lengths, *column, lengths)
        return float(objective.loss(jnp.asarray(outputs), batch))

    for weight, reduce in (
        (np.full(6, 1 / 6, np.float32), torch.mean),
        (weights, lambda losses: (losses * tensor(weights)).sum()),
    ):
        theirs = functional.cross_entropy(
            tensor(outputs), tensor(classes).long(), reduction="none"
        )
        found = ours(HeadClass((), 9), outputs, classes, weight)
        assert found == pytest.approx(float(reduce(theirs)), rel=1e-5)
        theirs = functional.mse_loss(
            tensor(outputs[:, 0]), tensor(numbers), reduction="none"
        )
        found = ours(HeadNumber(9), outputs[:, :1], numbers, weight)
        assert found == pytest.approx(float(reduce(theirs)), rel=1e-5)


def test_a_decoder_cannot_answer_with_a_number(folder, tmp_path):
    model = tiny.write_model(tmp_path / "llama", layers=1)
    config = config_of(folder, "stsb")
    with pytest.raises(ValueError, match="stsb asks for a number, .* is a decoder"):
        prepare(TrainConfig(**vars(config) | {"model": str(model)}))
