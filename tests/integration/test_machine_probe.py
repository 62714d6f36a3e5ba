"""The real probe on the machine at hand: whatever it finds must hold together. No test here asks for a certain time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.machine.base_shape import MADE_HERE, shape_in, shape_of
from infra.machine.machine_choice import chosen_for, is_open
from infra.machine.machine_probe import kept_rates, machine_rates, measured_rates, resolved_for_part
from infra.machine.machine_rates import MachineRates
from infra.machine.step_prediction import answer_tokens_per_s, predicted_step, sized_for
from infra.machine.usable_cores import UsableCores
from infra.settings.config import load
from infra.settings.policy_settings import PolicySettings
from streams.core.errors import Unavailable

TINY = MADE_HERE["tiny"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="module")
def rates(cache: Path) -> MachineRates:
    return machine_rates(TINY, cache)


def test_the_known_shapes_are_those_of_the_bases_that_are_made(tiny_base: Path) -> None:
    assert shape_in(tiny_base) == shape_of(PolicySettings(base="tiny"))
    assert shape_in(tiny_base / "dense") == TINY.model_copy(update={"experts": 1, "experts_per_token": 1})


def test_every_precision_is_measured_on_one_thread_at_least(rates: MachineRates) -> None:
    if rates.gpu:
        assert rates.rates == ()
        return
    assert {rate.dtype for rate in rates.rates if rate.threads == 1} == {"bfloat16", "float32"}
    for rate in rates.rates:
        seconds = [value for name, value in rate if name.endswith("_s") and isinstance(value, float)]
        assert min(seconds) > 0
        assert rate.threads <= rates.cores
    assert rates.probe_s > 0


def test_what_was_found_is_kept_and_read_back(rates: MachineRates, cache: Path) -> None:
    assert kept_rates(TINY, cache) == rates
    assert kept_rates(MADE_HERE["smollm2"], cache) is None


def test_the_choice_is_one_of_those_that_were_measured_and_its_step_the_shortest(rates: MachineRates) -> None:
    settings = load("demo", ("policy.base=tiny", "learner.threads=0", "actor.cpu_threads=0"), {})
    chosen = chosen_for(settings, rates).settings
    assert not is_open(chosen)
    if rates.gpu:
        return
    step = predicted_step(chosen, rates)
    tokens_per_s = answer_tokens_per_s(chosen, rates, 8)
    assert step is not None
    assert tokens_per_s is not None
    assert step.total_s > 0
    assert tokens_per_s > 0
    for dtype in ("bfloat16", "float32"):
        other = predicted_step(chosen_for(load("demo", (f"learner.dtype={dtype}", "learner.threads=0"), {}), rates).settings, rates)
        assert other is not None
        assert step.total_s <= other.total_s * 1.001


def test_half_a_core_of_quota_doubles_what_is_predicted(rates: MachineRates) -> None:
    settings = load("demo", ("policy.base=tiny", "learner.dtype=bfloat16"), {})
    whole, half = (predicted_step(settings, rates.model_copy(update={"quota": quota})) for quota in (1.0, 0.5))
    if whole is not None and half is not None:
        assert half.rollout_s == pytest.approx(2 * whole.rollout_s)
    assert sized_for(settings, rates.model_copy(update={"quota": 0.01}), 1.0).learner.prompts_per_step <= settings.learner.prompts_per_step


def test_one_core_is_enough(tmp_path: Path) -> None:
    """As ``taskset -c 0`` leaves it."""
    script = (
        "import os, sys; from pathlib import Path; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from infra.machine.machine_probe import machine_rates; from infra.machine.base_shape import MADE_HERE;"
        f"found = machine_rates(MADE_HERE['tiny'], Path({str(tmp_path)!r}));"
        "assert 'torch' not in sys.modules; print(found.cores, sorted({rate.threads for rate in found.rates}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.split() == ["1", "[1]"]


def test_a_measurement_that_dies_is_told_and_parts_start_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="status 1"):
        measured_rates(TINY, UsableCores(1, 1.0))
    settings = load("demo", ("policy.base=tiny",), {})
    assert machine_rates(TINY).failure != ""
    assert resolved_for_part("learner", settings).learner.dtype == "bfloat16"
    assert sized_for(settings, machine_rates(TINY), 1.0) == settings
