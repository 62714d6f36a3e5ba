"""The values inside events: ids, times, messages, votes, evidence, artifacts, calibrations. Import them from ``streams.core.events``."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from streams.core.person_ids import plain_id

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def _in_utc(time: datetime) -> datetime:
    """Sentinels such as year 1 or 9999 parse well and break later, in arithmetic far from here."""
    if time.tzinfo is UTC and 1970 <= time.year < 3000:
        return time
    try:
        in_utc = time.astimezone(UTC)
    except OverflowError:
        in_utc = LATEST
    if not EARLIEST <= in_utc < LATEST:
        raise ValueError("a time must lie between 1970 and 3000; leave it out where it is not known")
    return in_utc


def _named(value: object) -> object:
    """Text and numbers in the one form of an id; what is neither is left for the type to refuse."""
    return plain_id(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


Id = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NamedId = Annotated[Id | None, BeforeValidator(_named)]
"""The id of a person or a conversation in its one form (``plain_id``); an empty one means no person."""
Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time between 1970 and 3000. A zone is required on the wire; in memory it is UTC."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
"""A number of things, small enough for SQLite, Parquet and JavaScript."""

# Kafka keys and offsets by topic and partition: {"tidemill.labels.v1": {0: 1041}}; the next offset to be read.
Offsets = dict[str, dict[int, int]]


class Message(BaseModel):
    """One chat message in OpenAI's shape; fields we do not name are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    role: str
    content: str | tuple[dict[str, Any], ...] | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the content, its parts joined."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        texts = (part.get("text") for part in self.content if str(part.get("type", "text")).endswith("text"))
        return "".join(text for text in texts if isinstance(text, str))


Assignment = Literal["drawn", "held_back", "asked"]
"""How an answer's adapter was chosen: ``drawn`` by chance, for its conversation; ``held_back`` by chance with the production before; ``asked`` for by
name. Only what chance chose can be compared."""


class Outcome(StrEnum):
    """How an answer ended. Infrastructure faults are outcomes, never labels."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    """Stopped at the token limit."""
    CANCELLED = "cancelled"
    """The client went away."""
    FAILED = "failed"
    """The server failed: censored, never scored."""


class FeedbackKind(StrEnum):
    """The kinds of feedback on an episode. Each kind uses exactly one field."""

    THUMB = "thumb"
    RATING = "rating"
    COMMENT = "comment"
    CORRECTION = "correction"
    COMPARISON = "comparison"
    REPLY = "reply"
    """The person's next turn in the conversation. The part that captures that turn sends it."""
    SIGNAL = "signal"
    RETRACTION = "retraction"


class Vote(BaseModel):
    """One feedback event that counts in a label, with its value as a number where it has one."""

    model_config = ConfigDict(frozen=True)

    feedback_id: str
    user_id: str
    kind: FeedbackKind
    value: float | None = Field(default=None, ge=0, le=1)
    """0 bad, 1 good. None for words and comparisons."""
    text: str | None = None
    over: str | None = None
    signal: str | None = None
    at: Instant


class Channel(StrEnum):
    """A way in which people, their tools or a critic judge an episode. ``Label.evidence`` has the same order."""

    THUMBS = "thumbs"
    RATINGS = "ratings"
    COMPARISONS = "comparisons"
    CORRECTIONS = "corrections"
    IMPLICIT = "implicit"
    """What people do: copied, retried, abandoned, asked again."""
    OUTCOMES = "outcomes"
    """What tools report: test passed, form submitted."""
    CRITIC = "critic"
    """A model that judges the episode by a rubric."""


class Evidence(BaseModel):
    """One channel's verdict on an episode, its weight, and the feedback that it comes from."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    channel: Name
    """One of ``Channel``. Readers ignore channels that they do not know."""
    value: float | None = Field(default=None, ge=0, le=1)
    """0 bad, 1 good. None for comparisons and corrections, which prefer one answer to another."""
    weight: float = Field(ge=0, allow_inf_nan=False)
    """The channel's weight times the strength of the verdict; one person's thumb counts 1."""
    feedback_ids: tuple[str, ...] = ()


class LedTurn(BaseModel):
    """An earlier answer of a label's conversation, which the label's verdict reaches with less weight."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    message: int = Field(ge=1)
    """Its place in the label's messages, from 0."""
    weight: float = Field(gt=0, le=1)
    """Its part of the weight of the label's thumbs and ratings."""


class Artifact(BaseModel):
    """A folder of files in the artifact store, written once."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]*$", max_length=500)
    """Relative to the store's URI."""
    sha256: Sha256
    """SHA-256 of the manifest, which lists every file with its own SHA-256 and size."""
    size_bytes: int = Field(ge=0)

    @model_validator(mode="after")
    def _stays_inside_the_store(self) -> Self:
        if any(part in ("", ".", "..") for part in self.path.split("/")):
            raise ValueError("path must not leave the artifact store")
        return self


class Media(BaseModel):
    """An image or a sound that came inside a message."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    sha256: Sha256
    """SHA-256 of its bytes. ``sha256:…`` replaces the bytes in the message."""
    size_bytes: Count
    content_type: str = Field(max_length=100)
    artifact: Artifact | None = None
    """An artifact with this one file. None when it was not kept."""
    dropped: str | None = None
    """Why it was not kept."""


class Calibration(BaseModel):
    """How good a reward model was on labels that it had not seen (prequential, i.e. test-then-train)."""

    model_config = ConfigDict(frozen=True)

    labels: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    baseline: float = Field(ge=0, le=1)
    """Accuracy of always guessing the more frequent verdict."""
    brier: float = Field(ge=0, le=1)
    ece: float = Field(ge=0, le=1)
    """Expected calibration error over 10 equal-width bins."""
    auc: float | None = Field(default=None, ge=0, le=1)
    """AUC: how often a good answer was scored above a bad one, which is what learning depends on. None unless there were both."""
    log_loss: float | None = Field(default=None, ge=0)
    """Mean log loss of the predictions, in nats. None in records of older versions."""
    baseline_log_loss: float | None = Field(default=None, ge=0)
    """The same of always guessing these labels' own share of good ones: the best that guessing could do."""
