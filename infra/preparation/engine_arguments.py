"""Has vLLM's own parser read ``actor.vllm_args`` before anything starts, in a child process: importing vLLM takes seconds."""

import os
import sys
import threading

from actor.settings import ActorSettings
from actor.vllm_arguments import environment
from infra.preparation.child_runs import run_child
from streams.core.errors import ConfigError

TIMEOUT_S = 300.0


def check_engine_arguments(actor: ActorSettings, broken_off: threading.Event) -> None:
    """Raises ConfigError where vLLM does not know an argument, or where one would override what another setting decides; Unavailable when it is
    cancelled. Nothing is started where there are none."""
    if not actor.vllm_args:
        return
    command = [sys.executable, "-P", "-m", "actor.vllm_arguments", actor.model_dump_json()]
    done = run_child(command, {**os.environ, **environment(actor)}, broken_off, TIMEOUT_S)
    if done.status:
        raise ConfigError(done.last_line)
