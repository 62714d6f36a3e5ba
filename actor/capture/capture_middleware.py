"""Capture inside vLLM's own server: an ASGI layer that routes each request and records its answers as episodes.

The answer passes through unchanged, byte for byte; the record goes to the outbox, which never waits. Each choice of an answer becomes one episode:
``<id>`` for a single choice, ``<id>-0``, ``<id>-1`` … for several. The response's header names them all, in order, separated by commas.
"""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import structlog
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actor.adapters.request_routing import Router
from actor.api_keys import may_assign, tenant_of
from actor.asgi_replies import reply
from actor.capture.client_request import APIS, ClientRequest, asked_by, declines_capture
from actor.capture.client_response import ClientResponse, ResponseReader
from actor.capture.conversations import ConversationPlace, Conversations
from actor.capture.engine_recorder import RECORDER, Choice, EngineRecorder
from actor.capture.episode_publisher import EpisodePublisher
from actor.rollout_requests import is_rollout, with_priority
from actor.settings import ActorSettings
from streams.core.clock import Clock
from streams.core.events import ANONYMOUS, Assignment, Episode, Feedback, FeedbackKind, Outcome, new_id
from streams.core.events import Message as SaidMessage
from streams.core.person_ids import header_text, plain_id
from streams.core.traces import Headers, context_from_header, trace_in_logs

OUTCOMES = {"stop": Outcome.COMPLETED, "length": Outcome.TRUNCATED, "abort": Outcome.CANCELLED, "error": Outcome.FAILED}
log = structlog.get_logger()


@dataclass
class Exchange:
    """One request in progress, and what has been observed of it."""

    asked: ClientRequest
    episode_id: str
    started_at: datetime
    recorder: EngineRecorder
    place: ConversationPlace
    tenant: str = "default"
    rollout: bool = False
    """A learner asks, to learn from the answer: it is nobody's, and no episode."""
    model: object = None
    """vLLM's name of the requested model."""
    assignment: Assignment | None = None
    asked_in: Headers = ()
    """The client's trace context."""
    status: int = 0
    gone: bool = False
    """True when the client has disconnected."""
    error: str | None = None
    streamed: bool = False
    named: bool = False
    """True when the response's headers have named its episodes."""
    read: ResponseReader | None = None
    """What the client received. None when the answer cannot call tools: then the engine's text says it all."""

    @property
    def ids(self) -> list[str]:
        count = self.asked.answers
        return [self.episode_id] if count == 1 else [f"{self.episode_id}-{index}" for index in range(count)]

    @cached_property
    def messages(self) -> list[tuple[SaidMessage, ...]] | None:
        """The messages before each answer; None when they fit no event."""
        if self.asked.too_deep:
            return None
        try:
            count = self.asked.answers
            return [self.asked.messages(index) for index in range(count)] if self.asked.api == "completion" else [self.asked.messages(0)] * count
        except ValidationError:
            return None


class Capture:
    """The ASGI layer. Requests that do not ask for answers pass through."""

    def __init__(self, app: ASGIApp, settings: ActorSettings, router: Router, publisher: EpisodePublisher, conversations: Conversations, clock: Clock,
                 replica: str, want: Callable[[str], Future[bool]] | None = None) -> None:  # fmt: skip
        """``want`` asks for a version that is not loaded; done when it is, or cannot be. Without it such a version is refused."""
        self._app, self._settings, self._router, self._publisher, self._clock, self._replica = app, settings, router, publisher, clock, replica
        self._conversations, self._want = conversations, want

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in APIS:
            await self._app(scope, receive, send)
            return
        body = await read_body(receive, self._settings.max_request_bytes)
        if body is None:
            limit = f"the request is larger than actor.max_request_bytes = {self._settings.max_request_bytes}"
            await reply(send, 413, {"error": {"message": limit, "type": "invalid_request_error", "code": 413}})
            return
        parsed = _object(body)
        if parsed is None:
            await self._app(scope, replay(body, receive), send)  # vLLM's own 400
            return
        await self._serve(scope, receive, send, body, parsed)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, body: bytes, parsed: dict[str, Any]) -> None:
        headers = {name.decode("latin-1").lower(): header_text(value) for name, value in scope["headers"]}
        user = plain_id(headers.get("x-tidemill-user")) or asked_by(parsed)
        rollout = is_rollout(scope)
        declined = rollout or declines_capture(scope["headers"])
        asked = ClientRequest(APIS[scope["path"]], parsed, user, plain_id(headers.get("x-tidemill-conversation")), declined,
                              may_assign(scope))  # fmt: skip
        tenant = tenant_of(scope)
        place, recorder = self._conversations.place(tenant, asked), EngineRecorder(asked.choices_per_prompt)
        asked_in = context_from_header(headers.get("traceparent"))
        exchange = Exchange(asked, new_id("ep"), self._clock.now(), recorder, place, tenant, rollout, asked_in=asked_in)
        model, exchange.assignment = self._router.assign(parsed.get("model"), exchange.place.key or f"episode {exchange.episode_id}")
        exchange.model = model
        self._router.begin(model)  # before it may have to be loaded: it must not be unloaded before it has answered
        try:
            if self._want is not None and self._router.why_not_loaded(model) is not None:
                await asyncio.wait([asyncio.wrap_future(self._want(str(model)))], timeout=self._settings.load_timeout_s)
            if (problem := self._router.why_not_loaded(model)) is not None:
                self._publisher.skip("refused")
                await reply(send, 404, {"error": {"message": problem, "type": "NotFoundError", "param": "model", "code": 404}})
            else:
                await self._pass_on(scope, receive, send, body, parsed, exchange)
        finally:
            self._router.end(model)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, body: bytes, parsed: dict[str, Any], exchange: Exchange) -> None:
        """Pass the request on to vLLM under its name for the model, and record the answer."""
        asked = exchange.asked
        # Our id in place of the client's or a gateway's own; for the other two APIs the header does it.
        named = {"request_id": f"resp_{exchange.episode_id}"} if asked.api == "response" else {}
        if (told := with_priority(parsed, exchange.rollout) | named | {"model": exchange.model}) != parsed:
            body = json.dumps(told).encode()
        token = RECORDER.set(exchange.recorder if asked.capturable else None)
        try:
            await self._app(_rewritten(scope, body, exchange.episode_id), _watch(replay(body, receive), exchange), self._heard(send, exchange))
        except Exception as error:
            exchange.error = f"{type(error).__name__}"
            raise
        finally:
            RECORDER.reset(token)
            self._finish(exchange)

    def _heard(self, send: Send, exchange: Exchange) -> Send:
        """A ``send`` that adds our headers, and keeps a copy of the body only when the answer may call tools."""

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, own = message["status"], message.get("headers", ())
                exchange.streamed = any(n.lower() == b"content-type" and v.startswith(b"text/event-stream") for n, v in own)
                exchange.read = ResponseReader(exchange.streamed) if exchange.asked.tools else None
                if exchange.status < 400 and (exchange.recorder.prompts or exchange.streamed):  # a streamed response begins before its engine does
                    message = {**message, "headers": [*own, *self._headers(exchange)]}
            elif exchange.read is not None:
                exchange.read.feed(message.get("body", b""))
            await send(message)

        return heard

    def _headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        adapter = exchange.recorder.adapter if exchange.recorder.prompts else self._router.loaded(exchange.model)
        headers = [(b"x-tidemill-adapter", (adapter or "base").encode("latin-1", "replace"))]
        if exchange.asked.kept and self._publisher.has_room and exchange.messages is not None:  # only of what will be kept is anything said
            exchange.named = True
            headers.append((b"x-tidemill-episode", ",".join(exchange.ids).encode()))
            if exchange.place.conversation_id is not None:
                headers.append((b"x-tidemill-conversation", exchange.place.conversation_id.encode()))
        if (sha256 := self._router.sha256(adapter)) is not None:
            headers.append((b"x-tidemill-adapter-sha256", sha256.encode()))
        return headers

    def _finish(self, exchange: Exchange) -> None:
        self._publisher.count_tokens("rollouts" if exchange.rollout else "people", *exchange.recorder.tokens)
        if exchange.asked.declined:
            self._publisher.skip("rollout" if exchange.rollout else "declined")
        elif not exchange.asked.capturable:
            self._publisher.skip("beam_search")
        elif not exchange.recorder.prompts and 400 <= exchange.status < 500:
            self._publisher.skip("refused")
        elif not exchange.recorder.prompts and exchange.gone and not exchange.named:
            self._publisher.skip("gone_before_start")
        elif not exchange.recorder.prompts and 0 < exchange.status < 400 and not exchange.named:
            self._publisher.skip("unseen")  # answered without the engine's generate: nothing reliable is known about it
        else:
            self._publish_all(exchange)

    def _publish_all(self, exchange: Exchange) -> None:
        """Record every answer as an episode, and the person's newest turn as feedback on the answer before."""
        told = exchange.read.answers() if exchange.read is not None else {}
        kept: list[Episode] = []
        for index, episode_id in enumerate(exchange.ids):
            if exchange.asked.too_deep:
                self._publisher.skip("invalid")
                continue
            try:
                kept.append(self._episode(exchange, index, episode_id, told.get(index)))
            except ValidationError as error:
                self._publisher.skip("invalid")
                with trace_in_logs(exchange.asked_in):
                    log.warning("an answer became no episode", episode=episode_id, problems=[p["msg"] for p in error.errors(include_input=False)][:3])
        if exchange.recorder.prompts:
            self._conversations.note(exchange.tenant, exchange.place, [(each.episode_id, each.answer, each.tool_calls) for each in kept])
        for episode in kept:
            self._publish(exchange, episode)
        if kept and self._settings.replies_as_feedback:
            self._publish_reply(exchange)

    def _publish(self, exchange: Exchange, episode: Episode) -> None:
        """Publish an episode; one that finds no room is forgotten, so that no later turn or feedback is said to be about it."""
        done, loop = self._publisher.publish(episode, exchange.asked_in), asyncio.get_running_loop()

        def forget() -> None:
            self._conversations.drop(exchange.tenant, exchange.place, episode.episode_id)

        if done.done():
            if done.exception() is not None or not done.result():
                forget()
            return

        def look(finished: "Future[bool]") -> None:
            if (finished.cancelled() or finished.exception() is not None or not finished.result()) and not loop.is_closed():
                loop.call_soon_threadsafe(forget)

        done.add_done_callback(look)

    def _publish_reply(self, exchange: Exchange) -> None:
        """Record the reply as feedback. Its id is a hash of its content, so that the same turn sent twice counts once."""
        answered, text = exchange.place.replies_to, exchange.asked.reply
        if answered is None or text is None:
            return
        self._publisher.publish_feedback(Feedback(
            feedback_id=f"reply-{hashlib.sha256(f'{answered} {text}'.encode(errors='replace')).hexdigest()[:32]}",
            episode_id=answered,
            user_id=exchange.asked.user_id or ANONYMOUS,
            kind=FeedbackKind.REPLY,
            text=text,
            at=exchange.started_at,
        ))  # fmt: skip

    def _episode(self, exchange: Exchange, index: int, episode_id: str, told: ClientResponse | None) -> Episode:
        asked, choice = exchange.asked, exchange.recorder.choices.get(index, Choice())
        messages = exchange.messages[index] if exchange.messages is not None else asked.messages(index)  # the latter says what is wrong
        unread = self._settings.redact and asked.api == "completion" and messages[0].content is None  # token ids: what they say cannot be redacted
        whole = len(choice.logprobs) == len(choice.output_ids) and all(map(math.isfinite, choice.logprobs))
        return Episode(
            episode_id=episode_id,
            policy=self._router.policy,
            tenant=exchange.tenant,
            user_id=asked.user_id,
            conversation_id=exchange.place.conversation_id,
            turn=exchange.place.turn,
            replies_to=exchange.place.replies_to,
            adapter=exchange.recorder.adapter,
            adapter_sha256=self._router.sha256(exchange.recorder.adapter),
            assignment=exchange.assignment,
            replica=self._replica,
            api=asked.api,
            messages=messages,
            tools=asked.tools,
            answer=told.text if told else choice.text,
            tool_calls=tuple(told.tool_calls) if told else (),
            prompt_ids=() if unread else choice.prompt_ids,
            output_ids=tuple(choice.output_ids) if whole else (),
            output_logprobs=tuple(choice.logprobs) if whole else (),
            sampling=asked.sampling,
            chat_template_kwargs=asked.chat_template_kwargs if asked.api != "completion" else {},
            unrenderable=asked.unrenderable,
            outcome=_outcome(exchange, choice),
            error=exchange.error or (f"status {exchange.status}" if exchange.status >= 500 else None),
            started_at=exchange.started_at,
            ended_at=max(self._clock.now(), exchange.started_at),
        )


def _outcome(exchange: Exchange, choice: Choice) -> Outcome:
    if choice.finish_reason is not None:
        return OUTCOMES.get(choice.finish_reason, Outcome.COMPLETED)
    return Outcome.CANCELLED if exchange.gone else Outcome.FAILED


async def read_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole request body; None when it is larger than the limit. If the client disconnects, the part that arrived."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            return None
        if not message.get("more_body"):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that first returns the body that was read, then passes on the rest."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _watch(receive: Receive, exchange: Exchange) -> Receive:
    async def watched() -> Message:
        message = await receive()
        exchange.gone = exchange.gone or message["type"] == "http.disconnect"
        return message

    return watched


def _rewritten(scope: Scope, body: bytes, episode_id: str) -> Scope:
    """The scope with the body's length, and our id as the request's: it shows in the completion's id, by which feedback finds the episode.

    A gateway's own ``x-request-id`` gives way. Answers would carry it as their id, retries would carry it twice, and feedback would find nothing.
    """
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in (b"content-length", b"x-request-id")]
    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode()), (b"x-request-id", episode_id.encode())]}


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
