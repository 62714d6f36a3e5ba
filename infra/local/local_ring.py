"""The whole ring on one machine: the broker and its parts as processes, from one settings tree. What ``demo`` and ``up`` share.

The order of starting and stopping is in ``start_order.py``.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
from pydantic import SecretStr

from infra.local.core_plan import core_plan
from infra.local.embedded_broker import Broker, free_port
from infra.local.part_states import LOCK_FILE, STATES_FILE, write_states
from infra.local.port_check import check_ports
from infra.local.processes import DeathRecord, Processes, cpu_s, memory_mib
from infra.local.start_order import (
    ACTOR_NEEDS,
    AFTER_ACTOR_WAIT_S,
    ARGUMENTS,
    BASE,
    KAFKA,
    MACHINE,
    OTHERS_NEED,
    STOP_ORDER,
    TOPICS,
    after_actor,
    beside_actor,
)  # fmt: skip
from infra.local.startable import Startable
from infra.machine.base_shape import shape_of
from infra.machine.machine_probe import machine_rates, resolved
from infra.machine.machine_rates import MachineRates
from infra.machine.usable_cores import usable_cores
from infra.operate.restart_requests import requested
from infra.planner.machine_memory import machine_memory
from infra.planner.ring_memory import check_memory
from infra.preparation.base_preparation import prepared_base
from infra.preparation.engine_arguments import check_engine_arguments
from infra.preparation.preparations import Preparations
from infra.settings.config import Settings, secrets_as_environment, to_toml
from infra.settings.part_addresses import in_url, parts
from infra.settings.person_key import person_key_of
from streams.core.errors import ConfigError, TidemillError, Unavailable
from streams.core.events import new_id
from streams.kafka import create_topics, kafka_answers

STOP_S = 30.0
"""Longest wait for a part to stop, beyond the time that an actor may take to finish its answers."""
HASTY_STOP_S, HASTY_CHILDREN_S, HASTY_KAFKA_S = 3.0, 1.0, 3.0
"""The same for a ring that answers nobody yet: its parts may be importing or loading, where no signal reaches them, and have nothing to finish."""
MEASURE_EVERY_S = 10.0
"""Seconds between two measurements of all processes' memory, which take a while themselves."""
Sizing = Callable[[Settings, MachineRates], Settings]
"""Fits settings to what a machine can do."""


class Ring(Startable):
    """Broker and parts. A context manager that leaves no process, port or lock behind."""

    def __init__(self, settings: Settings, say: Callable[[str], None], keeps_going: bool = False, sizing: Sizing | None = None,
                 meanwhile: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """``keeps_going``: a part in a crash loop (Kafka included) is restarted for ever while the others run; otherwise it ends the ring.
        ``sizing``: fits the learner's training steps to this machine, unless the learner has its own GPU. None: steps stay as they are set.
        ``meanwhile``: called repeatedly during the preparations; an exception in it cancels them."""
        self._say, self._keeps_going, self._sizing, self._meanwhile = say, keeps_going, sizing, meanwhile
        self.settings = settings.model_copy(update={"run_id": new_id("run")})
        self.processes = Processes(settings.run_folder / "logs")
        self._preparations = Preparations()
        self._broker: Broker | None = None
        self._broker_deaths, self._broker_started_s = DeathRecord(), 0.0
        self._lock: IO[str] | None = None
        self._told_states: tuple[dict[str, str], dict[str, int]] = ({}, {})
        self._waiting_parts: tuple[str, ...] = ()
        """Parts that wait for the actor."""
        self._restarting: set[str] = set()
        """Parts with a request for a restart that has begun."""
        self._actor_started_s = 0.0
        self._served = False
        """True once the actor has been ready: from then on a stop lets every part finish."""
        self.peak_memory_mib = 0.0
        self.cpu_s: dict[str, float] = {}
        """Processor time of each part in seconds, as last measured."""
        self._measured_s = 0.0
        self.rates: MachineRates | None = None
        """Measured rates of this machine. None before the measurement, or when no setting needs it."""

    @property
    def base_url(self) -> str:
        """Where OpenAI clients find the actor."""
        return f"http://{in_url(self.settings.actor.host)}:{self.settings.actor.port}/v1"

    def start(self) -> None:
        """Prepare, and start the parts that do not wait for the actor; ``check`` starts the others. Raises ConfigError when a port is taken, or when
        the ring does not fit into memory."""
        check_ports(self.settings)
        _check_rank(self.settings)
        check_memory(self.settings, machine_memory())
        folder = self.settings.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_run(folder)
        for asked in requested(folder):  # of an earlier ring
            asked.unlink(missing_ok=True)
        if self.settings.actor.port == 0:
            self._set("actor", port=free_port())
        self._say("preparing Apache Kafka and the base, and measuring this machine")
        begin, then = self._preparations.begin, self._preparations.then
        if self.settings.kafka.bootstrap_servers is None:
            broken_off = self._preparations.broken_off
            self._broker = broker = Broker(self.settings.broker, folder / "broker", self._fetching(), broken_off=broken_off)
            broker.reserve_port()
            self._set("kafka", bootstrap_servers=broker.bootstrap_servers)
            begin(KAFKA, broker.prepare)
            then({KAFKA}, lambda: self._launch_kafka(broker))
        else:
            begin(TOPICS, self._ask_kafka)
        begin(BASE, self._prepare_base)
        begin(MACHINE, self._measure)
        begin(ARGUMENTS, lambda: check_engine_arguments(self.settings.actor, self._preparations.broken_off))
        then(ACTOR_NEEDS, self._start_actor)
        then(OTHERS_NEED, self._start_beside_actor)
        self._preparations.finish(self._meanwhile)

    def _launch_kafka(self, broker: Broker) -> None:
        broker.launch()
        self._broker_started_s = time.monotonic()

        def await_topics() -> None:
            broker.await_ready()
            create_topics(self.settings.kafka)

        self._preparations.begin(TOPICS, await_topics)

    def _ask_kafka(self) -> None:
        if not kafka_answers(self.settings.kafka):
            raise Unavailable(f"no Kafka answers at kafka.bootstrap_servers = {self.settings.kafka.bootstrap_servers}")
        create_topics(self.settings.kafka)

    def _prepare_base(self) -> None:
        self._base = prepared_base(self.settings.policy, self._preparations.broken_off)

    def _measure(self) -> None:
        broken_off = self._preparations.broken_off
        self._choice = resolved(self.settings, broken_off=broken_off)
        self.rates = self._choice.rates
        if self.rates is None and self._sizing and not self.settings.learner.ray_num_gpus:  # only the size of steps depends on the machine
            self.rates = machine_rates(shape_of(self.settings.policy), broken_off=broken_off)

    def _start_actor(self) -> None:
        """Fix the settings, write them to ``config.toml`` for all parts, and start the actor."""
        self.settings = self._choice.settings
        self._set("policy", base=self._base)  # so that no part resolves it again
        check_memory(self.settings, machine_memory())  # once more: the measurement may have chosen a wider precision
        if self._sizing and self.rates is not None and not self.settings.learner.ray_num_gpus:
            self._size_steps(self._sizing, self.rates)
        for sentence in self._choice.why:
            self._say(sentence)
        if (key := person_key_of(self.settings, make=True)) is not None:
            self._set("erasure", person_key=SecretStr(key))
        (self.settings.run_folder / "config.toml").write_text(to_toml(self.settings))
        self._actor_started_s = time.monotonic()
        self._start_parts("actor")

    def _start_beside_actor(self) -> None:
        self._waiting_parts = after_actor(parts(self.settings))
        self._start_parts(*beside_actor(parts(self.settings)))

    def _start_parts(self, *names: str) -> None:
        config, plan = (self.settings.run_folder / "config.toml").resolve(), core_plan(usable_cores().threads, self.settings)
        for part in names:
            environment = {**plan[part].environment, **secrets_as_environment(self.settings)}
            self.processes.start(part, ["run", part, "--config", str(config)], environment, plan[part].niceness)

    def _start_after_actor(self) -> None:
        """Start the waiting parts once the actor is ready, is in a crash loop, or has taken too long."""
        if not self._waiting_parts:
            return
        waited_s, ready = time.monotonic() - self._actor_started_s, self.actor_ready()
        if ready or waited_s > AFTER_ACTOR_WAIT_S or "actor" in self.processes.failing():
            if ready:
                took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self._preparations.took_s.items())
                self._say(f"the actor is ready after {waited_s:.0f} s; in parallel before that: {took}")
            names, self._waiting_parts = self._waiting_parts, ()
            self._start_parts(*names)

    def stop(self) -> None:
        """Stop the parts against the data flow, and Kafka last. A ring whose actor was never ready stops within seconds."""
        self._preparations.break_off()
        self._waiting_parts = ()
        if self._served:
            for group in STOP_ORDER:
                self.processes.stop(*group, timeout_s=STOP_S + self.settings.actor.stop_delay_s + self.settings.actor.drain_s)
        else:
            self.processes.stop_all(HASTY_STOP_S, HASTY_CHILDREN_S)
        if self._broker is not None:
            self._broker.stop(STOP_S if self._served else HASTY_KAFKA_S)
            self._broker = None
        if self._lock is not None:
            (self.settings.run_folder / STATES_FILE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def check(self) -> None:
        """Restart what died, with a message; record peak memory. Raises Unavailable for a crash loop, unless ``keeps_going``."""
        if self._broker is not None:
            self._keep_kafka(self._broker)
        for sentence in self.processes.check():
            self._say(sentence)
        self._restart_requested()
        self._start_after_actor()
        self._tell_states()
        if not self._keeps_going:
            for sentence in self.processes.failing().values():
                raise Unavailable(sentence)
        if time.monotonic() < self._measured_s + MEASURE_EVERY_S:
            return
        self._measured_s = time.monotonic()
        broker_mib = memory_mib([self._broker.pid]) if self._broker is not None and self._broker.pid else 0.0
        self.peak_memory_mib = max(self.peak_memory_mib, self.processes.memory_mib() + broker_mib)
        self.cpu_s |= self.processes.cpu_s()
        if self._broker is not None and self._broker.pid:
            self.cpu_s["Kafka"] = cpu_s(self._broker.pid)

    def _restart_requested(self) -> None:
        """Restart the parts that ``tidemill restart`` asked for. A request is deleted when its part runs anew."""
        for asked in requested(self.settings.run_folder):
            name = asked.name
            if name not in self.processes.states():
                asked.unlink(missing_ok=True)
            elif name not in self._restarting:
                self._restarting.add(name)
                self.processes.begin_restart(name, STOP_S + self.settings.actor.drain_s)
            elif not self.processes.restarting(name):
                self._restarting.discard(name)
                asked.unlink(missing_ok=True)

    def _tell_states(self) -> None:
        """Write for ``tidemill status`` which parts run and which are in a crash loop."""
        kafka = {"kafka": self._broker_deaths.state(time.monotonic() - self._broker_started_s)} if self._broker is not None else {}
        waiting = dict.fromkeys(self._waiting_parts, "waits for the actor")
        states, restarts = kafka | self.processes.states() | waiting, self.processes.restarts
        if (states, restarts) != self._told_states:
            self._told_states = (states, restarts)
            write_states(self.settings.run_folder, states, restarts)

    def _keep_kafka(self, broker: Broker) -> None:
        """Restart the embedded Kafka when it has died, without waiting: answers go on, and outboxes deliver once it is back."""
        now_s, deaths, log = time.monotonic(), self._broker_deaths, self.settings.run_folder / "broker" / "kafka.log"
        if deaths.again_at_s is None and not broker.running():
            pause_s = deaths.died(now_s - self._broker_started_s, now_s)
            if deaths.keeps_dying(0.0) and not self._keeps_going:
                raise Unavailable(f"the embedded Kafka died {deaths.lately} times; its log is {log}")
            self._say(f"the embedded Kafka died and restarts in {pause_s:.0f} s; answers go on. Its log is {log}")
        if deaths.due(now_s):
            self._broker_started_s = now_s
            deaths.started()  # a failed launch counts as one more death
            try:
                broker.relaunch()
            except (TidemillError, OSError) as error:
                self._say(f"the embedded Kafka did not start: {error}")

    def actor_ready(self) -> bool:
        """True when this ring's own actor takes traffic. The run id tells it from another actor on the same port."""
        try:
            answer = httpx.get(f"{self.base_url.removesuffix('/v1')}/readyz", timeout=2)
            ready = answer.status_code == 200 and answer.json().get("run_id") == self.settings.run_id
        except (httpx.HTTPError, ValueError, AttributeError):
            return False
        self._served = self._served or ready
        return ready

    def await_actor(self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until the actor takes traffic. Raises Unavailable after ``timeout_s``, or when the actor is in a crash loop."""
        deadline = time.monotonic() + timeout_s
        while not self.actor_ready():
            if time.monotonic() > deadline:
                raise Unavailable(f"the actor was not ready within {timeout_s:.0f} s; see {self.settings.run_folder / 'logs' / 'actor.log'}")
            meanwhile()
            self.check()
            if "actor" in (failing := self.processes.failing()):
                raise Unavailable(failing["actor"])
            time.sleep(0.5)

    def _size_steps(self, sizing: Sizing, rates: MachineRates) -> None:
        """Fit steps to this machine, and say so."""
        asked, self.settings = self.settings.learner, sizing(self.settings, rates)
        if (sized := self.settings.learner) != asked:
            size = f"{sized.prompts_per_step} prompts x {sized.samples_per_prompt} samples x {sized.max_output_tokens} tokens"
            self._say(f"a step of the learner is {size} on this machine")

    def _set(self, section: str, **values: object) -> None:
        changed = getattr(self.settings, section).model_copy(update=values)
        self.settings = self.settings.model_copy(update={section: changed})

    def _fetching(self) -> Callable[[float], None]:
        told = [-1]

        def tell(part: float) -> None:
            if (tenth := int(part * 10)) > told[0]:
                told[0] = tenth
                self._say(f"fetching Apache Kafka (once): {part:.0%}")

        return tell


def lock_run(folder: Path) -> IO[str]:
    """Lock the run folder: one ring per folder. Raises ConfigError when another ring uses it."""
    handle = (folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ConfigError(f"{folder} is in use by another run; stop it, or choose another run_folder") from None
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def _check_rank(settings: Settings) -> None:
    """Raises ConfigError for adapters that every replica would refuse."""
    if (rank := settings.learner.largest_rank) > settings.actor.max_rank:
        limit = settings.actor.max_rank
        raise ConfigError(f"learner.rank = {rank} is above actor.max_rank = {limit}: replicas would refuse every adapter; raise the latter")
