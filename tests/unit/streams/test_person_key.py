"""Hashes of people under a key: nobody guesses an address from one, and what older events say still means the same person."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.settings.config import load, secrets_as_environment, to_toml
from infra.settings.person_key import KEY_FILE, adopt_person_key, person_key_of
from streams.core.errors import ConfigError, InvalidEvent
from streams.core.events import Episode, Erasure
from streams.core.person_ids import KEY_VARIABLE, people_of, person_of
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASURES
from streams.erasure.erasure_follower import read_erasures
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.kafka import Record
from streams.kafka.dead_letters import letter_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = "ann@example.com"
PLAIN = hashlib.sha256(ANN.encode()).hexdigest()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KEY_VARIABLE, "a key of this ring alone")
    return "a key of this ring alone"


def spoken(user: str = ANN) -> Record:
    episode = Episode.model_validate({"episode_id": "ep-1", "user_id": user, "messages": [], "started_at": NOW, "ended_at": NOW})
    return Record(EPISODES.name, 0, 0, 5, b"ep-1", episode.encode())


def test_an_erasure_cannot_be_guessed_from_a_list_of_addresses(key: str) -> None:
    erasure = Erasure.of(ANN, "ann", NOW)
    assert PLAIN not in erasure.encode().decode()
    assert erasure.person == person_of(ANN) != PLAIN
    assert erasure.people == (person_of(ANN), PLAIN) == people_of(ANN)
    assert Erasure.of("ann@example.org", "ann", NOW).people[0] not in erasure.people


def test_without_a_key_hashes_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    erasure = Erasure.of(ANN, "ann", NOW)
    assert (erasure.person, erasure.people, erasure.key_id, erasure.unsalted) == (PLAIN, (PLAIN,), None, None)


def test_what_was_asked_before_there_was_a_key_is_still_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    old = Erasure.of(ANN, "ann", NOW)
    monkeypatch.setenv(KEY_VARIABLE, "a key that came later")
    forgotten = Forgotten()
    forgotten.add(old, 10)
    assert record_without(spoken(), forgotten, DEFAULT_EVIDENCE).value is None


def test_a_letter_that_names_somebody_by_the_plain_hash_beyond_its_cut_is_emptied_by_a_keyed_erasure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    raw = b'{"text": "' + b"x" * 100_000 + b'", "user_id": "' + ANN.encode() + b'"}'
    letter = letter_of(Record(EPISODES.name, 0, 1, 5, None, raw), InvalidEvent("invalid", "no"), "join", NOW)
    monkeypatch.setenv(KEY_VARIABLE, "a key that came later")
    forgotten = Forgotten()
    forgotten.add(Erasure.of(ANN, "ann", NOW), 10)
    left = record_without(Record(DEAD_LETTERS.name, 0, 0, 5, b"k", letter.encode()), forgotten, DEFAULT_EVIDENCE)
    assert DEAD_LETTERS.decode(left.value).record_base64 == ""


@pytest.mark.parametrize("other", ["another key altogether", None])
def test_a_part_without_the_key_neither_acts_nor_reports(key: str, other: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    erasure = Erasure.of(ANN, "ann", NOW)
    if other is None:
        monkeypatch.delenv(KEY_VARIABLE)
    else:
        monkeypatch.setenv(KEY_VARIABLE, other)
    forgotten = Forgotten()
    assert erasure.people == ()
    assert read_erasures([Record(ERASURES.name, 0, 0, 10, b"k", erasure.encode())], forgotten) == []
    assert not forgotten


def test_a_ring_makes_its_key_once_and_hands_it_to_its_parts_as_a_secret(tmp_path: Path) -> None:
    settings = load(None, (f"run_folder={tmp_path}",), {})
    assert person_key_of(settings) is None
    made = person_key_of(settings, make=True)
    assert made is not None
    assert (person_key_of(settings, make=True), person_key_of(settings)) == (made, made)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == [KEY_FILE]
    environment: dict[str, str] = {}
    adopt_person_key(settings, environment)
    assert environment == {KEY_VARIABLE: made}
    told = load(None, (), {KEY_VARIABLE: made})
    assert secrets_as_environment(told) == {KEY_VARIABLE: made}
    assert made not in to_toml(told)


def test_a_file_that_is_named_must_hold_a_key(tmp_path: Path) -> None:
    named = load(None, (f"erasure.person_key_file={tmp_path / 'key'}",), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        person_key_of(named, make=True)
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ConfigError, match="16 or more"):
        person_key_of(named)
    (tmp_path / "key").write_text("long enough for a key\n")
    assert person_key_of(named) == "long enough for a key"
