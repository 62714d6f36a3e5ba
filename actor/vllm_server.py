"""The actor: vLLM's OpenAI server in this process, with capture, feedback and the adapter follower inside it."""

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import structlog

from actor.process_forks import PARENT, fork_is_safe, forks_die_with_parent
from actor.redaction.redaction import redactor_of
from actor.settings import ActorSettings
from actor.vllm_arguments import arguments, environment, parsed
from streams.core.errors import ConfigError
from streams.core.health import listening_socket
from streams.core.part_context import PartContext
from streams.kafka import await_kafka

log = structlog.get_logger()


def run(settings: ActorSettings, context: PartContext, gated: bool = False) -> None:
    """Serve the policy until ``context.stopping`` is set or SIGTERM or SIGINT comes. Must be called on the main thread.

    ``gated``: serve by promotions, not simply the newest adapter.
    Raises ConfigError when the port is taken, Presidio is not installed, or the base does not fit the settings, Unavailable when the engine dies.
    """
    check_port(settings.host, settings.port)
    redactor = redactor_of(settings)
    os.environ.update(environment(settings) | {PARENT: str(os.getpid())})
    gc.disable()  # importing vLLM makes millions of objects, none of them garbage: collecting costs seconds
    try:
        with _stops_while_starting(context):
            engine, args = _start_engine(settings, context)
            from actor.server_wiring import serve  # after the fork: nothing of it is for the engine
    except _Stopped:
        return
    finally:
        gc.enable()
    try:
        if not await_kafka(context.kafka, context.stopping):  # only now: loading takes longer than a Kafka that is started beside it
            return
        asyncio.run(serve(engine, args, settings, gated, context, redactor))
    finally:
        engine.shutdown(timeout=settings.drain_s)


def check_port(host: str, port: int) -> None:
    """Raise ConfigError when the port is in use: better now than after half a minute of loading a model."""
    listening_socket(host, port, "actor").close()


def _start_engine(settings: ActorSettings, context: PartContext) -> tuple[Any, Any]:
    """The engine's client, its process started and loaded, and vLLM's parsed arguments."""
    import torch._dynamo
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = current_platform.is_cpu()
    args = parsed(arguments(settings, context.base, context.policy, not on_cpu), settings.vllm_args)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except (ValueError, NotImplementedError) as error:
        added = f" and actor.vllm_args = {list(settings.vllm_args)}" if settings.vllm_args else ""
        raise ConfigError(f"vLLM refuses the base {context.base} with these actor settings{added}: {error}") from None
    if on_cpu:
        # With LoRA on, a CPU's model is never compiled; what is left are helpers of logprobs, half a minute for the first answer.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        torch._dynamo.config.disable = True
        if settings.fork_engine and fork_is_safe():
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # making the configuration set it to spawn
    gc.freeze()  # what is imported stays: not walked again, and its pages are shared with the engine's process
    forks_die_with_parent()
    return AsyncLLM.from_vllm_config(config, disable_log_stats=not settings.engine_metrics), args


class _Stopped(BaseException):
    """A signal arrived while the engine was starting. Not an Exception, so that no handler mistakes it for a failure."""


@contextmanager
def _stops_while_starting(context: PartContext) -> Iterator[None]:
    """Lets a signal stop the start at once: loading a model can take a minute."""

    def stop(number: int, frame: FrameType | None) -> None:
        context.stopping.set()
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
