"""The actor's own doors, and the OpenAPI document that describes them: every real reply is held against it."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator
from starlette.types import Message, Receive, Scope, Send

from actor.api_keys import OPEN, TENANT, Key, KeyGate, Keys, new_key, write_keys
from actor.capture.conversations import ConversationPlace, Conversations
from actor.capture.episode_publisher import EpisodePublisher
from actor.doors.chat_page import FOLDER
from actor.doors.http_doors import Doors
from actor.doors.openapi_document import document
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from streams.core.clock import FixedClock
from streams.core.events import Episode, Feedback
from streams.core.health import Health
from streams.core.metrics import Metrics
from tests.support.captured import Spool

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THUMB = {"episode_id": "ep-1", "thumb": "up"}


class Full(Spool):
    """An outbox without room."""

    def put(self, topic: Any, event: Any, headers: Any = ()) -> bool:
        return super().put(topic, event) and not isinstance(event, Feedback)


class House:
    """The doors, with one episode of tenant acme behind them, and vLLM's stand-in that knows nothing."""

    def __init__(self, spool: Spool | None = None, missing: tuple[str, ...] = (), keys: Path | None = None, largest: int = 2000,
                 origins: tuple[str, ...] = (), ill: Sequence[str] = ()) -> None:  # fmt: skip
        settings = ActorSettings(max_feedback_bytes=largest, allowed_origins=origins)
        self.spool, conversations = spool or Spool(), Conversations(10)
        self.publisher = publisher = EpisodePublisher(self.spool, Metrics(), settings, Rules(("emails",)))  # type: ignore[arg-type]
        self.health = Health()
        publisher.publish(Episode.model_validate({"episode_id": "ep-1", "tenant": "acme", "messages": [{"role": "user", "content": "I am a@b.co"}],
                                            "started_at": NOW, "ended_at": NOW}))  # fmt: skip
        conversations.note("acme", ConversationPlace("cv-1"), [("ep-1", "", ())])
        doors = Doors(self._inside, settings, publisher, conversations, Metrics(), FixedClock(NOW), "default", lambda: list(missing),
                      self.health, lambda: list(ill))  # fmt: skip
        self.app = KeyGate(doors, Keys(keys)) if keys else doors

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, method: str, path: str, body: Any = None, tenant: str = "acme", **headers: str) -> tuple[int, dict[str, str], bytes]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": raw}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = {"content_type": "application/json"} | headers
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items() if value]
        await self.app({"type": "http", "method": method, "path": path, "headers": named, TENANT: tenant}, receive, send)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, b"".join(message["body"] for message in sent[1:])


def check(method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """The reply is one that the document names for this operation, in the shape that it says."""
    told = document()
    template = next(known for known in told["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path))
    (content,) = told["paths"][template][method.lower()]["responses"][str(status)]["content"].items()
    assert headers["content-type"].startswith(content[0])
    if "schema" in content[1]:
        schema = content[1]["schema"] | {"components": told["components"]}
        Draft202012Validator(schema).validate(json.loads(body))


@pytest.mark.parametrize(("method", "path", "body", "status"), [
    ("POST", "/v1/feedback", THUMB, 202),
    ("POST", "/v1/feedback", {"conversation_id": "cv-1", "kind": "comment", "text": "good"}, 202),
    ("POST", "/v1/feedback", {"episode_id": "ep-1", "thumb": 7}, 400),
    ("POST", "/v1/feedback", b"{", 400),
    ("POST", "/v1/feedback", {"conversation_id": "cv-2", "thumb": "up"}, 404),
    ("POST", "/v1/feedback", b"x" * 3000, 413),
    ("GET", "/v1/episodes/ep-1", None, 200),
    ("GET", "/v1/episodes/ep-2", None, 404),
    ("POST", "/v1/feedback", {"episode_id": "ep-2", "thumb": "up"}, 202),
    ("POST", "/v1/feedback", {"episode_id": "ep-1-0,ep-1-1", "thumb": "up"}, 400),
    ("GET", "/healthz", None, 200),
    ("GET", "/readyz", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/chat", None, 200),
    ("GET", "/tidemill/openapi.json", None, 200),
])  # fmt: skip
async def test_every_reply_is_as_the_document_says(method: str, path: str, body: Any, status: int) -> None:
    found = await House().ask(method, path, body)
    assert found[0] == status
    check(method, path, *found)


async def test_replies_that_need_a_bad_day_are_as_the_document_says() -> None:
    for house, method, path, body, tenant, status in (
        (House(missing=("engine", "adapters")), "GET", "/readyz", None, "acme", 503),
        (House(Full()), "POST", "/v1/feedback", THUMB, "acme", 503),
        (House(), "POST", "/v1/feedback", THUMB, "other", 404),
        (House(), "GET", "/v1/episodes/ep-1", None, "other", 404),
    ):
        found = await house.ask(method, path, body, tenant)
        assert found[0] == status
        check(method, path, *found)


async def test_refusals_for_want_of_a_key_are_as_the_document_says_and_what_is_open_needs_none(tmp_path: Path) -> None:
    text, sha256 = new_key()
    write_keys(tmp_path / "keys.json", [Key.model_validate({"sha256": sha256, "tenant": "acme", "scopes": ["talk"], "requests_per_minute": 600})])
    house = House(keys=tmp_path / "keys.json")
    for status, headers in ((401, {}), (403, {"authorization": f"Bearer {text}"})):
        found = await house.ask("POST", "/v1/feedback", THUMB, **headers)
        assert found[0] == status
        check("POST", "/v1/feedback", *found)
    assert [(await house.ask("GET", path))[0] for path in sorted(OPEN)] == [200] * len(OPEN)


async def test_what_the_document_lets_in_the_door_takes_and_the_same_twice_counts_once() -> None:
    house = House()
    schema = document()["components"]["schemas"]["FeedbackGiven"] | {"components": document()["components"]}
    given = THUMB | {"feedback_id": "fb-1"}
    Draft202012Validator(schema).validate(given)
    told = [await house.ask("POST", "/v1/feedback", given) for _ in range(2)]
    assert told[0] == told[1]
    assert json.loads(told[0][2]) == {"feedback_id": "fb-1", "episode_id": "ep-1"}
    assert [each.feedback_id for each in house.spool.feedback] == ["fb-1"]
    changed = await house.ask("POST", "/v1/feedback", given | {"thumb": "down"})
    assert changed[0] == 409
    check("POST", "/v1/feedback", *changed)


async def test_feedback_that_found_no_room_may_be_sent_again() -> None:
    house = House(Full())
    given = THUMB | {"feedback_id": "fb-1"}
    assert [(await house.ask("POST", "/v1/feedback", given))[0] for _ in range(2)] == [503, 503]


async def test_an_episode_is_shown_as_it_is_kept() -> None:
    _, _, body = await House().ask("GET", "/v1/episodes/ep-1")
    assert (json.loads(body)["messages"][0]["content"], json.loads(body)["redacted"]) == ("I am [email]", {"emails": 1})


def test_the_document_is_openapi_and_every_reference_in_it_leads_somewhere() -> None:
    told = document()
    OpenAPI.model_validate(told)
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(told)))
    assert named <= set(told["components"]["schemas"])
    for schema in told["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_the_page_names_its_policy_and_a_browser_may_run_nothing_but_its_own_script() -> None:
    _, headers, body = await House().ask("GET", "/chat")
    assert b'data-policy="default"' in body
    assert b"{{" not in body
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    for name in ("chat.css", "chat.js"):
        assert (await House().ask("GET", f"/chat/{name}"))[2] == (FOLDER / name).read_bytes()
    assert (await House().ask("GET", "/chat/chat.html"))[0] == 404


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_what_any_page_may_send_without_asking_is_no_feedback(content_type: str) -> None:
    house = House()
    found = await house.ask("POST", "/v1/feedback", THUMB, content_type=content_type)
    assert found[0] == 415
    check("POST", "/v1/feedback", *found)
    assert house.spool.feedback == []


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 202),
    ({"origin": "http://actor:8000", "host": "actor:8000"}, 202),
    ({"origin": "https://actor", "host": "actor:443"}, 202),
    ({"origin": "https://behind-a-proxy.example", "host": "actor:8000", "sec_fetch_site": "same-origin"}, 202),
    ({"origin": "https://shop.example", "host": "actor:8000", "sec_fetch_site": "cross-site"}, 202),
    ({"origin": "https://evil.example", "host": "actor:8000"}, 403),
    ({"origin": "http://actor:9000", "host": "actor:8000"}, 403),
    ({"origin": "http://actor:8000", "host": "actor:8000", "sec_fetch_site": "same-site"}, 403),
    ({"origin": "null", "host": "actor:8000"}, 403),
    ({"origin": "http://[", "host": "actor:8000"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403),
])  # fmt: skip
async def test_a_page_of_somebody_else_gives_no_feedback(headers: dict[str, str], status: int) -> None:
    house = House(origins=("https://shop.example",))
    found = await house.ask("POST", "/v1/feedback", THUMB, **headers)
    assert found[0] == status
    check("POST", "/v1/feedback", *found)
    assert len(house.spool.feedback) == (status == 202)
    if status == 202 and "origin" in headers:
        assert found[1]["access-control-allow-origin"] == headers["origin"]


@pytest.mark.parametrize(("given", "kinds"), [
    ({"thumb": "down", "text": "too long"}, ["thumb", "comment"]),
    ({"rating": 2, "text": "too long", "kind": "rating"}, ["rating", "comment"]),
    ({"thumb": "down", "text": "Short.", "kind": "correction"}, ["thumb", "correction"]),
    ({"over": "ep-2", "text": "shorter"}, ["comparison", "comment"]),
])  # fmt: skip
async def test_words_beside_a_thumb_are_kept_and_a_retry_of_both_is_a_retry(given: dict[str, Any], kinds: list[str]) -> None:
    house = House()
    for _ in range(2):
        status, _, body = await house.ask("POST", "/v1/feedback", given | {"episode_id": "ep-1"}, idempotency_key="try-1", x_tidemill_user="ann")
        assert (status, json.loads(body)) == (202, {"feedback_id": "try-1", "episode_id": "ep-1"})
    assert [(each.feedback_id, each.kind.value, each.user_id) for each in house.spool.feedback] == [
        ("try-1", kinds[0], "ann"), ("try-1-words", kinds[1], "ann"),
    ]  # fmt: skip
    assert house.spool.feedback[1].text == given["text"]
    other = await house.ask("POST", "/v1/feedback", given | {"episode_id": "ep-1"}, idempotency_key="try-1", x_tidemill_user="bob")
    assert other[0] == 409


async def test_a_field_that_is_not_known_is_named() -> None:
    found = await House().ask("POST", "/v1/feedback", THUMB | {"comment": "too long", "stars": 5})
    assert found[0] == 400
    assert "'comment', 'stars'" in json.loads(found[2])["error"]["message"]
    check("POST", "/v1/feedback", *found)


async def test_feedback_on_an_unknown_episode_is_taken_with_a_hint_also_when_it_is_sent_again() -> None:
    house = House()
    for _ in range(2):
        status, _, body = await house.ask("POST", "/v1/feedback", {"episode_id": "ep-elsewhere", "thumb": "up"}, idempotency_key="try-1")
        told = json.loads(body)
        assert (status, told["episode_id"]) == (202, "ep-elsewhere")
        assert "once the episode is on the log" in told["hint"]
    _, _, body = await house.ask("POST", "/v1/feedback", THUMB)
    assert "hint" not in json.loads(body)


async def test_an_id_that_means_several_episodes_is_refused_with_what_to_send() -> None:
    house = House()
    house.publisher.publish(Episode.model_validate({"episode_id": "ep-7-0", "tenant": "acme", "messages": [{"role": "user", "content": "Hi"}],
                                                    "started_at": NOW, "ended_at": NOW}))  # fmt: skip
    for given, told in (("ep-7-0,ep-7-1", "lists 2 episodes"), ("chatcmpl-ep-7-0, ep-7-1", "lists 2 episodes"), ("chatcmpl-ep-7", "send ep-7-0")):
        status, _, body = await house.ask("POST", "/v1/feedback", {"episode_id": given, "thumb": "up"})
        assert (status, told in json.loads(body)["error"]["message"]) == (400, True), body
    status, _, _ = await house.ask("POST", "/v1/feedback", {"episode_id": "order-7, second try", "thumb": "up"})
    assert status == 202, "an agent elsewhere chooses its ids"
    status, _, _ = await house.ask("POST", "/v1/feedback", {"episode_id": "ep-7", "thumb": "up"}, tenant="other")
    assert status == 202, "another tenant learns nothing of it"


async def test_healthz_names_what_is_dead_or_hangs() -> None:
    ill: list[str] = []
    house = House(ill=ill)
    assert (await house.ask("GET", "/healthz"))[0] == 200
    house.health.heartbeat("adapters", -1.0)
    ill.append("engine")
    found = await house.ask("GET", "/healthz")
    check("GET", "/healthz", *found)
    assert (found[0], json.loads(found[2])) == (503, {"status": "hanging", "hanging": ["engine", "adapters"]})
