"""Simulated people: they talk to the actor through the official ``openai`` client, and give thumbs on some of the answers."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import openai

from actor.adapters.request_routing import BASE
from infra.simulated_people.people_settings import PeopleSettings
from infra.simulated_people.preferences import PREFERENCES, Preference
from infra.simulated_people.simulated_questions import SimulatedQuestion, training_question
from streams.core.events import new_id

RECENT = 100


@dataclass(frozen=True)
class Answer:
    """An answer, and whether the simulated person truly likes it."""

    question: SimulatedQuestion
    text: str
    episode_id: str
    adapter: str
    approved: bool
    tokens: int


@dataclass
class TalkTally:
    """Counts so far."""

    asked: int = 0
    answers: int = 0
    adapter_answers: int = 0
    """Answers given by an adapter."""
    failed: int = 0
    """Requests without an answer."""
    failures: deque[str] = field(default_factory=lambda: deque(maxlen=10))
    thumbs: int = 0
    thumbs_up: int = 0
    thumbs_lost: int = 0
    """Thumbs that the actor did not accept after all retries."""
    tokens: int = 0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    """True approval of the last answers."""

    @property
    def waiting(self) -> int:
        """Requests in progress."""
        return self.asked - self.answers - self.failed

    @property
    def recent_approval(self) -> float:
        """Share of the last answers with true approval; 0 when there are none."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0


class SimulatedPeople:
    """A group of people with one preference, who talk until stopped."""

    def __init__(self, settings: PeopleSettings, base_url: str, policy: str, api_key: str = "none") -> None:
        self._settings, self._policy, self._base_url = settings, policy, base_url.rstrip("/")
        self._preference = PREFERENCES[settings.preference]
        self._random = random.Random(settings.seed)
        self._client = openai.AsyncOpenAI(base_url=self._base_url, api_key=api_key, timeout=180, max_retries=0)
        self._http = httpx.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {api_key}"})
        self._thumbs_under_way: set[asyncio.Task[None]] = set()
        self.tally = TalkTally()

    async def talk(self, at_once: Callable[[], int], stop: Callable[[], bool]) -> None:
        """Keep ``at_once()`` people talking until ``stop()``; then wait for late thumbs."""
        talking: set[asyncio.Task[None]] = set()
        while not stop():
            for _ in range(at_once() - len(talking)):
                talking.add(asyncio.create_task(self._one_exchange()))
            if talking:
                done, talking = await asyncio.wait(talking, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            else:
                await asyncio.sleep(0.25)
        await asyncio.gather(*talking, *self._thumbs_under_way)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()
        await self._http.aclose()

    async def _one_exchange(self) -> None:
        user = f"simulated-{self._random.randrange(self._settings.people)}"
        question = training_question(self._random)
        self.tally.asked += 1
        try:
            answer = await chat(self._client, self._settings, self._preference, self._policy, question, user)
        except (openai.OpenAIError, httpx.HTTPError) as error:
            self.tally.failed += 1
            self.tally.failures.append(f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(1.0)
            return
        self.tally.answers += 1
        self.tally.adapter_answers += answer.adapter != BASE
        self.tally.tokens += answer.tokens
        self.tally.recent.append(answer.approved)
        if self._random.random() < self._settings.vote_ratio:
            up = answer.approved != (self._random.random() < self._settings.noise_ratio)
            delay_s = self._random.expovariate(1 / self._settings.delay_s) if self._settings.delay_s else 0.0
            task = asyncio.create_task(self._thumb(answer, user, up, delay_s))
            self._thumbs_under_way.add(task)
            task.add_done_callback(self._thumbs_under_way.discard)

    async def _thumb(self, answer: Answer, user: str, up: bool, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        body = {
            "feedback_id": new_id("fb"),
            "episode_id": answer.episode_id,
            "user_id": user,
            "kind": "thumb",
            "thumb": "up" if up else "down",
            "at": datetime.now(UTC).isoformat(),
        }
        for attempt in range(5):  # safe to repeat: the feedback_id marks a second one as a duplicate
            try:
                response = await self._http.post(f"{self._base_url}/feedback", json=body)
            except httpx.HTTPError:
                await asyncio.sleep(0.5 * 2**attempt)
                continue
            if response.status_code < 300:
                self.tally.thumbs += 1
                self.tally.thumbs_up += up
                return
            if response.status_code < 500:
                break
            await asyncio.sleep(0.5 * 2**attempt)
        self.tally.thumbs_lost += 1


async def chat(
    client: openai.AsyncOpenAI, settings: PeopleSettings, preference: Preference, model: str, question: SimulatedQuestion, user: str | None = None
) -> Answer:
    """Ask one question, and apply the true preference to the answer. Raises openai.OpenAIError."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "system", "content": settings.system}, {"role": "user", "content": question.text}],
        max_tokens=settings.answer_tokens,
        temperature=settings.temperature,
        user=openai.omit if user is None else user,
    )
    completion = raw.parse()
    text = completion.choices[0].message.content or ""
    return Answer(
        question=question,
        text=text,
        episode_id=raw.headers.get("x-tidemill-episode", ""),
        adapter=raw.headers.get("x-tidemill-adapter", BASE),
        approved=preference.approves(question, text),
        tokens=completion.usage.completion_tokens if completion.usage else 0,
    )
