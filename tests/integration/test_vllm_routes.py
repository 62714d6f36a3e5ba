"""Every route of the installed vLLM stands in a table: captured, open because it gives no answer, or closed. A new version's new route fails here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from actor.capture.client_request import APIS
from actor.capture.server_paths import CLOSED, TELLING
from actor.settings import ActorSettings
from actor.vllm_server import arguments, environment
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.part_context import PartContext
from streams.kafka import KafkaSettings

ROUTES = """
import json, sys
from typing import get_args
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.tasks import SupportedTask
from vllm.utils.argparse_utils import FlexibleArgumentParser

def names(kind):
    return [kind] if isinstance(kind, str) else [name for inner in get_args(kind) for name in names(inner)]

args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.load(sys.stdin))
tasks = names(SupportedTask)
assert "generate" in tasks, tasks
print(json.dumps(sorted({route.path for some in (("generate",), tuple(tasks)) for route in build_app(args, some, None).routes})))
"""


def test_no_route_of_vllm_answers_past_the_tables(tmp_path: Path) -> None:
    settings = ActorSettings()
    words = arguments(settings, PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path))
    done = subprocess.run([sys.executable, "-c", ROUTES], input=json.dumps(words), text=True, capture_output=True, timeout=240,
                          env={**os.environ, **environment(settings)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    routes = set(json.loads(done.stdout.splitlines()[-1]))
    assert routes - set(APIS) - TELLING - CLOSED == set(), "sort each into a table of actor/capture/server_paths.py"
    assert set(APIS) | TELLING | CLOSED <= routes, "no longer a route of vLLM"
    assert not (set(APIS) & TELLING)
    assert not (CLOSED & (set(APIS) | TELLING))
