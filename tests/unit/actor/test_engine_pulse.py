"""An engine that gives no tokens for long while answers wait hangs; an idle one does not."""

from collections.abc import AsyncIterator

from actor.adapters.engine_pulse import EnginePulse, watch_engine


class ClockByHand:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def tokens(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_silence_counts_only_while_an_answer_is_being_made() -> None:
    clock = ClockByHand()
    pulse = EnginePulse(60.0, clock)
    clock.now_s = 1000.0
    assert not pulse.hangs, "idle for long"
    answer = pulse.watch(tokens(3))
    assert await anext(answer) == 0
    clock.now_s += 59.0
    assert not pulse.hangs
    clock.now_s += 2.0
    assert pulse.hangs
    assert await anext(answer) == 1
    assert not pulse.hangs, "a token came"
    clock.now_s += 61.0
    assert [token async for token in answer] == [2]
    clock.now_s += 61.0
    assert not pulse.hangs, "nothing is asked"


async def test_tokens_of_one_answer_are_progress_for_all_that_wait() -> None:
    clock = ClockByHand()
    pulse = EnginePulse(60.0, clock)
    waiting, quick = pulse.watch(tokens(2)), pulse.watch(tokens(9))
    await anext(waiting)
    for _ in range(8):
        clock.now_s += 50.0
        await anext(quick)
        assert not pulse.hangs
    clock.now_s += 61.0
    assert pulse.hangs
    await quick.aclose()  # type: ignore[attr-defined]
    await waiting.aclose()  # type: ignore[attr-defined]
    assert not pulse.hangs, "both clients are gone"


async def test_the_engine_is_asked_as_before() -> None:
    class Engine:
        def __init__(self) -> None:
            self.asked: list[object] = []

        def generate(self, *arguments: object, **options: object) -> AsyncIterator[int]:
            self.asked.append((arguments, options))
            return tokens(2)

    engine = Engine()
    watch_engine(engine, EnginePulse(60.0))
    assert [token async for token in engine.generate("prompt", "params", "ep-1", lora_request=None)] == [0, 1]
    assert engine.asked == [(("prompt", "params", "ep-1"), {"lora_request": None})]
