"""Held-out questions, put to the base and to what is served. Their answers become no episodes: nobody thumbs them, and the learner never
sees what was asked."""

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
from infra.demo.people_settings import PeopleSettings
from infra.demo.simulated_people import HELD_OUT, PREFERENCES, SimulatedQuestion
from infra.demo.simulated_talk import Answer, chat
from streams.core.errors import Unavailable

BREATH_S = 0.25


@dataclass
class PairsAsked:
    """The pairs so far. Written by the examiners' thread alone."""

    rise: PairedRise = field(default_factory=PairedRise)
    samples: list[tuple[float, PairedRise]] = field(default_factory=list)
    """Seconds since the start and what was known by then, after each round."""
    started_s: float = field(default_factory=time.monotonic)
    shown_with: int | None = None
    """Pairs with which the rise was shown first. Once shown it stays so: the interval holds at all times at once."""
    failed: int = 0
    """Rounds that brought no pairs: the actor did not answer."""

    def take(self, before: Sequence[Answer], after: Sequence[Answer]) -> None:
        """Answers to the same questions, all at once: whose answer was quicker must not matter. Pairs that the base answered twice say nothing."""
        rise = self.rise
        for base, adapter in zip(before, after, strict=True):
            if adapter.adapter != BASE:
                rise = rise.with_pair(base.approved, adapter.approved)
        self.rise = rise
        if self.shown_with is None and rise.shown:
            self.shown_with = rise.pairs
        self.samples.append((time.monotonic() - self.started_s, rise))


class Examiners:
    """Ask as many questions at once as they are told, of the base or of the policy as it is served."""

    def __init__(self, settings: PeopleSettings, base_url: str, policy: str) -> None:
        self._settings, self._base_url, self._policy = settings, base_url, policy
        self._preference = PREFERENCES[settings.preference]

    def ask(self, questions: Sequence[SimulatedQuestion], of_base: bool) -> list[Answer]:
        """One answer to each. Raises Unavailable when one does not come."""

        async def all_of_them() -> list[Answer]:
            async with self._client() as client:
                return await self._ask(client, questions, BASE if of_base else self._policy)

        try:
            return asyncio.run(all_of_them())
        except openai.OpenAIError as error:
            raise Unavailable(f"the arrow people → actor is broken: a held-out question got no answer: {error}") from None

    def ask_in_pairs(self, asked: PairsAsked, due: Callable[[], bool], stopping: threading.Event) -> None:
        """``pairs_at_once`` questions whenever ``due()``, each put to both, until stopped. Each is drawn at random,
        whatever was answered before."""
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
