"""Held-out questions, asked of the base and of the served policy. The answers do not become episodes: they get no thumbs, and the learner never
sees the questions."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import openai

from actor.actor_client import UNCAPTURED
from actor.adapters.request_routing import BASE
from infra.demo.paired_rise import PairedRise
from infra.simulated_people.people_settings import PeopleSettings
from infra.simulated_people.preferences import PREFERENCES
from infra.simulated_people.simulated_questions import HELD_OUT, SimulatedQuestion
from infra.simulated_people.simulated_talk import Answer, chat
from streams.core.errors import Unavailable

BREATH_S = 0.25


@dataclass
class PairsAsked:
    """Results so far. Only the exam's thread writes them."""

    rise: PairedRise = field(default_factory=PairedRise)
    samples: list[tuple[float, PairedRise]] = field(default_factory=list)
    """After each round: seconds since the start, and the estimate."""
    started_s: float = field(default_factory=time.monotonic)
    shown_with: int | None = None
    """The pairs when the rise was first shown. Once shown, it stays shown: the interval is valid at all times together."""
    failed: int = 0
    """Rounds without an answer from the actor."""

    def take(self, before: Sequence[Answer], after: Sequence[Answer]) -> None:
        """Add answers to the same questions, whole rounds only, so that the order of arrival does not matter. Pairs in which the base answered
        twice do not count."""
        rise = self.rise
        for base, adapter in zip(before, after, strict=True):
            if adapter.adapter != BASE:
                rise = rise.with_pair(base.approved, adapter.approved)
        self.rise = rise
        if self.shown_with is None and rise.shown:
            self.shown_with = rise.pairs
        self.samples.append((time.monotonic() - self.started_s, rise))


class Examiners:
    """Asks several questions in parallel, of the base or of the served policy."""

    def __init__(self, settings: PeopleSettings, base_url: str, policy: str) -> None:
        self._settings, self._base_url, self._policy = settings, base_url, policy
        self._preference = PREFERENCES[settings.preference]

    def ask(self, questions: Sequence[SimulatedQuestion], of_base: bool) -> list[Answer]:
        """One answer per question. Raises Unavailable when one is missing."""

        async def all_of_them() -> list[Answer]:
            async with self._client() as client:
                return await self._ask(client, questions, BASE if of_base else self._policy)

        try:
            return asyncio.run(all_of_them())
        except openai.OpenAIError as error:
            raise Unavailable(f"the arrow people → actor is broken: a held-out question got no answer: {error}") from None

    def ask_in_pairs(self, asked: PairsAsked, due: Callable[[], bool], stopping: threading.Event) -> None:
        """Until stopped: whenever ``due()``, ask ``pairs_at_once`` random questions of both. The draw does not depend
        on earlier answers."""
        draw = random.Random(f"pairs {self._settings.seed}")

        async def again_and_again() -> None:
            async with self._client() as client:
                while not stopping.is_set():
                    if not due():
                        await asyncio.sleep(BREATH_S)
                        continue
                    questions = [draw.choice(HELD_OUT) for _ in range(self._settings.pairs_at_once)]
                    try:
                        before, after = await asyncio.gather(*(self._ask(client, questions, model) for model in (BASE, self._policy)))
                    except (openai.OpenAIError, httpx.HTTPError):
                        asked.failed += 1
                        await asyncio.sleep(1.0)
                        continue
                    asked.take(before, after)

        asyncio.run(again_and_again())

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self._base_url, api_key="none", timeout=300, max_retries=2, default_headers=UNCAPTURED)

    async def _ask(self, client: openai.AsyncOpenAI, questions: Sequence[SimulatedQuestion], model: str) -> list[Answer]:
        gate = asyncio.Semaphore(self._settings.examined_at_once)

        async def one(question: SimulatedQuestion) -> Answer:
            async with gate:
                return await chat(client, self._settings, self._preference, model, question)

        return list(await asyncio.gather(*(one(question) for question in questions)))
