"""Checks that all ports of a ring are free before anything starts. Otherwise a part would die half a minute later."""

from collections import defaultdict
from dataclasses import dataclass

from infra.settings.config import Settings
from infra.settings.part_addresses import LOOPBACK, PORT_OFFSET, parts, ray_metrics_port
from streams.core.errors import ConfigError
from streams.core.health import listening_socket


@dataclass(frozen=True)
class PlannedPort:
    """A port that a part listens on, and the setting that names it."""

    setting: str
    host: str
    number: int

    def __str__(self) -> str:
        return f"{self.setting} = {self.host}:{self.number}"


def ports_of(settings: Settings) -> list[PlannedPort]:
    """Every port that the settings fix; ports that are chosen at start are left out."""
    s = settings
    planned = [PlannedPort("actor.host:actor.port", s.actor.host, s.actor.port), PlannedPort("reward.web_port", LOOPBACK, s.reward.web_port)]
    if s.metrics_port:
        offsets = {role: offset for role, offset in PORT_OFFSET.items() if role in parts(s)}
        planned += [PlannedPort(f"metrics_port + {offset} ({role})", s.metrics_host, s.metrics_port + offset) for role, offset in offsets.items()]
    if not s.learner.ray_address:
        named = "learner.ray_metrics_port" if s.learner.ray_metrics_port else f"metrics_port + {len(PORT_OFFSET)} (Ray)"
        planned.append(PlannedPort(named, LOOPBACK, ray_metrics_port(s)))
    if s.otlp.beside_ring:
        planned.append(PlannedPort("otlp.host:otlp.port", s.otlp.host, s.otlp.port))
    if s.kafka.bootstrap_servers is None:
        planned.append(PlannedPort("broker.port", LOOPBACK, s.broker.port))
    return [one for one in planned if one.number]


def check_ports(settings: Settings) -> None:
    """Raises ConfigError that names every port that is taken or used twice, and says what to do."""
    by_number: dict[int, list[PlannedPort]] = defaultdict(list)
    for one in ports_of(settings):
        by_number[one.number].append(one)
    twice = [" and ".join(map(str, same)) + " are one port" for same in by_number.values() if len(same) > 1]
    taken = [f"{one} is in use" for same in by_number.values() for one in same[:1] if not _can_listen(one)]
    if twice or taken:
        hint = "Is another ring running? Stop it, or choose other ports (actor.port = 0 and metrics_port = 0 take free ones)"
        raise ConfigError(f"{'; '.join([*taken, *twice])}. {hint}")


def _can_listen(port: PlannedPort) -> bool:
    try:
        listening_socket(port.host, port.number, port.setting).close()
    except ConfigError:
        return False
    return True
