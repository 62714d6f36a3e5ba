"""The way out of the process where it is slow: beside the answers, bounded, and nothing leaves that was not redacted."""

import threading
from collections import Counter
from datetime import UTC, datetime

import pytest

from actor.capture import episode_publisher as keeping
from actor.capture.episode_publisher import EpisodePublisher
from actor.settings import ActorSettings
from streams.core.events import Episode, Feedback
from streams.core.metrics import Metrics
from tests.support.captured import Spool

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Slow:
    """A redactor with models: it works when it is let, and stumbles over one word."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def text(self, text: str, found: Counter[str]) -> str:
        assert self.let.wait(60)
        if text == "stumble":
            raise IndexError("model")
        found["person"] += text.count("Ann")
        return text.replace("Ann", "[person]")


class Site:
    def __init__(self) -> None:
        self.slow, self.spool, self.metrics = Slow(), Spool(), Metrics()
        self.publisher = EpisodePublisher(self.spool, self.metrics, ActorSettings(), self.slow)  # type: ignore[arg-type]

    def skipped(self, reason: str) -> float:
        return self.metrics.value("tidemill_capture_skipped_total", reason=reason)


def episode(episode_id: str, answer: str) -> Episode:
    return Episode.model_validate({"episode_id": episode_id, "messages": [], "answer": answer, "started_at": NOW, "ended_at": NOW})


def comment(text: str) -> Feedback:
    return Feedback.model_validate({"feedback_id": "f", "episode_id": "e", "kind": "comment", "text": text, "at": NOW})


def test_who_hands_over_does_not_wait_and_closing_finishes_what_waits() -> None:
    context = Site()
    context.publisher.publish(episode("e", "I am Ann"))
    told = context.publisher.publish_feedback(comment("thanks, Ann"))
    assert (context.spool.episodes, context.spool.feedback, told.done()) == ([], [], False)
    context.slow.let.set()
    context.publisher.close()
    assert [each.answer for each in context.spool.episodes] == ["I am [person]"]
    assert [each.text for each in context.spool.feedback] == ["thanks, [person]"]
    assert told.result() is True
    assert context.metrics.value("tidemill_redactions_total", kind="person") == 2


def test_what_cannot_be_redacted_is_counted_and_does_not_leave() -> None:
    context = Site()
    context.slow.let.set()
    for name, answer in (("a", "stumble"), ("b", "fine")):
        context.publisher.publish(episode(name, answer))
    context.publisher.close()
    assert [each.episode_id for each in context.spool.episodes] == ["b"]
    assert context.skipped("keeper_failed") == 1
    assert context.publisher.find("a") is None


def test_more_than_it_can_bear_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MOST_WAITING", 2)
    context = Site()
    for number in range(5):
        context.publisher.publish(episode(f"e-{number}", "fine"))
    assert context.publisher.publish_feedback(comment("fine")).result() is False
    assert context.skipped("keeper_busy") == 4
    context.slow.let.set()
    context.publisher.close()
    assert [each.episode_id for each in context.spool.episodes] == ["e-0", "e-1"]
