"""What every part receives when it starts: its folders and clients, and the event that stops it."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.core.clock import Clock, SystemClock
from streams.core.health import Health
from streams.core.metrics import Metrics
from streams.core.traces import Traces
from streams.kafka import KafkaSettings

if TYPE_CHECKING:  # pyarrow takes its time, and a command that only looks at the log needs none
    from streams.artifacts.artifact_store import ArtifactStore


@dataclass(frozen=True)
class PartContext:
    """Everything that a part needs from outside, made by the command line and passed in."""

    kafka: KafkaSettings
    artifacts: "ArtifactStore"
    policy: str
    """Name of the policy, such as ``default``."""
    base: Path
    """Folder of the base: config.json, safetensors, tokenizer."""
    state: Path
    """This part's own folder, kept between runs."""
    metrics: Metrics = field(default_factory=Metrics)
    health: Health = field(default_factory=Health)
    clock: Clock = field(default_factory=SystemClock)
    traces: Traces = field(default_factory=Traces)
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set on SIGTERM and SIGINT: finish the current work and return."""
