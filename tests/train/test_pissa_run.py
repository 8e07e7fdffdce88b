"""A run that starts by PiSSA is the same model wherever it is read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from tiny_fits import command, one_line

import ivon_jax
from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.export import export_hf, export_peft
from ivon_jax.train.generate import open_run
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.methods.registry import METHODS

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
TEXTS = ["red one", "big two", "old small blue"]
LORA = LoraConfig(rank=2, dropout=0.0, targets=("all-linear",), init="pissa")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model, data = tiny.write_task(tmp_path_factory.mktemp("pissa"), layers=2)
    hyper = IvonLoraHyper(
        steps=8, batch_size=8, learning_rate=0.1, ess=1e4, clip_radius=0.02
    )
    return TrainConfig(model, data=data, lora=LORA, hyper=hyper)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return tiny_runs.train(base, tmp_path_factory.mktemp("run") / "run")


def probs(folder, **options):
    samples = options.pop("samples", 0)
    return ivon_jax.load(folder, **options).predict(TEXTS, samples=samples).probs


def test_it_starts_at_the_base(base, tmp_path):
    found = {}
    for init in ("default", "pissa"):
        config = dataclasses.replace(
            base,
            method="adam",
            hyper=AdamHyper(steps=1, warmup=0, batch_size=8, learning_rate=1e-12),
            lora=dataclasses.replace(LORA, init=init),
        )
        found[init] = probs(tiny_runs.train(config, tmp_path / init))
    np.testing.assert_allclose(found["pissa"], found["default"], atol=1e-4)


def test_it_learns_and_is_evaluated_as_trained(trained, base):
    mean, sampled = probs(trained), probs(trained, samples=2)
    assert np.abs(mean - sampled).max() > 1e-4
    # What generation reads is the same model.
    writer = open_run(trained)
    prompt = tiny.PROMPT.format(text=TEXTS[0])
    ids = writer.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    variables = writer.drawing(0)(None)
    hidden = writer.module.apply(variables, jnp.asarray([ids]))[:, -1]
    words = [writer.tokenizer.encode(f" {w}")[0] for w in tiny.LABELS]
    logits = writer.module.base.apply(
        {"params": variables["params"]}, hidden, jnp.asarray(words), method="unembed"
    )
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], mean[0], atol=1e-4)


def test_exports_work_on_the_unchanged_base(trained, base, tmp_path):
    export_peft(trained, tmp_path / "peft", samples=2)
    data = {"model": base.model, "data": base.data}
    np.testing.assert_allclose(
        probs(tmp_path / "peft", **data), probs(trained), atol=1e-4
    )
    samples = [probs(tmp_path / "peft" / f"sample-{i}", **data) for i in range(2)]
    np.testing.assert_allclose(
        np.mean(samples, axis=0), probs(trained, samples=2), atol=1e-4
    )
    export_hf(trained, tmp_path / "whole")
    whole, original = load(str(tmp_path / "whole")), load(base.model)
    tokens = jnp.asarray([[3, 8, 12, 5]])
    writer = open_run(trained)
    ours = writer.module.apply(writer.drawing(0)(None), tokens)
    theirs = whole.model.apply({"params": whole.params}, tokens)
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    before = original.model.apply({"params": original.params}, tokens)
    assert np.abs(before - ours).max() > 1e-2


def test_peft_loads_the_export(trained, base, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    export_peft(trained, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(base.model).float()
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.model)
    words = [tokenizer.encode(f" {word}")[0] for word in tiny.LABELS]
    inputs = tokenizer(tiny.PROMPT.format(text=TEXTS[0]), return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits[0, -1, words]
    found = logits.softmax(-1).numpy()
    np.testing.assert_allclose(found, probs(trained)[0], atol=1e-4)


def test_an_adapter_of_the_whole_base_is_no_member_beside_it(trained, tmp_path, capsys):
    words = ("--adapter", tmp_path / "x", "--method", "ensemble", "--out")
    assert command("fit", trained, *words, tmp_path / "out") == 2
    assert "is of the whole base" in one_line(capsys)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"base": "int8"}, "init: pissa not with --base int8"),
        ({"train": "full"}, "init: pissa not with --train full"),
        ({"adapter": "x"}, "init: pissa not with --adapter x"),
        ({"method": "ivon"}, "not with --method ivon: its prior pulls"),
        ({"method": "blob"}, "not with --method blob: its prior pulls"),
        ({"method": "ensemble"}, "its members would start alike"),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else "",
)
def test_what_it_does_not_fit_is_refused(changes, words, base):
    if "method" in changes:
        changes = changes | {"hyper": METHODS[changes["method"]].hyper_type()}
    if "adapter" in changes:
        from pathlib import Path

        changes = {"adapter": Path(changes["adapter"])}
    with pytest.raises(ValueError, match=words):
        resolve(dataclasses.replace(base, **changes), "custom", 64)
