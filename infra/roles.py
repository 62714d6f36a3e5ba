"""One part as a process: its surroundings made from the settings, its metrics served, its work run until it is told to stop."""

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from infra.config import PolicySettings, Settings
from infra.jars import cache_folder
from streams.artifacts import ArtifactStore
from streams.kafka import ready
from streams.site import Site

log = structlog.get_logger()
PORT_OFFSET = {"streams": 0, "reward": 1, "learner": 2, "actor": 3}


def run_role(role: str, settings: Settings, listen: Callable[[], threading.Event]) -> None:
    """Run one part until the event of ``listen`` is set. It is called once all is imported: a stop before that needs no good order."""
    work = _work(role, settings)
    stopping = listen()
    site = make_site(role, settings, stopping)
    while not ready(settings.kafka):
        log.warning("kafka is away", servers=settings.kafka.bootstrap_servers)
        if stopping.wait(2.0):
            return
    if role != "actor":  # the actor serves its metrics on vLLM's own /metrics
        port = settings.metrics_port + PORT_OFFSET[role] if settings.metrics_port else 0
        log.info("metrics", role=role, port=site.metrics.serve(port))
    log.info("starting", role=role)
    work(site)
    log.info("stopped", role=role)


def make_site(role: str, settings: Settings, stopping: threading.Event) -> Site:
    """The surroundings of one part."""
    state = settings.run_folder / "state" / role
    state.mkdir(parents=True, exist_ok=True)
    return Site(
        kafka=settings.kafka,
        artifacts=ArtifactStore(artifacts_uri(settings)),
        policy=settings.policy.name,
        base=base_folder(settings.policy),
        state=state,
        stopping=stopping,
    )


def artifacts_uri(settings: Settings) -> str:
    """The artifact store's URI, resolved."""
    return settings.artifacts_uri or str(settings.run_folder / "artifacts")


def lake_uri(settings: Settings) -> str:
    """The lake's URI, resolved."""
    return settings.lake.uri or str(settings.run_folder / "lake")


def base_folder(policy: PolicySettings) -> Path:
    """The base, made on first use and cached."""
    if isinstance(policy.base, Path):
        return policy.base
    from learner.upcycle import prepare_base  # brings torch and transformers, which some parts never need

    return prepare_base(policy.base, cache_folder() / "bases", policy.experts, policy.experts_per_token)


def _work(role: str, settings: Settings) -> Callable[[Site], None]:
    # Each part is imported where it is run: the streams need no torch, the learner no vLLM server.
    if role == "streams":
        from streams import joiner, lake

        def join_and_lake(site: Site) -> None:
            in_lake = settings.lake.model_copy(update={"uri": lake_uri(settings)})
            side_by_side(site, lambda: joiner.run(settings.join, site), lambda: lake.run(in_lake, site))

        return join_and_lake
    if role == "reward":
        from reward import updater

        return lambda site: updater.run(settings.reward, site)
    if role == "learner":
        from learner import worker

        return lambda site: worker.run(settings.learner, settings.reward, site)
    from actor import server

    return lambda site: server.run(settings.actor, site)


def side_by_side(site: Site, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Two loops in one process; when one of them fails, both stop and the process ends with that error."""
    failures: list[BaseException] = []

    def second_until_stopped() -> None:
        try:
            second()
        except BaseException as error:  # noqa: BLE001 - carried over to the main thread, which raises it
            failures.append(error)
        finally:
            site.stopping.set()

    thread = threading.Thread(target=second_until_stopped, name="lake")
    thread.start()
    try:
        first()
    finally:
        site.stopping.set()
        thread.join()
    if failures:
        raise failures[0]
