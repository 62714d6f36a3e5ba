"""What people do in a chaos run, seeded, and the labels that it amounts to when nothing disturbs it."""

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from streams.core.events import Episode, Feedback, FeedbackKind, Label, Message, Outcome
from streams.core.metrics import Metrics
from streams.core.topics import LABELS
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings, read_to_end


def history(chance: random.Random, episodes: int, begin: datetime) -> list[Episode | Feedback]:
    """Thumbs that come early, twice, are changed and taken back."""
    events: list[Episode | Feedback] = []
    for number in range(episodes):
        name, at = f"ep-{number}", begin + timedelta(seconds=number)
        outcome = chance.choice([Outcome.COMPLETED] * 9 + [Outcome.FAILED])
        message = Message(role="user", content="x" * chance.randint(1, 300))
        near: list[Episode | Feedback] = [Episode(episode_id=name, messages=(message,), answer="y", outcome=outcome, started_at=at, ended_at=at)]
        for given in range(chance.randint(0, 4)):
            kind = chance.choice([FeedbackKind.THUMB, FeedbackKind.THUMB, FeedbackKind.RATING, FeedbackKind.RETRACTION])
            carries: dict[str, object] = {
                FeedbackKind.THUMB: {"thumb": chance.choice(["up", "down"])},
                FeedbackKind.RATING: {"rating": chance.randint(1, 5)},
                FeedbackKind.RETRACTION: {"retracts": f"fb-{number}-{(given + chance.randint(1, 3)) % 4}"},
            }[kind]
            user_id, moment = chance.choice(["ann", "bob"]), at + timedelta(seconds=chance.randint(0, 9))
            near.append(
                Feedback.model_validate(
                    {"feedback_id": f"fb-{number}-{given}", "episode_id": name, "user_id": user_id, "kind": kind, "at": moment, **carries}
                )
            )
        events += near + chance.sample(near, chance.randint(0, 1))
    swapped = sorted(range(len(events)), key=lambda i: i + chance.uniform(0, 60))
    return [events[i] for i in swapped]


def undisturbed(events: Sequence[Episode | Feedback], begin: datetime) -> dict[str, Label]:
    """The labels of a run in which nothing happens."""
    join, labels = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None), {}
    for event in events:
        label = join.on_episode(event, begin) if isinstance(event, Episode) else join.on_feedback(event, max(begin, event.at))
        if label is not None:
            labels[label.episode_id] = label
    return labels


def newest(settings: KafkaSettings) -> dict[str, Label]:
    """The label of each episode as it stands on the log."""
    return {label.episode_id: label for r in read_to_end(settings, LABELS, "test", Metrics()) for label in [LABELS.decode(r.value)]}


def write(events: Sequence[Episode | Feedback], path: Path) -> None:
    """For the process that shall publish them."""
    path.write_bytes(b"".join((b"e" if isinstance(event, Episode) else b"f") + event.encode() + b"\n" for event in events))


def read(path: Path) -> Iterator[Episode | Feedback]:
    """What ``write`` wrote."""
    for line in path.read_bytes().splitlines():
        yield Episode.decode(line[1:]) if line[:1] == b"e" else Feedback.decode(line[1:])
