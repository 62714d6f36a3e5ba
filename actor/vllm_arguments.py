"""vLLM's command line, environment and parser: what the actor sets itself, what ``actor.vllm_args`` adds, and that neither overrides the other."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from actor.adapters.request_routing import BASE
from actor.process_forks import EXPERT_LAYOUT
from actor.settings import ActorSettings
from reward.families.base_folder import family_in
from reward.families.known_families import lora_modules_of
from streams.core.errors import ConfigError

NOWHERE = "nowhere.invalid"
"""A host name that never exists (RFC 2606)."""
SETTING_OF: Final = {
    "model": "policy.base", "served_model_name": "policy.name", "host": "actor.host", "port": "actor.port", "dtype": "actor.dtype",
    "max_model_len": "actor.max_model_tokens", "max_num_seqs": "actor.max_concurrent", "max_loras": "actor.max_loras",
    "max_cpu_loras": "actor.max_loras", "max_lora_rank": "actor.max_rank", "gpu_memory_utilization": "actor.gpu_memory_ratio",
    "enforce_eager": "actor.enforce_eager", "uvicorn_log_level": "actor.log_level", "disable_log_stats": "actor.engine_metrics",
    "enable_auto_tool_choice": "actor.tool_call_parser", "tool_call_parser": "actor.tool_call_parser", "allowed_media_domains": "actor.media_hosts",
    "shutdown_timeout": "actor.drain_s", "api_key": "actor.keys_file",
}  # fmt: skip
"""The setting that decides an argument of vLLM's, by the argument's name in its parser."""
REASON_OF: Final = {
    "model_tag": "policy.base names the base",
    "config": "a file of arguments would override what the actor sets; write them into actor.vllm_args",
    "enable_lora": "an actor serves adapters", "lora_target_modules": "an actor serves adapters on all modules that can carry one",
    "lora_modules": "adapters come from the log, and serve after attestation only",
    "worker_extension_cls": "attestation reads the engine through it",
    "generation_config": "a request says how to sample, not a file beside the weights",
    "scheduling_policy": "people's requests come before a learner's rollouts",
    "logprobs_mode": "episodes record log-probabilities before temperature, and attestation compares them",
    "disable_uvicorn_access_log": "an access log would hold people's addresses", "enable_log_requests": "people's words would stand in a log",
    "enable_log_outputs": "people's words would stand in a log",
    "middleware": "capture and keys lie around vLLM's server already",
    "api_server_count": "capture and adapters live in one server; run more actors instead", "headless": "an actor has a server",
    "data_parallel_size": "run more actors instead, each with its own engine",
} | dict.fromkeys(
    ("uds", "root_path", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "enable_ssl_refresh", "ssl_cert_reqs", "ssl_ciphers", "grpc_port",
     "tokens_only", "enable_scale_out"),
    "the actor serves plain HTTP at actor.host and actor.port; put a proxy before it",
)  # fmt: skip
"""Why an argument of vLLM's is not to be had, by its name in vLLM's parser."""


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


def arguments(settings: ActorSettings, base: Path, policy: str, on_gpu: bool = False) -> list[str]:
    """The actor's own part of vLLM's command line."""
    from actor.adapters.placed_tensors import EXTENSION

    flags: dict[str, object] = {
        "--model": base,
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
        "--scheduling-policy": "priority",  # people's requests before a learner's rollouts (actor/rollout_requests.py)
    }
    if on_gpu:
        flags["--gpu-memory-utilization"] = settings.gpu_memory_ratio
    words = [str(word) for flag, value in flags.items() for word in (flag, value)]
    words += ["--served-model-name", BASE, policy, "--enable-lora", "--lora-target-modules", *lora_modules_of(family_in(base))]
    words += ["--disable-uvicorn-access-log"]
    words += ["--allowed-media-domains", *(settings.media_hosts or (NOWHERE,))]  # an empty list would mean everywhere
    if not settings.engine_metrics:
        words.append("--disable-log-stats")
    if settings.enforce_eager is True or (settings.enforce_eager == "auto" and not on_gpu):
        words.append("--enforce-eager")
    if settings.tool_call_parser is not None:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    return words


def parsed(own: Sequence[str], added: Sequence[str]) -> argparse.Namespace:
    """vLLM's own reading of the actor's arguments and of ``actor.vllm_args``. Raises ConfigError where it refuses one of the latter, or where one
    would override the actor's. Imports vLLM."""
    parser = _parser()
    check_added(parser, own, added)
    found: argparse.Namespace = parser.parse_args([*own, *added])
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    try:
        validate_parsed_serve_args(found)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"actor.vllm_args = {list(added)}: vLLM refuses them: {error}") from None
    return found


def check_added(parser: argparse.ArgumentParser, own: Sequence[str], added: Sequence[str]) -> None:
    """Refuse an added argument that the parser does not know, or that touches what the actor decides. An abbreviation, another spelling or a file
    of arguments touches the same name in the parser, so names are compared, not words. Raises ConfigError."""
    if "--config" in added or any(word.startswith("--config=") for word in added):  # read before the parser's names are set
        raise ConfigError(f"actor.vllm_args = {list(added)}: --config is not to be had: {REASON_OF['config']}")
    mine, theirs = _touched(parser, own), _touched(parser, added)
    for name in sorted(theirs):
        flag = f"--{name.replace('_', '-')}"
        if setting := SETTING_OF.get(name):
            raise ConfigError(f"actor.vllm_args = {list(added)}: {flag} is decided by {setting}; set that instead")
        if (reason := REASON_OF.get(name)) or name in mine:
            raise ConfigError(f"actor.vllm_args = {list(added)}: {flag} is not to be had: {reason or 'the actor sets it'}")


class _Untold(list[Any]):
    """The value of an argument that was not given. A list, because arguments that may be repeated are appended to a copy of their value."""


def _touched(parser: argparse.ArgumentParser, words: Sequence[str]) -> set[str]:
    """Names of the arguments that these words give. Raises ConfigError where the parser refuses them."""
    untold = _Untold()
    before = argparse.Namespace(**{action.dest: untold for action in parser._actions if action.dest != argparse.SUPPRESS})
    unnamed = {action.dest: action.default for action in parser._actions if not action.option_strings}  # set to their default where not given
    found = vars(parser.parse_args(list(words), before)).items()
    return {name for name, value in found if value is not untold and not (name in unnamed and value == unnamed[name])}


def _parser() -> argparse.ArgumentParser:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class RaisingParser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"actor.vllm_args: vLLM refuses them: {message}")

        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            raise ConfigError("actor.vllm_args: --help and the like only tell; docs.vllm.ai lists all arguments")

        def print_help(self, file: Any = None) -> None:
            return None

    parser: argparse.ArgumentParser = make_arg_parser(RaisingParser())
    return parser


def main(settings: str) -> None:
    """Check the arguments of an actor with these settings (JSON). Exit 1 with a sentence where vLLM or the actor refuses one. Loads no model."""
    actor = ActorSettings.model_validate_json(settings)
    try:
        parsed(arguments(actor, Path("base"), "default", on_gpu=True), actor.vllm_args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
