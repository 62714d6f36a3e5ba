"""The console's HTTP application (Starlette). Everybody who reaches the address may read; actions need the operator's key in a custom header."""

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dashboards.console import console_actions as actions
from dashboards.console import page_contents as pages
from dashboards.console.console_facts import ConsoleFacts, verdict_of
from dashboards.console.console_settings import ConsoleSettings
from dashboards.console.log_following import LogFollowing
from streams.core.clock import Clock
from streams.core.errors import BadArtifact, ConfigError, InvalidEvent, Refused, Unavailable

HERE = Path(__file__).parent
KEY_HEADER = "x-tidemill-operator-key"
"""A custom header: pages of another origin cannot send it, so no CSRF token is needed."""
MAX_BODY = 10_000
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}
NAVIGATION = (("/", "Ring"), ("/curves", "Curves"), ("/adapters", "Adapters"), ("/episodes", "Episodes"), ("/dead-letters", "Dead letters"))

Explain = Callable[[str], dict[str, Any]]
"""Explains the score of an episode (``infra/operate/explain_episode.py``). Raises ConfigError, Refused, BadArtifact or Unavailable."""
Learning = Callable[[ConsoleFacts], str]
"""What the learner does, or still needs (``infra/operate/learning_needs.py``)."""
Parts = Callable[[], Sequence[pages.ShownPart]]
"""The health of every part (``infra/operate/part_health.py``)."""
Act = Callable[[dict[str, Any]], dict[str, Any]]


class Console:
    """The pages and actions of the console."""

    def __init__(self, settings: ConsoleSettings, following: LogFollowing, log: actions.Log, clock: Clock, gated: bool = True,
                 explain: Explain | None = None, learning: Learning = lambda _: "", parts: Parts = tuple) -> None:  # fmt: skip
        """``gated``: replicas follow promotions (``promotion.mode``). ``learning``: what the learner does or needs, in a sentence. ``parts``: the
        health of every part as last seen."""
        self._explain, self._learning, self._parts = explain, learning, parts
        self._settings, self._following, self._log, self._clock, self._gated = settings, following, log, clock, gated
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/", self._ring),
                Route("/curves", self._curves),
                Route("/adapters", self._adapters),
                Route("/versions", lambda _: RedirectResponse("/adapters", 301)),
                Route("/episodes", self._episodes),
                Route("/episodes/{episode_id:path}", self._episode),
                Route("/dead-letters", self._letters),
                Route("/api/ring", self._ring_now),
                Route("/api/explain", self._explained),
                Route("/api/replay", self._acting(self._replay), methods=["POST"]),
                Route("/api/move", self._acting(self._move), methods=["POST"]),
                Route("/healthz", self._alive),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
                Mount("/static", StaticFiles(directory=HERE / "static")),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=list(self._settings.allowed_hosts)),
                Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            ],
        )

    def _ring(self, request: Request) -> Response:
        return self._page("ring.html", "/", now=self._now(), arrows=pages.ARROWS)

    def _ring_now(self, request: Request) -> Response:
        return JSONResponse(self._now() | {"failure": self._following.failure})

    def _now(self) -> dict[str, Any]:
        with self._following.facts() as facts:
            return pages.ring(facts, _now_ms(), self._learning(facts), self._parts(), self._following.failure is not None)

    def _curves(self, request: Request) -> Response:
        with self._following.facts() as facts:
            curves = pages.curves(facts)
        return self._page("curves.html", "/curves", curves=curves)

    def _adapters(self, request: Request) -> Response:
        with self._following.facts() as facts:
            adapters, moves, count = pages.adapters(facts), list(reversed(facts.moves)), len(facts.adapters)
            standings = list(facts.standings.values())
        return self._page("adapters.html", "/adapters", adapters=adapters, count=count, moves=moves, standings=standings, gated=self._gated)

    def _episodes(self, request: Request) -> Response:
        asked = {name: request.query_params.get(name, "")[:200] for name in ("q", "adapter", "verdict")}
        page = request.query_params.get("page", "1")
        number = max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 7 else 1
        with self._following.facts() as facts:
            found = facts.search(asked["q"], asked["adapter"], asked["verdict"])
            rows = [pages.episode_row(e, facts) for e in found[(number - 1) * pages.PER_PAGE : number * pages.PER_PAGE]]
            adapters = facts.adapters_that_answered()
        last = max(1, -(-len(found) // pages.PER_PAGE))
        return self._page("episodes.html", "/episodes", rows=rows, count=len(found), asked=asked, adapters=adapters, number=number, last=last)

    def _episode(self, request: Request) -> Response:
        episode_id = request.path_params["episode_id"]
        with self._following.facts() as facts:
            episode, label = facts.episodes.get(episode_id), facts.labels.get(episode_id)
        if episode is None:
            return self._page(
                "missing.html",
                "/episodes",
                status=404,
                what=f"The console does not know the episode {episode_id}. It keeps the newest episodes only.",
            )
        return self._page("episode.html", "/episodes", episode=episode, label=label, verdict=verdict_of(label))

    def _explained(self, request: Request) -> Response:
        """Takes seconds; the first time longer, since it loads the backbone and computes the labels' features."""
        if self._explain is None:
            return JSONResponse({"error": "this console cannot explain scores"}, 404)
        try:
            return JSONResponse(self._explain(request.query_params.get("episode", "")[:200]))
        except (ConfigError, Refused, BadArtifact) as error:
            return JSONResponse({"error": str(error)}, 409)
        except Unavailable as error:
            return JSONResponse({"error": str(error)}, 503)

    def _letters(self, request: Request) -> Response:
        reason = request.query_params.get("reason", "")[:100]
        with self._following.facts() as facts:
            (found, count), reasons = pages.letters(facts, reason), facts.reasons.most_common()
        return self._page("dead_letters.html", "/dead-letters", letters=found, count=count, reasons=reasons, reason=reason)

    def _alive(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    def _ready(self, request: Request) -> Response:
        missing = [self._following.failure] if self._following.failure else []
        return JSONResponse({"status": "waiting" if missing else "ready", "missing": missing}, 503 if missing else 200)

    def _metrics(self, request: Request) -> Response:
        return Response(self._following.metrics.text(), media_type="text/plain; version=0.0.4")

    def _replay(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._following.facts() as facts:
            letter = facts.letters.get(str(asked.get("offset")))
        if letter is None:
            raise Refused("the console does not know this dead letter")
        place = actions.replay(letter, self._log)
        self._following.await_place(place)
        return {"done": f"Published to {place.topic}, partition {place.partition}, offset {place.offset}."}

    def _move(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._following.facts() as facts:
            adapter = facts.adapters.get(str(asked.get("adapter")))
            standing = facts.standing(adapter.policy) if adapter is not None else None
        if adapter is None or standing is None:
            raise Refused("the console does not know this adapter")
        event = actions.promotion(adapter, str(asked.get("move")), str(asked.get("reason", "")), standing, self._clock)
        place = actions.publish_promotion(event, self._log)
        self._following.await_place(place)
        return {"done": f"{adapter.name} {event.move.replace('_', ' ')}: offset {place.offset} of {place.topic}."}

    def _acting(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint for POST with the operator key and JSON; it answers an error with a sentence."""

        async def endpoint(request: Request) -> Response:
            if self._settings.operator_key is None:
                return JSONResponse({"error": "actions are off: set TIDEMILL_CONSOLE__OPERATOR_KEY and restart the console"}, 403)
            if not actions.is_operator(self._settings.operator_key, request.headers.get(KEY_HEADER, "")):
                return JSONResponse({"error": "this is not the operator key"}, 401)
            if int(request.headers.get("content-length", MAX_BODY + 1)) > MAX_BODY:
                return JSONResponse({"error": f"the body must have at most {MAX_BODY} bytes"}, 413)
            try:
                asked = await request.json()
            except ValueError:
                return JSONResponse({"error": "the body is not JSON"}, 400)
            if not isinstance(asked, dict):
                return JSONResponse({"error": "the body is not a JSON object"}, 400)
            try:
                return JSONResponse(await run_in_threadpool(act, asked))
            except (Refused, InvalidEvent) as error:
                return JSONResponse({"error": str(error)}, 409)
            except Unavailable as error:
                return JSONResponse({"error": str(error)}, 503)

        return endpoint

    def _page(self, name: str, here: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(name).render(
            here=here, navigation=NAVIGATION, failure=self._following.failure, may_act=self._settings.operator_key is not None, **values
        )
        return HTMLResponse(text, status)


async def _with_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


def _now_ms() -> int:
    return int(time.time() * 1000)
