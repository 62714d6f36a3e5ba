"""Metrics come from the table and nowhere else."""

import re

import pytest

from streams.core.metrics import MAX_SERIES, TABLE, Metrics


def test_every_row_has_a_name_that_says_its_unit_and_can_be_made() -> None:
    metrics = Metrics()
    for row in TABLE:
        assert re.fullmatch(r"tidemill_[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter")
        assert row.sentence.endswith(".")
        labels = dict.fromkeys(row.labels, "x")
        if row.kind == "counter":
            metrics.add(row.name, **labels)
        elif row.kind == "gauge":
            metrics.set(row.name, 1, **labels)
        else:
            metrics.observe(row.name, 1, **labels)
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_a_metric_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Metrics().add("tidemill_invented_total")
    with pytest.raises(TypeError):
        Metrics().set("tidemill_labels_total", 1)


def test_values_add_up_by_label_and_start_at_nothing() -> None:
    metrics = Metrics()
    assert metrics.value("tidemill_lake_rows_total", topic="a") == 0
    metrics.add("tidemill_lake_rows_total", 2, topic="a")
    metrics.add("tidemill_lake_rows_total", 3, topic="a")
    metrics.add("tidemill_lake_rows_total", topic="b")
    assert (metrics.value("tidemill_lake_rows_total", topic="a"), metrics.value("tidemill_lake_rows_total", topic="b")) == (5, 1)


def test_two_parts_in_one_process_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.add("tidemill_labels_total")
    assert other.value("tidemill_labels_total") == 0


def test_what_a_part_counts_is_shown_at_nothing_before_the_first_event() -> None:
    metrics = Metrics()
    metrics.start_at_zero("streams")
    told = metrics.text().decode()
    assert "tidemill_labels_total 0.0" in told
    assert "tidemill_thumb_to_label_seconds_count 0.0" in told
    assert "tidemill_learner_steps_total" not in told
    assert "\ntidemill_feedback_pending " not in told, "a gauge that nobody has set would lie"


def test_however_many_values_a_label_takes_the_series_are_bounded_and_nothing_is_lost() -> None:
    metrics = Metrics()
    for number in range(5000):
        metrics.add("tidemill_dead_letters_total", topic="t", reason=f"reason-{number}")
        metrics.adder("tidemill_published_total", topic=f"topic-{number}")()
    series = [line for line in metrics.text().decode().splitlines() if line.startswith("tidemill_dead_letters_total{")]
    assert len(series) == MAX_SERIES + 1
    assert sum(float(line.rpartition(" ")[2]) for line in series) == 5000
    assert metrics.value("tidemill_published_total", topic="other") == 5000 - MAX_SERIES


def test_no_metric_is_told_apart_by_what_people_or_their_agents_choose() -> None:
    assert {label for row in TABLE for label in row.labels} <= {
        "topic", "part", "reason", "kind", "result", "rule", "phase", "outcome", "policy", "verdict", "move", "gate", "what", "work", "bound",
    }  # fmt: skip
