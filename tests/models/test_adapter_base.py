"""An adapter of another base: refused where files tell, pointed out where names do."""

import dataclasses
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.models.peft_io import CONFIG, RUN, WEIGHTS, check_base
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.export import export_peft
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import run

LORA = LoraConfig(rank=2, targets=("layers/self_attn/q_proj",))
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's configuration, and what is exported of it."""
    place = tmp_path_factory.mktemp("base")
    model, data = tiny.write_task(place, layers=1)
    config = TrainConfig(model, data=data, lora=LORA)
    print_of_base = load(model, tokenizer=False).fingerprint
    (place / "run").mkdir()
    run.write_config(
        place / "run", config, model=model, model_fingerprint=print_of_base
    )
    kernel = {"a": jnp.ones((1, 32, 2)), "b": jnp.ones((1, 2, 32))}
    mean = {"layers": {"self_attn": {"q_proj": kernel}}}
    precision = {f"layers/self_attn/q_proj/{k}": v for k, v in kernel.items()}
    Posterior(mean, precision, {}).save(place / "run" / run.POSTERIOR)
    export_peft(place / "run", place / "export", samples=1)
    return config, place / "export"


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(trained[1], tmp_path / "adapter")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def foreign(adapter, name, **changes):
    """Makes it one that PEFT itself could have written."""
    (adapter / RUN).unlink(missing_ok=True)
    edit(adapter / CONFIG, base_model_name_or_path=name, **changes)
    return adapter


@pytest.mark.parametrize("part", [".", "sample-0"])
def test_the_files_of_the_base_decide(part, trained, tmp_path, capsys):
    config, export = trained
    config = dataclasses.replace(config, adapter=export / part)
    same = shutil.copytree(config.model, tmp_path / "same")
    start = prepare(dataclasses.replace(config, model=str(same))).start
    written = load_file(export / part / WEIGHTS)
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(
        start["layers"]["self_attn"]["q_proj"]["a"][0].T, written[q_proj]
    )
    assert "adapter" not in capsys.readouterr().err
    other = tiny.write_model(tmp_path / "other", seed=1, layers=1)
    message = f"adapter .*: it was trained on model '{config.model}' .* '{other}' "
    with pytest.raises(ValueError, match=message):
        prepare(dataclasses.replace(config, model=str(other)))


def test_how_the_base_is_kept_makes_no_difference(trained):
    pytest.importorskip("qwix")
    config, export = trained
    for dtype, quantization in ((jnp.bfloat16, None), (jnp.bfloat16, "int8")):
        kept = load(
            config.model, dtype=dtype, quantization=quantization, tokenizer=False
        )
        check_base(export, config.model, kept.fingerprint)


@pytest.mark.parametrize("there", [True, False])
def test_other_kinds_of_files_are_not_compared(there, adapter, capsys):
    folder, known = SMOLLM2, "smollm2-135m-instruct"
    trained_on, model = (known, folder) if there else (folder, known)
    edit(adapter / CONFIG, base_model_name_or_path=folder)
    edit(adapter / RUN, model=trained_on)
    check_base(adapter, model, "0" * 64)
    assert capsys.readouterr().err == ""
    other = "else.gguf" if not there else "else"
    check_base(adapter, other, "0" * 64)
    line = f"it names '{folder}' as its base, and model is '{other}'"
    assert line in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{trained_on}.* has other files"):
        check_base(adapter, trained_on, "0" * 64)


def test_names_are_all_that_others_have(adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = os.fspath(tmp_path / "model")
    for name, revision, model in (
        (None, None, "some/model"),
        ("", None, "some/model"),
        ("some/model", None, "some/model"),
        ("some/model", None, "some/model@refs/pr/1"),
        ("some/model", "refs/pr/1", "some/model@refs/pr/1"),
        ("some/model", "main", "some/model"),
        (here, None, "model"),
        ("./model/", None, here),
        (SMOLLM2, None, "smollm2-135m-instruct"),
    ):
        check_base(foreign(adapter, name, revision=revision), model, "0" * 64)
        assert capsys.readouterr().err == ""
    for name, revision, model, shown in (
        ("some/model", None, "other/model", "some/model"),
        ("some/model", "v2", "some/model", "some/model@v2"),
        ("some/model", "v2", "some/model@v1", "some/model@v2"),
        (here, None, "elsewhere/model", here),
    ):
        check_base(foreign(adapter, name, revision=revision), model, "0" * 64)
        assert capsys.readouterr().err == (
            f"adapter {adapter}: it names '{shown}' as its base, and model is"
            f" '{model}'; make sure that they are the same\n"
        )
    del (values := json.loads((adapter / CONFIG).read_text()))["revision"]
    (adapter / CONFIG).write_text(json.dumps(values | {"base_model_name_or_path": "x"}))
    check_base(adapter, "x", "0" * 64)
    assert capsys.readouterr().err == ""


def test_what_names_no_base_is_refused(adapter):
    edit(adapter / RUN, model_fingerprint=None)
    with pytest.raises(ValueError, match=f"{RUN}: it has no model and model_finger"):
        check_base(adapter, "x", "0" * 64)
    (adapter / RUN).write_text("{")
    with pytest.raises(ValueError, match=f"adapter .*: {RUN}: not valid JSON"):
        check_base(adapter, "x", "0" * 64)
    for field, value in {"base_model_name_or_path": 3, "revision": "\0"}.items():
        edit(foreign(adapter, "x", revision=None) / CONFIG, **{field: value})
        with pytest.raises(ValueError, match=rf"{field} is .*, expected a name"):
            check_base(adapter, "x", "0" * 64)
