"""The page in a headless browser: drawn, usable by keyboard, hostile texts inert."""

import itertools
import re
import shutil

import numpy as np
import pytest
from tiny_fits import command
from tiny_results import (
    HOSTILE,
    gaussian,
    numbers,
    plain_texts,
    point,
    tokens,
    write_examples,
    write_numbers,
    write_run,
    write_text,
)

from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report.evaluated import read
from ivon_jax.train.report.sweep import Sweep

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WORDS = ("--samples", 2, "--taus", 0.5, 4, "--prunes", 0.25, 0.5)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages: of one run, of two, of numbers, of text."""
    home = tmp_path_factory.mktemp("pages")
    data = write_examples(home / "data", [*HOSTILE, *plain_texts(75)])
    first = write_run(home / "first", data)
    settings = Sweep(2, (0.5, 4.0), (0.25, 0.5)).settings(read(first))
    shutil.rmtree(first)
    first = write_run(home / "first", data, [*settings, Samples(4)], gaussian())
    second = write_run(home / "second", data, [Mean()], point(), "adam", seed=50)
    labels = np.arange(30, dtype=np.float32) / 30
    third = write_run(
        home / "third",
        write_numbers(home / "numbers", 30),
        predictions=lambda one: numbers(labels, one.passes),
    )
    text = write_text(home / "text", HOSTILE)
    lengths = [3, 1, 4, 2, 5]
    fourth = write_run(
        home / "fourth",
        text,
        predictions=lambda one: tokens(lengths, one.passes)[0],
        labels=tokens(lengths, 1)[1],
    )
    pages = {}
    for name, runs, words in (
        ("one", [first], WORDS),
        ("two", [first, second], WORDS),
        ("numbers", [third], ("--samples", 0)),
        ("text", [fourth], ("--samples", 0)),
    ):
        pages[name] = home / f"{name}.html"
        assert command("report", *runs, *words, "--out", pages[name]) == 0
    return pages


@pytest.fixture
def show(browser, made):
    """Opens a page; errors, requests and dialogues fail the test."""
    contexts, wrong = [], []

    def open_page(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        address = made[name].as_uri()
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url)
                if request.url.partition("#")[0] != address
                else None
            ),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("name", ["one", "two", "numbers", "text"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_every_page_fits_its_width(name, width, show):
    page = show(name, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg[role=img]").count() > 0


def test_hostile_texts_are_shown_as_they_are(show):
    page = show("text")
    assert page.title().startswith("text: fourth")
    shown = page.locator("td.text").all_text_contents()
    assert sorted(shown) == sorted(f"{i}:\n→ {x}" for i, x in enumerate(HOSTILE))
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_arrow_keys_change_the_numbers(show):
    page = show("two")
    before = page.locator("#numbers tbody tr").all_inner_texts()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "tau":
            break
    slider = page.locator("#tau")
    assert slider.evaluate("node => node === document.activeElement")
    assert slider.get_attribute("aria-valuetext") == "1"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "4"
    after = page.locator("#numbers tbody tr").all_inner_texts()
    assert "tau 4" in after[0]
    assert after[0] != before[0]
    assert after[1] == before[1]  # a point has nothing to temper
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "∞ (the mean)"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert "25 % pruned" in page.locator("#numbers tbody tr").first.inner_text()
    # What a screen reader says once the slider rests.
    text = "first, the mean, 25 % pruned: accuracy"
    page.locator("#status").filter(has_text=text).wait_for(state="attached")
    page.get_by_role("button", name="Back to the start").click()
    assert page.locator("#numbers tbody tr").all_inner_texts() == before


def test_abstention_moves_every_figure(show):
    page = show("two")
    pictures = page.locator("#figures svg[role=img]")
    before = pictures.evaluate_all("nodes => nodes.map((node) => node.outerHTML)")
    page.locator("#level").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    after = pictures.evaluate_all("nodes => nodes.map((node) => node.outerHTML)")
    assert len(before) == len(after) == 5
    assert not set(before) & set(after)
    row = page.locator("#numbers tbody tr").first.inner_text()
    assert re.search(r"64 of 80", row)


def test_sliders_are_only_those_that_apply(show):
    ids = "nodes => nodes.map((node) => node.id)"
    sliders = "input[type=range]"
    assert show("one").locator(sliders).evaluate_all(ids) == ["tau", "prune", "level"]
    for name in ("numbers", "text"):
        page = show(name)
        assert page.locator(sliders).count() == 0
        assert page.locator("#explore").count() == 0


def test_everything_has_a_name_and_a_table(show):
    page = show("two")
    figures = page.locator("figure")
    tables = page.locator("figure details table")
    assert figures.count() == tables.count() > 4
    assert page.evaluate(
        """() => [...document.querySelectorAll("svg[role=img]")]
            .every((node) => node.getAttribute("aria-label").length > 20)"""
    )
    assert page.evaluate(
        """() => [...document.querySelectorAll("input, section, [role=region]")]
            .every((node) => node.labels?.length || node.ariaLabel
                || document.getElementById(node.getAttribute("aria-labelledby")))"""
    )
    levels = page.locator("h1, h2, h3").evaluate_all(
        "nodes => nodes.map((node) => Number(node.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for part in page.locator("th").all():
        assert part.get_attribute("scope") in ("row", "col")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme, show):
    """4.5 for text and 3 for what is drawn, as WCAG 2.2 AA asks."""
    page = show("two", color_scheme=scheme)
    found = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const names = [...Array(6).keys()].map((i) => `--run${i}`);
          return Object.fromEntries(["--page", "--card", "--ink", "--soft", "--focus",
            ...names].map((name) => [name, style.getPropertyValue(name).trim()]));
        }"""
    )

    def light(name):
        parts = [int(found[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
        ]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for name in found.keys() - {"--page", "--card"}:
        for behind in ("--page", "--card"):
            low, high = sorted([light(name), light(behind)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, behind)


def test_focus_is_visible(show):
    page = show("one")
    page.keyboard.press("Tab")
    width = "node => getComputedStyle(node).outlineWidth"
    assert page.locator(":focus").inner_text() == "Skip to the results"
    for _ in range(12):
        assert page.locator(":focus").evaluate(width) == "3px"
        page.keyboard.press("Tab")


def test_it_prints(show, tmp_path):
    page = show("two", color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert not page.locator("nav").is_visible()
    ink = "getComputedStyle(document.body).color"
    assert page.evaluate(ink) == "rgb(0, 0, 0)"
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")


def test_without_a_script_the_results_are_there(show, made):
    page = show("two", java_script_enabled=False)
    text = page.locator("noscript").inner_text()
    assert "accuracy %" in text
    assert "ivon-lora, 4 samples" in text
