"""Presets, their overriding, and configurations as JSON."""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.lora import LoraConfig
from ivon_jax.train.config import (
    CompareConfig,
    DataConfig,
    Hypers,
    TrainConfig,
    make_method,
    resolve,
)
from ivon_jax.train.config_json import from_json, to_json
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper
from ivon_jax.train.methods.registry import METHODS


def resolved(method: str, preset: str = "commonsense", n: int = 640, **hyper):
    chosen = METHODS[method].hyper_type(**hyper)
    config = TrainConfig(method=method, hyper=chosen)
    return resolve(config, preset, n).hyper


# The paper's settings, from its appendix.

COMMONSENSE = {"steps": 5000, "warmup": 150, "batch_size": 8}
GLUE = {"steps": 5000, "warmup": 300, "batch_size": 16}  # 6 % of the steps
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
IVON = {"beta1": 0.9, "mc_samples": 1, "learning_rate": 1e-2, "noise": "shared"}
PAPER = {
    ("adam", "commonsense"): COMMONSENSE | ADAM | {"learning_rate": 2e-4},
    ("adam", "glue"): GLUE | ADAM | {"learning_rate": 5e-4},
    ("ivon-lora", "commonsense"): COMMONSENSE
    | IVON
    | {"beta2": 0.9995, "clip_radius": 5e-3, "hess_init": 5e-2, "gamma": 5000.0}
    | {"ess": 5000 * math.sqrt(640)},
    ("ivon-lora", "glue"): GLUE
    | IVON
    | {"beta2": 0.9998, "clip_radius": 2e-2, "hess_init": 5e-3, "ess": 5e6},
}


@pytest.mark.parametrize(("method", "preset"), PAPER)
def test_presets_are_the_papers(method, preset):
    found = {k: v for k, v in vars(resolved(method, preset)).items() if v is not None}
    assert found == PAPER[method, preset]


@pytest.mark.parametrize(
    ("examples", "steps"),
    # The paper's App. D.4.1: RTE, CoLA, SST-2 and QQP; an epoch's last batch is short.
    [(2490, 33 * 156), (8551, 10 * 535), (67349, 3 * 4210), (363846, 3 * 22741)],
)
def test_glue_trains_for_whole_epochs(examples, steps):
    found = resolved("ivon-lora", "glue", n=examples)
    assert (found.steps, found.warmup) == (steps, round(0.06 * steps))
    assert resolved("ivon-lora", "glue", n=examples, steps=7).steps == 7
    assert resolved("ivon-lora", "commonsense", n=examples).steps == 5000


@pytest.mark.parametrize("method", ["adam", "ivon-lora"])
def test_own_data_get_the_commonsense_presets(method):
    assert resolved(method, "custom") == resolved(method, "commonsense")


@pytest.mark.parametrize(("n", "ess"), [(640, 1.26e5), (1117, 1.67e5), (9427, 4.86e5)])
def test_lambda_follows_the_number_of_examples(n, ess):
    assert resolved("ivon-lora", n=n).ess == pytest.approx(ess, rel=5e-3)
    assert resolved("ivon-lora", n=n, gamma=10.0).ess == pytest.approx(
        ess / 500, rel=5e-3
    )


def test_what_is_given_wins_and_nothing_else_changes():
    default = resolved("ivon-lora")
    found = resolved("ivon-lora", learning_rate=0.5, beta2=0.5, mc_samples=3)
    changes = {"learning_rate": 0.5, "beta2": 0.5, "mc_samples": 3}
    assert found == dataclasses.replace(default, **changes)


def test_ess_replaces_gamma():
    found = resolved("ivon-lora", ess=123.0)
    assert (found.ess, found.gamma) == (123.0, None)
    found = resolved("ivon-lora", "glue", n=100, gamma=2.0)
    assert (found.ess, found.gamma) == (20.0, 2.0)


def test_gamma_excludes_ess():
    with pytest.raises(ValueError, match=r"^gamma: excludes ess"):
        resolved("ivon-lora", gamma=1.0, ess=1.0)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("adam", name, 1.0) for name in ("gamma", "ess", "hess_init", "clip_radius")]
    + [("adam", "mc_samples", 2), ("ivon-lora", "eps", 1e-8)],
)
def test_hyper_parameters_of_the_other_method_are_refused(method, name, value):
    with pytest.raises(ValueError, match=f"^config.hyper: unknown key '{name}'"):
        from_json({"method": method, "hyper": {name: value}}, TrainConfig)
    other = {"adam": IvonLoraHyper, "ivon-lora": AdamHyper}[method](**{name: value})
    with pytest.raises(ValueError, match=f"^hyper: method {method} takes .*Hyper, not"):
        TrainConfig(method=method, hyper=other)


@pytest.mark.parametrize("method", METHODS)
def test_what_every_method_has_can_be_given_for_any(method):
    config = TrainConfig(method=method, hyper=Hyper(steps=7, batch_size=2))
    assert config.hyper == METHODS[method].hyper_type(steps=7, batch_size=2)


@pytest.mark.parametrize(
    ("preset", "steps", "warmup"),
    [("commonsense", 1000, 30), ("glue", 1000, 60), ("custom", 10, 0), ("glue", 1, 0)],
)
def test_the_warm_up_keeps_its_share(preset, steps, warmup):
    assert resolved("adam", preset, steps=steps).warmup == warmup
    assert resolved("adam", preset, steps=steps, warmup=1).warmup == 1


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("adam", "steps", 0),
        ("adam", "steps", -1),
        ("adam", "warmup", -1),
        ("adam", "warmup", 5001),
        ("adam", "batch_size", 0),
        ("adam", "learning_rate", 0.0),
        ("adam", "learning_rate", math.nan),
        ("adam", "learning_rate", math.inf),
        ("adam", "beta1", 1.0),
        ("adam", "beta2", -0.1),
        ("adam", "beta2", math.nan),
        ("adam", "eps", -1e-8),
        ("ivon-lora", "gamma", 0.0),
        ("ivon-lora", "ess", -1.0),
        ("ivon-lora", "hess_init", 0.0),
        ("ivon-lora", "clip_radius", 0.0),
        ("ivon-lora", "mc_samples", 0),
        ("ivon-lora", "beta1", 1.5),
        ("ivon-lora", "beta2", 1.0),
    ],
)
def test_values_out_of_range_are_refused(method, name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value} is not") as caught:
        resolved(method, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("adam", "warmup", 5000), ("adam", "beta1", 0.0), ("adam", "eps", 0.0)],
)
def test_the_ends_of_ranges_are_legal(method, name, value):
    assert getattr(resolved(method, **{name: value}), name) == value


def test_the_rest_of_the_configuration_is_kept():
    config = TrainConfig(
        "m", 7, DataConfig("rte"), LoraConfig(rank=3), method="adam", eval_steps=2
    )
    found = resolve(config, "glue", 10)
    assert dataclasses.replace(found, hyper=config.hyper) == config


def test_methods_get_what_was_resolved():
    adam = make_method(resolve(TrainConfig(method="adam"), "glue", 9))
    assert adam == Adam(AdamHyper(5000, 300, 16, 5e-4, 0.9, 0.999, 1e-8))
    run = {"steps": 5000, "warmup": 150, "batch_size": 8}
    beta = {"beta1": 0.9, "beta2": 0.9995}
    hyper = IvonLoraHyper(
        **run, **beta, learning_rate=1e-2, gamma=5e3, ess=1e4, hess_init=5e-2,
        clip_radius=5e-3, mc_samples=1, noise="shared",
    )  # fmt: skip
    for noise, groups in ((None, 1), ("shared", 1), ("per-shard", 4)):
        config = TrainConfig(mesh="data=4", hyper=IvonLoraHyper(noise=noise))
        wanted = dataclasses.replace(hyper, noise=noise or "shared")
        found = make_method(resolve(config, "commonsense", 4))
        assert found == IvonLora(wanted, groups)


# JSON.

floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
paths = st.none() | texts.map(Path)
counts = st.none() | st.integers(-9, 10**6)
# Plain values: what is checked on construction is made in the test itself.
data_configs = st.tuples(
    texts,
    paths,
    counts,
    counts,
    counts,
    st.sampled_from(["paper_code", "paper_table"]),
    paths,
    paths,
    st.none() | texts,
    st.lists(texts, max_size=3).map(tuple),
    st.sampled_from(["auto", "yes", "no"]),
)


def is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


patterns = texts.filter(is_regex)
lora_configs = st.tuples(
    st.integers(1, 99),
    st.floats(0.1, 99),
    st.floats(0, 0.99),
    st.lists(patterns, min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.lists(patterns, max_size=2).map(tuple),
    st.lists(st.tuples(patterns, st.integers(1, 99)), max_size=2).map(tuple),
    st.lists(st.tuples(patterns, st.floats(0.1, 99)), max_size=2).map(tuple),
    st.sampled_from(["default", "pissa"]),
)
every = dict.fromkeys(("steps", "warmup", "batch_size"), counts)
numbers = ("learning_rate", "beta1", "beta2")
HYPERS = {
    "adam": every
    | dict.fromkeys(
        (*numbers, "eps", "weight_decay", "b_rate_ratio"), st.none() | floats
    ),
    "ivon-lora": every
    | dict.fromkeys(
        (*numbers, "gamma", "ess", "hess_init", "clip_radius"), st.none() | floats
    )
    | {"mc_samples": counts, "noise": st.sampled_from([None, "shared", "per-shard"])},
}
hypers = st.fixed_dictionaries({k: st.fixed_dictionaries(v) for k, v in HYPERS.items()})
methods = st.sampled_from(list(HYPERS))
starts = st.tuples(texts, st.integers(0, 2**32))


@given(starts, methods, data_configs, lora_configs, hypers, counts)
def test_json_and_back(start, method, data, lora, hyper, samples):
    parts = (*start, DataConfig(*data), LoraConfig(*lora))
    chosen = {k: METHODS[k].hyper_type(**v) for k, v in hyper.items()}
    for name, values in chosen.items():
        assert vars(values).keys() == HYPERS[name].keys()
    for config in (
        TrainConfig(*parts, method=method, hyper=chosen[method]),
        CompareConfig(
            *parts,
            methods=(method,),
            hyper=Hypers(**{k.replace("-", "_"): v for k, v in chosen.items()}),
            samples=samples or 1,
            taus=(0.5, 2.0),
        ),
    ):
        values = json.loads(json.dumps(to_json(config)))
        before = copy.deepcopy(values)
        assert from_json(values, type(config)) == config
        assert values == before


@pytest.mark.parametrize("method", HYPERS)
def test_what_version_0_1_0_wrote(method):
    """Every run had the hyper-parameters of all methods, and noise beside them."""
    names = {name for fields in HYPERS.values() for name in fields} - {"noise"}
    hyper = {**dict.fromkeys(names), "steps": 9, "learning_rate": 0.5}
    values = {"method": method, "noise": "shared", "hyper": hyper}
    wanted = METHODS[method].hyper_type(steps=9, learning_rate=0.5)
    if hasattr(wanted, "noise"):
        wanted = dataclasses.replace(wanted, noise="shared")
    assert from_json(values, TrainConfig) == TrainConfig(method=method, hyper=wanted)
    other = {"adam": "gamma", "ivon-lora": "eps"}[method]
    values = {"method": method, "noise": "shared", "hyper": hyper | {other: 0.5}}
    with pytest.raises(ValueError, match=f"^config.hyper: unknown key '{other}'"):
        from_json(values, TrainConfig)
    split = {"method": method, "noise": "per-shard", "hyper": hyper}
    if method == "adam":
        with pytest.raises(ValueError, match=r"^config.hyper: unknown key 'noise'"):
            from_json(split, TrainConfig)
    else:
        found = from_json(split, TrainConfig).hyper
        assert found == dataclasses.replace(wanted, noise="per-shard")
    values = {"adam": hyper, "ivon_lora": hyper | {"gamma": 3.0}, "samples": 4}
    assert from_json(values, CompareConfig) == CompareConfig(
        hyper=Hypers(
            AdamHyper(steps=9, learning_rate=0.5),
            IvonLoraHyper(steps=9, learning_rate=0.5, gamma=3.0),
        ),
        samples=4,
    )


def test_what_is_absent_is_the_default():
    assert from_json({"seed": 3}, TrainConfig) == TrainConfig(seed=3)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("colour",), 1, "config: unknown key 'colour'"),
        (("data", "colour"), 1, "config.data: unknown key 'colour'"),
        (("lora", "r"), 1, "config.lora: unknown key 'r'"),
        (("seed",), "0", "config.seed: '0' "),
        (("seed",), True, "config.seed: True "),
        (("seed",), None, "config.seed: None "),
        (("method",), "sgd", "config.method: 'sgd' "),
        (("data",), 5, "config.data: 5 "),
        (("hyper",), None, "config.hyper: None "),
        (("hyper", "steps"), 1.5, "config.hyper.steps: 1.5 "),
        (("hyper", "beta1"), "x", "config.hyper.beta1: 'x' "),
        (("lora", "targets"), "q_proj", "config.lora.targets: 'q_proj' "),
        (("lora", "targets"), [1], "config.lora.targets: 1 "),
        (("lora", "rslora"), 1, "config.lora.rslora: 1 "),
        (("lora", "rank_pattern"), ["q", 4], "config.lora.rank_pattern: 'q' "),
        (("lora", "rank_pattern"), [["q"]], "config.lora.rank_pattern: ['q'] "),
        (("lora", "rank_pattern"), [["q", 0]], "rank_pattern: 0 is not >= 1"),
        (("lora", "rank"), 0, "rank: 0 is not >= 1"),
        (("data", "train_file"), 1, "config.data.train_file: 1 "),
    ],
)
def test_damaged_json_is_refused(where, value, message):
    values = to_json(TrainConfig())
    *parents, last = where
    node = values
    for name in parents:
        node = node[name]
    node[last] = value
    with pytest.raises(ValueError) as caught:
        from_json(values, TrainConfig)
    assert str(caught.value).startswith(message)
