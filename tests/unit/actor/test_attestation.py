"""A replica passes when it serves the adapter, never when it serves anything else, and says so when it cannot tell."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actor.adapters.adapter_effect import Array, Readings
from actor.adapters.attestation import AdapterProbes, AttestationProbe, Verdict, judge, judge_readings, read_probes
from actor.settings import ActorSettings
from streams.core.errors import BadArtifact

SETTINGS = ActorSettings()
TOKENS = 112
"""The least there is by default: four probes of 28 tokens."""


class Drawn:
    """One adapter and what a learner says of it, drawn anew: how its step is spread over tokens and over its parts, and everybody's noise.

    Attention carries 70 % of the step. The adapter before it went 80 % of the way, and a fifth of the step aside. In every second draw noise
    and step have heavy tails, and noise differs from token to token.
    """

    def __init__(self, number: int, step: float, noise: float, learner_noise: float = 0.0, tokens: int = TOKENS) -> None:
        self._draw = np.random.default_rng([number, round(step * 1e4), round(noise * 1e4), round(learner_noise * 1e4)])
        self._heavy, self._noise, self._tokens = number % 2 == 1, noise, tokens
        self._spread_N = self._scaled(np.sqrt(self._draw.gamma(2.0, size=tokens)), 1.0) if self._heavy else np.ones(tokens)
        attention_N, experts_N = self._scaled(self._some(), 0.7), self._scaled(self._some(), 0.714)
        size = step / np.sqrt(np.mean((attention_N + experts_N) ** 2))
        attention_N, experts_N = size * attention_N, size * experts_N
        whole_N = attention_N + experts_N
        before_N = 0.8 * whole_N + self._scaled(self._some(), 0.2 * step)
        self._base_N = -self._draw.gamma(1.0, 2.0, tokens)
        self.steps = {
            "the adapter": whole_N,
            "the base": 0 * whole_N,
            "the adapter before it": before_N,
            "no experts": attention_N,
            "no attention": experts_N,
            "half of it": 0.5 * whole_N,
            "twice of it": 2 * whole_N,
        }
        self._known = {name: self._read(step_N, learner_noise) for name, step_N in self.steps.items()}
        self._exact = learner_noise == 0

    def _some(self) -> Array:
        return self._draw.standard_t(4, self._tokens) if self._heavy else self._draw.normal(size=self._tokens)

    def _scaled(self, values_N: Array, size: float) -> Array:
        return values_N * (size / np.sqrt(np.mean(values_N**2)))

    def _read(self, step_N: Array, noise: float) -> Array:
        return self._base_N + step_N + noise * self._spread_N * self._draw.normal(size=self._tokens)

    def readings(self, served: str) -> Readings:
        """What a replica that serves that in the adapter's place says, and the learner."""
        k = self._known
        return Readings(
            k["the base"], k["the adapter"], self._read(self.steps["the base"], self._noise), self._read(self.steps[served], self._noise),
            {"experts": k["no experts"], "attention": k["no attention"]}, k["the adapter before it"], self._exact,
        )  # fmt: skip

    def verdicts(self) -> Iterator[tuple[str, Verdict]]:
        for served in self.steps:
            yield served, judge_readings(self.readings(served), SETTINGS)


DRAWS = 200
STEPS = (0.005, 0.02, 0.1, 0.3, 1.0)
NOISES = (0.001, 0.01, 0.03, 0.1)


@pytest.mark.parametrize("learner_noise", [0.0, 0.7], ids=["float32 learner", "bfloat16 learner"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("step", STEPS)
def test_healthy_adapters_are_not_refused_and_wrong_ones_not_attested_whatever_the_noise(step: float, noise: float, learner_noise: float) -> None:
    """Of 200 draws in each cell at most 1 %. ``learner_noise``: as a part of the replica's."""
    found = {served: Counter[str]() for served in Drawn(0, step, noise).steps}
    for number in range(DRAWS):
        for served, verdict in Drawn(number, step, noise, learner_noise * noise).verdicts():
            found[served][verdict.outcome] += 1
    healthy = found.pop("the adapter")
    assert healthy["refused"] <= 0.01 * DRAWS, healthy
    assert {served: count["attested"] for served, count in found.items() if count["attested"] > 0.01 * DRAWS} == {}
    if learner_noise == 0 and step >= 10 * noise:  # where a step rises above the noise like this, "cannot tell" is no answer
        assert healthy["attested"] >= 0.95 * DRAWS, healthy
        assert all(found[served]["refused"] >= 0.95 * DRAWS for served in ("the base", "no experts", "no attention", "twice of it")), found


def test_more_tokens_tell_what_few_cannot() -> None:
    few, many = (
        Counter(judge_readings(Drawn(number, 0.1, 0.03, tokens=tokens).readings("the adapter"), SETTINGS).outcome for number in range(DRAWS))
        for tokens in (TOKENS, 16 * TOKENS)
    )
    assert few["attested"] < 0.1 * DRAWS
    assert many["attested"] > 0.95 * DRAWS


def test_a_reason_tells_what_is_missing_how_sure_that_is_and_how_large_noise_and_step_are() -> None:
    drawn = Drawn(0, 0.3, 0.01)
    of_base, of_part, unsure = (judge_readings(drawn.readings(served), SETTINGS) for served in ("the base", "no experts", "half of it"))
    assert of_base.reason.startswith("shows 0.0") or of_base.reason.startswith("shows -0.0")
    assert "of the adapter's step from the base, not 0.6 to 1.4 (actor.min_adapter_share); noise 0.0" in of_base.reason
    assert of_base.reason.endswith("nats a token, step 0.3")
    assert "of what the adapter on experts adds" in of_part.reason
    assert unsure.share is not None
    assert unsure.share.low < unsure.share.estimate == pytest.approx(0.5, abs=0.02)
    hidden = judge_readings(Drawn(0, 0.005, 0.03).readings("the adapter"), SETTINGS)
    assert hidden.outcome == "cannot tell"
    assert not hidden.passed
    assert hidden.reason.startswith("the probes cannot tell: they show ")


def test_another_adapter_that_happens_to_go_the_same_way_is_refused_for_what_it_does_beside() -> None:
    right = Drawn(0, 0.1, 0.001).readings("the adapter")
    step_N, aside_N = right.adapter_N - right.base_N, np.random.default_rng(1).normal(size=TOKENS) * 0.1
    aside_N -= step_N * (float(aside_N @ step_N) / float(step_N @ step_N))
    wrong = Readings(right.base_N, right.adapter_N, right.replica_base_N, right.replica_adapter_N + aside_N, exact=True)
    assert judge_readings(right, SETTINGS).passed
    assert "that the adapter does not explain" in judge_readings(wrong, SETTINGS).reason


def test_a_replica_whose_base_is_another_is_refused() -> None:
    right = Drawn(0, 0.3, 0.01).readings("the adapter")
    other = Readings(right.base_N, right.adapter_N, right.replica_base_N + 0.4, right.replica_adapter_N + 0.4, exact=True)
    assert "the base alone is 0.39" in judge_readings(other, SETTINGS).reason


def test_an_adapter_that_changes_nothing_cannot_be_told_from_the_base() -> None:
    right = Drawn(0, 0.3, 0.01).readings("the base")
    none = Readings(right.base_N, right.base_N, right.replica_base_N, right.replica_adapter_N, exact=True)
    assert judge_readings(none, SETTINGS).outcome == "cannot tell"


def probe(**changes: object) -> AttestationProbe:
    said: dict[str, object] = {"prompt_ids": (1, 2), "output_ids": (3, 4), "adapter_logprobs": (-1.0, -2.0), "base_logprobs": (-2.0, -1.0)}
    return AttestationProbe.model_validate(said | changes)


def test_logprobs_that_are_missing_or_not_finite_do_not_pass() -> None:
    known = AdapterProbes(probes=(probe(),))
    base, own = [[-2.0, -1.0]], [[-1.0, -2.0]]
    assert judge(own, base, known, SETTINGS).passed
    for wrong in ([[-1.0]], [], [[float("nan"), -2.0]], [[-1.0, -2.0], [-1.0, -2.0]]):
        assert "or not all finite" in judge(wrong, base, known, SETTINGS).reason
        assert "or not all finite" in judge(own, wrong, known, SETTINGS).reason


TOO_FEW = '{"probes": [{"prompt_ids": [1], "output_ids": [2, 3], "adapter_logprobs": [0], "base_logprobs": [0]}]}'
NOT_FINITE = '{"probes": [{"prompt_ids": [1], "output_ids": [2], "adapter_logprobs": [NaN], "base_logprobs": [0]}]}'
LEFT_OUT = '{"prompt_ids": [1], "output_ids": [2], "adapter_logprobs": [0], "base_logprobs": [0], "without": {"experts": [0]}}'
UNLIKE = f'{{"probes": [{LEFT_OUT}, {LEFT_OUT.replace("experts", "attention")}]}}'
TOO_MANY = f'{{"probes": [{LEFT_OUT.replace("[0]}}", "[0, 1]}}")}]}}'


@pytest.mark.parametrize("text", ["", "[]", '{"probes": []}', TOO_FEW, NOT_FINITE, TOO_MANY, UNLIKE])
def test_broken_probes_are_a_bad_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(BadArtifact):
        read_probes(tmp_path)


def test_probes_are_read_as_the_learner_writes_them_now_and_wrote_them_before(tmp_path: Path) -> None:
    given = AdapterProbes(probes=(probe(without={"experts": (-1.5, -1.5)}, parent_logprobs=(-1.1, -1.9)),), precision="float32", tensors={"a": 1.0})
    (tmp_path / "probes.json").write_text(given.model_dump_json())
    assert read_probes(tmp_path) == given
    old = {"prompt_ids": [1, 2], "output_ids": [3, 4], "adapter_logprobs": [-1, -2], "base_logprobs": [-2, -1]}
    (tmp_path / "probes.json").write_text(json.dumps({"probes": [old]}))
    assert read_probes(tmp_path) == AdapterProbes(probes=(probe(),))
    with pytest.raises(BadArtifact, match="cannot be attested"):
        read_probes(tmp_path / "elsewhere")


def swallowed(drawn: Drawn, part: str, kept: float) -> Readings:
    """A healthy replica whose arithmetic lets only so much of one part through: it adds the part to outputs that are rounded already."""
    right, missing = drawn.readings("the adapter"), drawn.readings(f"no {part}")
    return Readings(
        right.base_N,
        right.adapter_N,
        right.replica_base_N,
        kept * right.replica_adapter_N + (1 - kept) * missing.replica_adapter_N,
        right.without,
        None,
        True,
    )


@pytest.mark.parametrize("kept", [0.0, 0.3])
def test_a_small_part_that_rounding_swallows_refuses_no_adapter_whose_tensors_are_all_in_place(kept: float) -> None:
    """As measured on a real ring: a bfloat16 actor shows -0.2 to 0.3 of what attention adds at the first step, all of its tensors in place."""
    for number in range(DRAWS):
        small = swallowed(Drawn(number, 0.15, 0.05), "attention", kept)
        assert judge_readings(small, SETTINGS, placed=True).outcome != "refused"
    blind = Counter(judge_readings(swallowed(Drawn(number, 0.15, 0.05), "attention", 0.0), SETTINGS).outcome for number in range(DRAWS))
    assert blind["refused"] > blind["attested"] == 0  # of an engine whose tensors nobody has seen that is too little


def test_a_part_that_no_rounding_swallows_must_show_though_all_tensors_are_in_place() -> None:
    """An engine may hold tensors that it has wired nowhere."""
    for number in range(DRAWS):
        assert judge_readings(Drawn(number, 1.0, 0.03).readings("no experts"), SETTINGS, placed=True).outcome == "refused"
        assert judge_readings(Drawn(number, 0.3, 0.03).readings("the base"), SETTINGS, placed=True).outcome == "refused"
