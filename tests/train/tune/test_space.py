"""What is searched: values and intervals of a run's own options."""

import pytest

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.tune.space import (
    Range,
    Values,
    check_space,
    grid_of,
    name_of,
    place,
    read_space,
)

ADAM = TrainConfig(method="adam")
IVON = TrainConfig(method="ivon-lora")


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("learning-rate=1e-4,2e-4,1e-4", "learning_rate", Values((1e-4, 2e-4))),
        ("learning_rate=1..2", "learning_rate", Range(1.0, 2.0, log=False)),
        ("learning_rate=1e-5..1e-2:log", "learning_rate", Range(1e-5, 1e-2, log=True)),
        ("gamma=75,none", "gamma", Values((75.0, None))),
        ("noise=shared,per-shard", "noise", Values(("shared", "per-shard"))),
        ("rank=4,8", "rank", Values((4, 8))),
        ("rank=2..64:log", "rank", Range(2, 64, log=True)),
        ("rslora=true,false", "rslora", Values((True, False))),
        ("dropout=0..0.5", "dropout", Range(0.0, 0.5, log=False)),
    ],
)
def test_values_have_the_types_of_their_options(text, name, found):
    space = read_space([text], IVON)
    assert space == {name: found}
    assert [type(x) for x in space[name].corners] == [type(x) for x in found.corners]


@pytest.mark.parametrize(
    ("config", "search", "message"),
    [
        (ADAM, ["gamma=75"], "^search: 'gamma' is none of steps, .*eps.*, rank, alpha"),
        (ADAM, ["targets=a"], "^search: 'targets' is none of"),
        (ADAM, [], "^search: name at least one"),
        (ADAM, ["steps"], "^search: steps is not one NAME=VALUES of steps"),
        (ADAM, ["steps=1", "steps=2"], "^search: steps=2 is not one NAME=VALUES"),
        (ADAM, ["steps=soon"], "^search: steps: 'soon' is not a legal value"),
        (ADAM, ["steps=1.5"], "^search: steps: 1.5 is not a legal value"),
        (ADAM, ["steps=5..2"], "^search: steps: 5..2 is not LOW..HIGH or"),
        (ADAM, ["steps=1..2:ln"], "^search: steps: 1..2:ln is not LOW..HIGH or"),
        (ADAM, ["eps=0..1:log"], "^search: eps: 0..1:log has no logarithm at 0"),
        (IVON, ["noise=shared..per-shard"], "^search: noise: .* is not LOW..HIGH"),
    ],
)
def test_what_is_refused(config, search, message):
    with pytest.raises(ValueError, match=message):
        read_space(search, config)


def test_a_grid_is_all_combinations():
    space = read_space(["rank=4,8", "learning_rate=1e-4,1e-3,1e-2"], ADAM)
    points = list(grid_of(space))
    assert len(points) == 6
    assert {(p["rank"], p["learning_rate"]) for p in points} == {
        (rank, rate) for rank in (4, 8) for rate in (1e-4, 1e-3, 1e-2)
    }
    config = place(ADAM, points[-1])
    assert (config.lora.rank, config.hyper.learning_rate) == (8, 1e-2)
    assert name_of("adam", points[0]) == "adam-rank-4-learning_rate-0.0001"
    assert len({name_of("adam", point) for point in points}) == 6


@pytest.mark.parametrize(
    ("config", "search", "grid", "message"),
    [
        (IVON, ["gamma=1,2", "ess=1,none"], True, "^gamma: excludes ess"),
        (ADAM, ["learning_rate=1e-4,-1"], True, "^learning_rate: -1.0 is not"),
        (ADAM, ["learning_rate=-1..1"], False, "^learning_rate: -1.0 is not"),
        (ADAM, ["rank=0..8"], False, "^rank: 0 is not"),
        (ADAM, ["rank=1..8"], True, "^search: rank: a grid has values, not an"),
        (ADAM, [f"steps={','.join(map(str, range(1, 20_000)))}"], True, "at most 1"),
    ],
)
def test_every_value_is_checked_first(config, search, grid, message):
    with pytest.raises(ValueError, match=message):
        check_space(read_space(search, config), config, "commonsense", grid=grid)
