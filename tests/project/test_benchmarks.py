"""Benchmarks that need nothing beyond the ring's own packages can be started: what is not run every day breaks unseen."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.corrections_facts import FACTS
from benchmarks.poison import PoisonRecord, poison
from benchmarks.rl_algorithms import WAYS, begun
from benchmarks.streams import history
from streams.core.errors import InvalidEvent
from streams.core.events import Episode, Feedback
from streams.core.topics import EPISODES

ALONE = ("streams", "soak", "reward_latency", "lora_serving", "gpu", "rl_algorithms", "corrections", "people_first", "waiting_threads")


@pytest.mark.parametrize("name", [f"benchmarks.{name}" for name in ALONE])
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_a_run_that_was_cut_off_goes_on_after_its_last_way_and_one_that_ended_begins_anew(tmp_path: Path) -> None:
    out, about = tmp_path / "out.json", {"steps": 2, "ways": WAYS}
    ways = {way: [[0.5, 0.6]] for way in WAYS}
    first = dict(list(ways.items())[:2])

    def left(curves: dict[str, list[list[float]]], **other: int) -> list[str]:
        out.write_text(json.dumps({"about": about | other | {"at": "today"}, "processor_s_a_step": {}, "true_reward": curves}))
        return list(begun(out, about)["true_reward"])

    assert list(begun(out, about)["true_reward"]) == []
    assert left(first) == list(first)
    assert left(first, steps=3) == []
    assert left(ways) == []


def test_every_correction_is_asked_in_three_ways_and_its_word_stands_in_itself_alone() -> None:
    asked = [question for fact in FACTS for question in (fact.question, fact.rephrased, fact.tuning)]
    assert (len(FACTS), len(set(asked))) == (30, 90)
    assert [other.key for fact in FACTS for other in FACTS if other.said_in(fact.words)] == [fact.key for fact in FACTS]
    assert [question for question in asked if any(fact.said_in(question) for fact in FACTS)] == []  # the question does not give it away


POISON = tuple(poison(*(made[0] for made in history(1))))


@pytest.mark.parametrize("record", POISON, ids=[f"{record.sort} as {record.topic.split('.')[1]}" for record in POISON])
def test_a_poisoned_record_is_usable_exactly_where_the_soak_expects_it_to_be(record: PoisonRecord) -> None:
    event = Episode if record.topic == EPISODES.name else Feedback
    if record.usable:
        event.decode(record.value)
    else:
        with pytest.raises(InvalidEvent):
            event.decode(record.value)
