"""Makes the replay buffer's entry of a label: features, channel verdicts, weights, and the slices that it belongs to."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from reward.evaluation.label_slices import language_of
from reward.features.featurizer import Features
from reward.fit.buffer_entry import FEATURE_LIMIT, NAMELESS, BufferEntry
from reward.fit.label_evidence import channel_verdicts, verdict_in
from streams.core.events import ANONYMOUS, Channel, FeedbackKind, Label
from streams.join.feedback_channels import newest_votes
from streams.kafka import Record

SPOKEN = frozenset({FeedbackKind.THUMB, FeedbackKind.RATING, FeedbackKind.CORRECTION, FeedbackKind.COMPARISON})


def entries_of(labels: Sequence[Label], features: Features, vote_weight: Callable[[Label], float] = lambda _: 1.0) -> list[BufferEntry]:
    """The entries of labels, still without a prediction of the current model. All their features are asked for at once: some backbones compute many
    together in the time of one."""
    bare = [_without_features(label, vote_weight) for label in labels]
    texts = [
        [] if entry.verdict is None and not corrections and not entry.over else [label.answer, *corrections]
        for label, (entry, corrections) in zip(labels, bare, strict=True)
    ]
    pairs = [(label.messages, answer) for label, answers in zip(labels, texts, strict=True) for answer in answers]
    if not pairs:
        return [entry for entry, _ in bare]
    rows_ND = features.features(pairs).clamp(-FEATURE_LIMIT, FEATURE_LIMIT).half()
    parts = rows_ND.split([len(answers) for answers in texts])
    return [
        replace(entry, features_D=part_ND[0], corrections=tuple(part_ND[1:])) if len(part_ND) else entry
        for (entry, _), part_ND in zip(bare, parts, strict=True)
    ]


def _without_features(label: Label, vote_weight: Callable[[Label], float]) -> tuple[BufferEntry, list[str]]:
    """The entry of a label without features, and the corrected answers that count in it."""
    said, weights = channel_verdicts(label)
    corrections = [vote.text for vote in label.votes if vote.kind is FeedbackKind.CORRECTION and vote.text]
    over = tuple(vote.over for vote in label.votes if vote.kind is FeedbackKind.COMPARISON and vote.over)
    of_correction, of_comparison = weights.get(Channel.CORRECTIONS, 0.0), weights.get(Channel.COMPARISONS, 0.0)
    entry = BufferEntry(
        episode_id=label.episode_id,
        verdict=verdict_in(said),
        feedback_count=len(label.feedback_ids),
        newest_feedback_at=label.newest_feedback_at,
        features_D=None,
        over=over if of_comparison else (),
        voters=_voters(label),
        evidence=said,
        ratings=tuple(
            sorted(round(v.value * 4) + 1 for v in newest_votes(label.votes).values() if v.kind is FeedbackKind.RATING and v.value is not None)
        ),
        pair_weights=(of_correction, of_comparison),
        vote_weight=vote_weight(label),
        adapter=label.adapter,
        words=len(label.answer.split()),
        language=language_of(label.answer),
        tenant=label.tenant,
        said=short_hash("\x00".join([*(message.text for message in label.messages), label.answer])),
        opening=opening_of(label),
        erasures=label.erasures,
    )
    return entry, corrections if of_correction else []


class ReadLabel(NamedTuple):
    """A label and where it was read."""

    label: Label
    partition: int
    offset: int


def labels_and_tombstones(records: Iterable[Record], decode: Callable[[Record], Label | None]) -> tuple[list[ReadLabel], tuple[str, ...]]:
    """The labels in these records, in order, and the episodes whose label was deleted by a tombstone. ``decode`` gives None for unreadable
    records."""
    found: list[tuple[int, ReadLabel]] = []
    gone: dict[str, int] = {}
    for number, record in enumerate(records):
        if record.value is None:
            gone[(record.key or b"").decode(errors="replace")] = number
        elif (label := decode(record)) is not None:
            found.append((number, ReadLabel(label, record.partition, record.offset)))
    return [read for number, read in found if number > gone.get(read.label.episode_id, -1)], tuple(gone)


def short_hash(text: str) -> str:
    """A short hash of a text or a user_id: enough to tell it from others, and no more."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def opening_of(label: Label) -> str:
    """The first question and the first answer of the label's conversation, as a hash: what all its turns have in common, and all labels that are
    about the same words."""
    roles = [message.role for message in label.messages]
    asked = roles.index("user") if "user" in roles else 0
    answered = roles.index("assistant", asked) + 1 if "assistant" in roles[asked:] else None
    texts = [message.text for message in label.messages[:answered]]
    return short_hash("\x00".join(texts if answered else [*texts, label.answer]))


def _voters(label: Label) -> tuple[str, ...]:
    """The people who gave feedback, otherwise those who gave implicit signals. Tools and critics are not people: caps and reliability ignore them."""
    tools = {i for e in label.evidence or () if e.channel in (Channel.OUTCOMES, Channel.CRITIC) for i in e.feedback_ids}
    spoke = {vote.user_id for vote in label.votes if vote.kind in SPOKEN}
    did = {vote.user_id for vote in label.votes if vote.feedback_id not in tools}
    nameless = f"{NAMELESS}{short_hash(label.episode_id)}"
    return tuple(sorted(nameless if user_id == ANONYMOUS else short_hash(user_id) for user_id in spoke or did))
