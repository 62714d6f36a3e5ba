"""Every event, frozen and versioned, as JSON on the wire.

Schemas only grow: a reader ignores fields that it does not know and rejects a ``schema_version`` that it does not know. Agents in any language may
publish events; ``docs/reference/events.md`` shows an example of each.
"""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from streams.core.chat_prompt import PromptAndAnswer
from streams.core.errors import Refused
from streams.core.event_decoding import Event as Event
from streams.core.person_ids import key_id_of, masked, people_of, person_key, plain_id
from streams.core.person_ids import person_of as person_of
from streams.core.values import Artifact as Artifact
from streams.core.values import Assignment as Assignment
from streams.core.values import Calibration as Calibration
from streams.core.values import Channel as Channel
from streams.core.values import Count as Count
from streams.core.values import Evidence as Evidence
from streams.core.values import FeedbackKind as FeedbackKind
from streams.core.values import Finite as Finite
from streams.core.values import Id as Id
from streams.core.values import Instant as Instant
from streams.core.values import LedTurn as LedTurn
from streams.core.values import Media as Media
from streams.core.values import Message as Message
from streams.core.values import Name as Name
from streams.core.values import NamedId as NamedId
from streams.core.values import Offsets as Offsets
from streams.core.values import Outcome as Outcome
from streams.core.values import Sha256 as Sha256
from streams.core.values import TokenId as TokenId
from streams.core.values import Vote as Vote

ANONYMOUS = "anonymous"
"""The ``user_id`` of feedback whose giver is not named. It is everybody, and so nobody in particular."""


def new_id(prefix: str) -> str:
    """A fresh unique id such as ``ep-4f0c…``."""
    return f"{prefix}-{uuid.uuid4().hex}"


class Episode(PromptAndAnswer, Event):
    """One answer of a deployed agent, with its conversation."""

    key_fields = ("episode_id",)

    episode_id: Id
    policy: Name = "default"
    tenant: Name = "default"
    user_id: NamedId = None
    """The person who asked, by the id that the agent gives people. An erasure needs it."""
    conversation_id: NamedId = None
    turn: Count = 0
    """Position in its conversation, from 0."""
    replies_to: Id | None = None
    """The episode before it in the conversation, which this one's newest messages (a person's next turn, results of tools) reply to."""
    adapter: str | None = None
    """Versioned name of the adapter that answered, such as ``default@7``. None when the base answered."""
    adapter_sha256: Sha256 | None = None
    assignment: Assignment | None = None
    """How this adapter was chosen. None: unknown, as in episodes of agents that are served elsewhere."""
    replica: str | None = None
    api: Literal["chat", "completion", "response", "other"] = "chat"
    messages: tuple[Message, ...]
    """Everything said before the answer, oldest first."""
    tools: tuple[dict[str, Any], ...] = ()
    answer: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    prompt_ids: tuple[TokenId, ...] = ()
    output_ids: tuple[TokenId, ...] = ()
    """Tokens of the answer as the engine sampled them. Empty when the agent's server does not report them."""
    output_logprobs: tuple[Finite, ...] = ()
    """Log-probability of each output token under the weights that sampled it, in nats."""
    media: tuple[Media, ...] = ()
    """Images and sounds that came inside the messages, where ``sha256:…`` now replaces them."""
    redacted: dict[str, int] = {}
    """Number of passages removed before the episode left the actor, by kind. A redacted episode has no token ids and no logprobs."""
    sampling: dict[str, Any] = {}
    """Temperature, top_p, max_tokens and so on, as the client asked for."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the chat template was told besides messages and tools, such as ``enable_thinking``."""
    unrenderable: Name | None = None
    """Why the prompt cannot be rendered again: ``own_template`` (the client's), ``continued`` (an answer that had begun), ``truncated``. None: it
    can, or nothing is known of it."""
    outcome: Outcome = Outcome.COMPLETED
    error: str | None = None
    started_at: Instant
    ended_at: Instant

    @model_validator(mode="after")
    def _one_logprob_per_output_token(self) -> Self:
        if len(self.output_ids) != len(self.output_logprobs):
            raise ValueError(f"{len(self.output_ids)} output tokens but {len(self.output_logprobs)} logprobs")
        return self

    @model_validator(mode="after")
    def _ends_after_it_started(self) -> Self:
        if self.ended_at < self.started_at:
            raise ValueError("ended_at lies before started_at")
        return self

    @property
    def render_fault(self) -> str | None:
        """``unrenderable``, also where the messages (``media``) or the API (``completion``: raw text without a template) say it."""
        return super().render_fault or ("completion" if self.api == "completion" else None)


_CARRIES = {"thumb": "thumb", "rating": "rating", "comment": "text", "correction": "text", "reply": "text",
            "comparison": "over", "signal": "signal", "retraction": "retracts"}  # fmt: skip

_CARRIED = sorted(set(_CARRIES.values()))


def _giver(value: object) -> object:
    """Who gave feedback, in the one form of ids; an empty name is nobody's."""
    return (plain_id(value) or ANONYMOUS) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


class Feedback(Event):
    """One signal from a person about an episode."""

    key_fields = ("episode_id",)

    feedback_id: Id
    """Chosen by the sender. A second record with the same id is a duplicate and is dropped."""
    episode_id: Id
    user_id: Annotated[Id, BeforeValidator(_giver)] = ANONYMOUS
    kind: FeedbackKind
    thumb: Literal["up", "down"] | None = None
    rating: int | None = Field(default=None, ge=1, le=5)
    """1 (worst) to 5 (best)."""
    text: str | None = Field(default=None, min_length=1, max_length=100_000)
    """The comment, the whole answer as it should have been (correction), or what the person said next (reply)."""
    over: Id | None = None
    """Comparison: the other episode, to which the person preferred this one."""
    signal: Name | None = None
    """Implicit or outcome signal, such as ``copied``, ``retried``, ``abandoned``, ``test-passed``."""
    retracts: Id | None = None
    """Retraction: the feedback_id that is withdrawn."""
    at: Instant
    """When the person gave it (event time). The join orders by this time, not by arrival."""

    @model_validator(mode="after")
    def _carries_what_its_kind_needs(self) -> Self:
        given = [field for field in _CARRIED if self.__dict__[field] is not None]
        if given != [_CARRIES[self.kind]]:
            raise ValueError(f"kind {self.kind.value} needs exactly the field '{_CARRIES[self.kind]}', got {given or 'none'}")
        if self.over == self.episode_id:
            raise ValueError("a comparison needs another episode than its own")
        return self


class Label(PromptAndAnswer, Event):
    """The verdict on an episode from all feedback so far. A later label of the same episode replaces it."""

    key_fields = ("episode_id",)

    episode_id: Id
    policy: Name
    tenant: Name = "default"
    user_id: NamedId = None
    """The person who asked, so that an erasure finds the label."""
    conversation_id: NamedId = None
    """The episode's conversation. Labels of one conversation are not independent of each other."""
    adapter: str | None = None
    assignment: Assignment | None = None
    """How the adapter was chosen. A canary counts only what chance chose."""
    outcome: Outcome
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = {}
    unrenderable: Name | None = None
    """Why the prompt cannot be rendered again: ``media``, ``completion``, ``own_template``, ``continued``, ``truncated``. The learner does not learn
    from such an answer. None: it can, or the label is older than this field."""
    answer: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    verdict: float | None = Field(default=None, ge=0, le=1)
    """Mean over people of their newest thumb or rating: 0 bad, 1 good. None: there is no such feedback (any more), or the label is censored."""
    led_by: tuple[LedTurn, ...] = ()
    """The answers before it in its conversation that the verdict reaches too, nearest first. Empty without a verdict."""
    votes: tuple[Vote, ...] = ()
    """The feedback that counts, by event time."""
    evidence: tuple[Evidence, ...] | None = None
    """Each channel's verdict and weight. Empty when censored; None in labels from versions that did not write it. ``verdict`` is made of people's
    thumbs and ratings alone."""
    superseded: tuple[str, ...] = ()
    """feedback_ids that were read and do not count (any more): replaced, retracted, or retractions themselves."""
    erasures: int = Field(default=0, ge=0)
    """How often a person was erased from it. Of two labels of an episode the one with more erasures is the later one, whatever its feedback's
    times."""
    episode_at: Instant
    """When the episode ended."""
    first_feedback_at: Instant
    newest_feedback_at: Instant

    @property
    def feedback_ids(self) -> tuple[str, ...]:
        """Every feedback event that this label was made from."""
        return tuple(vote.feedback_id for vote in self.votes) + self.superseded


class RewardModelVersion(Event):
    """A reward model was published."""

    key_fields = ("policy",)

    policy: Name
    version: int = Field(ge=1)
    artifact: Artifact
    backbone_fingerprint: Sha256
    labels: int = Field(ge=0)
    """Labels in the replay buffer that it was fitted on."""
    calibration: Calibration
    slices: dict[str, Calibration] = {}
    """Calibration by slice of the labels: ``channel=…``, ``adapter=…``, ``language=…``, ``length=…``. Slices with too few labels are left out."""
    alarms: tuple[str, ...] = ()
    """Reasons not to trust it, as known when it was published, one sentence each."""
    largest_person_share: float | None = Field(default=None, ge=0, le=1)
    """Largest part of the weight of its labels, comparisons and corrections that one person holds. ``reward.person_share`` limits it."""
    withheld: dict[str, int] = {}
    """Refits since the version before that were not published, by reason."""
    best: Artifact | None = None
    """The version that predicted the newest labels best when this one was published: the next must be no worse than it either. None: this one."""
    base_measures: dict[str, float] = {}
    """What the guards against reward hacking measured on the base's labelled answers, by rule: an updater that starts again knows what is usual."""
    offsets: Offsets
    """The labels that it has seen: next offset by partition."""
    newest_feedback_at: Instant
    created_at: Instant


class AdapterVersion(Event):
    """A LoRA version of a policy was published."""

    key_fields = ("policy", "version")

    policy: Name
    version: int = Field(ge=1)
    artifact: Artifact
    base_fingerprint: Sha256
    parent: int | None = None
    rank: int = Field(ge=1)
    targets: tuple[str, ...]
    reward_model_version: int = Field(ge=0)
    reward_model_offsets: Offsets = {}
    newest_feedback_at: Instant | None = None
    """Event time of the newest feedback that its reward model had seen (the watermark of what it learned)."""
    step: int = Field(ge=0)
    metrics: dict[str, float] = {}
    created_at: Instant

    @property
    def name(self) -> str:
        """The name it is served by, ``policy@version``."""
        return f"{self.policy}@{self.version}"


class Attestation(Event):
    """A replica proved that it serves exactly this adapter, or failed to."""

    key_fields = ("replica", "adapter")

    replica: Id
    adapter: Id
    adapter_sha256: Sha256
    passed: bool
    reason: str
    """``attested``, or what was wrong, or what its answers could not tell."""
    proof: Literal["answers", "tensors"] | None = None
    """By what it passed: its answers; or, where noise hides a small step from them, the tensors that the engine holds. None of a refusal, and of
    replicas older than this field."""
    learner_gap: float | None = None
    """Mean absolute difference from the learner's logprobs on the probes, in nats per token."""
    base_gap: float | None = None
    """The same difference from the base's logprobs. It is small when the adapter has no effect on this replica."""
    share: float | None = None
    """How much of the learner's step from base to adapter the replica shows: 1 all of it, 0 the base in its place."""
    share_low: float | None = None
    """The share is at least this, by the replica's own noise. None: unknown."""
    share_high: float | None = None
    """And at most this."""
    noise_nats: float | None = None
    """Root mean square difference of the replica's base from the learner's, in nats a token: its numerical noise."""
    load_ms: float = Field(ge=0)
    at: Instant


class Promotion(Event):
    """An adapter changed its standing: candidate, shadow, canary, promoted, rejected or rolled back."""

    key_fields = ("policy",)

    promotion_id: Id
    policy: Name
    adapter: Id
    move: Literal["candidate", "shadow", "canary", "promoted", "rejected", "rolled_back"]
    reason: str
    evidence: dict[str, Any] = {}
    canary_share: float | None = Field(default=None, ge=0, le=1)
    """Canary and promoted: part of the conversations that the adapter answers from now on; None means all. Promoted: the rest stay with the
    production before it, for comparison."""
    awaits_approval: bool = False
    """Canary: it was better, and waits for a person's approval before it is promoted."""
    to: Id | None = None
    """Rolled back: the rollback target, which answers instead. None: the production before it."""
    by: str = "tidemill"
    at: Instant


class DeadLetter(Event):
    """Bytes that could not be used, where they came from, and why."""

    key_fields = ("source_topic",)

    source_topic: str
    source_partition: int = Field(ge=-1)
    """-1 when the bytes never reached a topic (refused over HTTP)."""
    source_offset: int = Field(ge=-1)
    source_at: Instant | None = None
    """When the record arrived on its topic: an erasure covers it by this time, however late the letter was written. None: unknown."""
    reason: str
    """A countable word: ``not_json``, ``unknown_version``, ``invalid``, ``expired``, ``too_large`` …"""
    message: str
    feedback_id: str | None = None
    record_key: str | None = None
    record_base64: str
    """The record's original value, cut at 64 KiB."""
    people: tuple[Sha256, ...] = ()
    """Hashes of everybody whom the value named, also beyond the cut, so that they can be forgotten."""
    part: str
    """The part that set it aside: ``join``, ``lake``, ``reward``, ``actor`` …"""
    at: Instant


class Erasure(Event):
    """A person asked to be erased: everything that they said or asked until now is deleted."""

    key_fields = ("person",)

    person: Sha256
    """Hash of their user_id under the ring's key (``erasure.person_key``): what is kept for ever must not name them, nor be guessed from a list of
    addresses. Plain SHA-256 where there is no key."""
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Names the key. A part with another key, or none, cannot tell whom this means and does not report it as done."""
    unsalted: Sha256 | None = None
    """The plain SHA-256, masked by the key: events that are older than the key name the person by it."""
    requested_by: str
    at: Instant

    @property
    def people(self) -> tuple[str, ...]:
        """All hashes that mean this person. Empty where this process does not have the key."""
        if self.key_id is None:
            return (self.person,)
        key = person_key()
        if key is None or key_id_of(key) != self.key_id:
            return ()
        return (self.person,) if self.unsalted is None else (self.person, masked(self.person, self.unsalted, key))

    @classmethod
    def of(cls, user_id: str, requested_by: str, at: datetime) -> Self:
        """The erasure of whom agents call ``user_id``. Raises Refused where that names nobody, or all who have no name."""
        if (plain := plain_id(user_id)) is None or plain == ANONYMOUS:
            raise Refused(f"{user_id!r} names " + ("nobody" if plain is None else "all people without a name: retract single feedback instead"))
        person, *older = people_of(user_id)
        key = person_key()
        told = {} if key is None else {"key_id": key_id_of(key), "unsalted": masked(person, older[0], key)}
        return cls.model_validate({"person": person, "requested_by": requested_by, "at": at, **told})


class Erased(Event):
    """A part has erased a person's data."""

    key_fields = ("person", "part", "where")

    person: Sha256
    part: str
    """The part: ``join``, ``lake``, ``learner``, ``actor``."""
    where: str
    """Which of its stores: a partition, a replica, or a folder."""
    removed: dict[str, int]
    """Number of removed things, by kind."""
    learned: tuple[str, ...] = ()
    """Lake: reward models and adapters that had learned from this person's data."""
    offsets: Offsets = {}
    """Join: next offset of the labels after those rewritten without this person. A reward model that has read up to there has learned nothing from
    them."""
    erasure_at: Instant
    """``at`` of the erasure that this answers."""
    at: Instant
