"""The learner's process as a Ray actor: one placement for policy, optimizer, engine and reward model. The one home of Ray.

A killed actor is started again by Ray and goes on from its checkpoint; the call in hand fails as Unavailable and is repeated.
"""

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from learner.process import LearnerProcess, threads
from learner.settings import LearnerSettings
from reward.settings import RewardSettings
from streams.errors import ConfigError, Unavailable

log = structlog.get_logger()
POLL_S = 0.5
RAY_STARTS = 4


class Stopped(Exception):
    """The operator wants an end: the call in hand was given up. Never leaves the learner."""


class LearnerActor:
    """A handle on the one LearnerProcess. Calls wait for their answer, and stop waiting when ``stopping`` is set."""

    def __init__(self, settings: LearnerSettings, reward: RewardSettings, base: Path, state: Path, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _init(settings)
        count = str(threads(settings))
        process = ray.remote(LearnerProcess).options(
            num_cpus=settings.ray_num_cpus,
            num_gpus=settings.ray_num_gpus,
            max_restarts=-1,
            max_task_retries=0,  # a step that was cut off is repeated by the worker, which knows what became of it
            runtime_env={"env_vars": {"OMP_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}},  # Ray would set one thread per CPU asked for
        )
        self._actor = process.remote(settings, reward, base, state)

    def call(self, method: str, *arguments: Any) -> Any:
        """What the process answers. Raises Unavailable when it died (it is coming back), Stopped when told to stop meanwhile."""
        answer = getattr(self._actor, method).remote(*arguments)
        while not self._stopping.is_set():
            try:
                return ray.get(answer, timeout=POLL_S)
            except GetTimeoutError:
                continue
            except RayActorError as error:
                if "creation task" in str(error):  # it failed by itself, and would again
                    raise ConfigError(f"the learner's process cannot start: {str(error).strip().splitlines()[-1]}") from None
                raise Unavailable(f"the learner's process is gone, Ray starts it again: {str(error).splitlines()[0]}") from None
        raise Stopped

    def close(self) -> None:
        """End the process, and Ray if it was started here."""
        try:
            ray.kill(self._actor)
        except RayError as error:
            log.warning("learner_not_killed", error=str(error))
        if self._started_here:
            ray.shutdown()


def _init(settings: LearnerSettings) -> None:
    """Start Ray in this machine, or join the cluster that the settings name. Ray's own SIGTERM handler would end us unclean: ours stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers are at 15: beside a busy actor the learner would starve
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    here: dict[str, Any] = {
        "num_cpus": max(1, math.ceil(settings.ray_num_cpus)),
        "object_store_memory": settings.ray_object_store_bytes,
        "include_dashboard": False,
    }
    if settings.ray_metrics_port:
        here["_metrics_export_port"] = settings.ray_metrics_port
    if settings.ray_num_gpus == 0:
        here["num_gpus"] = 0
    place: dict[str, Any] = {"address": settings.ray_address} if settings.ray_address else {"address": "local", **here}
    for start in range(1, RAY_STARTS + 1):
        try:
            ray.init(configure_logging=False, log_to_driver=True, **place)
            break
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"learner.ray_address = {settings.ray_address!r}: Ray does not start: {error}") from None
        except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception when its node takes more than 30 s, as on a busy machine
            ray.shutdown()
            if start == RAY_STARTS:
                raise Unavailable(f"Ray did not come up in {RAY_STARTS} tries: {error}") from None
            log.warning("ray_slow_to_start", start=start, error=str(error))
    if in_main_thread:
        signal.signal(signal.SIGTERM, before)
