"""The learner's processes as Ray actors, each with policy, optimizer, engine and reward model. The one home of Ray.

When one is killed all are started again and go on from the checkpoint; the call in hand fails as Unavailable and is repeated.
"""

import math
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import ray
import structlog
from ray.exceptions import RayActorError, RayError

from learner.runs.learner_process import LearnerPlace, LearnerProcess, threads
from learner.settings import LearnerSettings
from reward.settings import RewardSettings
from streams.core.errors import ConfigError, Unavailable

log = structlog.get_logger()
POLL_S = 0.5
RAY_STARTS = 4
PEERS_FAIL_S = 10.0
"""After a process fails, wait this long for failures of the others, to find the cause."""


class Stopped(Exception):
    """The learner was stopped and abandoned the current call. Never leaves the learner."""


class LearnerActor:
    """A handle on the learner's processes, which take every call together. Calls wait for their answer, and stop waiting when ``stopping``
    is set. When one of them dies all are started again, as many as there is room for then, and go on from the checkpoint."""

    def __init__(self, settings: LearnerSettings, reward: RewardSettings, base: Path, state: Path, stopping: threading.Event,
                 meanwhile: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """``meanwhile`` is called repeatedly while a call is running."""
        self._meanwhile = meanwhile
        self._settings, self._made_of, self._stopping = settings, (settings, reward, base, state), stopping
        self._meetings = state / "meetings"
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _init(settings)
        self._actors: list[Any] = []

    def call(self, method: str, *arguments: Any) -> Any:
        """Call all processes and return the first one's result. Raises Unavailable when one died or lost its machine (all are restarted), Stopped
        when the learner is stopped meanwhile."""
        if not self._actors:
            self._start()
        answers = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        while not self._stopping.is_set():
            done, waited_for = ray.wait(answers, num_returns=len(answers), timeout=POLL_S)
            try:
                found = ray.get(done)
            except RayError as error:
                self._give_up(answers, error)
            if not waited_for:
                return found[0]
            self._meanwhile()
            if self._room(ray.cluster_resources()) < len(answers):
                self._kill()  # Ray would wait for a new machine to start the lost process on, and the others for that process
                raise Unavailable("a machine of the cluster is gone, all start again with as many processes as there is room for")
        raise Stopped

    def close(self) -> None:
        """End the processes, and Ray if it was started here."""
        self._kill()
        if self._started_here:
            ray.shutdown()

    def _start(self) -> None:
        have = ray.cluster_resources()
        count = self._room(have)
        if count == 0:
            raise Unavailable(f"the cluster ({have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs) has no room for one copy of the base")
        if count < self._settings.workers:
            log.warning("fewer_workers", asked_for=self._settings.workers, started=count)
        shutil.rmtree(self._meetings, ignore_errors=True)
        self._meetings.mkdir(parents=True)
        meeting = self._meetings / uuid.uuid4().hex
        process = ray.remote(LearnerProcess).options(
            num_cpus=self._settings.ray_num_cpus,
            num_gpus=self._settings.ray_num_gpus,
            max_restarts=0,  # all begin again together, or those left would wait for one that knows nothing of their step
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads(self._settings)), "HF_HUB_OFFLINE": "1"}},  # Ray would set one per CPU asked for
        )
        self._actors = [process.remote(*self._made_of, LearnerPlace(rank, count, meeting)) for rank in range(count)]

    def _room(self, have: dict[str, float]) -> int:
        """Processes that can be: as many as asked for, or as a cluster with these resources has room for."""
        s = self._settings
        room = [int(have.get(name, 0) / each) for name, each in (("CPU", s.ray_num_cpus), ("GPU", s.ray_num_gpus)) if each > 0]
        return min(s.workers, *room) // s.model_parallel * s.model_parallel if room else s.workers

    def _give_up(self, answers: list[Any], error: RayError) -> NoReturn:
        """End all processes and raise the cause. The first failure may only be the effect of another process's death, so all are checked."""
        errors = [error]
        for answer in ray.wait(answers, num_returns=len(answers), timeout=PEERS_FAIL_S if len(answers) > 1 else 0)[0]:
            try:
                ray.get(answer)
            except RayError as its:
                errors.append(its)
        self._kill()
        gone = [one for one in errors if isinstance(one, RayActorError)]
        if died := next((one for one in gone if "creation task" not in str(one)), None):
            raise Unavailable(f"a process of the learner is gone, all start again: {str(died).splitlines()[0]}") from None
        if gone:  # it failed by itself, and would again
            raise ConfigError(f"the learner's process cannot start: {str(gone[0]).strip().splitlines()[-1]}") from None
        raise error

    def _kill(self) -> None:
        for actor in self._actors:
            try:
                ray.kill(actor)
            except RayError as error:
                log.warning("learner_not_killed", error=str(error))
        self._actors = []


def _init(settings: LearnerSettings) -> None:
    """Start Ray in this machine, or join the cluster that the settings name. Ray's own SIGTERM handler would end us unclean: ours stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would take 15; ours lower themselves, if they are to (learner.background)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    here: dict[str, Any] = {
        "num_cpus": max(1, math.ceil(settings.workers * settings.ray_num_cpus)),
        "object_store_memory": settings.ray_object_store_bytes,
        "include_dashboard": False,
    }
    if settings.ray_metrics_port:
        here["_metrics_export_port"] = settings.ray_metrics_port
    if settings.ray_num_gpus == 0:
        here["num_gpus"] = 0
    place: dict[str, Any] = {"address": settings.ray_address} if settings.ray_address else {"address": "local", **here}
    ours = psutil.Process().children(recursive=True)
    for start in range(1, RAY_STARTS + 1):
        try:
            ray.init(configure_logging=False, log_to_driver=True, **place)
            break
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"learner.ray_address = {settings.ray_address!r}: Ray does not start: {error}") from None
        except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception when its node takes more than 30 s, as on a busy machine
            ray.shutdown()
            _end_what_is_left(ours)
            if start == RAY_STARTS:
                raise Unavailable(f"Ray did not come up in {RAY_STARTS} tries: {error}") from None
            log.warning("ray_slow_to_start", start=start, error=str(error))
    if in_main_thread:
        signal.signal(signal.SIGTERM, before)


def _end_what_is_left(ours: list[psutil.Process]) -> None:
    """End the processes of a start that failed half-way: Ray forgets them, and each try would leave five more."""
    left = [process for process in psutil.Process().children(recursive=True) if process not in ours]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
