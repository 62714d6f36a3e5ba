"""What vLLM may fetch: nothing on its own machine, nothing by a redirect, and nothing from hosts that were not named. Its own parser and fetcher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from actor.settings import ActorSettings
from actor.vllm_arguments import arguments, environment

FETCH = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.multimodal.media.connector import MediaConnector
from vllm.utils.argparse_utils import FlexibleArgumentParser

command_lines, urls = json.load(sys.stdin)
for words in command_lines:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    connector = MediaConnector(allowed_local_media_path=args.allowed_local_media_path, allowed_media_domains=args.allowed_media_domains)
    for url in urls:
        try:
            connector.fetch_image(url)
            print("fetched")
        except Exception as error:
            print(type(error).__name__, str(error)[:200].replace(chr(10), " "))
"""
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="


def test_nobody_on_this_machine_is_asked_for_a_picture(tmp_path: Path) -> None:
    settings = [ActorSettings(), ActorSettings(media_hosts=("media.example.com",))]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        port = listening.getsockname()[1]
        local = [f"http://{host}:{port}/" for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "media.example.com@127.0.0.1")]
        urls = [*local, f"http://127.0.0.1:{port}/#media.example.com", "file:///etc/passwd", PIXEL]
        variables = {**os.environ, **environment(settings[0]), "PYTHONPATH": str(Path(__file__).parents[2])}
        given = json.dumps([[arguments(each, tmp_path, "default") for each in settings], urls])
        done = subprocess.run(
            [sys.executable, "-P", "-c", FETCH], input=given, env=variables, text=True, capture_output=True, timeout=300, check=True
        )
        told = done.stdout.splitlines()
        with pytest.raises(TimeoutError):
            listening.accept()
    assert len(told) == 2 * len(urls)
    for each in (told[: len(urls)], told[len(urls) :]):
        assert each[-1] == "fetched"  # what the request itself carries
        assert [line for line in each[:-1] if "fetched" in line or "llowed" not in line] == []
