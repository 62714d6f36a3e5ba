"""Where the parts of a ring can be asked: ports and hosts, by the settings and as the parts wrote them. Imports nothing heavy."""

import socket
from pathlib import Path

from infra.settings.config import Settings

PORT_OFFSET = {"streams": 0, "reward": 1, "learner": 2, "promoter": 3, "critic": 4, "otlp": 5}
LOOPBACK = "127.0.0.1"
ADDRESS_FILE = "address"
"""In a part's state folder: where it serves metrics and health, whichever port it got."""


def parts(settings: Settings) -> tuple[str, ...]:
    """All parts of a ring with these settings. The order in which they start: ``start_order.py``."""
    promoter = ("promoter",) if settings.gated_policy is not None else ()
    critic, otlp = ("critic",) if settings.critic.has_rubric else (), ("otlp",) if settings.otlp.beside_ring else ()
    return ("streams", "reward", "actor", "learner", *promoter, *critic, *otlp)


def metrics_targets(settings: Settings, host: str | None = None) -> dict[str, str]:
    """``host:port`` of every part's ``/metrics``, by ``metrics_port``; the actor serves it on its API port. Empty when ``metrics_port`` is 0.
    ``host``: the machine's name for a Prometheus elsewhere; None: by the addresses on which the parts listen."""
    if not settings.metrics_port:
        return {}
    ports = {role: settings.metrics_port + offset for role, offset in PORT_OFFSET.items() if role in parts(settings)}
    actor = {"actor": f"{host or in_url(settings.actor.host, socket.gethostname())}:{settings.actor.port}"}
    return {role: f"{host or in_url(settings.metrics_host, socket.gethostname())}:{port}" for role, port in ports.items()} | actor


def served_at(run_folder: Path, role: str) -> str | None:
    """``host:port`` of a part's metrics and health on this machine, as it wrote it at its start; None when it has not."""
    try:
        return (run_folder / "state" / role / ADDRESS_FILE).read_text().strip() or None
    except OSError:
        return None


def in_url(host: str, for_all: str = LOOPBACK) -> str:
    """What a URL names for a server that listens on ``host``. ``for_all``: stands for all addresses; by default for clients on this machine."""
    if host in ("0.0.0.0", "::"):
        return for_all
    return f"[{host}]" if ":" in host else host


def ray_metrics_port(settings: Settings) -> int:
    """Port on which a Ray that the learner starts serves its metrics; 0: Ray chooses."""
    if settings.learner.ray_address or not settings.metrics_port:
        return settings.learner.ray_metrics_port
    return settings.learner.ray_metrics_port or settings.metrics_port + len(PORT_OFFSET)


def actor_url(settings: Settings) -> str:
    """The base URL of the actors' OpenAI API."""
    return settings.promotion.actor_url or f"http://{in_url(settings.actor.host)}:{settings.actor.port}/v1"
