"""Puts the actor's parts together inside vLLM's server."""

import asyncio
import shutil
import signal
import socket
from typing import Any

import uvicorn
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import NoSignalServer, create_server_socket

from actor.adapters.adapter_loader import AdapterLoader
from actor.adapters.engine_pulse import EnginePulse, watch_engine
from actor.adapters.request_routing import Router
from actor.adapters.serving_engine import ServingEngine
from actor.api_keys import KeyGate, Keys
from actor.capture.capture_middleware import Capture
from actor.capture.conversations import Conversations
from actor.capture.engine_recorder import wrap_engine
from actor.capture.episode_publisher import EpisodePublisher
from actor.capture.media_store import MediaStore
from actor.capture.open_vllm_paths import ServerPaths
from actor.capture.sampled_logprobs import leave_out_text
from actor.doors.http_doors import Doors
from actor.doors.setting_names import SettingNames
from actor.doors.stop_replies import StopReplies
from actor.redaction.redaction import Redactor
from actor.settings import ActorSettings
from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.kafka import Producer
from streams.outbox.outbox import Outbox

STOP_POLL_S = 0.2
KEEP_ALIVE_S = 60


async def serve(engine: Any, args: Any, settings: ActorSettings, gated: bool, context: PartContext, redactor: Redactor) -> None:
    """Serve until stopped; then write every event to disk or Kafka. Raises Unavailable when the engine dies."""
    replica = settings.replica or f"{socket.gethostname()}:{settings.port}"
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    leave_out_text()
    pulse = EnginePulse(settings.hang_s)
    watch_engine(engine, pulse)
    wrap_engine(engine)

    outbox = Outbox(context.state / "outbox.sqlite", lambda: Producer(context.kafka, context.metrics, "tidemill-actor"), context.metrics, "actor",
                    settings, context.clock)  # fmt: skip
    router, conversations = Router(context.policy, room=settings.max_loras), Conversations(settings.remembered_answers)
    publisher = EpisodePublisher(outbox, context.metrics, settings, redactor, MediaStore(context.artifacts, settings.max_media_bytes), context.traces)
    shutil.rmtree(context.state / "adapters", ignore_errors=True)  # of an earlier run: the log says what to fetch
    follower = AdapterLoader(
        settings,
        context,
        ServingEngine(engine, app.state.openai_serving_models, router, settings.load_timeout_s),
        outbox,
        replica,
        gated,
        publisher.erase_person,
    )

    def ill() -> list[str]:
        return ["engine"] if engine.errored or not engine.is_running or pulse.hangs else []

    def unready() -> list[str]:
        waits = [] if follower.caught_up.is_set() else ["adapters"]
        return [*(["stopping"] if context.stopping.is_set() else []), *ill(), *waits]

    # Around the whole stack: building the app has made it already, and what vLLM's own layers answer is seen too.
    stack = ServerPaths(SettingNames(app.middleware_stack or app.build_middleware_stack()))
    captured = Capture(stack, settings, router, publisher, conversations, context.clock, replica, follower.request_load)
    doors = Doors(captured, settings, publisher, conversations, context.metrics, context.clock, context.policy, unready, context.health, ill)
    app.middleware_stack = StopReplies(KeyGate(doors, Keys(settings.keys_file)) if settings.keys_file else doors)
    follower.start()
    try:
        await _serve_http(app, engine, follower, settings, context)
    finally:
        await asyncio.to_thread(follower.join, settings.poll_s + 5, told_to_stop=not engine.errored)
        await asyncio.to_thread(publisher.close)
        await asyncio.to_thread(outbox.close, settings.drain_s)


async def _serve_http(app: Any, engine: Any, follower: AdapterLoader, settings: ActorSettings, context: PartContext) -> None:
    """Answer until stopped, then let running answers finish. Raises Unavailable when the engine dies."""
    died = False
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, context.stopping.set)
    server = NoSignalServer(uvicorn.Config(app, log_level=settings.log_level.lower(), access_log=False, timeout_keep_alive=KEEP_ALIVE_S,
                                           timeout_graceful_shutdown=max(1, round(settings.drain_s))))  # fmt: skip
    app.state.server = server
    serving = asyncio.create_task(server.serve(sockets=[create_server_socket((settings.host, settings.port), reuse_port=False)]))
    while not (context.stopping.is_set() or serving.done() or died or follower.ended.done()):
        await asyncio.sleep(STOP_POLL_S)
        died = engine.errored
    if not (died or serving.done() or follower.ended.done()):  # /readyz has said "stopping" since the signal
        await asyncio.sleep(settings.stop_delay_s)
    server.should_exit = True
    await serving
    if follower.ended.done():
        follower.ended.result()  # raises what ended it
    if died and not context.stopping.is_set():
        context.stopping.set()  # for the follower, which is about to be waited for
        raise Unavailable("vLLM's engine died; its own log says why")
