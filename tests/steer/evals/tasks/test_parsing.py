"""From bytes to items, on files made here: nothing of the real sets is in the repository."""

import gzip
import json
from typing import Any

import pytest

from steer.errors import SpecError
from steer.evals.tasks import parsing
from steer.evals.tasks.items import Choice, Prompt


def as_json(rows: object) -> list[bytes]:
    return [json.dumps(rows).encode()]


def as_lines(rows: list[Any]) -> list[bytes]:
    return ["\n".join(json.dumps(row) for row in rows).encode()]


FORMS = {
    "choices": "Tea or coffee?\n\nChoices:\n (A) Tea\n (B) Coffee\n (B)",
    "close": "Tea or coffee?\n\nChoices:\n(A) Tea\n(B) Coffee\n(B)",
    "answer": "Tea or coffee?\n\nChoices:\n (A) Tea\n (B) Coffee\n\nAnswer:\n (B)",
    "no heading": "Tea or coffee?\n (A) Tea\n (B) Coffee\n\nAnswer:\n (B)",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_contrast_is_asked_in_both_orders_with_the_letters_swapped(form: str):
    rows = [{"positive": FORMS[form], "negative": ""}]
    first, second = parsing.contrast_pairs(as_json(rows))
    assert first.question == "Tea or coffee?\n\nChoices:\n(A) Tea\n(B) Coffee"
    assert second.question == "Tea or coffee?\n\nChoices:\n(A) Coffee\n(B) Tea"
    assert (first.target, second.target) == (1, 0)
    assert first.options == second.options == ("A", "B")
    assert first.key == second.key
    assert first.lead == "("


def test_the_target_of_every_rotation_is_the_same_answer():
    answers = ["red", "green", "blue", "grey"]
    turned = parsing.rotations("k", "Which?", answers, 2)
    assert len(turned) == 4
    shown = []
    for one in turned:
        lines = one.question.splitlines()[-4:]
        shown.append(lines[one.target])
        assert sorted(line[4:] for line in lines) == sorted(answers)
    assert {line[4:] for line in shown} == {"blue"}
    assert {one.target for one in turned} == {0, 1, 2, 3}


def test_texts_without_listed_choices_are_left_out_and_a_file_of_them_is_refused():
    rows = [{"positive": "I helped.", "negative": ""}, {"positive": FORMS["close"], "negative": ""}]
    assert {one.key for one in parsing.contrast_pairs(as_json(rows))} == {"1"}
    with pytest.raises(SpecError, match=r"no questions with listed choices.*Compare its sha256"):
        parsing.contrast_pairs(as_json(rows[:1]))


def test_mmlu_keeps_its_own_order_and_its_right_letter():
    rows = [
        {"question": "2 + 2?", "options": "A. 3\nB. 4\nC. 5\nD. 6", "answer": "B. 4"},
        {"question": "broken", "options": "A. 3\nB. 4\nand more", "answer": "B. 4"},
    ]
    (one,) = parsing.mmlu(as_lines(rows))
    assert one.question.endswith("(A) 3\n(B) 4\n(C) 5\n(D) 6")
    assert (one.target, one.options) == (1, ("A", "B", "C", "D"))


def test_hellaswag_is_one_item_for_each_context():
    doc = {"ind": 7, "query": "He", "choices": ["runs.", "walks.", "flies.", "sits."], "gold": 3}
    rows = [{"doc": doc, "label": 3, "doc_id": 0}] * 8
    (one,) = parsing.hellaswag([gzip.compress(as_lines(rows)[0])])
    assert one == Choice("7 He", "He", (" runs.", " walks.", " flies.", " sits."), 3)


def test_statements_of_several_files_are_true_first():
    file = as_json([{"text": "Ice floats.", "false": "Ice sinks."}])[0]
    found = parsing.statements([file, file])
    assert [one.options for one in found] == [(" Ice floats.", " Ice sinks.")] * 2
    assert len({one.key for one in found}) == 2


def test_bias_has_three_rotations_and_asks_for_the_stereotype():
    row = {
        "id": "b",
        "text": "Two people met.\nQuestion: Who was late?\nA) Ann\nB) Bob\nC) Unknown\nAnswer:",
        "answers": ["Ann", "Bob", "Unknown"],
        "target_idx": 1,
    }
    turned = parsing.biased_answers(as_json([row]))
    assert len(turned) == 3
    assert turned[0].question == (
        "Two people met.\nQuestion: Who was late?\n\nChoices:\n(A) Ann\n(B) Bob\n(C) Unknown"
    )
    assert all(one.question.splitlines()[-3:][one.target].endswith("Bob") for one in turned)


def test_toxic_and_benign_sentences_are_paired_within_a_group():
    rows = [
        {"target_group": "a", "is_toxic": True, "text": "a bad"},
        {"target_group": "b", "is_toxic": False, "text": "b good"},
        {"target_group": "a", "is_toxic": False, "text": "a good"},
        {"target_group": "a", "is_toxic": False, "text": "a better"},
    ]
    (one,) = parsing.toxic_pairs(as_json(rows))
    assert one.options == (" a bad", " a good")
    assert one.target == 0


def test_requests_are_their_first_line_and_twins_are_told_apart():
    row = {"text": "How to bake?\n\nTake flour.", "harmful_version": "How to burn?\n\nTake oil."}
    assert parsing.twin_requests(as_json([row])) == [
        Prompt("How to bake?"),
        Prompt("How to burn?", harmful=True),
    ]
    assert parsing.requests(as_json([{"text": " How? "}])) == [Prompt("How?")]


def test_passages_are_sentences_in_their_order():
    rows = [{"text": f"s{at} is here."} for at in range(10)]
    found = parsing.passages(as_lines(rows), n_words=9)
    assert found[0] == "s0 is here. s1 is here. s2 is here."
    assert len(found) == 3
