"""What serves, as those who only read the log tell it."""

from datetime import UTC, datetime

from actor.promotion.promotion_stages import AdapterStanding
from infra.operate.log_watch import LogFacts
from infra.settings.config import load
from streams.core.events import Attestation, Promotion

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def attested(name: str) -> Attestation:
    return Attestation(replica="r", adapter=name, adapter_sha256="0" * 64, passed=True, reason="attested", load_ms=1.0, at=T0)


def moved(name: str, move: str, by: str) -> Promotion:
    given = {"promotion_id": f"{name} {move}", "policy": "default", "adapter": name, "move": move, "reason": "test", "by": by, "at": T0}
    return Promotion.model_validate(given)


def test_without_gates_the_newest_attested_serves() -> None:
    facts = LogFacts()
    for event in (attested("default@1"), moved("default@9", "promoted", "ann"), attested("default@2")):
        facts.take(event)
    assert facts.serving == "default@2"


def test_with_gates_an_attested_candidate_does_not_serve_before_it_is_promoted() -> None:
    facts = LogFacts(standing=AdapterStanding("default"))
    facts.take(attested("default@1"))
    facts.take(moved("default@1", "candidate", "tidemill"))
    assert facts.serving == "base"
    facts.take(moved("default@1", "promoted", "ann"))
    facts.take(attested("default@2"))
    assert facts.serving == "default@1"
    facts.take(moved("default@1", "rolled_back", "ann"))
    assert facts.serving == "base"


def test_the_mode_says_whether_there_are_gates() -> None:
    assert load("laptop", (), {}).gated_policy is None
    assert load("laptop", ("promotion.mode=gated", "policy.name=mine"), {}).gated_policy == "mine"
