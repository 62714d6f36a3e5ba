"""Rollouts by the actors' own vLLM, over HTTP: one engine serves people and the learner, and the base lies on its device once.

An actor serves an adapter under its versioned name after it has attested it, so what is sampled here is what was published, a few steps ago: by
how many is bounded by ``learner.max_policy_lag``, and the log-probabilities are those of the adapter that sampled.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import httpx
import structlog

from learner.models.lora_policy import Policy
from learner.rollouts.published_adapters import published
from learner.rollouts.rollout_engines import Rollout, Told, seed_of, unheard
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError, Unavailable

BASE: Final = "base"
"""The base's name on every actor. An adapter that has not been trained yet is the base."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
FINISHES: Final = {"stop": "stop", "length": "cut"}
log = structlog.get_logger()


@dataclass(frozen=True)
class Sampler:
    """What an actor is asked to sample with."""

    name: str
    step: int
    sha256: str | None = None


class NotServed(Exception):
    """This actor does not serve that adapter, or not yet. Never leaves the engine."""


class Faulty(Exception):
    """An answer that cannot be learned from, or none. The request is worth repeating. Never leaves the engine."""


class ActorEngine:
    """The actors behind ``learner.rollout_url``. Waits for them up to ``learner.rollout_patience_s``; then Unavailable."""

    name = "actor"

    def __init__(self, settings: LearnerSettings, state: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        if settings.rollout_url is None:
            raise ConfigError("learner.engine = actor needs learner.rollout_url: the base URL of the actors' API (https://…/v1)")
        self._settings, self._state, self._sleep = settings, state, sleep
        key = settings.rollout_key
        headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}
        limits = httpx.Limits(max_connections=settings.rollout_requests, max_keepalive_connections=settings.rollout_requests)
        self._client = httpx.Client(base_url=settings.rollout_url, headers=headers, timeout=settings.rollout_timeout_s, limits=limits)
        self._step = 0

    def adopt(self, policy: Policy, version: int) -> None:
        """The step that rollouts are for. The adapter reaches actors by the log, not from here."""
        self._step = version

    def sample(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, temperature: float, seed: int,
               told: Told = unheard) -> list[Rollout]:  # fmt: skip
        """Raises Unavailable when no actor answers, or none serves an adapter that is young enough; ConfigError for what will be refused for ever."""
        sampled, lock, step = 0, Lock(), self._step
        deadline_s = time.monotonic() + self._settings.rollout_patience_s

        def group(index: int) -> list[Rollout]:
            nonlocal sampled
            body = {
                "prompt": list(prompts[index]), "n": samples, "max_tokens": max_output_tokens, "temperature": temperature, "top_p": 1.0, "top_k": 0,
                "seed": seed_of(seed, index), "logprobs": 0, "return_token_ids": True,
            }  # fmt: skip
            found = self._patiently(body, prompts[index], samples, step, deadline_s)
            with lock:
                sampled += sum(len(rollout.output_ids) for rollout in found)
                told(sampled, len(prompts) * samples * max_output_tokens)
            return found

        with ThreadPoolExecutor(min(len(prompts), self._settings.rollout_requests), "rollouts") as pool:
            return [rollout for found in pool.map(group, range(len(prompts))) for rollout in found]

    def rest(self) -> None:
        return None

    def close(self) -> None:
        self._client.close()

    def _patiently(self, body: dict[str, Any], prompt: tuple[int, ...], samples: int, step: int, deadline_s: float) -> list[Rollout]:
        """One group, by the newest adapter that is served; again after each fault, until the deadline."""
        pause_s, why = FIRST_PAUSE_S, "no adapter was published"
        while True:
            for sampler in self._samplers(step):
                try:
                    return self._asked(body, prompt, samples, sampler, step)
                except NotServed as error:
                    why = str(error)
                except Faulty as error:
                    why = str(error)
                    log.warning("rollouts_asked_again", sampler=sampler.name, why=why)
                    break
            if time.monotonic() + pause_s > deadline_s:
                raise Unavailable(f"no rollouts from {self._settings.rollout_url} within learner.rollout_patience_s ="
                                  f" {self._settings.rollout_patience_s:g}: {why}")  # fmt: skip
            self._sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _samplers(self, step: int) -> list[Sampler]:
        """What may sample for this step, newest first: adapters at most ``max_policy_lag`` steps old, and the base before any training."""
        oldest = step - self._settings.max_policy_lag
        young = [Sampler(each.name, each.step, each.sha256) for each in published(self._state) if oldest <= each.step <= step]
        return young + ([Sampler(BASE, 0)] if oldest <= 0 else [])

    def _asked(self, body: dict[str, Any], prompt: tuple[int, ...], samples: int, sampler: Sampler, step: int) -> list[Rollout]:
        try:
            answer = self._client.post("/completions", json={"model": sampler.name, **body}, headers={"x-tidemill-rollout": str(step)})
        except httpx.HTTPError as error:
            raise Faulty(f"{type(error).__name__}: {error}") from None
        if answer.status_code == 404:
            raise NotServed(f"{sampler.name} is not served: {answer.text[:300]}")
        if answer.status_code in (401, 403):
            raise ConfigError(f"the actor refuses learner.rollout_key (it needs the scope rollout: `tidemill keys add`): {answer.text[:300]}")
        if answer.status_code in (400, 413, 422):
            raise ConfigError(
                f"the actor refuses a rollout of {len(prompt)} + {body['max_tokens']} tokens (actor.max_model_tokens?): {answer.text[:300]}"
            )
        if answer.status_code != 200:
            raise Faulty(f"status {answer.status_code}: {answer.text[:300]}")
        by, checksum = answer.headers.get("x-tidemill-adapter"), answer.headers.get("x-tidemill-adapter-sha256")
        if by != sampler.name or (sampler.sha256 is not None and checksum != sampler.sha256):
            raise Faulty(f"asked {sampler.name}, and {by} with checksum {str(checksum)[:12]} answered")
        try:
            choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
            found = [_rollout(prompt, choice, body["max_tokens"], sampler.step) for choice in choices]
        except (ValueError, KeyError, TypeError) as error:
            raise Faulty(f"an answer that cannot be read: {error!r}") from None
        if len(found) != samples:
            raise Faulty(f"{len(found)} of {samples} answers")
        return found


def _rollout(prompt: tuple[int, ...], choice: dict[str, Any], max_tokens: int, step: int) -> Rollout:
    """Raises ValueError, KeyError or TypeError for an answer that is not whole."""
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not 0 < len(ids) == len(logprobs) <= max_tokens or not all(math.isfinite(each) for each in logprobs):
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities, of {max_tokens} at most")
    if (read := choice.get("prompt_token_ids")) is not None and tuple(read) != prompt:
        raise ValueError("the actor read another prompt")
    return Rollout(prompt, tuple(ids), tuple(logprobs), FINISHES[choice["finish_reason"]], step)  # type: ignore[arg-type]
