"""The real lm-eval runs tasks of local files on a run."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_text_run import train_text

from ivon_jax.ensemble import pool
from ivon_jax.models.sampler import Sampler
from ivon_jax.testing.tiny import write_rows
from ivon_jax.train.generate import Options, generate, open_run
from ivon_jax.train.harness.scoring import Pair, Scorer

pytest.importorskip("lm_eval", reason="needs ivon-jax[eval]")
# Of lm-eval and what it imports.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICES = ["no", "yes", "perhaps"]
ASKED = [{"text": f"is {a} odd", "label": a % 2} for a in range(6)]
SUMS = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(4)]
SAMPLES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("harness")
    train_text(place)
    tasks = place / "tasks"
    tasks.mkdir()
    shared = {
        "dataset_path": "json",
        "test_split": "test",
        "num_fewshot": 0,
    }

    def write(name, rows, **values):
        file = write_rows(place / f"{name}.jsonl", rows)
        where = {
            "data_files": {"test": str(file)},
            "cache_dir": str(place / "cache"),
        }
        task = shared | {"task": name, "dataset_kwargs": where} | values
        # JSON is YAML.
        (tasks / f"{name}.yaml").write_text(json.dumps(task))

    write(
        "odd",
        ASKED,
        output_type="multiple_choice",
        doc_to_text="{{text}}?",
        doc_to_choice=CHOICES,
        doc_to_target="label",
        target_delimiter=" ",
        metric_list=[{"metric": "acc"}],
    )
    write(
        "sums",
        SUMS,
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["e", "\n"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match"}],
    )
    return place


@pytest.fixture(scope="module")
def results(folder):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from ivon_jax.train.harness.model import IvonJax

    model = IvonJax(run=str(folder / "run"), samples=SAMPLES, batch_size=4)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model,
        tasks=["odd", "sums"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )


@pytest.fixture(scope="module")
def writer(folder):
    return open_run(folder / "run")


def tokens(writer, text):
    return writer.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_choices_are_made_by_the_posterior_pool(results, writer):
    scorer = Scorer(writer, SAMPLES)
    right = []
    for sample in results["samples"]["odd"]:
        text = sample["doc"]["text"] + "?"
        pairs = [
            Pair(tokens(writer, text), tokens(writer, f" {word}")) for word in CHOICES
        ]
        wanted = pool(scorer(pairs).log_probs)
        shown = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(shown, wanted, atol=1e-4)
        right.append(wanted.argmax() == sample["doc"]["label"])
    assert len(right) == len(ASKED)
    assert results["results"]["odd"]["acc,none"] == pytest.approx(np.mean(right))


def test_texts_are_those_of_our_generation(results, writer):
    options = Options(max_tokens=12, sampler=Sampler(0.0))
    outputs = generate(writer, [row["prompt"] for row in SUMS], options)
    wanted = {}
    for row, output in zip(SUMS, outputs, strict=True):
        text = writer.tokenizer.decode(output.tokens, skip_special_tokens=True)
        wanted[row["prompt"]] = text.split("e")[0].split("\n")[0]
    found = {s["doc"]["prompt"]: s["resps"][0][0] for s in results["samples"]["sums"]}
    assert found == wanted


def test_whole_texts_are_scored_in_windows(folder, writer):
    from ivon_jax.train.harness.model import IvonJax

    model = IvonJax(run=str(folder / "run"), samples=2)
    text = "it is odd. " * 20  # longer than the context
    request = SimpleNamespace(args=(text,))
    short = SimpleNamespace(args=("is it?",))
    found = model.loglikelihood_rolling([request, short], disable_tqdm=True)
    ids, end = tokens(writer, text), writer.tokenizer.eos_token_id
    limit, sums = writer.context, np.zeros(2)
    scorer = Scorer(writer, 2)
    sums += scorer([Pair([end], ids[:limit])]).log_probs[:, 0]
    rest = len(ids) - limit
    before = ids[len(ids) - limit - 1 : -rest]
    sums += scorer([Pair(before, ids[-rest:])]).log_probs[:, 0]
    assert found[0] == pytest.approx(pool(sums[:, None])[0], abs=1e-2)
    alone = scorer([Pair([end], tokens(writer, "is it?"))]).log_probs
    assert found[1] == pytest.approx(pool(alone)[0], abs=1e-4)


def test_an_unknown_setting_of_generation_is_refused(folder):
    from ivon_jax.train.harness.model import IvonJax

    model = IvonJax(run=str(folder / "run"))
    request = SimpleNamespace(args=("1+1=", {"num_beams": 4}))
    with pytest.raises(ValueError, match="num_beams is not implemented, only until"):
        model.generate_until([request])


@pytest.mark.parametrize(
    "words, message",
    [
        ({}, "directory: name a run"),
        ({"run": "nowhere"}, "not a run"),
        ({"samples": -1}, "samples: -1 is not >= 0"),
        ({"batch_size": 0}, "batch_size: 0 is not >= 1"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(words, message, folder):
    from ivon_jax.train.harness.model import IvonJax

    given = {"run": str(folder / "run")} if words and "run" not in words else {}
    with pytest.raises(ValueError, match=message) as caught:
        IvonJax(**given, **words)
    assert "\n" not in str(caught.value)


def command(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ivon_jax.train.harness", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        timeout=300,
    )


def test_its_command_line_knows_the_model(folder):
    words = ("--model", "ivon-jax", "--model_args", "run=nowhere,samples=2")
    paths = ("--include_path", folder / "tasks", "--tasks", "odd")
    done = command(*words, *paths)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("ivon-jax: nowhere: not a run")


def test_without_the_package_a_line_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda n, *a: None if n == 'lm_eval' else find(n, *a)\n"
        "from ivon_jax.train.harness.__main__ import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == (
        "ivon-jax: lm_eval is not installed; pip install ivon-jax[eval]\n"
    )
