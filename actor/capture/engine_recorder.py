"""Records what the engine generates for one request, inside the engine: token ids and the sampler's logprobs are never recomputed from text."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from actor.capture.sampled_logprobs import ask_alone


@dataclass
class Choice:
    """One answer that is being generated."""

    prompt_ids: tuple[int, ...] = ()
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each sampled token under the weights that sampled it, before temperature, in nats."""
    text: str = ""
    finish_reason: str | None = None
    """vLLM's finish reason: stop, length, abort, error. None while it is running."""


@dataclass
class EngineRecorder:
    """Collects the choices of one HTTP request, over all its prompts."""

    per_prompt: int = 1
    """Choices per prompt (``n``)."""
    choices: dict[int, Choice] = field(default_factory=dict)
    prompts: int = 0
    adapter: str | None = None
    """Name of the adapter that the engine used; None: the base."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompts, each counted once, and of all answers so far."""
        firsts = (self.choices[n] for n in range(0, self.prompts * self.per_prompt, self.per_prompt))
        return sum(len(choice.prompt_ids) for choice in firsts), sum(len(choice.output_ids) for choice in self.choices.values())

    def listen(self, generate: Callable[..., Any], prompt: Any, params: Any, request_id: str, options: dict[str, Any]) -> Any:
        """Run the engine on one prompt with logprobs of the sampled tokens turned on, without changing the server's answer."""
        first = self.prompts * self.per_prompt
        self.prompts += 1
        lora = options.get("lora_request")
        self.adapter = lora.lora_name if lora is not None else None
        for index in range(self.per_prompt):
            self.choices[first + index] = Choice()
        if params.logprobs is None:
            ask_alone(params)  # the server prints logprobs only where the client asked
        grows, flat = params.output_kind.name == "DELTA", params.flat_logprobs
        return self._collect(generate(prompt, params, request_id, **options), first, grows, flat)

    async def _collect(self, outputs: AsyncIterator[Any], first: int, grows: bool, flat: bool) -> AsyncIterator[Any]:
        async with aclosing(outputs) as stream:  # type: ignore[type-var]
            async for output in stream:
                self._take(output, first, grows, flat)
                yield output

    def _take(self, output: Any, first: int, grows: bool, flat: bool) -> None:
        for part in output.outputs:
            choice = self.choices.setdefault(first + part.index, Choice())
            if output.prompt_token_ids is not None:
                choice.prompt_ids = tuple(output.prompt_token_ids)
            if not grows:
                choice.output_ids, choice.logprobs, choice.text = [], [], ""
            ids = part.token_ids
            choice.output_ids += ids
            if flat:
                choice.logprobs += part.logprobs.logprobs if part.logprobs else ()
            else:
                choice.logprobs += [position[token].logprob for token, position in zip(ids, part.logprobs or (), strict=False)]
            choice.text += part.text
            choice.finish_reason = part.finish_reason or choice.finish_reason


RECORDER: ContextVar[EngineRecorder | None] = ContextVar("tap", default=None)
"""The recorder of the request that this task serves; tasks that a handler starts inherit it."""


def wrap_engine(engine: Any) -> None:
    """Make every ``generate`` of this engine client report to the recorder of its request, if there is one."""
    generate = engine.generate

    def listened(prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> Any:
        recorder = RECORDER.get()
        if recorder is None:
            return generate(prompt, sampling_params, request_id, **options)
        return recorder.listen(generate, prompt, sampling_params, request_id, options)

    engine.generate = listened
