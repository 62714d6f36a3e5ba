"""Live answers with their labels: the verdict of people's thumbs, and their words. The learner trains on them directly."""

from collections import OrderedDict
from collections.abc import Sequence, Set
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from streams.core.events import FeedbackKind, Label, Message, Outcome

REPLY_CHARACTERS = 1000
"""A person's next turn is cut here: the rest is mostly the next task, and beside the question it would not fit a step."""


class LabelledAnswer(BaseModel):
    """An answer of a deployed agent with people's feedback."""

    model_config = ConfigDict(frozen=True)

    episode_id: str
    prompt: tuple[Message, ...]
    answer: str
    ended: bool = True
    """False when the answer was truncated at the token limit: then it has no end token to learn."""
    verdict: float | None = Field(default=None, ge=0, le=1)
    """Mean of the thumbs and ratings: 0 bad, 1 good."""
    comments: tuple[str, ...] = ()
    """Oldest first."""
    correction: str | None = None
    """The newest correction: the whole answer as it should have been."""
    replies: tuple[str, ...] = ()
    """People's next turns in the conversation, oldest first. Empty unless ``learner.hindsight_replies``."""

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
            prompt=label.messages,
            answer=label.answer,
            ended=label.outcome is Outcome.COMPLETED,
            verdict=label.verdict,
            comments=tuple(text for kind, text in said if kind is FeedbackKind.COMMENT),
            correction=corrections[-1] if corrections else None,
            replies=tuple(text[:REPLY_CHARACTERS] for kind, text in said if kind is FeedbackKind.REPLY) if with_replies else (),
        )
        usable = bool(label.messages) and label.messages[-1].role == "user" and bool(label.answer.strip()) and label.outcome is not Outcome.FAILED
        return found if usable and (found.good is not None or found.has_hindsight) else None


SAVED = TypeAdapter(list[LabelledAnswer])


class LabelledPool:
    """The most recently labelled answers of one policy. A later label of the same episode replaces the earlier one."""

    def __init__(self, policy: str, kept: int, with_replies: bool = False) -> None:
        self._policy, self._kept, self._with_replies = policy, kept, with_replies
        self._answers: OrderedDict[str, LabelledAnswer] = OrderedDict()
        self._uses: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def update(self, label: Label) -> None:
        """Store the label's answer, or remove it when its feedback was withdrawn."""
        if label.policy != self._policy:
            return
        self.remove(label.episode_id)
        if (labelled := LabelledAnswer.of(label, self._with_replies)) is not None:
            self._add(labelled)

    def remove(self, episode_id: str) -> None:
        """Remove an answer whose label was deleted."""
        self._answers.pop(episode_id, None)
        self._uses.pop(episode_id, None)

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
        newest = list(reversed(self._answers.values()))
        order = sorted(range(len(newest)), key=lambda n: (self._uses.get(newest[n].episode_id, 0), n))
        worded = [n for n in order if newest[n].has_words][: max(1, count // 2)]
        chosen = [newest[n] for n in (worded + [n for n in order if n not in set(worded)])[:count]]
        for one in chosen:
            self._uses[one.episode_id] = self._uses.get(one.episode_id, 0) + 1
        return chosen

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
            self._uses.pop(self._answers.popitem(last=False)[0], None)


def advised(labelled: LabelledAnswer) -> tuple[Message, ...]:
    """The prompt with the feedback beside the question, for the teacher of hindsight distillation.

    Only the clearest kind is used: a correction, otherwise the comments, otherwise the next turn.
    """
    *before, question = labelled.prompt
    if labelled.correction:
        said = [f"A good answer is: {labelled.correction}"]
    elif labelled.comments:
        said = [f"Remember: {comment}" for comment in labelled.comments]
    else:
        said = [f"Once this was answered, the person said: {reply}" for reply in labelled.replies]
    return (*before, Message(role=question.role, content="\n\n".join([question.text, *said])))
