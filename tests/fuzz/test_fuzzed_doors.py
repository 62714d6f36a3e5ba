"""Every HTTP door meets requests that nobody should send: each is answered, and none by a fault of ours."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from actor.doors.openapi_document import document
from dashboards.console.console_app import KEY_HEADER
from tests.fuzz.inputs import JSON, raw, spoiled
from tests.support.captured import CHAT, World, streaming, whole
from tests.unit.actor.test_doors import House
from tests.unit.dashboards.test_console import KEY, PAGES, Ring

ACTOR = [(method.upper(), path) for path, methods in document()["paths"].items() for method in methods]
"""Every operation that the actor's OpenAPI document names."""
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
SEGMENT = st.text(max_size=40) | st.sampled_from(["ep-1", "..", "%00", "a/b", "", "ep-1?x=1", "💥"])
GIVEN = {"episode_id": "ep-1", "feedback_id": "fb-1", "user_id": "u-7", "kind": "thumb", "thumb": "up", "at": "2026-01-01T00:00:00Z"}
COMPLETION = {"model": "default", "prompt": ["a", "b"], "n": 2, "stream": False}
RESPONSE = {"model": "default", "input": [{"role": "user", "content": "hi"}], "instructions": "be kind"}


@given(st.sampled_from(ACTOR), SEGMENT, raw(GIVEN), st.dictionaries(st.sampled_from(["x-tidemill-user", "content-type", "authorization"]), HEADER))
def test_the_actors_own_doors(operation: tuple[str, str], segment: str, body: bytes, headers: dict[str, str]) -> None:
    method, template = operation
    path = template.replace("{episode_id}", segment)
    status, told, reply = asyncio.run(House().ask(method, path, body, **headers))
    assert status < 500, (path, reply)
    if told.get("content-type", "").startswith("application/json"):
        json.loads(reply)
    if template in document()["paths"] and "{" not in template:
        assert str(status) in document()["paths"][template][method.lower()]["responses"], (path, status)


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW"]),
    st.sampled_from(ACTOR).map(lambda each: each[1]),
    st.binary(max_size=50),
)
def test_other_methods_at_the_actors_doors(method: str, path: str, body: bytes) -> None:
    status, _, _ = asyncio.run(House().ask(method, path, body))
    assert status < 500


@given(
    st.sampled_from([("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION), ("/v1/responses", RESPONSE)]),
    st.data(),
    st.sampled_from([whole, streaming]),
    st.booleans(),
    st.dictionaries(st.sampled_from(["user", "conversation", "capture"]), HEADER),
)
def test_capture_never_breaks_an_answer(door: tuple[str, Any], data: st.DataObject, script: Any, leaves: bool, headers: dict[str, str]) -> None:
    """The server behind it answers anything; whatever is asked, so does the captured one, and what is kept can be read."""
    path, right = door
    body = data.draw(spoiled(right).filter(lambda document: isinstance(document, dict) and isinstance(document.get("model"), str)))
    world = World(script)
    sent = asyncio.run(_within(world.post(json.dumps(body).encode(), path, leaves, **headers)))
    assert sent[0]["status"] in (200, 413)
    for episode in world.spool.episodes:
        assert type(episode).decode(kept := episode.encode()).encode() == kept


@given(st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses"]), raw(CHAT))
def test_a_body_that_is_no_request_reaches_the_server_or_is_refused(path: str, body: bytes) -> None:
    async def refuse(world: World, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    sent = asyncio.run(_within(World(refuse).post(body, path)))
    assert sent[0]["status"] in (400, 413)


@given(
    st.sampled_from(PAGES),
    st.dictionaries(st.sampled_from(["q", "adapter", "verdict", "page", "policy", "after", "reason"]), st.text(max_size=30)),
    SEGMENT,
)
def test_the_consoles_pages(page: str, query: dict[str, str], segment: str) -> None:
    ring = Ring()
    assert ring.browser.get(page, params=query).status_code < 500
    assert ring.browser.get(f"/episodes/{quote(segment.encode(errors='replace'), safe='')}").status_code < 500


@given(
    st.sampled_from(["/api/replay", "/api/move"]),
    JSON | st.dictionaries(st.text(max_size=6), JSON),
    st.booleans(),
)
def test_the_consoles_actions(path: str, body: Any, has_key: bool) -> None:
    ring = Ring()
    reply = ring.browser.post(
        path, content=json.dumps(body, default=str).encode("utf-8", "surrogatepass"), headers={KEY_HEADER: KEY} if has_key else {}
    )
    assert reply.status_code < 500


async def _within(answer: Any) -> Any:
    """A hang is a failure too."""
    return await asyncio.wait_for(answer, 30)
