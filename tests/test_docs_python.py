"""The Python of README, docs and notebooks runs, on the runs of a tiny model."""

import ast
import dataclasses
import importlib.util
import json
import re
from fnmatch import fnmatch
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from test_docs import PAGES, ROOT, blocks
from tiny_inference import command

import ivon_jax
from ivon_jax.lora import LoraConfig
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
MODELS = ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the runs that pages name: the tiny model in place of SmolLM2."""
    folder = tmp_path_factory.mktemp("docs")
    model, data = tiny.write_task(folder, layers=1)
    data = dataclasses.replace(data, validation_examples=16)
    hyper = IvonLoraHyper(
        steps=80, batch_size=8, learning_rate=0.3, gamma=2000.0, clip_radius=0.02
    )
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=4), hyper=hyper)
    (folder / "runs").mkdir()
    run = tiny_runs.train(config, folder / "runs" / "cities")
    assert command("evaluate", run, "--samples", 2, "--test") == 0
    assert command("export", run, "--out", folder / "ensemble", "--samples", 10) == 0
    return folder


@pytest.fixture
def execute(place, monkeypatch):
    """Runs blocks of code in that folder, one after the other; returns their names.

    A block that imports what is not installed here is left out.
    """
    monkeypatch.chdir(place)

    def run(codes, **names):
        code = "\n".join(filter(can_run, codes)).replace('{"name":', '{"text":')
        for model in MODELS:
            code = code.replace(model, str(place / "model"))
        # As where the reader runs it.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            exec(code, names)
        return SimpleNamespace(**names)

    return run


def can_run(code):
    """Whether all packages that the code imports are there."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    tops = {name.partition(".")[0] for name in found}
    return all(importlib.util.find_spec(name) for name in tops)


def readme(page):
    assert page.losses.shape == (10,)
    # Ten steps of a quadratic's posterior mean go downhill from 1.
    assert float(page.loss_fn(page.params, 0.0)) < 1.0


def digits(page):
    assert page.losses[-20:].mean() < page.losses[:20].mean() / 2
    assert 0 <= page.ece < 0.3


def generation(page):
    assert len(page.outputs) == 8
    assert page.chosen in page.texts
    assert 0 < page.answer.share <= 1


def optax(page):
    np.testing.assert_allclose(page.posterior.mean, page.exact_mean, atol=0.05)
    np.testing.assert_allclose(page.learned, jnp.diag(page.precision), rtol=0.1)
    assert page.flax_state.step == 1 and page.flax_state.params.any()


def research(page):
    assert page.outputs.shape == (10, 5, 3)
    assert len(set(page.curve.tolist())) == 4
    assert page.SignDescent.name == "sign-descent"


def start(page):
    np.testing.assert_allclose(page.found.probs.sum(axis=1), 1, rtol=1e-5)


def formats(page):
    assert page.posterior.kind == "gaussian"
    assert page.metadata["step"] == 80


def fits(page):
    rows = [each.row("temperature") for each in page.made.predictors]
    assert [row["samples"] for row in rows] == [0, 4]


def predict(page):
    assert page.found.draws.shape == (10, 2, 2)
    if hasattr(page, "included"):  # mapie is there
        assert len(page.included) == len(page.new_texts)


def export(page):
    if hasattr(page, "model"):  # peft is there
        assert set(page.names) <= set(page.model.peft_config)


def contributing(page):
    assert callable(page.temper)


CHECKS = {
    "README.md": readme,
    "CONTRIBUTING.md": contributing,
    **{
        f"docs/{check.__name__}.md": check
        for check in (
            digits,
            export,
            fits,
            formats,
            generation,
            optax,
            predict,
            research,
            start,
        )
    },
}
ROWS = tiny.rows(40, seed=5)
TEXTS, ANSWERS = zip(*(row.values() for row in ROWS), strict=True)
# What a page leaves to the reader.
NAMES = {
    "CONTRIBUTING.md": {"Posterior": ivon_jax.Posterior},
    "docs/predict.md": {
        "dev_texts": np.array(TEXTS),
        "dev_labels": np.array(ANSWERS),
        "new_texts": np.array(TEXTS[:3]),
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_python_of_a_page_runs(name, execute):
    CHECKS[name](execute(blocks(ROOT / name, "python"), **NAMES.get(name, {})))


def test_no_page_has_other_python():
    shown = {str(p.relative_to(ROOT)) for p in PAGES if "```py" in p.read_text()}
    assert shown == set(CHECKS)


def cells(path):
    return json.loads(path.read_text())["cells"]


def abstention(page):
    assert page.losses[-100:].mean() < page.losses[:10].mean()
    count = page.accepted.sum()
    assert count > 500
    # Beyond the guarantee by three deviations of the test's own error, at most.
    errors = page.wrong[page.accepted].mean()
    assert errors < page.MAX_RISK + 3 * np.sqrt(page.MAX_RISK / count)
    assert page.covered > 0.9 - 3 * np.sqrt(0.09 / 1000)
    assert errors < page.wrong.mean()


def ensembles(page):
    assert page.losses.shape == (page.RUNS, page.STEPS)
    for std in page.spread.values():
        assert std[page.gap].mean() > std[page.seen].mean()
    one, eight = (std[page.gap].mean() for std in page.spread.values())
    assert eight > one
    assert np.isfinite(page.curve).all()


@pytest.mark.slow  # `make docs` runs them too, and ends at an error
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, execute, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    code = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    {"abstention": abstention, "ensembles": ensembles}[path.stem](execute(code))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_has_no_outputs(path):
    assert all(cell.get("outputs", []) == [] for cell in cells(path))


def test_the_files_of_a_run_are_explained(place):
    text = (ROOT / "docs" / "formats.md").read_text()
    patterns = re.findall(r"`([\w*]+(?:-\*)?\.?\w*)/?`", text)
    files = [path.name for path in (place / "runs" / "cities").iterdir()]
    assert len(files) > 6
    assert [f for f in files if not any(fnmatch(f, p) for p in patterns)] == []


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api" / "core.md").read_text()
    shown = set(re.findall(r"^::: ivon_jax\.(\w+)", text, re.MULTILINE))
    tree = ast.parse((ROOT / "ivon_jax" / "__init__.py").read_text())
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    public = {alias.asname for node in imported for alias in node.names} - {None}
    assert public - shown == set()
