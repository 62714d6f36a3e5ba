"""What ``tidemill up`` says when it is ready."""

import os
from pathlib import Path

from infra.local.up import learner_runs, ready_text
from infra.operate.learning_needs import progress_file
from infra.settings.config import Settings, load


def ready(folder: Path, *overrides: str) -> Settings:
    settings = load("laptop", (f"run_folder={folder}", "kafka.bootstrap_servers=127.0.0.1:9092", *overrides), {})
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").touch()
    os.utime(folder / "config.toml", (2_000_000, 2_000_000))
    return settings


def test_every_address_is_told(tmp_path: Path) -> None:
    told = ready_text(ready(tmp_path, "metrics_port=9100", "console.port=8091"))
    for address in ("http://127.0.0.1:8000/v1 ", "http://127.0.0.1:8000/chat", "http://127.0.0.1:8091/", "http://127.0.0.1:8000/metrics",
                    "learner 127.0.0.1:9102", "127.0.0.1:9092", str(tmp_path)):  # fmt: skip
        assert address in told
    assert "set metrics_port" in ready_text(ready(tmp_path))


def test_addresses_are_ones_that_a_client_on_this_machine_can_use(tmp_path: Path) -> None:
    told = ready_text(ready(tmp_path, "actor.host=0.0.0.0", "console.host=0.0.0.0"))
    assert "0.0.0.0" not in told
    assert 'base_url="http://127.0.0.1:8000/v1"' in told


def test_a_learner_that_has_not_loaded_yet_is_said_to_start_whatever_an_earlier_one_left(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    assert "still starting" in ready_text(settings)
    progress = progress_file(settings)
    progress.parent.mkdir(parents=True)
    progress.touch()
    os.utime(progress, (1_000_000, 1_000_000))
    assert not learner_runs(settings), "of the run before"
    os.utime(progress, (3_000_000, 3_000_000))
    assert "learner     ready" in ready_text(settings)
