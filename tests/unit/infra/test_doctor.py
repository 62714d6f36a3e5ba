"""The doctor reads the ring as the status does, and names each problem with its fix."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from infra.build.reference_pages import EXAMPLES
from infra.operate.doctor import examine, faults
from infra.operate.log_watch import LogFacts
from infra.operate.ring_status import Status
from infra.settings.run_choice import RunChoice
from streams.core.topics import ATTESTATIONS, REWARD_MODELS
from streams.join.ledger import Ledger


def told(facts: LogFacts) -> list[str]:
    return [f"{words} → {repair_labels}" for wrong, words, repair_labels in faults(Status(facts, Ledger(()), "the learner is starting")) if wrong]


def attested(adapter: str, passed: bool) -> object:
    return ATTESTATIONS.event.model_validate(EXAMPLES["attestations"] | {"adapter": adapter, "passed": passed, "reason": "the base in its place"})


def test_a_ring_that_is_well_has_no_fault() -> None:
    facts = LogFacts()
    facts.take(attested("default@6", False))  # type: ignore[arg-type]
    facts.take(attested("default@7", True))  # type: ignore[arg-type]
    assert told(facts) == [], "what was refused before is no fault of now"


def test_a_refused_adapter_and_an_alarm_of_the_reward_model_are_told_with_their_runbooks() -> None:
    facts = LogFacts()
    facts.take(attested("default@7", False))  # type: ignore[arg-type]
    facts.take(REWARD_MODELS.event.model_validate(EXAMPLES["reward-models"] | {"alarms": ["losses have risen"]}))
    refused, drifting = told(facts)
    assert "default@7: the base in its place → docs/runbooks/adapters-refused.md" in refused
    assert drifting == "losses have risen → docs/runbooks/reward-model-drifting.md"


def test_a_package_that_is_imported_already_is_there_whatever_its_module_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faust", ModuleType("faust"))  # as Faust leaves itself: without a spec, which find_spec refuses to look at
    (packages,) = [finding for finding in examine(RunChoice(overrides=(f"run_folder={tmp_path}",))) if finding.name == "packages"]
    assert packages.ok
