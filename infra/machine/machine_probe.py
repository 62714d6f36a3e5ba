"""The probe: a child process measures for a few seconds. The result is cached by processor, cores, torch and shape of the base.

This module does not import torch, and may be called from a thread.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
import tomllib
import uuid
from dataclasses import replace
from pathlib import Path

import structlog
from pydantic import ValidationError

from infra.local.core_plan import SLEEPING_THREADS
from infra.machine.base_shape import BaseShape, shape_of
from infra.machine.machine_choice import MachineChoice, actor_is_open, chosen_for, is_open, learner_is_open
from infra.machine.machine_rates import MachineRates
from infra.machine.usable_cores import UsableCores, usable_cores
from infra.preparation.child_runs import run_child
from infra.settings.config import Settings
from streams.core.errors import ConfigError, Unavailable

log = structlog.get_logger()
PROBE_LAYOUT = 2
"""Increase it when the measurement changes."""
TIMEOUT_S = 120.0
QUIET_CORES = 0.5
"""A measurement counts as disturbed when other processes kept more cores busy than this."""
DISTURBED_KEPT_S = 3600.0
"""How long a disturbed measurement is used before it is repeated."""
INSTRUCTION_SETS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that restrict a processor's instruction sets."""
_one_at_a_time = threading.Lock()


def resolved(settings: Settings, apart: bool = False, broken_off: threading.Event | None = None) -> MachineChoice:
    """The settings with values for every ``auto``, by a measurement that the first call makes.

    ``apart``: the part may run apart from the others, on another machine. Raises ConfigError when the base's shape is unknown.
    """
    if not is_open(settings):
        return MachineChoice(settings, ())
    rates = machine_rates(shape_of(settings.policy), broken_off=broken_off)
    return replace(chosen_for(settings, rates, apart=apart), rates=rates)


def resolved_for_part(role: str, settings: Settings) -> Settings:
    """The settings that one part runs with. In the ``config.toml`` of a ring everything is decided already, so nothing is measured."""
    if not {"learner": learner_is_open, "actor": actor_is_open}.get(role, lambda _: False)(settings):
        return settings
    choice = resolved(settings, apart=True)
    for sentence in choice.why:
        log.info("machine", chosen=sentence)
    return choice.settings


def known_choice(settings: Settings) -> tuple[str, ...]:
    """The choices for this machine by the cached measurement, one sentence each. Empty without a measurement or a known base. Measures nothing."""
    try:
        kept = kept_rates(shape_of(settings.policy))
    except ConfigError:
        return ()
    if kept is None:
        return ()
    disturbed = (f"measured while other processes kept {kept.busy_neighbours:.1f} cores busy",) if kept.busy_neighbours > QUIET_CORES else ()
    return (*chosen_for(settings, kept).why, *disturbed)


def as_the_run_computes(settings: Settings) -> Settings:
    """The settings with the feature precision of the ring in ``run_folder``: commands that use its reward models must compute the same features.
    Unchanged when a precision is set, or when there was no ring."""
    config = settings.run_folder / "config.toml"
    if settings.reward.dtype != "auto" or not config.exists():
        return settings
    dtype = tomllib.loads(config.read_text()).get("reward", {}).get("dtype", settings.reward.precision)
    return settings.model_copy(update={"reward": settings.reward.model_copy(update={"dtype": dtype})})


def machine_rates(shape: BaseShape, cache: Path | None = None, broken_off: threading.Event | None = None) -> MachineRates:
    """The rates of this machine for a base of this shape, cached or measured now. If the measurement fails, the record has no rates and
    ``failure`` says why."""
    with _one_at_a_time:  # two measurements at the same time would disturb each other
        if (kept := kept_rates(shape, cache)) is not None:
            return kept
        cores = usable_cores()
        try:
            found = measured_rates(shape, cores, broken_off)
        except Unavailable as error:
            log.warning("machine_not_measured", error=str(error))
            return MachineRates(processor=processor_name(), cores=cores.threads, quota=cores.quota, shape=shape, failure=str(error))
        _keep(found, _file(shape, cache))
        return found


def kept_rates(shape: BaseShape, cache: Path | None = None) -> MachineRates | None:
    """The cached measurement of this machine in its current state; None without one, or when it was disturbed and is too old."""
    file = _file(shape, cache)
    try:
        found = MachineRates.model_validate_json(file.read_bytes())
        age_s = time.time() - file.stat().st_mtime
    except (OSError, ValidationError):
        return None
    return found if found.busy_neighbours <= QUIET_CORES or age_s < DISTURBED_KEPT_S else None


def measured_rates(shape: BaseShape, cores: UsableCores, broken_off: threading.Event | None = None) -> MachineRates:
    """Measure in a child process. Raises Unavailable when it dies or takes longer than ``TIMEOUT_S``."""
    asked = {"processor": processor_name(), "cores": cores.threads, "quota": cores.quota, "shape": shape.model_dump()}
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores.threads), "MKL_NUM_THREADS": str(cores.threads), **SLEEPING_THREADS}
    command = [sys.executable, "-P", "-m", "infra.machine.rate_measurement", json.dumps(asked)]
    began_s = time.monotonic()
    done = run_child(command, environment, broken_off or threading.Event(), TIMEOUT_S)
    try:
        return MachineRates.model_validate_json(done.out).model_copy(update={"probe_s": time.monotonic() - began_s})
    except ValidationError:
        raise Unavailable(f"the measurement of this machine ended with status {done.status}: {done.last_line}") from None


def processor_name() -> str:
    """The processor's name, from the kernel."""
    return _cpuinfo().get("model name", platform.processor() or platform.machine())


def _file(shape: BaseShape, cache: Path | None) -> Path:
    cores, cpu = usable_cores(), _cpuinfo()
    told = {
        "layout": PROBE_LAYOUT, "processor": [cpu.get(name, "") for name in ("model name", "cpu family", "model", "stepping")],
        "flags": sorted(cpu.get("flags", cpu.get("Features", "")).split()), "threads": cores.threads, "quota": cores.quota,
        "torch": importlib.metadata.version("torch"), "shape": shape.model_dump(), "gpu": Path("/dev/nvidiactl").exists(),
        "instructions": {name: os.environ[name] for name in INSTRUCTION_SETS if name in os.environ},
    }  # fmt: skip
    from infra.local.kafka_jars import cache_folder  # imports jgo, which commands that only read the log do not need

    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return (cache or cache_folder() / "probes") / f"{key}.json"


def _keep(found: MachineRates, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    incoming = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    incoming.write_text(found.model_dump_json(indent=1))
    incoming.rename(file)


def _cpuinfo() -> dict[str, str]:
    """/proc/cpuinfo of the first processor; empty when there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
