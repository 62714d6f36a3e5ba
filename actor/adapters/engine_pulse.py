"""Whether the engine makes progress: it hangs when answers are being made and no token has come for long."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any


class EnginePulse:
    """Counts answers in progress, and remembers when the last token came. For the server's one thread."""

    def __init__(self, allowed_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        """``allowed_s``: longest time without a token of any answer while answers are being made."""
        self._allowed_s, self._clock_s = allowed_s, clock_s
        self._in_progress, self._last_s = 0, clock_s()

    @property
    def hangs(self) -> bool:
        """True when answers are being made and none of them got a token for ``allowed_s``."""
        return self._in_progress > 0 and self._clock_s() - self._last_s > self._allowed_s

    async def watch(self, outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The engine's outputs for one prompt, unchanged."""
        if self._in_progress == 0:
            self._last_s = self._clock_s()
        self._in_progress += 1
        try:
            async with aclosing(outputs) as stream:  # type: ignore[type-var]
                async for output in stream:
                    self._last_s = self._clock_s()
                    yield output
        finally:
            self._in_progress -= 1


def watch_engine(engine: Any, pulse: EnginePulse) -> None:
    """Let ``pulse`` see every ``generate`` of this engine client."""
    generate = engine.generate
    engine.generate = lambda *arguments, **options: pulse.watch(generate(*arguments, **options))
