"""Live answers with their labels: the verdict of people's thumbs, and their words. The learner trains on them directly."""

from collections import OrderedDict
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from streams.core.chat_prompt import Prompt, content_key, whole_answer, with_messages
from streams.core.events import FeedbackKind, Label, LedTurn, Message, Outcome

ASKERS = frozenset({"user", "tool"})
"""Roles that an answer replies to: a person, or a tool whose result came back."""
REPLY_CHARACTERS = 1000
"""A person's next turn is cut here: the rest is mostly the next task, and beside the question it would not fit a step."""


class LabelledAnswer(BaseModel):
    """An answer of a deployed agent with people's feedback."""

    model_config = ConfigDict(frozen=True)

    episode_id: str
    turn: int | None = None
    """Of an earlier answer of the conversation: its place in the label's messages."""
    prompt: Prompt
    answer: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    ended: bool = True
    """False when the answer was truncated at the token limit: then it has no end token to learn."""
    verdict: float | None = Field(default=None, ge=0, le=1)
    """Mean of the thumbs and ratings: 0 bad, 1 good."""
    weight: float = Field(default=1.0, gt=0, le=1)
    """How much its verdict counts: below 1 where it was given to a later answer."""
    comments: tuple[str, ...] = ()
    """Oldest first."""
    correction: str | None = None
    """The newest correction: the whole answer as it should have been."""
    replies: tuple[str, ...] = ()
    """People's next turns in the conversation, oldest first. Empty unless ``learner.hindsight_replies``."""
    led_by: tuple["LabelledAnswer", ...] = ()
    """The earlier answers of its conversation that its verdict reaches, nearest first."""

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from all others."""
        return self.episode_id, -1 if self.turn is None else self.turn

    @property
    def said(self) -> str:
        """Question and answer, as a key. Clients send answers back without the space around them."""
        return content_key((*self.prompt, Message(role="assistant", content=self.answer.strip(), tool_calls=self.tool_calls)))

    @property
    def good(self) -> bool | None:
        """True for good, False for bad. None without a verdict, or when it is exactly between."""
        return None if self.verdict is None or self.verdict == 0.5 else self.verdict > 0.5

    @property
    def has_words(self) -> bool:
        """True when there is a comment or a correction."""
        return bool(self.comments or self.correction)

    @property
    def has_hindsight(self) -> bool:
        """True when there is a comment, a correction or a reply to learn from."""
        return self.has_words or bool(self.replies)

    @classmethod
    def of(cls, label: Label, with_replies: bool = False) -> "LabelledAnswer | None":
        """Make it from a label. None when the label has nothing to learn from: withdrawn, censored, or not text alone."""
        said = [(vote.kind, vote.text) for vote in label.votes if vote.text]
        corrections = [text for kind, text in said if kind is FeedbackKind.CORRECTION]
        found = cls(
            episode_id=label.episode_id,
            prompt=label.prompt,
            answer=label.answer,
            tool_calls=label.tool_calls,
            ended=label.outcome is Outcome.COMPLETED,
            verdict=label.verdict,
            comments=tuple(text for kind, text in said if kind is FeedbackKind.COMMENT),
            correction=corrections[-1] if corrections else None,
            replies=tuple(text[:REPLY_CHARACTERS] for kind, text in said if kind is FeedbackKind.REPLY) if with_replies else (),
        )
        asked = bool(label.messages) and label.messages[-1].role in ASKERS and bool(label.whole_answer.strip())
        usable = asked and label.outcome is not Outcome.FAILED and label.render_fault is None
        if not usable or (found.good is None and not found.has_hindsight):
            return None
        before = (cls._led(label, each) for each in label.led_by) if found.good is not None else ()
        return found.model_copy(update={"led_by": tuple(one for one in before if one is not None)})

    @classmethod
    def _led(cls, label: Label, led: LedTurn) -> "LabelledAnswer | None":
        """An earlier answer with the label's verdict. None when it says nothing, or answers nobody."""
        if led.message >= len(label.messages):  # a label may come from another writer
            return None
        before, spoken = label.messages[: led.message], label.messages[led.message]
        if before[-1].role not in ASKERS or not whole_answer(spoken.text, spoken.tool_calls).strip():
            return None
        return cls(
            episode_id=label.episode_id,
            turn=led.message,
            prompt=with_messages(label.prompt, before),
            answer=spoken.text,
            tool_calls=spoken.tool_calls or (),
            verdict=label.verdict,
            weight=led.weight,
        )


SAVED = TypeAdapter(list[LabelledAnswer])


class LabelledPool:
    """The most recently labelled answers of one policy. A later label of the same episode replaces the earlier one."""

    def __init__(self, policy: str, kept: int, with_replies: bool = False) -> None:
        self._policy, self._kept, self._with_replies = policy, kept, with_replies
        self._answers: OrderedDict[str, LabelledAnswer] = OrderedDict()
        self._uses: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def update(self, label: Label) -> str | None:
        """Store the label's answer, or remove it when its feedback was withdrawn. Returns why one with feedback cannot be learned from."""
        if label.policy != self._policy:
            return None
        self.remove(label.episode_id)
        if (labelled := LabelledAnswer.of(label, self._with_replies)) is not None:
            self._add(labelled)
        return label.render_fault if label.votes else None

    def remove(self, episode_id: str) -> None:
        """Remove an answer whose label was deleted."""
        self._forget_uses(self._answers.pop(episode_id, None))

    def keep_only(self, episode_ids: Set[str]) -> int:
        """Remove all answers but these. Returns how many were removed."""
        gone = [episode_id for episode_id in self._answers if episode_id not in episode_ids]
        for episode_id in gone:
            self.remove(episode_id)
        return len(gone)

    def choose(self, count: int) -> Sequence[LabelledAnswer]:
        """At most ``count`` answers: those used least so far, and of these the newest, so that fresh feedback counts in the next adapter.

        Where possible, half of them have comments or corrections, which say more than thumbs and next turns but are fewer.
        """
        newest = [one for whole in reversed(self._answers.values()) for one in (whole.model_copy(update={"led_by": ()}), *whole.led_by)]
        reached = self._nearest(newest)
        newest = [one for one in newest if one.turn is None or reached.get(one.said) == one.name]
        order = sorted(range(len(newest)), key=lambda n: (self._uses.get(newest[n].name, 0), n))
        worded = [n for n in order if newest[n].has_words][: max(1, count // 2)]
        chosen = [newest[n] for n in (worded + [n for n in order if n not in set(worded)])[:count]]
        for one in chosen:
            self._uses[one.name] = self._uses.get(one.name, 0) + 1
        return chosen

    @staticmethod
    def _nearest(newest: Sequence[LabelledAnswer]) -> dict[str, tuple[str, int]]:
        """For each answer that only verdicts of later ones reach, the one whose verdict counts: the nearest, of equal ones the newest."""
        if not any(one.turn is not None for one in newest):
            return {}
        own = {one.said for one in newest if one.turn is None and one.good is not None}
        found: dict[str, LabelledAnswer] = {}
        for one in newest:
            if one.turn is not None and (said := one.said) not in own and (said not in found or found[said].weight < one.weight):
                found[said] = one
        return {said: one.name for said, one in found.items()}

    def save(self, path: Path) -> None:
        """Write the pool, oldest first; renamed into place."""
        incoming = path.with_suffix(".incoming")
        incoming.write_bytes(SAVED.dump_json(list(self._answers.values())))
        incoming.rename(path)

    def load(self, path: Path) -> None:
        """Read a saved pool, if there is one."""
        if path.exists():
            for labelled in SAVED.validate_json(path.read_bytes()):
                self._add(labelled)

    def _add(self, labelled: LabelledAnswer) -> None:
        self._answers[labelled.episode_id] = labelled
        while len(self._answers) > self._kept:
            self._forget_uses(self._answers.popitem(last=False)[1])

    def _forget_uses(self, labelled: LabelledAnswer | None) -> None:
        for one in () if labelled is None else (labelled, *labelled.led_by):
            self._uses.pop(one.name, None)


def advised(labelled: LabelledAnswer) -> Prompt:
    """The prompt with the feedback beside the newest question, for the teacher of hindsight distillation.

    Only the clearest kind is used: a correction, otherwise the comments, otherwise the next turn.
    """
    if labelled.correction:
        said = [f"A good answer is: {labelled.correction}"]
    elif labelled.comments:
        said = [f"Remember: {comment}" for comment in labelled.comments]
    else:
        said = [f"Once this was answered, the person said: {reply}" for reply in labelled.replies]
    messages = list(labelled.prompt)
    asked = max((n for n, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)  # after it may be results of tools
    messages[asked] = Message(role=messages[asked].role, content="\n\n".join([messages[asked].text, *said]))
    return with_messages(labelled.prompt, messages)
