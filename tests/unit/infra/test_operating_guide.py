"""The operator's guide is true: its commands and options exist, its settings load, what it says is written is written."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.settings.config import load

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "operating.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.S) for line in block.splitlines() if line.startswith("tidemill ")]


@pytest.fixture
def at_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's settings file in it."""
    for name, settings in zip(("tidemill.toml", "cluster.toml"), re.findall(r"```toml\n(.*?)```", GUIDE, re.S), strict=True):
        (tmp_path / name).write_text(settings)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_of_the_guide_exists(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"^export (\w+)=", GUIDE, re.M):
        monkeypatch.setenv(name, "as the guide sets it")
    command: click.Command = main
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group) and ((words[:1] and words[0] in command.commands) or not command.invoke_without_command):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words, resilient_parsing=False)


def test_the_settings_of_the_guide_load_and_their_ports_are_those_it_asks(at_a_folder: Path) -> None:
    settings = load("tidemill.toml", (), {})
    ports = {settings.metrics_port, settings.actor.port}
    assert {int(port) for port in re.findall(r"curl http://127.0.0.1:(\d+)/", GUIDE)} == ports
    assert f"http://127.0.0.1:{settings.console.port}/" in GUIDE
    for name in ("tidemill.toml", "cluster.toml"):
        assert CliRunner().invoke(main, ["config", "--config", name]).exit_code == 0


def test_what_prometheus_is_started_with_is_what_was_written(at_a_folder: Path) -> None:
    (line,) = [line for line in COMMANDS if "dashboards alerts" in line]
    told = CliRunner().invoke(main, shlex.split(line)[1:])
    assert told.exit_code == 0, told.output
    (config,) = re.findall(r"--config.file=(\S+)", GUIDE)
    assert (at_a_folder / config).is_file()
    assert "127.0.0.1:9102" in (at_a_folder / config).read_text()
    assert CliRunner().invoke(main, ["dashboards", "write", "grafana"]).exit_code == 0
    assert list((at_a_folder / "grafana").glob("*.json"))
