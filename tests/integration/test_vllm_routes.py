"""The installed vLLM: every route stands in a table (captured, open because it gives no answer, or closed), and its parser reads our arguments.

A new version's new route, and an argument that is gone, fail here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actor.capture.client_request import APIS
from actor.capture.open_vllm_paths import CLOSED, TELLING
from actor.settings import ActorSettings
from actor.vllm_arguments import REASON_OF, SETTING_OF, arguments, environment

PROGRAM = """
import json, sys
from typing import Any, get_args
from actor.vllm_arguments import _parser, _touched, parsed
from streams.core.errors import ConfigError
from vllm.entrypoints.launchers.app import build_app
from vllm.tasks import SupportedTask

def names(kind):
    return [kind] if isinstance(kind, str) else [name for inner in get_args(kind) for name in names(inner)]

def outcome(own, added):
    try:
        parsed(own, added)
    except ConfigError as error:
        return str(error)
    return "taken"

own, added = json.load(sys.stdin)
args = parsed(own, [])
tasks = names(SupportedTask)
assert "generate" in tasks, tasks
print(json.dumps({
    "routes": sorted({route.path for some in (("generate",), tuple(tasks)) for route in build_app(args, some, None).routes}),
    "touched": sorted(_touched(_parser(), own)),
    "known": sorted(vars(args)),
    "outcomes": [outcome(own, words) for words in added],
}))
"""
ADDED = {
    ("--tensor-parallel-size=2", "--quantization", "fp8"): "taken",
    ("-tp", "2", "--kv_cache_dtype=fp8", "--compilation-config.cudagraph_mode=PIECEWISE"): "taken",
    ("--gpu-memory-util", "0.5"): "--gpu-memory-utilization is decided by actor.gpu_memory_ratio; set that instead",
    ("--max_model_len=9",): "--max-model-len is decided by actor.max_model_tokens; set that instead",
    ("--no-enable-lora",): "--enable-lora is not to be had",
    ("--no-enforce-eager",): "--enforce-eager is decided by actor.enforce_eager",
    ("--logprobs-mode", "raw_logits"): "--logprobs-mode is not to be had",
    ("--api-key", "k"): "--api-key is decided by actor.keys_file",
    ("--tensor-parallel-size", "two"): "vLLM refuses them: argument --tensor-parallel-size",
    ("--tensr-parallel-size", "2"): "unrecognized arguments: --tensr-parallel-size",
    ("--enable-expert-paralel",): "unrecognized arguments",
    ("--help",): "only tell",
    ("--config=a.yaml",): "--config is not to be had",
    ("a-stray-word",): "actor.vllm_args",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process imports vLLM for all tests here."""
    settings = ActorSettings(tool_call_parser="hermes", engine_metrics=False)
    words = arguments(settings, tmp_path_factory.mktemp("base"), "default", on_gpu=True)
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], input=json.dumps([words, [list(each) for each in ADDED]]), text=True,
                          capture_output=True, timeout=240,
                          env={**os.environ, **environment(settings), "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_route_of_vllm_answers_past_the_tables(told: dict[str, Any]) -> None:
    routes = set(told["routes"])
    assert routes - set(APIS) - TELLING - CLOSED == set(), "sort each into a table of actor/capture/open_vllm_paths.py"
    assert set(APIS) | TELLING | CLOSED <= routes, "no longer a route of vLLM"
    assert not (set(APIS) & TELLING)
    assert not (CLOSED & (set(APIS) | TELLING))


def test_every_argument_that_the_actor_decides_is_vllms_and_names_its_setting(told: dict[str, Any]) -> None:
    known = set(told["known"]) | {"config"}  # read before the parser
    assert set(told["touched"]) <= set(SETTING_OF) | set(REASON_OF), "say in actor/vllm_arguments.py which setting decides it"
    assert set(SETTING_OF) | set(REASON_OF) <= known, "no longer an argument of vLLM"
    assert not (set(SETTING_OF) & set(REASON_OF))


def test_vllms_own_parser_reads_the_added_arguments(told: dict[str, Any]) -> None:
    for (added, wanted), outcome in zip(ADDED.items(), told["outcomes"], strict=True):
        assert wanted in outcome, added
        assert outcome == "taken" or "actor.vllm_args" in outcome
