"""Which adapters were published last, and of which step each is: a file in the learner's state, from its loop to the engine in its processes."""

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "published.json"
KEPT = 16


@dataclass(frozen=True)
class PublishedAdapter:
    """One adapter that actors may serve."""

    name: str
    """As clients ask for it: ``default@7``."""
    step: int
    """Steps that it was trained for."""
    sha256: str
    """Checksum of its artifact, which a replica tells with each of its answers."""


def note_published(state: Path, adapter: PublishedAdapter) -> None:
    """Put an adapter first. Atomic; the same one twice counts once."""
    kept = [adapter, *(other for other in published(state) if other.name != adapter.name)][:KEPT]
    state.mkdir(parents=True, exist_ok=True)
    incoming = state / f".{FILE}.{uuid.uuid4().hex}"
    incoming.write_text(json.dumps([asdict(each) for each in kept]))
    incoming.rename(state / FILE)


def published(state: Path) -> list[PublishedAdapter]:
    """The newest first; none before the first one."""
    try:
        return [PublishedAdapter(**each) for each in json.loads((state / FILE).read_text())]
    except (OSError, ValueError, TypeError):  # a damaged file is as good as none: the next adapter writes it anew
        return []
