"""The actor's own HTTP doors beside vLLM's: feedback in, recent episodes out, health, readiness and metrics."""

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from actor.capture import Keeper, read_body
from actor.feedback import read_feedback
from actor.keys import tenant_of
from actor.replies import reply
from actor.requests import clean_id
from actor.settings import ActorSettings
from streams.clock import Clock
from streams.errors import InvalidEvent
from streams.metrics import Metrics
from streams.outbox import Outbox
from streams.topics import FEEDBACK

EPISODES_PATH = "/v1/episodes/"


class Doors:
    """Answers its own paths and lets all others pass."""

    def __init__(self, app: ASGIApp, settings: ActorSettings, keeper: Keeper, outbox: Outbox, metrics: Metrics, clock: Clock,
                 unready: Callable[[], list[str]]) -> None:  # fmt: skip
        """``unready`` says what is still missing before this replica should get traffic; nothing when it is ready."""
        self._app, self._settings, self._keeper, self._outbox = app, settings, keeper, outbox
        self._metrics, self._clock, self._unready = metrics, clock, unready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        match scope["method"], scope["path"]:
            case "POST", "/v1/feedback":
                await reply(send, *await self._feedback(scope, receive))
            case "GET", "/healthz":
                await reply(send, 200, {"status": "alive"})
            case "GET", "/readyz":
                missing = self._unready()
                await reply(send, 503 if missing else 200, {"status": "waiting" if missing else "ready", "missing": missing})
            case "GET", "/metrics":
                await send(
                    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]}
                )
                await send({"type": "http.response.body", "body": self._metrics.text()})
            case "GET", str(path) if path.startswith(EPISODES_PATH):
                await reply(send, *self._episode(path.removeprefix(EPISODES_PATH), tenant_of(scope)))
            case _:
                await self._app(scope, receive, send)

    async def _feedback(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, Any]]:
        body = await read_body(receive, self._settings.max_feedback_bytes)
        if body is None:
            return 413, _error(f"the feedback is larger than actor.max_feedback_bytes = {self._settings.max_feedback_bytes}")
        user = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-tidemill-user"), None)
        try:
            feedback = read_feedback(body, clean_id(user), self._clock.now())
        except InvalidEvent as error:
            return 400, _error(str(error))
        episode = self._keeper.find(feedback.episode_id)
        if episode is not None and episode.tenant != tenant_of(scope):
            return 404, _error("no episode of that id")
        if not self._outbox.put(FEEDBACK, feedback):
            return 503, _error("the outbox is full: Kafka has been away for long; send it again later")
        self._metrics.add("tidemill_feedback_received_total", kind=feedback.kind.value)
        return 202, {"feedback_id": feedback.feedback_id}

    def _episode(self, episode_id: str, tenant: str) -> tuple[int, dict[str, Any]]:
        if (episode := self._keeper.find(episode_id)) is None or episode.tenant != tenant:
            return 404, _error("no recent episode of that id on this replica")
        return 200, episode.model_dump(mode="json", exclude_none=True)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
