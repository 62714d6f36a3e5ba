"""The disk's free part is told before the folder is made, and a disk that cannot be asked stops nobody."""

import shutil
from pathlib import Path

import pytest

from streams.core.health import report_disk_space
from streams.core.metrics import Metrics

NAME = "tidemill_disk_free_ratio"


def test_a_folder_that_is_not_made_yet_counts_as_the_disk_where_it_will_be(tmp_path: Path) -> None:
    metrics = Metrics()
    report_disk_space(metrics, tmp_path / "not" / "yet", "actor")
    assert 0.0 < metrics.value(NAME, part="actor") <= 1.0


def test_a_disk_that_cannot_be_asked_keeps_its_last_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    report_disk_space(metrics, tmp_path, "actor")
    before = metrics.value(NAME, part="actor")

    def gone(folder: Path) -> None:
        raise OSError("stale handle")

    monkeypatch.setattr(shutil, "disk_usage", gone)
    report_disk_space(metrics, tmp_path, "actor")
    assert metrics.value(NAME, part="actor") == before
