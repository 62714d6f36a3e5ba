"""One part as a process: its surroundings made from the settings, its metrics served, its work run until it is told to stop."""

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from infra.local.kafka_jars import cache_folder
from infra.machine.machine_probe import resolved_for_part
from infra.settings.config import Settings
from infra.settings.policy_settings import PolicySettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.artifacts.signing import Signing
from streams.core.errors import ConfigError
from streams.core.health import Health, serve
from streams.core.part_context import PartContext
from streams.core.traces import make_traces
from streams.kafka import await_kafka, kafka_answers

log = structlog.get_logger()
PORT_OFFSET = {"streams": 0, "reward": 1, "learner": 2, "promoter": 3, "critic": 4, "otlp": 5}
LOOPS = {
    "streams": ("join", "lake"), "reward": (), "learner": ("learning",), "promoter": ("promotion",), "critic": ("critic",), "otlp": ("otlp",),
}  # fmt: skip
"""What must have come round once before a part is ready. The updater's loop is Faust's, and tells nothing."""
WITHOUT_BASE = ("streams", "otlp")
"""Parts that never look at the policy's weights, which so need not be there."""
PROBE_S = 15.0


def run_role(role: str, settings: Settings, listen: Callable[[], threading.Event]) -> None:
    """Run one part until the event of ``listen`` is set. It is called once all is imported: a stop before that needs no good order."""
    settings = resolved_for_part(role, settings)
    work = _work(role, settings)
    stopping = listen()
    context = make_context(role, settings, stopping)
    context.metrics.start_at_zero(role)
    if role != "actor":  # the actor has an HTTP server of its own, and forks: no thread may run before it does
        port = settings.metrics_port + PORT_OFFSET[role] if settings.metrics_port else 0
        context.health.mark_missing("kafka", *LOOPS[role])
        log.info("metrics", role=role, port=serve(context.metrics, context.health, port))
        threading.Thread(target=probe_kafka, args=(role, context), name="probe", daemon=True).start()
        if not await_kafka(settings.kafka, stopping):
            return
    log.info("starting", role=role)  # the actor loads its model first, and waits for Kafka then
    try:
        work(context)
    finally:
        context.traces.close()
    log.info("stopped", role=role)


def probe_kafka(role: str, context: PartContext) -> None:
    """Ask Kafka now and then, in a thread of its own, and say whether it answered."""
    patient_s = min(5.0, context.kafka.request_timeout_s)
    kafka = context.kafka.model_copy(update={"request_timeout_s": patient_s})
    while not context.stopping.is_set():
        try:
            answers = kafka_answers(kafka)
        except ConfigError:  # it no longer lets us in
            answers = False
        context.metrics.set("tidemill_kafka_up", float(answers), part=role)
        (context.health.mark_present if answers else context.health.mark_missing)("kafka")
        context.stopping.wait(PROBE_S)


def make_context(role: str, settings: Settings, stopping: threading.Event) -> PartContext:
    """The surroundings of one part."""
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


def parts(settings: Settings) -> tuple[str, ...]:
    """All parts of a ring with these settings. The order in which they start: ``start_order.py``."""
    promoter = ("promoter",) if settings.gated_policy is not None else ()
    critic, otlp = ("critic",) if settings.critic.has_rubric else (), ("otlp",) if settings.otlp.beside_ring else ()
    return ("streams", "reward", "actor", "learner", *promoter, *critic, *otlp)


def metrics_targets(settings: Settings) -> dict[str, str]:
    """``host:port`` of every part's ``/metrics``, where ``metrics_port`` says; the actor's stands beside its API."""
    if not settings.metrics_port:
        return {}
    ports = {role: settings.metrics_port + offset for role, offset in PORT_OFFSET.items() if role in parts(settings)}
    return {role: f"127.0.0.1:{port}" for role, port in ports.items()} | {"actor": f"{settings.actor.host}:{settings.actor.port}"}


def ray_metrics_port(settings: Settings) -> int:
    """Where a Ray started by the learner serves its own metrics; 0: wherever it likes."""
    if settings.learner.ray_address or not settings.metrics_port:
        return settings.learner.ray_metrics_port
    return settings.learner.ray_metrics_port or settings.metrics_port + len(PORT_OFFSET)


def actor_url(settings: Settings) -> str:
    """The base URL of the actors' OpenAI API."""
    return settings.promotion.actor_url or f"http://{settings.actor.host}:{settings.actor.port}/v1"


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
    """The base, made on first use and cached."""
    if isinstance(policy.base, Path):
        return policy.base
    from learner.models.base_cache import prepare_base

    return prepare_base(policy.base, cache_folder() / "bases", policy.experts, policy.experts_per_token)


def _work(role: str, settings: Settings) -> Callable[[PartContext], None]:
    # Each part is imported where it is run: the streams need no torch, the learner no vLLM server.
    if role == "streams":
        from streams.join import join_loop as joiner
        from streams.lake import lake_loop as lake

        def join_and_lake(context: PartContext) -> None:
            in_lake = settings.lake.model_copy(update={"uri": lake_uri(settings)})
            side_by_side(context, lambda: joiner.run(settings.join, context), lambda: lake.run(in_lake, context, settings.join))

        return join_and_lake
    if role == "reward":
        from reward.updater import faust_app as updater

        return lambda context: updater.run(settings.reward, context)
    if role == "learner":
        from learner.ring import learner_loop as worker

        learner = settings.learner.model_copy(update={"ray_metrics_port": ray_metrics_port(settings)})
        return lambda context: worker.run(learner, settings.reward, context)
    if role == "promoter":
        from actor.promotion import promoter

        return lambda context: promoter.run(settings.promotion, settings.reward, actor_url(settings), context)
    if role == "critic":
        from actor.critic import critic_loop as critic

        if not settings.critic.has_rubric:
            raise ConfigError("critic.rubric and critic.reply_rubric are empty: say in plain words what a good answer does, a sentence each")
        return lambda context: critic.run(settings.critic, settings.critic.actor_url or actor_url(settings), context)
    if role == "otlp":
        from actor.otlp import otlp_receiver as receiver

        return lambda context: receiver.run(settings.otlp, context)
    from actor import vllm_server as server

    return lambda context: server.run(settings.actor, context, settings.gated_policy is not None)


def side_by_side(context: PartContext, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Two loops in one process; when one of them fails, both stop and the process ends with that error."""
    failures: list[BaseException] = []

    def second_until_stopped() -> None:
        try:
            second()
        except BaseException as error:  # noqa: BLE001 - carried over to the main thread, which raises it
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
