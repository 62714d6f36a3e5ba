"""Asks the actors questions through the official ``openai`` package, with capture off: the answers do not become episodes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import openai
from pydantic import SecretStr

from streams.core.errors import Unavailable
from streams.core.events import Message

UNCAPTURED = {"x-tidemill-capture": "off", "x-tidemill-user": "tidemill"}
PASSED_ON = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class PromptRequest:
    """A prompt, and sampling parameters that differ from the promoter's."""

    messages: tuple[Message, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)


class ActorClient(Protocol):
    """Asks a version by its name. The promoter and its tests depend on this protocol instead of HTTP."""

    def ask(self, model: str, questions: Sequence[PromptRequest]) -> list[str | None]:
        """An answer to each question; None for a question that the server refuses. Raises Unavailable when the server cannot be reached."""


def client(base_url: str, api_key: SecretStr | None, timeout_s: float) -> openai.OpenAI:
    """An OpenAI client with capture off."""
    key = api_key.get_secret_value() if api_key else "none"
    return openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=2, default_headers=UNCAPTURED)


class OpenAiActorClient:
    """Asks over HTTP, several questions at a time."""

    def __init__(self, base_url: str, api_key: SecretStr | None, at_once: int, answer_tokens: int, temperature: float, seed: int,
                 timeout_s: float = 300.0) -> None:  # fmt: skip
        self._client = client(base_url, api_key, timeout_s)
        self._at_once, self._answer_tokens, self._temperature, self._seed = at_once, answer_tokens, temperature, seed

    def ask(self, model: str, questions: Sequence[PromptRequest]) -> list[str | None]:
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda numbered: self._one(model, *numbered), enumerate(questions)))

    def _one(self, model: str, number: int, question: PromptRequest) -> str | None:
        sampling: dict[str, Any] = {"max_tokens": self._answer_tokens, "temperature": self._temperature, "seed": self._seed + number}
        chosen = {key: question.sampling[key] for key in PASSED_ON if key in question.sampling}
        if "max_completion_tokens" in chosen:
            del sampling["max_tokens"]
        messages: Any = [message.model_dump(exclude_none=True) for message in question.messages]
        try:
            answer = self._client.chat.completions.create(model=model, messages=messages, **(sampling | chosen))
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return None  # such as a prompt that does not fit
        except openai.OpenAIError as error:
            raise Unavailable(f"{model} cannot be asked at promotion.actor_url = {self._client.base_url}: {error}") from None
        return answer.choices[0].message.content or ""
