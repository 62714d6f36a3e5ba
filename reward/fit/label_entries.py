"""Makes the replay buffer's entry of a label: features, channel verdicts, weights, and the slices that it belongs to."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from reward.evaluation.label_slices import language_of
from reward.features.featurizer import Features, Pair
from reward.fit.buffer_entry import FEATURE_LIMIT, NAMELESS, BufferEntry, LedAnswer
from reward.fit.label_evidence import channel_verdicts, verdict_in
from streams.core.chat_prompt import whole_answer, with_messages
from streams.core.events import ANONYMOUS, Channel, FeedbackKind, Label, LedTurn, Message
from streams.join.feedback_channels import newest_votes
from streams.kafka import Record

SPOKEN = frozenset({FeedbackKind.THUMB, FeedbackKind.RATING, FeedbackKind.CORRECTION, FeedbackKind.COMPARISON})


def entries_of(labels: Sequence[Label], features: Features, vote_weight: Callable[[Label], float] = lambda _: 1.0) -> list[BufferEntry]:
    """The entries of labels, still without a prediction of the current model. All their features are asked for at once: some backbones compute many
    together in the time of one."""
    bare = [_without_features(label, vote_weight) for label in labels]
    asked: list[list[Pair]] = [
        [] if entry.verdict is None and not corrections and not entry.over else [(label.prompt, text) for text in (label.whole_answer, *corrections)]
        for label, (entry, corrections) in zip(labels, bare, strict=True)
    ]
    led = [_led_pairs(label) if pairs and entry.by_people else [] for label, pairs, (entry, _) in zip(labels, asked, bare, strict=True)]
    everything = [pair for own, before in zip(asked, led, strict=True) for pair in (*own, *before)]
    if not everything:
        return [entry for entry, _ in bare]
    rows_ND = features.features(everything).clamp(-FEATURE_LIMIT, FEATURE_LIMIT).half()
    parts = rows_ND.split([len(own) + len(before) for own, before in zip(asked, led, strict=True)])
    return [
        _with_features(entry, label, part_ND, len(own)) if len(part_ND) else entry
        for (entry, _), label, part_ND, own in zip(bare, labels, parts, asked, strict=True)
    ]


def _led_pairs(label: Label) -> list[Pair]:
    """The earlier answers that the label's verdict reaches, each after its own prompt."""
    return [(with_messages(label.prompt, label.messages[: each.message]), _answer_of(label.messages[each.message])) for each in _led_turns(label)]


def _led_turns(label: Label) -> list[LedTurn]:
    """Those of ``led_by`` that are there: a label may come from another writer."""
    return [each for each in label.led_by if each.message < len(label.messages)]


def _with_features(entry: BufferEntry, label: Label, rows_ND: Tensor, own: int) -> BufferEntry:
    """The entry with its features: the first ``own`` rows are of its answer and its corrections, the others of earlier answers."""
    turns = _led_turns(label) if len(rows_ND) > own else []
    led = [
        LedAnswer(_said(label.messages[: each.message], _answer_of(label.messages[each.message])), each.weight, row_D)
        for each, row_D in zip(turns, rows_ND[own:], strict=True)
    ]
    return replace(entry, features_D=rows_ND[0], corrections=tuple(rows_ND[1:own]), led=tuple(led))


def _answer_of(message: Message) -> str:
    return whole_answer(message.text, message.tool_calls)


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
        words=len(label.whole_answer.split()),
        language=language_of(label.answer),
        tenant=label.tenant,
        said=_said(label.messages, label.whole_answer),
        opening=opening_of(label),
        erasures=label.erasures,
    )
    return (
        (replace(entry, verdict=None, evidence=(), ratings=(), over=()), [])
        if is_unreadable(label)
        else (entry, corrections if of_correction else [])
    )


def is_unreadable(label: Label) -> bool:
    """True when the answer is about something that the features cannot see: what is good to say of an image does not follow from words."""
    return label.render_fault == "media"


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
    return short_hash("\x00".join(texts if answered else [*texts, label.whole_answer]))


def _said(messages: Sequence[Message], answer: str) -> str:
    """Question and answer as a hash. Clients send answers back without the space around them."""
    return short_hash("\x00".join([*(message.text for message in messages), answer.strip()]))


def _voters(label: Label) -> tuple[str, ...]:
    """The people who gave feedback, otherwise those who gave implicit signals. Tools and critics are not people: caps and reliability ignore them."""
    tools = {i for e in label.evidence or () if e.channel in (Channel.OUTCOMES, Channel.CRITIC) for i in e.feedback_ids}
    spoke = {vote.user_id for vote in label.votes if vote.kind in SPOKEN}
    did = {vote.user_id for vote in label.votes if vote.feedback_id not in tools}
    nameless = f"{NAMELESS}{short_hash(label.episode_id)}"
    return tuple(sorted(nameless if user_id == ANONYMOUS else short_hash(user_id) for user_id in spoke or did))
