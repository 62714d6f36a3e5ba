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
WHOLE_DISTRIBUTION = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
"""vLLM's own parameters: without them it would take those that the base's folder recommends."""
PASSED_ON = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class PromptRequest:
    """A prompt, and sampling parameters that differ from the promoter's."""

    messages: tuple[Message, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparedAnswer:
    """An answer that a model sampled: the log-probability of each of its tokens under that model and under another one, in nats."""

    own: tuple[float, ...]
    other: tuple[float, ...]


class ActorClient(Protocol):
    """Asks a version by its name. The promoter and its tests depend on this protocol instead of HTTP."""

    def ask(self, model: str, questions: Sequence[PromptRequest]) -> list[str | None]:
        """An answer to each question; None for a question that the server refuses. Raises Unavailable when the server cannot be reached."""

    def compare(self, model: str, other: str, questions: Sequence[PromptRequest]) -> list[ComparedAnswer | None]:
        """An answer to each question, drawn from all that ``model`` might say (temperature 1), as both models see it. None for a question that the
        server refuses. Raises Unavailable."""


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

    def compare(self, model: str, other: str, questions: Sequence[PromptRequest]) -> list[ComparedAnswer | None]:
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda numbered: self._compared(model, other, *numbered), enumerate(questions)))

    def _compared(self, model: str, other: str, number: int, question: PromptRequest) -> ComparedAnswer | None:
        messages: Any = [message.model_dump(exclude_none=True) for message in question.messages]
        try:
            answer = self._client.chat.completions.create(
                model=model, messages=messages, max_tokens=self._answer_tokens, temperature=1.0, top_p=1.0, seed=self._seed + number,
                extra_body=WHOLE_DISTRIBUTION,
            )  # fmt: skip
            prompt_ids, said_ids = ((found.model_extra or {}).get(name) for found, name in
                                    ((answer, "prompt_token_ids"), (answer.choices[0], "token_ids")))  # fmt: skip
            if not prompt_ids or not said_ids:
                raise Unavailable(f"{model} at promotion.actor_url = {self._client.base_url} does not tell its tokens (return_token_ids)")
            return ComparedAnswer(*(self._logprobs(each, prompt_ids, said_ids) for each in (model, other)))
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return None
        except openai.OpenAIError as error:
            raise Unavailable(f"{model} cannot be asked at promotion.actor_url = {self._client.base_url}: {error}") from None

    def _logprobs(self, model: str, prompt_ids: Sequence[int], said_ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probabilities of the tokens that were said after the prompt."""
        found = self._client.completions.create(
            model=model, prompt=[*prompt_ids, *said_ids], max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0}
        )
        told = (found.choices[0].model_extra or {}).get("prompt_logprobs") or ()
        if len(told) != len(prompt_ids) + len(said_ids):
            raise Unavailable(f"{model} at promotion.actor_url = {self._client.base_url} does not tell log-probabilities (prompt_logprobs)")
        return tuple(float(told[len(prompt_ids) + n][str(token)]["logprob"]) for n, token in enumerate(said_ids))

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
