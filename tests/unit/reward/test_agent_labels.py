"""Labels of agents' work: tools and calls are seen, and a verdict reaches the answers that led to it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from reward.features.featurizer import Featurizer
from reward.fit.buffer_entry import BufferEntry
from reward.fit.head_fit import FitPart
from reward.settings import RewardSettings
from reward.trust.vote_caps import capped_rows
from reward.updater.refitter import Refitter
from streams.core.chat_prompt import ChatPrompt, whole_answer
from streams.core.events import Evidence, Label, LedTurn, Message, Vote
from tests.unit.reward.test_refitter import SMALL, START, CountedLetters

torch.set_num_threads(1)
CALL = {"id": "c", "type": "function", "function": {"name": "brew", "arguments": '{"leaf": "oolong"}'}}
TOOL = {"type": "function", "function": {"name": "brew", "parameters": {}}}
ASKED = Message(role="user", content="tea?")
FREE = SMALL.model_copy(update={"person_share": 1.0, "hour_share": 1.0, "tenant_share": 1.0, "weigh_reliability": False})


def label(
    number: int, verdict: float | None, *before: Message, answer: str = "you", weights: tuple[float, ...] = (), at: int = 0, **more: object
) -> Label:
    """``before``: what was said before its question; ``weights``: of its earlier answers, nearest first."""
    when, messages = START + timedelta(minutes=at), (*before, Message(role="user", content=f"and then {number}?"))
    places = [n for n, message in enumerate(messages) if message.role == "assistant"][::-1]
    votes = () if verdict is None else (Vote(feedback_id=f"f-{number}", user_id=f"u-{number}", kind="thumb", value=verdict, at=when),)  # type: ignore[arg-type]
    evidence = () if verdict is None else (Evidence(channel="thumbs", value=verdict, weight=1.0, feedback_ids=(f"f-{number}",)),)
    return Label.model_validate({
        "episode_id": f"ep-{number}", "policy": "default", "outcome": "completed", "messages": messages, "answer": answer, "verdict": verdict,
        "votes": votes, "evidence": evidence, "led_by": [LedTurn(message=n, weight=w) for n, w in zip(places, weights, strict=False)],
        "superseded": () if verdict is not None else (f"f-{number}",), "episode_at": START, "first_feedback_at": START, "newest_feedback_at": when,
    } | more)  # fmt: skip


def said(text: str, *calls: dict[str, object]) -> tuple[Message, Message]:
    """A question and its answer."""
    return ASKED, Message(role="assistant", content=text, tool_calls=calls or None)


def held(*labels: Label) -> Refitter:
    made = Refitter(FREE, CountedLetters())
    made.absorb(made.prepare(labels))
    return made


def test_a_verdict_reaches_earlier_answers_as_part_of_its_label() -> None:
    """By hand: two labels of one person each, the first reaching answers at 0.5 and 0.25 of a thumb."""
    made = held(label(1, 1.0, *said("tea"), *said("you tea"), weights=(0.5, 0.25)), label(2, 0.0))
    rows = capped_rows(made.buffer, FREE).rows
    assert rows.episodes[:2] == ["ep-1", "ep-2"]
    reached = {tuple(rows.thumbs_ND[n].tolist()): (rows.episodes[n], rows.verdicts_N[n].item(), rows.parts[n]) for n in (2, 3)}
    features = CountedLetters().features([((), "you tea"), ((), "tea")])
    assert reached == {
        tuple(features[0].tolist()): ("ep-1", 1.0, (FitPart(1.0, 0.5),)),
        tuple(features[1].tolist()): ("ep-1", 1.0, (FitPart(1.0, 0.25),)),
    }
    assert rows.voters[2:] == [rows.voters[0]] * 2
    assert rows.fold_keys[2:] == [rows.fold_keys[0]] * 2
    assert rows.complete_N[2:].tolist() == [0.0, 0.0]
    assert torch.isfinite(made.fitted().heads_KD).all()


def test_nobody_holds_more_than_their_share_through_long_conversations() -> None:
    talk = [part for n in range(4) for part in said(f"tea {n}")]
    labels = [label(n, float(n % 2)) for n in range(8)] + [label(9, 1.0, *talk, weights=(1.0,) * 4)]
    made = held(*labels)
    settings = FREE.model_copy(update={"person_share": 0.2})
    capped = capped_rows(made.buffer, settings)
    amounts_N = capped.rows.weights_N.double() * capped.rows.amounts_N
    theirs = sum(float(amount) for amount, voters in zip(amounts_N, capped.rows.voters, strict=True) if voters == capped.rows.voters[-1])
    assert len(capped.rows.episodes) == 13
    assert theirs / float(amounts_N.sum()) == pytest.approx(0.2, abs=1e-6)
    assert capped.largest_share == pytest.approx(0.2, abs=1e-6)


def test_an_answers_own_verdict_counts_and_of_later_ones_the_nearest() -> None:
    first, second = said("tea tea"), said("you")
    own = label(1, 0.0, answer="tea tea ").model_copy(update={"messages": (ASKED,)})  # clients send answers back without the space around them
    far = label(3, 1.0, *first, *second, weights=(0.5, 0.25), at=3)
    near = label(2, 0.0, *first, weights=(0.5,), at=2)
    rows = capped_rows(held(own, far).buffer, FREE).rows
    assert [part.weight for (part,) in rows.parts] == [1.0, 1.0, 0.5]  # the first answer keeps its own thumb
    rows = capped_rows(held(near, far).buffer, FREE).rows
    reached = [(rows.episodes[n], rows.parts[n][0].weight) for n in range(2, len(rows.parts))]
    assert sorted(reached) == [("ep-2", 0.5), ("ep-3", 0.5)]


def test_what_is_withdrawn_or_erased_is_withdrawn_from_earlier_answers_too() -> None:
    talk = label(1, 1.0, *said("tea"), weights=(0.5,))
    other = label(2, 0.0)
    for left in (label(1, None, *said("tea"), at=9), None):
        made = held(talk, other)
        assert len(capped_rows(made.buffer, FREE).rows.parts) == 3
        made.absorb(made.prepare([left]) if left else [], () if left else ["ep-1"])
        assert capped_rows(made.buffer, FREE).rows.episodes == ["ep-2"]


def test_earlier_answers_survive_the_durable_table() -> None:
    (entry,) = Refitter(FREE, CountedLetters()).prepare([label(1, 1.0, *said("tea"), weights=(0.5,))])
    (again,) = BufferEntry.decode(entry.encode()).led
    assert (again.said, again.weight) == (entry.led[0].said, 0.5)
    assert torch.equal(again.features_D, entry.led[0].features_D)
    assert replace(entry, led=()).encode() != entry.encode()


def test_the_result_does_not_depend_on_the_order_in_which_labels_came() -> None:
    first, second = said("tea tea"), said("you")
    labels = [
        label(2, 0.0, *first, weights=(0.5,), at=2),
        label(3, 1.0, *first, *second, weights=(0.5, 0.5), at=3),
        label(4, 1.0, *first, weights=(0.5,)),
    ]
    one, other = (capped_rows(held(*order).buffer, FREE).rows for order in (labels, labels[::-1]))
    assert one.episodes == other.episodes
    assert torch.equal(one.thumbs_ND, other.thumbs_ND)
    assert torch.equal(one.verdicts_N, other.verdicts_N)


def test_an_answer_that_is_a_call_alone_is_not_empty(tiny_base: Path) -> None:
    features = Featurizer(tiny_base / "dense", RewardSettings(dtype="float32"))
    call = label(1, 1.0, answer="", tool_calls=(CALL,), tools=(TOOL,))
    (entry,) = Refitter(FREE, features).prepare([call])
    assert entry.words > 0
    assert entry.features_D is not None
    called, empty, other = features.features([(call.prompt, call.whole_answer), (call.prompt, ""), (call.messages, call.whole_answer)])
    assert not torch.equal(called, empty)
    assert not torch.equal(called, other)  # the tools count too, though this backbone's template knows none


def test_tools_and_calls_in_a_conversation_are_read(tiny_base: Path) -> None:
    features = Featurizer(tiny_base / "dense", RewardSettings(dtype="float32"))
    talk = (*said("", CALL), Message(role="tool", content="done", tool_call_id="c"))
    read = features._render(ChatPrompt(talk, (TOOL,)))
    assert whole_answer("", [CALL]) in read
    assert '{"name": "brew", "description": null' in read
    silent = (*said(""), Message(role="tool", content="done", tool_call_id="c"))
    one, two, three = features.features([(ChatPrompt(talk, (TOOL,)), "Done."), (talk, "Done."), (silent, "Done.")])
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)


def test_answers_about_what_words_do_not_show_teach_nothing() -> None:
    image = Message(role="user", content=({"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "sha256:0"}}))
    (entry,) = Refitter(FREE, CountedLetters()).prepare([label(1, 1.0).model_copy(update={"messages": (image,)})])
    assert (entry.features_D, entry.verdict, entry.stratum) == (None, None, "withdrawn")
