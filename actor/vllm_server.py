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

from actor.adapters.request_routing import BASE
from actor.capture.redaction import redactor_of
from actor.process_forks import EXPERT_LAYOUT, PARENT, fork_is_safe, forks_die_with_parent
from actor.settings import ActorSettings
from streams.core.errors import ConfigError
from streams.core.listening_socket import listening_socket
from streams.core.part_context import PartContext
from streams.kafka import await_kafka

NOWHERE = "nowhere.invalid"
"""A host name that never exists (RFC 2606)."""
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


def environment(settings: ActorSettings) -> dict[str, str]:
    """What vLLM reads from the environment. Nothing leaves the machine; nothing secret is in it."""
    threads = settings.cpu_threads or len(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding assumes that the machine is vLLM's alone
        EXPERT_LAYOUT: settings.expert_layout,
        "OMP_NUM_THREADS": str(threads),  # unset, vLLM cuts torch to one thread
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU: the engine's process does the work itself, without a third process
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # a redirect leads from a host that is allowed to one that is not
        "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": "20",
        "VLLM_MEDIA_FETCH_MAX_RETRIES": "1",
        "TOKENIZERS_PARALLELISM": "false",  # it would warn of the fork
    }


def arguments(settings: ActorSettings, context: PartContext) -> list[str]:
    """vLLM's command line."""
    from actor.adapters.placed_tensors import EXTENSION
    from actor.adapters.vllm_cpu_lora import LORA_MODULES

    flags: dict[str, object] = {
        "--model": context.base,
        "--host": settings.host,
        "--port": settings.port,
        "--dtype": settings.dtype,
        "--max-model-len": settings.max_model_tokens,
        "--max-num-seqs": settings.max_concurrent,
        "--max-loras": settings.max_loras,
        "--max-cpu-loras": 2 * settings.max_loras,
        "--max-lora-rank": settings.max_rank,
        "--worker-extension-cls": EXTENSION,
        "--shutdown-timeout": int(settings.drain_s),
        "--uvicorn-log-level": settings.log_level.lower(),
        "--generation-config": "vllm",  # the request says how to sample, not a file beside the weights
    }
    words = [str(word) for flag, value in flags.items() for word in (flag, value)]
    words += ["--served-model-name", BASE, context.policy, "--enable-lora", "--lora-target-modules", *LORA_MODULES]
    words += ["--disable-uvicorn-access-log"]
    words += ["--allowed-media-domains", *(settings.media_hosts or (NOWHERE,))]  # an empty list would mean everywhere
    if not settings.engine_metrics:
        words.append("--disable-log-stats")
    if settings.enforce_eager:
        words.append("--enforce-eager")
    if settings.tool_call_parser is not None:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    return words


def _start_engine(settings: ActorSettings, context: PartContext) -> tuple[Any, Any]:
    """The engine's client, its process started and loaded, and vLLM's parsed arguments."""
    import torch._dynamo
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments(settings, context))
    validate_parsed_serve_args(args)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise ConfigError(f"vLLM refuses the base {context.base} with these actor settings: {error}") from None
    if current_platform.is_cpu():
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
