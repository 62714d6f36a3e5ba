"""The actor's own HTTP endpoints beside vLLM's: feedback, recent episodes, the chat page, health and metrics."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from actor.api_keys import tenant_of
from actor.asgi_replies import reply, reply_bytes
from actor.capture.capture_middleware import read_body
from actor.capture.conversations import Conversations
from actor.capture.episode_publisher import EpisodePublisher
from actor.doors.browser_origin import foreign_origin
from actor.doors.chat_page import HEADERS, chat_pages
from actor.doors.feedback_door import FeedbackIdempotency, read_all, read_object
from actor.doors.openapi_document import document
from actor.settings import ActorSettings
from streams.core.clock import Clock
from streams.core.errors import InvalidEvent
from streams.core.health import Health
from streams.core.metrics import Metrics
from streams.core.person_ids import header_text, plain_id

EPISODES_PATH = "/v1/episodes/"
REMEMBERED_FEEDBACK = 20_000
UNKNOWN = "this replica does not know that episode (another may, or it may still come): the feedback counts once the episode is on the log"
STATUS = {"unknown_conversation": 404, "other": 409}
"""HTTP status by reason, for feedback that cannot be used; otherwise 400."""


class Doors:
    """Answers its own paths and passes all other requests on."""

    def __init__(self, app: ASGIApp, settings: ActorSettings, publisher: EpisodePublisher, conversations: Conversations, metrics: Metrics,
                 clock: Clock, policy: str, unready: Callable[[], list[str]], health: Health | None = None,
                 ill: Callable[[], list[str]] = list) -> None:  # fmt: skip
        """``unready``: what is missing before this replica should get traffic; empty when it is ready. ``ill``: what is dead or hangs, beside the
        loops that ``health`` knows. ``health`` also names the run."""
        self._health = health or Health()
        self._app, self._settings, self._publisher, self._conversations = app, settings, publisher, conversations
        self._metrics, self._clock, self._unready, self._ill = metrics, clock, unready, ill
        self._given, self._pages, self._document = FeedbackIdempotency(REMEMBERED_FEEDBACK), chat_pages(policy), document()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        match scope["method"], scope["path"]:
            case "POST", "/v1/feedback":
                await self._feedback(scope, receive, send)
            case "GET", "/healthz":
                hanging = [*self._ill(), *self._health.hanging()]
                status = "hanging" if hanging else "alive"
                await reply(send, 503 if hanging else 200, self._health.named({"status": status, "hanging": hanging}))
            case "GET", "/readyz":
                missing = self._unready()
                status = "waiting" if missing else "ready"
                await reply(send, 503 if missing else 200, self._health.named({"status": status, "missing": missing}))
            case "GET", "/metrics":
                await reply_bytes(send, 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics.text_with_libraries())
            case "GET", str(path) if (page := self._pages.get(path)) is not None:
                await reply_bytes(send, 200, page.content_type, page.body, HEADERS)
            case "GET", "/tidemill/openapi.json":
                await reply(send, 200, self._document)
            case "GET", str(path) if path.startswith(EPISODES_PATH):
                await reply(send, *self._episode(path.removeprefix(EPISODES_PATH), tenant_of(scope)))
            case _:
                await self._app(scope, receive, send)

    async def _feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): header_text(value) for name, value in scope["headers"]}
        if (origin := foreign_origin(headers, self._settings.allowed_origins)) is not None:
            told = f"a page of {origin[:200]} may not send feedback here: add it to actor.allowed_origins"
            await reply(send, 403, _error(told))
            return
        shared = [(b"access-control-allow-origin", headers["origin"].encode()), (b"vary", b"origin")] if "origin" in headers else []
        await reply(send, *await self._take_feedback(headers, tenant_of(scope), receive), shared)

    async def _take_feedback(self, headers: dict[str, str], tenant: str, receive: Receive) -> tuple[int, dict[str, Any]]:
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type and content_type != "application/json" and not content_type.endswith("+json"):  # what a form of any page can send
            return 415, _error(f"content-type {content_type[:100]}: send application/json")
        body = await read_body(receive, self._settings.max_feedback_bytes)
        if body is None:
            return 413, _error(f"the feedback is larger than actor.max_feedback_bytes = {self._settings.max_feedback_bytes}")
        try:
            given = read_object(body)
            for name, header in (("user_id", "x-tidemill-user"), ("feedback_id", "idempotency-key")):
                if (told := plain_id(headers.get(header))) is not None:
                    given.setdefault(name, told)
            if (episode_id := self._given.seen(tenant, given)) is not None:
                return 202, self._taken(given["feedback_id"], episode_id)
            events = read_all(given, None, self._clock.now(), lambda named: self._conversations.last(tenant, named))
        except InvalidEvent as error:
            return STATUS.get(error.reason, 400), _error(str(error))
        feedback = events[0]
        episode = self._publisher.find(feedback.episode_id)
        if episode is not None and episode.tenant != tenant:
            return 404, _error("no episode of that id")
        if episode is None and (first := self._publisher.find(f"{feedback.episode_id}-0")) is not None and first.tenant == tenant:
            return 400, _error(f"that answer has several choices, each an episode of its own: send {first.episode_id} for the first")
        for event in events:
            if not await asyncio.wrap_future(self._publisher.publish_feedback(event)):
                return 503, _error("the outbox is full because Kafka has been unavailable for long; send it again later")
        self._given.note(tenant, given, feedback)
        return 202, self._taken(feedback.feedback_id, feedback.episode_id)

    def _taken(self, feedback_id: str, episode_id: str) -> dict[str, Any]:
        hint = {} if self._publisher.find(episode_id) is not None else {"hint": UNKNOWN}
        return {"feedback_id": feedback_id, "episode_id": episode_id, **hint}

    def _episode(self, episode_id: str, tenant: str) -> tuple[int, dict[str, Any]]:
        if (episode := self._publisher.find(episode_id)) is None or episode.tenant != tenant:
            return 404, _error("this replica does not remember an episode with that id")
        return 200, episode.model_dump(mode="json", exclude_none=True)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
