"""Skills kept: the likelihood of fixed texts that have nothing to do with the feedback, before and after training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from actor.actor_client import client
from actor.adapters.request_routing import BASE

TEXTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "Water freezes at zero degrees Celsius and boils at one hundred degrees.",
    "Two plus two is four, and three times three is nine.",
    "The sun rises in the east and sets in the west.",
    "William Shakespeare wrote Romeo and Juliet.",
    "A week has seven days, and a year has twelve months.",
    "def add(a, b):\n    return a + b",
    "SELECT name FROM users WHERE age > 18;",
    "Plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "If all cats are animals and Tom is a cat, then Tom is an animal.",
    "Once upon a time, there was a little girl who lived in a village near the forest.",
    "The opposite of hot is cold, and the opposite of big is small.",
)
"""Do not change them: runs are compared by them."""


@dataclass(frozen=True)
class Skills:
    """Mean log-likelihood per token of ``TEXTS`` in nats, under the base and under the served policy."""

    base_nats: float
    served_nats: float

    @property
    def change_nats(self) -> float:
        """Below 0: the texts are less likely under the served policy than under the base."""
        return self.served_nats - self.base_nats


def measure(base_url: str, policy: str) -> Skills | None:
    """Asks the actor, without an episode. None when it does not answer."""
    asked = client(base_url, None, timeout_s=20)
    try:
        base, served = (_ask(asked, model) for model in (BASE, policy))
    except openai.OpenAIError:
        return None
    return None if base is None or served is None else Skills(base, served)


def _ask(asked: openai.OpenAI, model: str) -> float | None:
    """None when the server does not return log-probabilities of a prompt."""
    answer = asked.completions.create(model=model, prompt=list(TEXTS), max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0})
    found = [(choice.model_extra or {}).get("prompt_logprobs") for choice in answer.choices]
    return mean_logprob([text for text in found if text]) if all(found) else None


def mean_logprob(texts: Sequence[Sequence[Mapping[str, Any] | None]]) -> float:
    """Over all tokens except each text's first, which has no prediction. Every other token has one entry: its own log-probability."""
    found = [entry["logprob"] for text in texts for position in text if position for entry in position.values()]
    return float(sum(found) / len(found))
