"""Runs one part as a process: builds its context from the settings, serves its metrics, and runs its loop until it is stopped."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from infra.local.kafka_jars import cache_folder
from infra.machine.machine_probe import resolved_for_part
from infra.settings.config import Settings
from infra.settings.part_addresses import ADDRESS_FILE, PORT_OFFSET, actor_url, in_url, ray_metrics_port
from infra.settings.person_key import adopt_person_key
from infra.settings.policy_settings import PolicySettings
from reward.families.base_folder import read_base
from streams.artifacts.artifact_store import ArtifactStore
from streams.artifacts.signing import Signing
from streams.core.errors import ConfigError
from streams.core.health import Health, report_disk_space, serve
from streams.core.part_context import PartContext
from streams.core.traces import make_traces
from streams.kafka import await_kafka, kafka_answers

log = structlog.get_logger()
LOOPS = {
    "streams": ("join", "lake"), "reward": (), "learner": ("learning",), "promoter": ("promotion",), "critic": ("critic",), "otlp": ("otlp",),
}  # fmt: skip
"""Loops that must have completed a turn before a part is ready. The updater's loop belongs to Faust and sends no heartbeat."""
WITHOUT_BASE = ("streams", "otlp")
"""Parts that do not need the policy's weights."""
PROBE_S = 15.0


def run_role(role: str, settings: Settings, listen: Callable[[], threading.Event]) -> None:
    """Run one part until the event that ``listen`` returns is set. ``listen`` is called after all imports; until then, a signal kills the process."""
    settings = resolved_for_part(role, settings)
    work = _work(role, settings)
    stopping = listen()
    adopt_person_key(settings)
    context = make_context(role, settings, stopping)
    context.metrics.start_at_zero(role)
    context.metrics.set("tidemill_start_time_seconds", time.time(), part=role)
    if role != "actor":  # the actor has its own HTTP server, and forks: it must not start a thread before that
        port = settings.metrics_port + PORT_OFFSET[role] if settings.metrics_port else 0
        context.health.mark_missing("kafka", *LOOPS[role])
        port = serve(context.metrics, context.health, port, settings.metrics_host)
        (context.state / ADDRESS_FILE).write_text(f"{in_url(settings.metrics_host)}:{port}")
        log.info("metrics", role=role, host=settings.metrics_host, port=port)
        threading.Thread(target=probe_kafka, args=(role, context), name="probe", daemon=True).start()
        if not await_kafka(settings.kafka, stopping):
            return
    log.info("starting", role=role)  # the actor loads its model before it waits for Kafka
    try:
        work(context)
    finally:
        context.traces.close()
    log.info("stopped", role=role)


def probe_kafka(role: str, context: PartContext) -> None:
    """Check regularly whether Kafka answers, and report it as health and metric. Runs in its own thread."""
    patient_s = min(5.0, context.kafka.request_timeout_s)
    kafka = context.kafka.model_copy(update={"request_timeout_s": patient_s})
    while not context.stopping.is_set():
        try:
            answers = kafka_answers(kafka)
        except ConfigError:  # Kafka refuses our login
            answers = False
        context.metrics.set("tidemill_kafka_up", float(answers), part=role)
        report_disk_space(context.metrics, context.state, role)
        (context.health.mark_present if answers else context.health.mark_missing)("kafka")
        context.stopping.wait(PROBE_S)


def make_context(role: str, settings: Settings, stopping: threading.Event) -> PartContext:
    """What a part gets from outside: Kafka, artifacts, state folder, health, traces."""
    state = settings.run_folder / "state" / role
    state.mkdir(parents=True, exist_ok=True)
    return PartContext(
        kafka=settings.kafka,
        artifacts=artifact_store(settings),
        policy=settings.policy.name,
        base=Path() if role in WITHOUT_BASE else base_folder(settings.policy),
        state=state,
        health=Health(run_id=settings.run_id),
        stopping=stopping,
        traces=make_traces(settings.traces, role),
    )


def artifacts_uri(settings: Settings) -> str:
    """The artifact store's URI, resolved."""
    return settings.artifacts_uri or str(settings.run_folder / "artifacts")


def artifact_store(settings: Settings) -> ArtifactStore:
    """The artifact store, which checks signatures as set."""
    return ArtifactStore(artifacts_uri(settings), Signing(settings.signing))


def lake_uri(settings: Settings) -> str:
    """The lake's URI, resolved."""
    return settings.lake.uri or str(settings.run_folder / "lake")


def base_folder(policy: PolicySettings) -> Path:
    """The folder of the base. A named base is created on first use and cached. Raises ConfigError for a folder that no part could load."""
    if isinstance(policy.base, Path):
        return read_base(policy.base).folder
    from learner.models.base_cache import prepare_base

    return prepare_base(policy.base, cache_folder() / "bases", policy.experts, policy.experts_per_token)


def _work(role: str, settings: Settings) -> Callable[[PartContext], None]:
    # A part's modules are imported only when it runs: streams do not need torch, the learner does not need the vLLM server.
    if role == "streams":
        from streams.join import join_loop as joiner
        from streams.join import ledger_watch
        from streams.lake import lake_loop as lake

        def join_and_lake(context: PartContext) -> None:
            in_lake = settings.lake.model_copy(update={"uri": lake_uri(settings)})
            threading.Thread(target=ledger_watch.run, args=(settings.join, context), name="ledger", daemon=True).start()
            side_by_side(context, lambda: joiner.run(settings.join, context), lambda: lake.run(in_lake, context, settings.join))

        return join_and_lake
    if role == "reward":
        from reward.updater import faust_app as updater

        return lambda context: updater.run(settings.reward, context)
    if role == "learner":
        from learner.ring import learner_loop as worker

        found: dict[str, object] = {"ray_metrics_port": ray_metrics_port(settings)}
        if settings.learner.engine == "actor":
            found["rollout_url"] = settings.learner.rollout_url or actor_url(settings)
        learner = settings.learner.model_copy(update=found)
        return lambda context: worker.run(learner, settings.reward, context)
    if role == "promoter":
        from actor.promotion import promoter

        return lambda context: promoter.run(settings.promotion, settings.reward, actor_url(settings), context)
    if role == "critic":
        from actor.critic import critic_loop as critic

        if not settings.critic.has_rubric:
            raise ConfigError("critic.rubric and critic.reply_rubric are empty: set at least one to sentences that are true of a good answer")
        return lambda context: critic.run(settings.critic, settings.critic.actor_url or actor_url(settings), context)
    if role == "otlp":
        from actor.otlp import otlp_receiver as receiver

        return lambda context: receiver.run(settings.otlp, context)
    from actor import vllm_server as server

    return lambda context: server.run(settings.actor, context, settings.gated_policy is not None)


def side_by_side(context: PartContext, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Run two loops in one process. When one fails, both stop and the error is raised."""
    failures: list[BaseException] = []

    def second_until_stopped() -> None:
        try:
            second()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)
        finally:
            context.stopping.set()

    thread = threading.Thread(target=second_until_stopped, name="lake")
    thread.start()
    try:
        first()
    finally:
        context.stopping.set()
        thread.join()
    if failures:
        raise failures[0]
