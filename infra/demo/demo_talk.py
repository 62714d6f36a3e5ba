"""The requests of the demo, each kind in its own thread: simulated people, and held-out questions between their rounds."""

import asyncio
import threading
import time
from collections.abc import Callable

from infra.demo.held_out_exam import Examiners, PairsAsked
from infra.local.local_ring import Ring
from infra.operate.log_watch import LogFacts
from infra.simulated_people.people_settings import PeopleSettings
from infra.simulated_people.simulated_talk import SimulatedPeople, TalkTally

HANG_UP_S = 60.0
"""Time limit for the last answers and late thumbs."""


class Talk:
    """Runs from its creation until ``stop``."""

    def __init__(self, ring: Ring, facts: LogFacts, examiners: Examiners, pairs: PairsAsked) -> None:
        settings = ring.settings.people
        people = SimulatedPeople(settings, ring.base_url, ring.settings.policy.name)
        self.tally: TalkTally = people.tally
        self._stopping = threading.Event()
        at_once = Rounds(settings, people.tally, lambda: bool(facts.reward_models))
        every = every_s(settings.pairs_every_s)

        async def talk() -> None:
            await people.talk(at_once, self._stopping.is_set)
            await people.close()

        def examine() -> None:
            examiners.ask_in_pairs(pairs, lambda: facts.serving != "base" and every(), self._stopping)

        self._threads = [
            threading.Thread(target=lambda: asyncio.run(talk()), name="simulated people", daemon=True),
            threading.Thread(target=examine, name="examiners", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop asking, and wait for the answers to what was asked."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=HANG_UP_S)


class Rounds:
    """How many people may talk now. At first ``at_once`` all the time. Once the learner trains on the same cores, ``at_once`` every ``round_every_s``
    seconds, and on a slow machine less often, so that pauses are as long as rounds."""

    def __init__(self, settings: PeopleSettings, tally: TalkTally, learning: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._tally, self._learning, self._clock = settings, tally, learning, clock
        self._began_s, self._took_s = float("-inf"), 0.0
        self._goes_on = False

    def __call__(self) -> int:
        if not (self._settings.round_every_s and self._learning()):
            return self._settings.at_once
        now_s = self._clock()
        if self._goes_on and self._tally.waiting == 0:
            self._goes_on, self._took_s = False, now_s - self._began_s
        if self._goes_on or now_s < self._began_s + max(self._settings.round_every_s, 2 * self._took_s):
            return 0
        self._began_s, self._goes_on = now_s, True
        return self._settings.at_once


def every_s(seconds: float, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """True on the first call, and then once per period."""
    next_s = float("-inf")

    def due() -> bool:
        nonlocal next_s
        if clock() < next_s:
            return False
        next_s = clock() + seconds
        return True

    return due
