"""A replica passes when it serves the adapter, and not when it serves anything else."""

import json
import random
from pathlib import Path

import pytest

from actor.adapters.attestation import AttestationProbe, judge, read_probes
from actor.settings import ActorSettings
from streams.core.errors import BadArtifact

SETTINGS = ActorSettings()


def probes(step: float, tokens: int = 64) -> tuple[AttestationProbe, ...]:
    """Probes on which the learner's adapter moved its base by about ``step`` nats a token."""
    draw = random.Random(7)
    base = [-draw.uniform(0.1, 6) for _ in range(tokens)]
    adapter = [b + draw.gauss(0, step) for b in base]
    return (AttestationProbe(prompt_ids=(1, 2), output_ids=tuple(range(tokens)), adapter_logprobs=tuple(adapter), base_logprobs=tuple(base)),)


def noisy(values: tuple[float, ...], noise: float = 0.03) -> list[list[float]]:
    draw = random.Random(9)
    return [[value + draw.gauss(0, noise) for value in values]]


@pytest.mark.parametrize("step", [0.0, 0.01, 0.05, 0.3, 2.0])
def test_the_adapter_passes_in_spite_of_the_noise_of_other_kernels(step: float) -> None:
    given = probes(step)
    verdict = judge(noisy(given[0].adapter_logprobs), given, SETTINGS)
    assert verdict.passed, verdict.reason
    assert verdict.learner_gap < 0.05


@pytest.mark.parametrize("step", [0.05, 0.1, 0.3, 2.0])
def test_a_replica_that_serves_the_base_in_its_place_does_not_pass(step: float) -> None:
    given = probes(step)
    verdict = judge(noisy(given[0].base_logprobs), given, SETTINGS)
    assert not verdict.passed
    assert verdict.base_gap < verdict.learner_gap


def test_an_adapter_of_which_only_a_part_is_applied_does_not_pass() -> None:
    given = probes(0.2)
    half = tuple((a + b) / 2 for a, b in zip(given[0].adapter_logprobs, given[0].base_logprobs, strict=True))
    assert "0.5 of the adapter's step" in judge([list(half)], given, SETTINGS).reason.replace("0.50", "0.5")


def test_an_adapter_applied_twice_does_not_pass() -> None:
    given = probes(0.1)
    double = [2 * a - b for a, b in zip(given[0].adapter_logprobs, given[0].base_logprobs, strict=True)]
    assert not judge([double], given, SETTINGS).passed


def test_logprobs_that_are_missing_or_not_finite_do_not_pass() -> None:
    given = probes(0.2)
    assert not judge([list(given[0].adapter_logprobs[:-1])], given, SETTINGS).passed
    assert not judge([[float("nan")] * 64], given, SETTINGS).passed


TOO_FEW = '{"probes": [{"prompt_ids": [1], "output_ids": [2, 3], "adapter_logprobs": [0], "base_logprobs": [0]}]}'
NOT_FINITE = '{"probes": [{"prompt_ids": [1], "output_ids": [2], "adapter_logprobs": [NaN], "base_logprobs": [0]}]}'


@pytest.mark.parametrize("text", ["", "[]", '{"probes": []}', TOO_FEW, NOT_FINITE])
def test_broken_probes_are_a_bad_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(BadArtifact):
        read_probes(tmp_path)


def test_probes_are_read_as_the_learner_writes_them(tmp_path: Path) -> None:
    given = probes(0.1)
    (tmp_path / "probes.json").write_text(json.dumps({"probes": [probe.model_dump() for probe in given]}))
    assert read_probes(tmp_path) == given
    with pytest.raises(BadArtifact, match="cannot be attested"):
        read_probes(tmp_path / "elsewhere")
