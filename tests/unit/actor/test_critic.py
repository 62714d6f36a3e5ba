"""The critic: which episodes it reads, what its sentences amount to, and how much its word counts beside people's."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from actor.critic.critic_loop import Critic, chance_of_yes, is_in_share, signal_of, turn_before
from actor.critic.critic_settings import CriticSettings
from infra.settings.config import load
from infra.settings.part_addresses import parts
from reward.trust.voter_trust import LEAST_SAY, critic_weight
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.errors import Unavailable
from streams.core.events import Episode, Feedback
from streams.core.part_context import PartContext
from streams.join.join_settings import CRITIC
from streams.kafka import KafkaSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUBRIC = ("It answers what was asked.", "It speaks to the reader.")


def episode(number: int = 1, **fields: Any) -> Episode:
    given = {"episode_id": f"ep-{number}", "messages": [{"role": "user", "content": "What is tea?"}], "answer": "You drink it."}
    return Episode.model_validate(given | {"started_at": NOW, "ended_at": NOW} | fields)


class Told:
    """A judge that says what it is told to, by sentence."""

    def __init__(self, *chances: float | None, rubric: tuple[str, ...] = RUBRIC) -> None:
        self.chances: dict[str, float | None] = dict(zip(rubric, chances, strict=True))
        self.asked: list[tuple[str | None, ...]] = []

    def chance(self, question: str, answer: str, sentence: str, reply: str | None = None) -> float | None:
        self.asked.append((question, answer, sentence, reply))
        return self.chances[sentence]


@pytest.fixture
def context(tmp_path: Path) -> PartContext:
    return PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, clock=FixedClock(NOW))


def judged(context: PartContext, judge: Any, one: Episode, **settings: Any) -> Feedback | None:
    found = Critic(CriticSettings(rubric=RUBRIC, **settings), judge, context).feedback(one)
    return found[0] if found else None


def test_its_verdict_is_a_signal_of_its_own_channel_under_an_id_that_the_rubric_decides(context: PartContext) -> None:
    judge = Told(0.9, 0.8)
    first, again = judged(context, judge, episode()), judged(context, judge, episode())
    assert first is not None
    assert first == again
    assert first.signal in CRITIC
    assert first.user_id.startswith("critic-")
    assert sorted(judge.asked[:2]) == sorted(("What is tea?", "You drink it.", sentence, None) for sentence in RUBRIC)
    (other,) = Critic(CriticSettings(rubric=RUBRIC[::-1]), judge, context).feedback(episode())
    assert other.feedback_id != first.feedback_id
    assert context.metrics.value("tidemill_critic_verdicts_total", verdict="critic-good") == 3


def test_a_judge_that_is_away_or_unsure_says_nothing(context: PartContext) -> None:
    assert judged(context, Told(0.9, 0.2), episode()) is None
    assert judged(context, Told(None, None), episode()) is None

    class Away:
        def chance(self, question: str, answer: str, sentence: str, reply: str | None = None) -> float | None:
            raise Unavailable("away")

    with pytest.raises(Unavailable):
        judged(context, Away(), episode())


PLEASED = "The person is pleased."
NEXT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "You eat it."},
        {"role": "user", "content": "No, you drink it!"}]  # fmt: skip


def test_what_a_person_says_next_is_a_verdict_on_the_answer_before(context: PartContext) -> None:
    judge = Told(0.1, rubric=(PLEASED,))
    critic = Critic(CriticSettings(reply_rubric=(PLEASED,)), judge, context)
    (found,) = critic.feedback(episode(2, messages=NEXT, replies_to="ep-1"))
    assert (found.episode_id, found.signal) == ("ep-1", "critic-bad")
    assert judge.asked == [("What is tea?", "You eat it.", PLEASED, "No, you drink it!")]
    (again,) = critic.feedback(episode(3, messages=NEXT, replies_to="ep-1"))  # the same turn, answered once more
    assert again == found
    for fields in ({"replies_to": None}, {"policy": "other"}, {"messages": NEXT[-1:]}, {"messages": NEXT[:2]}):
        assert critic.feedback(episode(2, **({"messages": NEXT, "replies_to": "ep-1"} | fields))) == [], fields


def test_an_answer_and_the_one_before_it_are_judged_by_rubrics_of_their_own_in_voices_of_their_own(context: PartContext) -> None:
    settings = CriticSettings(rubric=RUBRIC, reply_rubric=RUBRIC)
    answer, before = Critic(settings, Told(0.9, 0.9), context).feedback(episode(2, messages=NEXT, replies_to="ep-1"))
    assert (answer.episode_id, before.episode_id) == ("ep-2", "ep-1")
    assert answer.user_id != before.user_id  # the newest of each critic counts: neither takes the other's place


@pytest.mark.parametrize("roles", [["user"], ["assistant", "user"], ["user", "assistant", "tool"], ["user", "user", "user"]])
def test_a_turn_that_is_not_told_whole_says_nothing(roles: list[str]) -> None:
    assert turn_before(episode(messages=[{"role": role, "content": "words"} for role in roles])) is None
    assert turn_before(episode(messages=[{**NEXT[1]}, {**NEXT[2], "content": " "}, {**NEXT[3]}])) is None
    assert turn_before(episode(messages=NEXT)) == ("What is tea?", "You eat it.", "No, you drink it!")


@pytest.mark.parametrize(("chances", "signal"), [
    ([0.9, 0.9], "critic-good"), ([0.1, 0.2], "critic-bad"), ([0.9, None], "critic-good"), ([0.6, 0.6], None), ([0.61, 0.61], "critic-good"),
    ([], None),
])  # fmt: skip
def test_the_sentences_mean_decides_beyond_the_margin(chances: list[float | None], signal: str | None) -> None:
    assert signal_of(chances, 0.1) == signal


def test_the_chance_of_yes_is_told_by_all_spellings_of_the_first_word() -> None:
    first = [(" Yes", math.log(0.3)), ("yes", math.log(0.3)), ("NO", math.log(0.2)), ("Maybe", math.log(0.1))]
    assert chance_of_yes(first) == pytest.approx(0.75)
    assert chance_of_yes([("Perhaps", -0.1)]) is None
    assert chance_of_yes([]) is None


def test_it_reads_whole_answers_of_its_policy_and_a_share_of_them_by_their_ids() -> None:
    for fields in ({"policy": "other"}, {"outcome": "failed"}, {"answer": "  "}, {"messages": []}, {"tool_calls": [{"name": "f"}]}):
        assert not is_in_share(episode(**fields), "default", 1.0), fields
    drawn = [number for number in range(2000) if is_in_share(episode(number), "default", 0.25)]
    assert len(drawn) == pytest.approx(500, abs=80)
    assert drawn == [number for number in range(2000) if is_in_share(episode(number), "default", 0.25)]


def test_its_word_counts_by_how_far_it_agrees_with_people() -> None:
    assert critic_weight([]) == pytest.approx((2 * 0.75 - 1) / 0.8)
    assert critic_weight([(1.0, 1.0), (0.0, 0.0)] * 50) == 1.0
    assert critic_weight([(1.0, 0.0), (0.0, 1.0)] * 10) == LEAST_SAY
    half = critic_weight([(1.0, 1.0), (1.0, 0.0)] * 100)
    assert LEAST_SAY < half < 0.05


def test_a_ring_has_a_critic_only_with_a_rubric(tmp_path: Path) -> None:
    config = tmp_path / "ring.toml"
    for rubric in ("rubric", "reply_rubric"):
        config.write_text(f'[critic]\n{rubric} = ["It answers what was asked."]\n')
        assert parts(load(config, (), {})) == ("streams", "reward", "actor", "learner", "critic")
    assert parts(load(None, (), {})) == ("streams", "reward", "actor", "learner")
