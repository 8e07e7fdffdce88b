"""Prompts and labels. The strings are written from the published templates."""

import jax.numpy as jnp
import pytest

from ivon_jax import metrics
from ivon_jax.metrics import regression
from ivon_jax.train.config import DataConfig
from ivon_jax.train.data.fields import Template, class_index
from ivon_jax.train.data.task import Example
from ivon_jax.train.splits import find_task
from ivon_jax.train.tasks.custom import custom_task
from ivon_jax.train.tasks.registry import TASKS, get_task

WINOGRANDE = {
    "sentence": "The cup fell on the rug and _ broke.",
    "option1": "cup",
    "option2": "rug",
    "answer": "1",
}
ARC = {
    "question": "What is hot?",
    "choices": {"label": ["A", "B", "C", "D"], "text": ["ice", "Fire.", "x. y", "éa"]},
    "answerKey": "B",
}


def arc(labels: list[str], texts: list[str], answer: str) -> dict:
    choices = {"label": labels, "text": texts}
    return {"question": "Q?", "choices": choices, "answerKey": answer}


def test_winogrande_prompt_of_the_code():
    # A full stop after each option, none after the letter B.
    assert get_task("winogrande_s").example(WINOGRANDE) == Example(
        "Select one of the choices that answers the following question: "
        "The cup fell on the rug and _ broke. Choices: A. cup. B rug. Answer:",
        0,
    )


def test_winogrande_prompt_of_the_table():
    task = get_task("winogrande_m", "paper_table")
    assert task.example({**WINOGRANDE, "answer": "2"}) == Example(
        "Select one of the choices that answers the following question: "
        "The cup fell on the rug and _ broke. Choices: A. cup B. rug Answer:",
        1,
    )


@pytest.mark.parametrize("name", ["arc_challenge", "arc_easy"])
def test_arc_prompt(name):
    assert get_task(name).example(ARC) == Example(
        "Select one of the choices that answers the following question: "
        "What is hot? Choices: A. Ice. B. Fire. C. X. y. D. Éa. Answer:",
        1,
    )


def test_openbookqa_prompt():
    row = {**ARC, "question_stem": "A hot thing is", "answerKey": "D"}
    del row["question"]
    assert get_task("openbookqa").example(row) == Example(
        "Select one of the choices that answers the following question: "
        "A hot thing is Choices: A. Ice. B. Fire. C. X. y. D. Éa. Answer:",
        3,
    )


@pytest.mark.parametrize(("answer", "label"), [(False, 0), (True, 1), ("true", 1)])
def test_boolq_prompt(answer, label):
    row = {"question": "is it so", "passage": "It is ({so}).", "answer": answer}
    assert get_task("boolq").example(row) == Example(
        "Answer the question with only True or False: is it so Context: It is ({so}).",
        label,
    )


def test_city_prompt():
    row = {"name": "Lima", "continent": "America"}
    assert get_task("city-continent").example(row) == Example(
        "Question: On which continent is the city of Lima? Answer:", 1
    )


def test_numbered_choices_become_letters():
    task = get_task("arc_easy")
    numbered = task.example(arc(["1", "2", "3", "4"], ["a", "b", "c", "d"], "3"))
    lettered = task.example(arc(["A", "B", "C", "D"], ["a", "b", "c", "d"], "C"))
    assert numbered == lettered
    assert numbered.label == 2


def test_the_rows_own_choice_labels_count_not_their_place():
    example = get_task("arc_easy").example(arc(list("BADC"), list("wxyz"), "A"))
    assert "Choices: B. W. A. X. D. Y. C. Z. Answer:" in example.prompt
    assert example.label == 0


@pytest.mark.parametrize("count", [3, 5])
def test_only_items_with_four_choices_are_kept(count):
    row = arc(list("ABCDE")[:count], list("vwxyz")[:count], "A")
    assert get_task("arc_challenge").example(row) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (arc(list("ABCE"), list("wxyz"), "A"), "neither A-D nor 1-4"),
        (arc(list("ABCC"), list("wxyz"), "A"), "neither A-D nor 1-4"),
        (arc(list("ABCD"), list("wxyz"), "E"), "answerKey 'E' is not among"),
        (arc(list("ABCD"), list("wxy"), "A"), "more or fewer labels than texts"),
        (arc(list("ABCD"), ["w", "", "y", "z"], "A"), "non-empty"),
        ({**ARC, "choices": ["a", "b", "c", "d"]}, "two lists"),
        ({"question": "Q?", "choices": ARC["choices"]}, "no field 'answerKey'; the"),
    ],
)
def test_malformed_choices(row, message):
    with pytest.raises(ValueError, match=message):
        get_task("arc_easy").example(row)


@pytest.mark.parametrize("answer", ["", "3", 0, None])
def test_winogrande_answer_is_1_or_2(answer):
    with pytest.raises(ValueError, match="neither '1' nor '2'"):
        get_task("winogrande_s").example({**WINOGRANDE, "answer": answer})


@pytest.mark.parametrize("answer", ["yes", 1, None])
def test_boolq_answer_is_a_truth_value(answer):
    with pytest.raises(ValueError, match="neither true nor false"):
        row = {"question": "q", "passage": "p", "answer": answer}
        get_task("boolq").example(row)


# The hub's label ids: RTE and QNLI 0 = entailment; MRPC 1 = equivalent; CoLA 1 =
# acceptable; SST-2 1 = positive.
@pytest.mark.parametrize(
    ("name", "yes", "word"),
    [
        ("sst2", 1, "positive"),
        ("cola", 1, "yes"),
        ("mrpc", 1, "yes"),
        ("rte", 0, "yes"),
        ("qnli", 0, "yes"),
        ("qqp", 1, "yes"),
    ],
)
def test_glue_label_ids(name, yes, word):
    task = get_task(name)
    names = ("sentence", "sentence1", "sentence2", "question", "question1", "question2")
    row = {key: f"<{key}> " for key in names} | {"label": yes}
    example = task.example(row)
    assert task.label_words[example.label] == word
    assert task.preset == "glue"
    # The label word, blank included, must follow the cue directly.
    assert example.prompt.endswith(":")
    assert " \n" not in example.prompt
    # An encoder reads all that the prompt shows.
    assert example.texts == tuple(row[key] for key in task.inputs)
    assert all(text.strip() in example.prompt for text in example.texts)


def test_stsb_asks_for_a_number():
    task = get_task("stsb")
    row = {"sentence1": "a", "sentence2": "b", "label": 3.8}
    assert task.example(row) == Example("", 3.8, ("a", "b"))
    assert task.example(row | {"label": "5"}).label == 5.0
    assert (task.label_words, task.outputs) == ((), 1)
    for label in (None, "x", True, [1], float("nan"), 10**400):
        with pytest.raises(ValueError, match="'label' must be a number") as caught:
            task.example(row | {"label": label})
        assert len(str(caught.value)) < 120


@pytest.mark.parametrize("label", [-1, 2, "2", None, True, 0.5, float("inf"), "x" * 99])
def test_glue_label_out_of_range(label):
    with pytest.raises(ValueError, match=r"is not 0 to 1$") as caught:
        get_task("sst2").example({"sentence": "s", "label": label})
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_distinct_words_and_rows(name):
    task = get_task(name)
    assert task.name == name
    if task.label_words:
        assert task.outputs == len(set(task.label_words)) == len(task.label_words) >= 2
        assert all(hasattr(metrics, name) for name in task.metrics)
    elif task.exchange:
        assert task.parse and task.target is None
    else:
        assert set(task.metrics) <= regression.summary(jnp.ones(2), jnp.ones(2)).keys()
    assert (task.source is None) != (task.rows is None)


def test_unknown_names_list_the_legal_ones():
    with pytest.raises(ValueError, match=r"'mnli'; legal: city-continent, .*qnli"):
        get_task("mnli")
    with pytest.raises(ValueError, match="legal: paper_code, paper_table"):
        get_task("boolq", "paper")


def test_custom_task():
    task = custom_task("{{{a}}} and {b c}\nTopic:", ("sport", " art"))
    assert task.label_words == ("sport", "art")
    assert task.preset == "custom"
    row = {"a": "{b}", "b c": 2, "label": "art"}
    assert task.example(row) == Example("{{b}} and 2\nTopic:", 1)


@pytest.mark.parametrize(
    ("prompt", "labels", "message"),
    [
        ("no field:", ("a", "b"), "no {field} placeholder"),
        ("{text", ("a", "b"), "expected '}'"),
        ("{}:", ("a", "b"), "placeholder is a field's name"),
        ("{text!r}:", ("a", "b"), "placeholder is a field's name"),
        ("{text:>9}:", ("a", "b"), "placeholder is a field's name"),
        ("{text} {label}:", ("a", "b"), "shows the answer"),
        ("{text}: ", ("a", "b"), "ends in a blank"),
        ("{text}:", ("a",), "at least two"),
        ("{text}:", ("a", "a "), "distinct"),
        ("{text}:", ("a", " "), "not empty"),
    ],
)
def test_custom_task_refuses(prompt, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        custom_task(prompt, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "labels", "space"),
    [
        ("Review: {text} Sentiment:", ("good", "bad"), True),
        ("{text}", ("good", "bad"), True),
        ("Отзыв: {text} Оценка:", ("хорошо", "плохо"), True),
        ("리뷰: {text} 감정", ("좋음", "나쁨"), True),  # wide, but with blanks
        ("({text})", ("good", "bad"), True),
        ("{text}\nAnswer:\n", ("yes", "no"), False),
        ("{text}\tAnswer (", ("yes", "no"), False),
        ("{text} “", ("yes", "no"), False),
        ("评价：{text}情感：", ("好", "坏"), False),
        ("题目：{text}\n答案：", ("A", "B"), False),
        ("Review: {text} Sentiment:", ("好", "坏"), False),
        ("Review: {text} Sentiment: ", ("好", "坏"), False),
        ("{text}:", ("ポジ", "ネガ"), False),
        ("{text}:", ("ใช่", "ไม่"), False),
        ("{text}:", ("ကောင်း", "ဆိုး"), False),
    ],
)
def test_the_blank_before_an_answer(prompt, labels, space):
    task = custom_task(prompt, labels)
    assert task.leading_space is space
    # A blank too many is in no text.
    assert task.other_space is not prompt.endswith(" ")
    for chosen in (True, False):
        if not (chosen and prompt.endswith(" ")):
            task = custom_task(prompt, labels, leading_space=chosen)
            assert (task.leading_space, task.other_space) == (chosen, False)


@pytest.mark.parametrize("name", [n for n in TASKS if not get_task(n).exchange])
def test_built_in_tasks_have_a_blank_before_the_answer(name):
    for chosen, space in (("auto", True), ("yes", True), ("no", False)):
        task = find_task(DataConfig(task=name, leading_space=chosen))
        assert (task.leading_space, task.other_space) == (space, False)


def test_custom_template_naming_an_absent_field_lists_those_there_are():
    task = custom_task("{headline}:", ("a", "b"))
    with pytest.raises(
        ValueError, match=r"no field 'headline'; the .* 'text', 'label'"
    ):
        task.example({"text": "t", "label": 0})


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_template_takes_text_only(value):
    with pytest.raises(ValueError, match="field 'a' must be text"):
        Template("{a}")({"a": value})


@pytest.mark.parametrize(
    ("value", "words", "index"),
    [
        ("b", ("a", "b"), 1),
        (" b\n", ("a", "b"), 1),
        (1, ("a", "b"), 1),
        ("1", ("a", "b"), 1),
        (1.0, ("a", "b"), 1),
        # Stars: 1 names the first word, not the second class.
        (1, ("1", "2", "3"), 0),
        ("3", ("1", "2", "3"), 2),
        (True, ("False", "True"), 1),
        (False, ("true", "false"), 1),
    ],
)
def test_class_index(value, words, index):
    assert class_index(value, words) == index


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, ("1", "2")), (True, ("no", "yes")), ("B", ("a", "b")), ("²", ("a", "b"))],
)
def test_class_index_refuses(value, words):
    with pytest.raises(ValueError, match=f"is not one of {words[0]}, {words[1]}"):
        class_index(value, words)
