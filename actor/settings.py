"""Settings of an actor: one replica that serves a policy."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from actor.capture.redaction_settings import RedactionSettings
from streams.outbox.outbox_settings import OutboxSettings

HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
"""A whole name in lower case; addresses end in digits and are none."""
PRIVATE_ZONES = frozenset({"local", "localhost", "internal", "localdomain", "lan", "home", "corp", "intranet", "private"})


class ActorSettings(OutboxSettings, RedactionSettings):
    """How a policy is served, captured and proved."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs ``keys_file``, or a front that checks who asks."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the OpenAI-compatible server; 0: ``demo`` and ``up`` take a free one."""
    keys_file: Path | None = None
    """File of hashed keys (``tidemill keys add``), each with its tenant, scopes and rate. None: nobody is asked for a key."""
    replica: str = Field(default="", max_length=200)
    """Name of this replica in attestations and episodes. Empty: host name and port."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the base; ``auto`` is the one it is stored in."""
    max_model_tokens: int = Field(default=2048, ge=16, le=1_000_000)
    """Longest prompt and answer together."""
    max_concurrent: int = Field(default=64, ge=1, le=4096)
    """Answers in the making at once; more wait."""
    kv_cache_gib: int = Field(default=1, ge=1, le=1024)
    """Memory for the attention cache on a CPU."""
    cpu_threads: int = Field(default=0, ge=0, le=1024)
    """Threads for matrix products on a CPU; 0 takes all cores."""
    enforce_eager: bool = True
    """Do not compile the model first. On a CPU with LoRA vLLM never compiles; on a GPU False is faster once it is up."""
    max_loras: int = Field(default=4, ge=2, le=64)
    """Adapters that one batch may mix: production, the one before it, and newcomers."""
    max_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """Largest LoRA rank that is accepted; room for it is set aside in each of ``max_loras`` places."""
    fork_engine: bool = True
    """On a CPU, start the engine's process as a fork, which saves importing everything twice."""
    drain_s: float = Field(default=5.0, ge=0, le=600)
    """How long answers in the making may go on after a stop."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """Of vLLM's own log."""
    engine_metrics: bool = True
    """Serve vLLM's own metrics (``vllm:…``) on ``/metrics`` too."""
    tool_call_parser: str | None = None
    """Name of vLLM's parser that turns the model's text into tool calls; none leaves tools to those that vLLM forces."""
    max_request_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30)
    """Largest request body; a larger one gets 413."""
    media_hosts: tuple[str, ...] = ()
    """Hosts that pictures, sound and video may be fetched from, at most 20 MB each, without following redirects. None: only what the request
    itself carries (``data:`` URLs), since a server that fetches what it is told reaches where its clients must not."""
    max_feedback_bytes: int = Field(default=256 << 10, ge=1024, le=1 << 24)
    """Largest feedback body; a larger one gets 413."""
    recent_episodes: int = Field(default=1000, ge=0, le=1_000_000)
    """Episodes that ``GET /v1/episodes/{id}`` remembers."""
    remembered_answers: int = Field(default=20_000, ge=0, le=1_000_000)
    """Answers a tenant by which conversations that name no ``x-tidemill-conversation`` are found again; a kilobyte or less each, no text."""
    replies_as_feedback: bool = True
    """A person's next turn goes on the log as feedback (kind ``reply``) on the answer that it replies to, beside being in the next episode."""
    max_media_bytes: int = Field(default=2 << 20, ge=0, le=1 << 30)
    """Largest image or sound inside a message that is kept, in the artifact store; of a larger one only the SHA-256 is. 0 keeps none."""
    poll_s: float = Field(default=0.5, gt=0, le=60)
    """How often the adapters topic is looked at."""
    load_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """An adapter that takes longer to load or to answer its probes is refused."""
    refusals_before_waiting: int = Field(default=3, ge=1, le=100)
    """Older versions tried, newest first, when the newest is refused, before what serves now goes on serving."""
    max_learner_gap_nats: float = Field(default=0.15, gt=0, le=10)
    """Attestation: largest mean difference, a token, between this replica's logprobs on the probes and the learner's."""
    noise_nats: float = Field(default=0.02, gt=0, le=1)
    """Attestation: an adapter that moved the learner's own logprobs by less (root mean square, a token) cannot be told from the base."""
    min_adapter_share: float = Field(default=0.6, gt=0, lt=1)
    """Attestation: how much of the learner's own step from base to adapter this replica must show; the base shows 0, the adapter 1."""

    @field_validator("max_rank", mode="before")
    @classmethod
    def _rank_from_a_flag(cls, rank: object) -> object:
        return int(rank) if isinstance(rank, str) and rank.isdecimal() else rank  # pydantic reads numbers from text, but not among literals

    @field_validator("media_hosts")
    @classmethod
    def _hosts_are_names_on_the_internet(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not HOST.fullmatch(host) or host.rpartition(".")[2] in PRIVATE_ZONES:
                raise ValueError(f"actor.media_hosts: {host!r} is not a public host name such as media.example.com")
        return hosts

    @model_validator(mode="after")
    def _replica_fits(self) -> Self:
        if any(ord(character) < 32 for character in self.replica):
            raise ValueError("actor.replica must not hold control characters")
        return self
