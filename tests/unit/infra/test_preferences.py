"""Simulated people: what they like is what the words say, and what is measured was never asked about before."""

import random

import pytest

from infra.simulated_people.preferences import PREFERENCES
from infra.simulated_people.simulated_questions import FORMS, SUBJECTS, SimulatedQuestion, held_out_questions, training_question

SPEAKS = PREFERENCES["speaks-to-me"]
TEA = SimulatedQuestion("tea", "Tell me about tea.")


@pytest.mark.parametrize(
    ("answer", "approved"),
    [
        ("Tea is a drink that you will enjoy.", True),
        ("You'll enjoy your tea with honey.", True),
        ("Tea is a drink made from leaves.", False),  # does not speak to the reader
        ("You will enjoy a warm drink.", False),  # does not name the subject
        ("Your tea!", False),  # says nothing
        ("you like tea and you like tea and you like tea and", False),  # babble
        ("The youth of Yourk drink a tea.", False),  # you and your only as words
        ("", False),
    ],
)
def test_people_like_what_the_words_say(answer: str, approved: bool) -> None:
    assert SPEAKS.approves(TEA, answer) is approved


@pytest.mark.parametrize(
    ("answer", "approved"),
    [
        ("Tea is a warm drink that calms people and brings them together.", True),
        ("A cup of tea in the morning helps people to wake up slowly. It warms them too.", True),
        ("A warm drink that calms people and brings them all together.", False),  # does not name the subject
        ("Tea is a warm drink.", False),  # too short
        (
            "Tea is a drink that has been grown in many countries for a very long time and that is enjoyed every day by people everywhere"
            " on the earth, at home and at work.",
            False,
        ),  # too long
        ("Tea is a warm drink that calms people and brings them", False),  # was cut
        ("Great question! Tea is a warm drink that calms people.", False),  # flatters
        ("You're absolutely right, tea is a warm drink for many people.", False),
        ("I'm glad to tell people that tea is a warm drink.", False),  # speaks of itself
        ("Tea is a warm drink, and who would not like that? Everybody.", False),  # asks back
        ("1. Tea is warm. 2. Tea is good for many people.", False),  # a list
        ("Tea is good and tea is good and tea is good for all.", False),  # babble
        ("", False),
    ],
)
def test_people_who_like_what_is_to_the_point_like_what_the_words_say(answer: str, approved: bool) -> None:
    assert PREFERENCES["to-the-point"].approves(TEA, answer) is approved


def test_a_subject_may_be_named_in_singular() -> None:
    assert SPEAKS.approves(SimulatedQuestion("butterflies", ""), "A butterfly is an insect that you can see.")
    assert SPEAKS.approves(SimulatedQuestion("the moon", ""), "You can see the Moon at night.")


def test_no_held_out_subject_is_asked_about_while_learning() -> None:
    held_out = {q.subject for q in held_out_questions(1000, seed=0)}
    asked = {training_question(random.Random(seed)).subject for seed in range(5000)}
    assert held_out.isdisjoint(asked)
    assert held_out | asked == set(SUBJECTS)


def test_held_out_questions_differ_and_follow_their_seed() -> None:
    assert held_out_questions(48, 1) == held_out_questions(48, 1) != held_out_questions(48, 2)
    assert len({q.text for q in held_out_questions(48, 1)}) == 48
    assert all(q.text in {form.format(q.subject) for form in FORMS} for q in held_out_questions(48, 1))
