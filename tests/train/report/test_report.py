"""Tables, the Pareto front, and figures."""

import math
import statistics

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.train.report import figures, tables
from ivon_jax.train.report.intervals import with_intervals

# Few values, so that ties are common.
scores = st.tuples(*[st.sampled_from([0.1, 0.2, 0.3, 0.4])] * 2)


def make_row(method="ivon-lora", samples=0, tau=1.0, prune=0.0, **values):
    numbers = {"accuracy": 0.5, "ece": 0.1, "ece15": 0.2, "nll": 1.0, "brier": 0.4}
    predict = "samples" if samples else "mean"
    row = {"method": method, "predict": predict, "samples": samples}
    return row | {"tau": tau, "prune": prune} | numbers | values


@given(st.lists(scores, max_size=12))
def test_pareto_front_is_what_nothing_dominates(points):
    rows = [{"ece": ece, "accuracy": accuracy} for ece, accuracy in points]
    front = figures.pareto_front(rows)
    found = [(row["ece"], row["accuracy"]) for row in front]
    wanted = {
        (ece, accuracy)
        for ece, accuracy in points
        if not any(
            e <= ece and a >= accuracy and (e, a) != (ece, accuracy) for e, a in points
        )
    }
    assert found == sorted(wanted)
    assert all(any(row is given for given in rows) for row in front)


def cells(table: str) -> list[list[str]]:
    lines = table.splitlines()
    assert set(lines[1]) == {"|", "-"}
    assert len({len(line) for line in lines}) == 1
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in [lines[0], *lines[2:]]
    ]


def test_table_shows_the_rows():
    rows = [
        make_row("adam", accuracy=0.656, ece=0.257, ece15=0.2644, nll=1.75, brier=0.5),
        make_row(accuracy=1.0, ece=0.0, ece15=1e-4, nll=0.98765, brier=2.0),
        make_row(samples=10, tau=0.25, prune=0.3),
    ]
    head, *body = cells(tables.table(rows))
    assert head[1:] == ["accuracy %", "ECE (10) %", "ECE (15) %", "NLL", "Brier"]
    assert body == [
        ["adam", "65.6", "25.7", "26.4", "1.750", "0.500"],
        ["ivon-lora@mean", "100.0", "0.0", "0.0", "0.988", "2.000"],
        [
            "ivon-lora, 10 samples, tau 0.25, prune 0.3",
            "50.0",
            "10.0",
            "20.0",
            "1.000",
            "0.400",
        ],
    ]


def test_a_table_has_the_metrics_of_its_rows():
    def row(**values):
        return {k: v for k, v in make_row().items() if not isinstance(v, float)} | {
            "tau": 1.0,
            "prune": 0.0,
            **values,
        }

    head, line = cells(tables.table([row(pearson=0.5, spearman=-0.25, mse=1.5)]))
    assert head[1:] == ["Pearson %", "Spearman %", "MSE"]
    assert line[1:] == ["50.0", "-25.0", "1.500"]
    head, _ = cells(tables.table([make_row(matthews=0.1, f1=0.2)]))
    assert head[1:4] == ["accuracy %", "Matthews %", "F1 %"]


def test_labels_tell_rows_apart():
    rows = [
        make_row("adam"),
        make_row(),
        make_row(prune=0.5),
        make_row(samples=4),
        make_row(samples=10),
        make_row(samples=4, tau=2.0),
        make_row(samples=4, prune=0.5),
    ]
    assert len({tables.label(row) for row in rows}) == len(rows)


def test_seeds_table_is_mean_and_standard_error():
    rng = np.random.default_rng(0)
    runs = [
        [
            make_row("adam", accuracy=rng.random(), nll=3 * rng.random()),
            make_row(samples=10, ece=rng.random(), brier=rng.random()),
        ]
        for _ in range(3)
    ]
    _, *body = cells(tables.seeds_table(runs))
    for i, line in enumerate(body):
        assert line[0] == tables.label(runs[0][i])
        names = ("accuracy", "ece", "ece15", "nll", "brier")
        for name, cell in zip(names, line[1:], strict=True):
            values = [float(run[i][name]) for run in runs]
            scale, digits = (1, 3) if name in ("nll", "brier") else (100, 1)
            mean, error = (float(x) for x in cell.split(" ± "))
            half = 0.5 * 10**-digits + 1e-9
            assert mean == pytest.approx(scale * statistics.mean(values), abs=half)
            wanted = scale * statistics.stdev(values) / math.sqrt(3)
            assert error == pytest.approx(wanted, abs=half)


def test_rows_of_older_versions_share_the_table_of_newer_ones():
    """Only the columns that both have."""
    new = make_row(spread=True, adaptive_ece=0.5, step_seconds=1.0)
    head, line = cells(tables.seeds_table([[make_row()], [new]]))
    assert head[1:] == ["accuracy %", "ECE (10) %", "ECE (15) %", "NLL", "Brier"]
    assert line[0] == "ivon-lora@mean"
    head, _ = cells(tables.seeds_table([[new], [new]]))
    assert head[-2:] == ["adaptive ECE %", "s/step"]


def test_the_terminal_has_fewer_columns_than_a_report():
    row = make_row(adaptive_ece=0.5, mce=0.25, passes=10, posterior_bytes=2_500_000)
    head, _ = cells(tables.table([row]))
    assert head[-1] == "Brier"
    head, line = cells(tables.table([row], tables.COLUMNS))
    assert head[6:] == ["adaptive ECE %", "MCE %", "posterior MB", "passes"]
    assert line[6:] == ["50.0", "25.0", "2.50", "10"]


@pytest.mark.parametrize(("spread", "name"), [(True, "x@mean"), (False, "x")])
def test_the_posterior_tells_whether_it_has_a_mean_besides(spread, name):
    """Of a method that this version does not know, too."""
    assert tables.label(make_row("x", spread=spread)) == name


def test_intervals_are_of_differences_on_the_same_examples():
    """Against resampling here; where both predict alike, there is no difference."""
    rng = np.random.default_rng(0)
    n = 60
    log_probs = np.log(rng.dirichlet([1, 1, 1], size=(2, n))).astype(np.float32)
    log_probs = np.stack([*log_probs, log_probs[0]])
    labels = rng.integers(3, size=n).astype(np.int32)
    rows = with_intervals([make_row(str(i)) for i in range(3)], log_probs, labels, 7)
    drawn = np.random.default_rng(7).integers(n, size=(2000, n))
    losses = -log_probs[:, np.arange(n), labels].astype(np.float64)
    means = losses[:, drawn].mean(-1)
    for row, mean in zip(rows, means, strict=True):
        assert row["errors"]["nll"] == pytest.approx(mean.std(ddof=1), rel=1e-5)
        wanted = np.quantile(mean - means[0], [0.025, 0.975])
        assert row["differences"]["nll"] == pytest.approx(list(wanted), abs=1e-6)
    assert all(interval == [0, 0] for interval in rows[2]["differences"].values())
    names = {"accuracy", "nll", "brier", "ece"}
    assert rows[1]["errors"].keys() == rows[1]["differences"].keys() == names


def test_differences_show_value_and_interval():
    rows = [make_row("adam"), make_row("other", accuracy=0.525, nll=0.75)]
    intervals = {"accuracy": [-0.01, 0.06], "nll": [-0.5, -0.125]}
    rows = [row | {"differences": intervals} for row in rows]
    head, line = cells(tables.differences(rows))
    assert head == ["minus adam", "accuracy %", "NLL"]
    assert line == ["other", "+2.5 [-1.0, +6.0]", "-0.250 [-0.500, -0.125]"]


def test_one_seed_has_no_error():
    _, line = cells(tables.seeds_table([[make_row(accuracy=0.25)]]))
    assert line[1] == "25.0"


@pytest.mark.parametrize(
    "other",
    [
        [make_row("adam"), make_row(tau=2.0, samples=3)],
        [make_row("adam")],
        [make_row(samples=3), make_row("adam")],
    ],
)
def test_seeds_table_compares_like_with_like(other):
    with pytest.raises(ValueError, match="methods or predictors differ"):
        tables.seeds_table([[make_row("adam"), make_row(samples=3)], other])


def fitted_row(temperature, of="mean", **values):
    row = make_row("temperature(adam)", spread=False, fit_seconds=1.0, **values)
    scaled = {"predict": "temperature", "of": of, "temperature": temperature}
    return row | scaled | {"uniform": 0.0}


def test_what_a_fit_found_may_differ_between_seeds():
    runs = [[fitted_row(1.5, accuracy=0.5)], [fitted_row(2.5, accuracy=0.7)]]
    _, line = cells(tables.seeds_table(runs))
    assert line[:2] == ["temperature(adam)", "60.0 ± 10.0"]
    _, line = cells(tables.seeds_table(runs[:1]))
    assert line[0] == "temperature(adam), T 1.5"
    with pytest.raises(ValueError, match="methods or predictors differ"):
        tables.seeds_table([runs[0], [fitted_row(2.5, of="samples")]])


# Figures.


def picture(path) -> np.ndarray:
    image = matplotlib.image.imread(path)[..., :3]
    height, width, _ = image.shape
    assert min(height, width) >= 500
    return image


def share(image: np.ndarray, red: float, green: float, blue: float) -> float:
    """Share of the pixels that have nearly this colour."""
    return float((np.abs(image - np.array([red, green, blue])).max(-1) < 0.15).mean())


ORANGE, BLUE, RED = (1.0, 0.5, 0.05), (0.12, 0.47, 0.71), (1.0, 0.0, 0.0)


def log(values) -> list[dict]:
    return [{"step": i, "loss": loss} for i, loss in enumerate(values, 1)]


@pytest.mark.parametrize("count", [1, 3, 200])
def test_training_curves(count, tmp_path):
    falling = [1 / i for i in range(1, count + 1)]
    logs = {"adam": log(falling), "ivon-lora": log([2 * x for x in falling])}
    figures.training_curves(tmp_path / "both.png", logs)
    both = picture(tmp_path / "both.png")
    figures.training_curves(tmp_path / "one.png", {"adam": logs["adam"]})
    one = picture(tmp_path / "one.png")
    assert share(both, *ORANGE) > 0 and share(both, *BLUE) > 0
    assert share(one, *ORANGE) > 0 and share(one, *BLUE) == 0


def test_training_curves_have_gaps_at_skipped_steps(tmp_path):
    values: list = [1.0] * 10 + [None] * 5 + [1.0] * 10
    figures.training_curves(tmp_path / "gap.png", {"adam": log(values)})
    assert share(picture(tmp_path / "gap.png"), *ORANGE) > 0


def test_reliability_draws_a_panel_each(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 200)
    log_probs = np.log(np.stack([p, 1 - p], 1)).astype(np.float32)
    labels = (rng.random(200) > p).astype(np.int32)
    sizes = []
    for names in (["adam"], ["adam", "ivon-lora@mean", "ivon-lora, 10 samples"]):
        path = tmp_path / f"{len(names)}.png"
        figures.reliability(path, dict.fromkeys(names, log_probs), labels)
        image = picture(path)
        # Calibrated: the blue bars fill the panel's upper confidences.
        assert 0.05 < 1 - share(image, 1, 1, 1) < 0.8
        sizes.append(image.shape[1])
    assert sizes[1] == 3 * sizes[0]


def test_many_reliability_diagrams_have_several_rows(tmp_path):
    log_probs = np.log(np.full((10, 2), 0.5, np.float32))
    names = [str(i) for i in range(6)]
    labels = np.zeros(10, np.int32)
    figures.reliability(tmp_path / "6.png", dict.fromkeys(names, log_probs), labels)
    figures.reliability(tmp_path / "4.png", dict.fromkeys(names[:4], log_probs), labels)
    six, four = (picture(tmp_path / f"{n}.png").shape for n in (6, 4))
    assert six[1] == four[1]
    assert six[0] == 2 * four[0]


SWEEP = [
    make_row(samples=4, tau=0.5, accuracy=0.4, ece=0.05),
    make_row(samples=4, tau=1.0, accuracy=0.5, ece=0.1),
    make_row(samples=4, prune=0.5, accuracy=0.45, ece=0.08),
]
MAIN = [
    make_row("adam", accuracy=0.5, ece=0.3),
    make_row(accuracy=0.6, ece=0.2),
    make_row(samples=10, accuracy=0.55, ece=0.1),
]


def with_errors(rows):
    errors = {"accuracy": 0.02, "nll": 0.1, "ece": 0.03}
    return [row | {"errors": errors} for row in rows]


def run_of(name, rows):
    return [row | {"run": name} for row in rows]


@pytest.mark.parametrize(
    "rows",
    [
        MAIN,
        MAIN + SWEEP,
        MAIN + SWEEP[:1],
        with_errors(MAIN + SWEEP),
        with_errors(MAIN + run_of("other", MAIN[1:]) + SWEEP + run_of("other", SWEEP)),
    ],
)
def test_trade_off_draws_adam_curves_and_front(rows, tmp_path):
    figures.trade_off(tmp_path / "trade_off.png", rows)
    image = picture(tmp_path / "trade_off.png")
    for colour in (ORANGE, BLUE, RED):
        assert share(image, *colour) > 0
    assert share(image, 1, 1, 1) > 0.7


def test_a_front_of_one_point_is_drawn(tmp_path, monkeypatch):
    real = figures.save

    def without_legend(figure, path):
        figure.legends[0].remove()
        real(figure, path)

    monkeypatch.setattr(figures, "save", without_legend)
    best = make_row("adam", accuracy=0.7, ece=0.01, nll=0.1)
    figures.trade_off(tmp_path / "trade_off.png", [best, make_row()])
    assert share(picture(tmp_path / "trade_off.png"), *RED) > 0


def test_trade_off_has_one_ensemble_size(tmp_path, monkeypatch):
    drawn = []
    real = figures.pareto_front
    monkeypatch.setattr(
        figures, "pareto_front", lambda rows, x: drawn.extend(rows) or real(rows, x)
    )
    figures.trade_off(tmp_path / "trade_off.png", MAIN + SWEEP)
    assert {row["samples"] for row in drawn} == {0, 4}
