"""What README and docs/results.md say is what results/ has; verdicts are by rule."""

import json

import numpy as np
import pytest
from test_imports import ROOT

from benchmarks.claims import CLAIMS, Evidence
from benchmarks.results import PAGES, read, rendered, verdict


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_current(name):
    """`make results` changes nothing."""
    text = (ROOT / name).read_text()
    assert rendered(text, read(ROOT / "results")) == text
    assert text.count("<!-- results:") == text.count("<!-- end -->") > 0


def table_of(**rows):
    """A file of results: of each row, the shift of its numbers over those of Adam."""
    rng = np.random.default_rng(0)
    base = {k: rng.uniform(0.3, 0.6, 4) for k in ("accuracy", "ece", "nll")}
    found = [{"row": "adam"} | {k: v.tolist() for k, v in base.items()}]
    for name, shift in rows.items():
        noise = np.array([-1, 1, 0.5, -0.5]) * 0.001
        shifted = {
            k: (v + shift * (-1) ** (k != "accuracy") + noise).tolist()
            for k, v in base.items()
        }
        found.append({"row": name} | shifted)
    about = {"task": "t", "model": "m", "train_examples": 8, "eval_examples": 4}
    about |= {"steps": 2, "seeds": [0, 1, 2, 3], "versions": {"jax": "1"}, "note": "n"}
    return {"cities": about | {"rows": found}}


BETTER = {"accuracy": 1, "ece": -1, "nll": -1}


def test_verdicts_follow_the_intervals():
    one = Evidence("cities", "ours*", "adam", BETTER)
    assert verdict([one], table_of(ours=0.05)) == "holds"
    assert verdict([one], table_of(ours=-0.05)) == "not shown here"
    assert verdict([one], table_of(ours=0.0)) == "not shown here"
    assert verdict([], {}) == "not shown here"
    mixed = table_of(ours=0.05)
    mixed["cities"]["rows"][1]["ece"] = mixed["cities"]["rows"][0]["ece"]
    assert verdict([one], mixed) == "holds in part"
    mixed["cities"]["rows"][1]["ece"] = [
        x + 0.1 for x in mixed["cities"]["rows"][0]["ece"]
    ]
    assert verdict([one], mixed) == "not shown here"


def test_costs_are_equal_within_a_share():
    for factor, wanted in ((1.02, "holds"), (1.1, "not shown here")):
        rows = [
            {"row": "adam", "step_seconds": [1.0, 1.1]},
            {"row": "ours", "step_seconds": [factor, 1.1 * factor]},
        ]
        found = {"cities": {"rows": rows}}
        one = Evidence("cities", "ours", "adam", {"step_seconds": 0})
        assert verdict([one], found) == wanted


def test_blocks_are_written_from_the_files(tmp_path):
    ours = "ivon-lora, 5 samples, tau 1, prune 0"
    found = table_of(**{"ivon-lora@mean": 0.05, ours: 0.1})
    (tmp_path / "cities.json").write_text(json.dumps(found["cities"]))
    page = "".join(
        f"{name}\n<!-- results: {name} -->\n%%\n<!-- end -->\n"
        for name in ("claims", "cities", "cities-short", "later")
    )
    text = rendered(page, read(tmp_path))
    assert text.count("%%") == 1  # of what is not there yet
    claims, whole, short, *_ = text.split("<!-- end -->\n")
    verdicts, shown = claims.strip().split("\n\n")[1:]
    assert len(verdicts.splitlines()) == 2 + len(CLAIMS)
    (early,) = (x for x in verdicts.splitlines() if x.startswith("| as "))
    assert "**holds**" in early
    (mean,) = (x for x in shown.splitlines() if "| ivon-lora@mean minus adam" in x)
    assert mean.count("**+5.0") == 1 and mean.count("**-5.0") == 1
    adam = np.mean(found["cities"]["rows"][0]["accuracy"])
    assert "| adam  " in whole and f"{100 * adam:.1f} ± " in whole
    assert "seeds 0, 1, 2, 3 (jax 1; n)" in whole
    assert "| Adam " in short and "| NLL " in short
    assert rendered(text, read(tmp_path)) == text
