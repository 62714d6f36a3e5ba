"""The critic: a model reads an episode, answers a rubric of yes-or-no sentences, and its verdict is published as a signal of its own.

LLM-as-a-judge by the chances of its first word (G-Eval, Liu et al. 2023, section 2), which is finer than the word and needs one token. What a
person says next is read the same way, by a rubric of its own: satisfaction shows in the next turn (Hancock et al. 2019). The signal is
``critic-good`` or ``critic-bad``; the join keeps it in its own channel, and the reward model weighs it by how far it agrees with people.
"""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import openai
import structlog

from actor.actor_client import client
from actor.critic.critic_settings import CriticSettings
from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Episode, Feedback, FeedbackKind, Outcome
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.core.topics import EPISODES, FEEDBACK
from streams.kafka import Consumer, Producer, Record
from streams.kafka.dead_letters import DeadLetters

LOOP = "critic"
RETRY_S = 5.0
TIMEOUT_S = 120.0
TURN_S = 3600.0
MOST_CHARACTERS = 4000
"""Longest question and longest answer, since a judge's context is small."""
INSTRUCTION = "You judge answers. Reply with one word: yes or no."
log = structlog.get_logger()


class RubricJudge(Protocol):
    """Judges whether a sentence is true of an answer. The critic and its tests depend on this protocol instead of HTTP."""

    def chance(self, question: str, answer: str, sentence: str, reply: str | None = None) -> float | None:
        """``reply``: what the person said next, when the sentence is about that. 0 to 1; None when it said neither yes nor no, or will not read
        this. Raises Unavailable when it cannot be asked at all."""


class OpenAiJudge:
    """Judges over HTTP, by the logprobs of the first token."""

    def __init__(self, settings: CriticSettings, base_url: str) -> None:
        self._client, self._model = client(base_url, settings.api_key, TIMEOUT_S), settings.model

    def chance(self, question: str, answer: str, sentence: str, reply: str | None = None) -> float | None:
        about = "Is this true of the answer?" if reply is None else f"What the person said next:\n{reply}\n\nGoing by that, is this true?"
        asked = f"Question:\n{question}\n\nAnswer:\n{answer}\n\n{about} {sentence}"
        messages: Any = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]
        try:
            said = self._client.chat.completions.create(
                model=self._model, messages=messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return None
        except openai.OpenAIError as error:
            raise Unavailable(f"the critic cannot ask {self._model} at {self._client.base_url}: {error}") from None
        logprobs = said.choices[0].logprobs
        first = logprobs.content[0].top_logprobs if logprobs and logprobs.content else []
        return chance_of_yes([(token.token, token.logprob) for token in first])


def chance_of_yes(first: Sequence[tuple[str, float]]) -> float | None:
    """P(yes) from the first token's candidates (text, logprob in nats), yes against no. None when neither is among them."""
    mass = {word: sum(math.exp(logprob) for text, logprob in first if text.strip().lower() == word) for word in ("yes", "no")}
    total = mass["yes"] + mass["no"]
    return mass["yes"] / total if total > 0 else None


def is_in_share(episode: Episode, policy: str, share: float) -> bool:
    """True for the policy's readable answers that belong to the judged share, drawn by episode id."""
    whole = episode.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED) and episode.answer.strip() and not episode.tool_calls
    return episode.policy == policy and bool(whole) and bool(episode.messages) and is_drawn(episode.episode_id, share)


def is_drawn(episode_id: str, share: float) -> bool:
    """True when the episode belongs to the judged share."""
    return int.from_bytes(hashlib.sha256(f"critic {episode_id}".encode()).digest()[:8], "big") / 2**64 < share


def turn_before(episode: Episode) -> tuple[str, str, str] | None:
    """Question, answer and what the person said next, as an episode's newest messages tell them; None when they do not tell all three in text."""
    turn = [message for message in episode.messages if message.role != "system"][-3:]
    texts = [message.text.strip() for message in turn]
    return (texts[0], texts[1], texts[2]) if [message.role for message in turn] == ["user", "assistant", "user"] and all(texts) else None


def signal_of(chances: Sequence[float | None], margin: float) -> str | None:
    """The verdict of the sentences that were answered: their mean; None when it is near 0.5, or none was."""
    told = [chance for chance in chances if chance is not None]
    if not told or abs((mean := sum(told) / len(told)) - 0.5) <= margin:
        return None
    return "critic-good" if mean > 0.5 else "critic-bad"


class Critic:
    """Judges one episode after another."""

    def __init__(self, settings: CriticSettings, judge: RubricJudge, context: PartContext) -> None:
        self._settings, self._judge, self._context = settings, judge, context

    def feedback(self, episode: Episode) -> list[Feedback]:
        """What to publish of it: on its own answer, and on the one that its person replied to. Raises Unavailable."""
        found = []
        if is_in_share(episode, self._context.policy, self._settings.share):
            found.append(self._verdict(self._settings.rubric, episode.episode_id, episode.messages[-1].text, episode.answer))
        answered, turn = episode.replies_to, turn_before(episode)
        if episode.policy == self._context.policy and answered and turn and is_drawn(answered, self._settings.share):
            found.append(self._verdict(self._settings.reply_rubric, answered, *turn))
        return [feedback for feedback in found if feedback is not None]

    def _verdict(self, rubric: Sequence[str], episode_id: str, question: str, answer: str, reply: str | None = None) -> Feedback | None:
        """The verdict as feedback. Its id depends on rubric and episode, so that it counts once."""
        if not rubric:
            return None
        question, answer, reply = question[-MOST_CHARACTERS:], answer[:MOST_CHARACTERS], reply and reply[:MOST_CHARACTERS]
        with ThreadPoolExecutor(self._settings.at_once) as pool:
            chances = list(pool.map(lambda sentence: self._judge.chance(question, answer, sentence, reply), rubric))
        signal = signal_of(chances, self._settings.margin)
        self._context.metrics.add("tidemill_critic_verdicts_total", verdict=signal or "none")
        if signal is None:
            return None
        what = ("critic",) if reply is None else ("critic", "replies")
        name = "-".join((*what, hashlib.sha256("\n".join((self._settings.model, *rubric)).encode()).hexdigest()[:8]))
        return Feedback(
            feedback_id=f"{name}-{episode_id}"[:200],
            episode_id=episode_id,
            user_id=name,
            kind=FeedbackKind.SIGNAL,
            signal=signal,
            at=self._context.clock.now(),
        )


def run(settings: CriticSettings, base_url: str, context: PartContext) -> None:
    """Judge episodes as they come until ``context.stopping`` is set. Offsets are committed after the verdicts are acknowledged."""
    producer = Producer(context.kafka, context.metrics, "tidemill-critic")
    consumer = Consumer(context.kafka, [EPISODES], "critic", context.metrics, group=f"tidemill-critic-{context.policy}", start="latest")
    critic = Critic(settings, OpenAiJudge(settings, base_url), context)
    judging = JudgedRecords(critic, context, DeadLetters(producer, context.clock, context.metrics, "critic"))
    try:
        while not context.stopping.is_set():
            try:
                records = consumer.poll(timeout_s=1.0, max_records=settings.at_once)
                for feedback in (each for record in records for each in judging.feedback_on(record)):
                    producer.send(FEEDBACK, feedback)
                producer.flush()
                if not context.stopping.is_set():
                    consumer.commit()
                context.health.heartbeat(LOOP, TURN_S)
            except Unavailable as error:  # Kafka; what was not committed comes again, and its ids make it count once
                log.warning("the critic waits", error=str(error))
                context.stopping.wait(RETRY_S)
    finally:
        judging.close()
        consumer.close()
        producer.close()


class JudgedRecords:
    """Records through the critic, one by one."""

    def __init__(self, critic: Critic, context: PartContext, letters: DeadLetters) -> None:
        self._critic, self._context, self._letters = critic, context, letters
        self._in_hand = RecordInHand(context.state / "critic.in-hand")

    def feedback_on(self, record: Record) -> list[Feedback]:
        """Wait while the judge is unavailable. What is no episode is skipped, since the join sets it aside; what cannot be judged is set aside."""
        while not self._context.stopping.is_set():
            try:
                with self._in_hand.working_on(record.topic, record.partition, record.offset, "the critic"):
                    return self._critic.feedback(EPISODES.decode(record.value))
            except InvalidEvent as error:
                if error.reason in ("unusable", "deadly"):
                    self._letters.set_aside(record, error)
                return []
            except Unavailable as error:
                log.warning("the critic waits", error=str(error))
                self._context.health.mark_missing(LOOP)
                self._context.stopping.wait(RETRY_S)
        return []

    def close(self) -> None:
        self._in_hand.close()
