"""Who may come in: the key's scopes, its tenant's own episodes, its rate; and what the file of keys may look like."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from actor.api_keys import TENANT, Key, KeyGate, Keys, Refusal, needed_for, new_key, read_keys, tenant_of, write_keys
from actor.capture.conversations import Conversations
from actor.capture.episode_publisher import EpisodePublisher
from actor.doors.http_doors import Doors
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from infra.cli.main import main
from streams.core.clock import FixedClock
from streams.core.errors import ConfigError
from streams.core.events import Episode, Feedback
from streams.core.metrics import Metrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Seconds that pass when told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """A file of keys, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.path, self.clock = folder / "keys.json", Clock()
        self.made: list[Key] = []

    def key(self, *scopes: str, tenant: str = "acme", rate: int = 600) -> str:
        text, sha256 = new_key()
        self.made.append(Key.model_validate({"sha256": sha256, "tenant": tenant, "scopes": scopes, "requests_per_minute": rate}))
        write_keys(self.path, self.made)
        return text

    def keys(self) -> Keys:
        return Keys(self.path, self.clock)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def admitted(keys: Keys, key: str, needed: Any = "talk") -> int:
    found = keys.admit(f"Bearer {key}", needed)
    return found.status if isinstance(found, Refusal) else 200


def test_a_key_is_good_for_its_scopes_alone_and_the_file_does_not_hold_it(house: House) -> None:
    talker, both = house.key("talk"), house.key("talk", "feedback", tenant="bureau")
    keys = house.keys()
    assert (admitted(keys, talker), admitted(keys, talker, "feedback"), admitted(keys, both, "feedback")) == (200, 403, 200)
    assert admitted(keys, both, "operate") == 403
    found = keys.admit(f"bearer {both}", "talk")
    assert isinstance(found, Key)
    assert found.tenant == "bureau"
    assert talker not in house.path.read_text()
    assert house.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer none", "Basic abc", "Bearer \udcff", "{key}", "Basic {key}"])
def test_whoever_has_no_key_is_told_how_to_send_one(house: House, authorization: str | None) -> None:
    key = house.key("talk")
    found = house.keys().admit(authorization and authorization.format(key=key), "talk")
    assert isinstance(found, Refusal)
    assert found.status == 401
    assert (b"www-authenticate", b"Bearer") in found.headers


def test_a_key_that_asks_too_often_is_told_when_to_come_again_and_troubles_no_other(house: House) -> None:
    hasty, calm = house.key("talk", rate=60), house.key("talk", rate=60)
    keys = house.keys()
    assert [admitted(keys, hasty) for _ in range(11)] == [200] * 10 + [429]
    assert admitted(keys, calm) == 200
    refused = keys.admit(f"Bearer {hasty}", "talk")
    assert isinstance(refused, Refusal)
    assert refused.headers == ((b"retry-after", b"1"),)
    house.clock.now_s += 1.0
    assert [admitted(keys, hasty), admitted(keys, hasty)] == [200, 429]


@given(st.lists(st.floats(min_value=0, max_value=30), min_size=1, max_size=60))
def test_no_pattern_of_asking_gets_more_than_the_burst_and_the_rate(tmp_path_factory: pytest.TempPathFactory, pauses: list[float]) -> None:
    house = House(tmp_path_factory.mktemp("keys"))
    key = house.key("talk", rate=60)
    keys, began_s = house.keys(), house.clock.now_s
    count = 0
    for pause in pauses:
        house.clock.now_s += pause
        count += sum(admitted(keys, key) == 200 for _ in range(5))
    assert count <= 10 + (house.clock.now_s - began_s) * 1.0 + 1e-6


def test_a_revoked_key_is_out_within_a_second_and_a_half_edited_file_locks_nobody_out(house: House) -> None:
    first, second = house.key("talk"), house.key("talk")
    keys = house.keys()
    assert (admitted(keys, first), admitted(keys, second)) == (200, 200)
    write_keys(house.path, house.made[1:])
    house.clock.now_s += 1.1
    assert (admitted(keys, first), admitted(keys, second)) == (401, 200)
    house.path.write_text("[{")
    house.clock.now_s += 1.1
    assert admitted(keys, second) == 200
    os.unlink(house.path)
    house.clock.now_s += 1.1
    assert admitted(keys, second) == 200


@pytest.mark.parametrize(
    ("text", "told"), [("[{", "Invalid JSON"), ('[{"sha256": "x"}]', "0.sha256"), ('{"a": 1}', "valid array"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_at_the_start_is_an_error_that_names_it(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        Keys(path)
    assert str(path) in str(refused.value)


def ask(app: Any, path: str, key: str | None, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope: Scope = {"type": "http", "method": method, "path": path, "headers": headers}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]) or b"null")


class Spool:
    """Stands for the outbox."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def put(self, topic: Any, event: Any, headers: Any = ()) -> bool:
        self.taken.append(event)
        return True


def test_a_tenant_sees_and_judges_its_own_episodes_and_health_is_open_to_all(house: House) -> None:
    mine, theirs, talker = house.key("feedback"), house.key("feedback", tenant="other"), house.key("talk", tenant="other")
    spool, seen = Spool(), []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(tenant_of(scope))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"null"})

    publisher = EpisodePublisher(spool, Metrics(), ActorSettings(), Rules(()))  # type: ignore[arg-type]
    publisher.publish(Episode.model_validate({"episode_id": "ep-1", "tenant": "acme", "messages": [], "started_at": NOW, "ended_at": NOW}))
    app = KeyGate(Doors(inside, ActorSettings(), publisher, Conversations(10), Metrics(), FixedClock(NOW), "default", list), house.keys())
    assert ask(app, "/v1/episodes/ep-1", mine)[0] == 200
    assert ask(app, "/v1/episodes/ep-1", theirs)[0] == 404
    thumb = json.dumps({"episode_id": "ep-1", "thumb": "up"}).encode()
    assert ask(app, "/v1/feedback", theirs, "POST", thumb)[0] == 404
    assert ask(app, "/v1/feedback", talker, "POST", thumb)[0] == 403
    assert ask(app, "/v1/feedback", None, "POST", thumb)[0] == 401
    assert ask(app, "/v1/feedback", mine, "POST", thumb)[0] == 202
    assert [event.episode_id for event in spool.taken if isinstance(event, Feedback)] == ["ep-1"]
    assert ask(app, "/v1/chat/completions", talker, "POST")[0] == 200
    assert seen == ["other"]
    assert ask(app, "/healthz", None)[0] == ask(app, "/readyz", None)[0] == 200
    assert ask(app, "/metrics", mine)[0] == 403


def test_every_path_needs_a_scope_and_only_an_operator_reaches_what_is_not_the_api() -> None:
    assert needed_for("/v1/models") == needed_for("/v1/chat/completions") == "talk"
    assert needed_for("/v1/episodes/x") == needed_for("/v1/feedback") == "feedback"
    assert needed_for("/metrics") == needed_for("/tokenize") == needed_for("/") == needed_for("/V1/chat/completions") == "operate"
    assert needed_for("/v1/completions", rollout=True) == "rollout"
    assert needed_for("/v1/feedback", rollout=True) == "feedback"  # no header opens another door
    assert needed_for("/metrics", rollout=True) == "operate"
    assert tenant_of({}) == "default"
    assert tenant_of({TENANT: "acme"}) == "acme"


def test_keys_are_made_listed_and_revoked_by_command(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    made = CliRunner().invoke(main, ["keys", "add", "--tenant", "acme", "--scope", "talk", "--scope", "feedback", "--rate", "30", "--file", file])
    key = made.stdout.strip()
    assert key.startswith("tm-")
    (kept,) = read_keys(Path(file))
    assert admitted(Keys(Path(file)), key, "feedback") == 200
    assert CliRunner().invoke(main, ["keys", "list", "--file", file]).stdout.split() == [kept.sha256[:12], "acme", "talk,feedback", "30/min"]
    assert CliRunner().invoke(main, ["keys", "revoke", "zz", "--file", file]).exit_code == 1
    assert CliRunner().invoke(main, ["keys", "revoke", kept.sha256[:12], "--file", file]).exit_code == 0
    assert read_keys(Path(file)) == ()
    assert CliRunner().invoke(main, ["keys", "add", "--tenant", "a b", "--scope", "talk", "--file", file]).exit_code == 1
