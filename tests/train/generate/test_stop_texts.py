"""Where a text ends that has stop texts."""

import pytest

from ivon_jax.train.generate.stop_texts import before, settled


@pytest.mark.parametrize(
    ("text", "until", "found"),
    [
        ("one two", [], "one two"),
        ("one two", ["two", "one"], ""),
        ("one two", ["ne t", "e"], "o"),
        ("one two", ["tw", "three"], "one "),
    ],
)
def test_a_text_ends_before_the_first_stop_text(text, until, found):
    assert before(text, until) == found
    for size in range(len(text) + 1):  # what is shown of it while it grows is kept
        assert before(text, until).startswith(settled(text[:size], until))
