"""A verdict reaches the answers that led to it, and goes with it."""

from datetime import timedelta

from streams.core.events import Feedback, FeedbackKind, LedTurn, Message
from streams.erasure.forgotten_people import Forgotten, label_without
from streams.join.episode_state import decode_state
from streams.join.feedback_channels import led_turns
from streams.join.join_settings import JoinSettings
from tests.unit.streams.test_feedback_join import SETTINGS, T0, Bench, episode, feedback

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TALK = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Book it."),
    Message(role="assistant", content=None, tool_calls=(CALL,)),
    Message(role="tool", content="done", tool_call_id="c"),
    Message(role="assistant", content="Booked. Seats too?"),
    Message(role="user", content="Yes."),
)


def test_each_answer_further_back_weighs_the_discount_less() -> None:
    assert led_turns(TALK, 0.3) == (LedTurn(message=4, weight=0.3), LedTurn(message=2, weight=0.3**2))
    assert led_turns(TALK, 0.2) == (LedTurn(message=4, weight=0.2),)  # 0.04 is below what counts
    assert [turn.weight for turn in led_turns(TALK, 1.0)] == [1.0, 1.0]
    assert led_turns(TALK, 0.0) == ()
    assert led_turns((Message(role="assistant", content="Hi."), Message(role="user", content="Hi.")), 1.0) == ()  # it answers nobody
    assert len(led_turns(TALK * 20, 1.0)) == 8


def test_a_label_holds_what_renders_its_prompt_again_and_whom_its_verdict_reaches() -> None:
    bench = Bench(JoinSettings(turn_discount=0.5))
    given = episode(tools=({"type": "function"},), tool_calls=(CALL,), chat_template_kwargs={"enable_thinking": False}).model_copy(
        update={"messages": TALK}
    )
    assert bench.take(given) is None
    label = bench.take(feedback("f1", thumb="up"))
    assert label is not None
    assert (label.tools, label.tool_calls, label.chat_template_kwargs, label.unrenderable) == (given.tools, (CALL,), {"enable_thinking": False}, None)
    assert label.led_by == (LedTurn(message=4, weight=0.5), LedTurn(message=2, weight=0.25))
    withdrawn = bench.take(feedback("f2", hours=1, retracts="f1"))
    assert withdrawn is not None
    assert (withdrawn.verdict, withdrawn.led_by) == (None, ())


def test_an_erasure_of_the_only_voter_takes_it_from_the_earlier_answers_too() -> None:
    bench = Bench()
    bench.take(episode().model_copy(update={"messages": TALK}))
    bench.take(feedback("f1", thumb="up"))
    comment = Feedback(feedback_id="f2", episode_id="e", user_id="bob", kind=FeedbackKind.COMMENT, text="ok", at=T0 + timedelta(hours=1))
    label = bench.take(comment)
    assert label is not None
    assert label.led_by
    left = label_without(label, Forgotten.as_if_absent("ann"), 0, SETTINGS)
    assert left is not None
    assert (left.verdict, left.led_by) == (None, ())
    kept = label_without(label, Forgotten.as_if_absent("bob"), 0, SETTINGS)
    assert kept is not None
    assert (kept.verdict, kept.led_by) == (1.0, label.led_by)


def test_a_state_from_before_these_fields_is_read() -> None:
    known = b'{"policy":"p","tenant":"t","adapter":null,"outcome":"completed","messages":[],"answer":"a","ended_at":"2026-01-01T00:00:00Z"}'
    for whole, apart in ((b'{"expires_at":"2026-01-02T00:00:00Z","known":' + known + b"}", None), (b'{"expires_at":"2026-01-02T00:00:00Z"}', known)):
        found = decode_state(whole, apart).known
        assert found is not None
        assert (found.tools, found.tool_calls, found.chat_template_kwargs, found.unrenderable) == ((), (), {}, None)
