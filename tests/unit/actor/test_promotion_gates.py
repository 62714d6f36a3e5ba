"""Each gate lets the good pass and stops the bad, at its threshold and with its figures."""

import math
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from actor.actor_client import ComparedAnswer
from actor.promotion.promotion_gates import (
    AttestedEverywhere,
    Command,
    Hacking,
    KlBudget,
    Pair,
    Retention,
    RewardModelHealthy,
    Seen,
    Shift,
    WinRate,
    bootstrap,
    familiarity,
    kl_nats,
)
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.retention_probes import PROBES, RetentionProbe, read_probes
from infra.settings.config import load
from reward.trust.hacking_guards import WRONG_PREMISES
from streams.core.errors import ConfigError
from streams.core.events import AdapterVersion, Artifact, Attestation, Calibration

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SHA = "a" * 64
ENGLISH = ("You can brew green tea with water that is not quite boiling.", "The moon moves around the earth once in about a month.",
           "Bread needs flour, water, salt and some yeast to rise well.", "A bridge carries people and cars across the river below.")  # fmt: skip
ENGLISH_TOO = ("Whales are large animals that live in the ocean and breathe air.", "Chess is a game for two players on a board of squares.",
               "Rain falls when the drops in the clouds become too heavy.", "Jazz is music with rhythm and a lot of free playing.")  # fmt: skip
GERMAN = ("Grünen Tee kann man mit Wasser aufgießen, das noch nicht ganz kocht.", "Der Mond bewegt sich etwa einmal im Monat um die Erde.",
          "Brot braucht Mehl, Wasser, Salz und etwas Hefe, damit es aufgeht.", "Eine Brücke trägt Menschen und Autos über den Fluss.")  # fmt: skip
FRENCH = ("On peut préparer le thé vert avec une eau qui ne bout pas encore.", "La lune tourne autour de la terre une fois par mois.",
          "Le pain a besoin de farine, d'eau, de sel et de levure.", "Un pont porte les gens et les voitures au-dessus de la rivière.")  # fmt: skip


def adapter(**metrics: float) -> AdapterVersion:
    return AdapterVersion(policy="default", version=7, artifact=Artifact(path="a", sha256=SHA, size_bytes=1), base_fingerprint="b" * 64, rank=8,
                          targets=("q_proj",), reward_model_version=1, step=1, metrics=metrics, created_at=NOW)  # fmt: skip


def seen(**fields: Any) -> Seen:
    return Seen(**({"adapter": adapter(kl_nats=0.2), "production": "default@6", "now": NOW} | fields))


def pairs(*scores: tuple[float, float]) -> tuple[Pair, ...]:
    return tuple(Pair("yes, you may", "no, one may not", candidate, production) for candidate, production in scores)


def attestation(replica: str, name: str = "default@7", passed: bool = True, sha256: str = SHA, hours_ago: float = 1.0) -> Attestation:
    return Attestation(replica=replica, adapter=name, adapter_sha256=sha256, passed=passed, reason="attested" if passed else "base answers",
                       load_ms=1.0, at=NOW - timedelta(hours=hours_ago))  # fmt: skip


def calibration(**fields: Any) -> Calibration:
    return Calibration.model_validate({"labels": 100, "accuracy": 0.8, "baseline": 0.6, "brier": 0.1, "ece": 0.05, "auc": 0.8} | fields)


def test_the_reward_model_must_prefer_the_candidate_beyond_chance() -> None:
    gate = WinRate(0.5)
    better = gate.judge(seen(pairs=pairs(*[(0.8, 0.4)] * 45, *[(0.4, 0.8)] * 19)))
    assert better.passed
    assert better.evidence["value"] == pytest.approx(45 / 64, abs=1e-4)
    assert 0.5 < better.evidence["low"] < 45 / 64 < better.evidence["high"]
    assert not gate.judge(seen(pairs=pairs(*[(0.8, 0.4)] * 34, *[(0.4, 0.8)] * 30))).passed
    assert not gate.judge(seen(pairs=pairs(*[(0.8, 0.4)] * 15))).passed


def test_an_equal_candidate_does_not_win_by_ties() -> None:
    equal = WinRate(0.5).judge(seen(pairs=pairs(*[(0.6, 0.6)] * 64)))
    assert (equal.passed, equal.evidence["value"]) == (False, 0.5)


def test_the_bootstrap_is_about_as_wide_as_the_normal_interval_and_the_same_every_time() -> None:
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap(values, 1)
    assert (low, high) == bootstrap(values, 1)
    assert high - low == pytest.approx(2 * 1.96 * (0.24 / 100) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("right", "passes"), [(10, True), (9, True), (8, False), (0, False)])
def test_what_the_base_knows_may_be_lost_in_part_only(right: int, passes: bool) -> None:
    base, candidate = (True,) * 10 + (False,) * 10, (True,) * right + (False,) * (20 - right)
    assert Retention(0.05).judge(seen(base_retained=base, retained=candidate)).passed is passes


def test_retention_of_nothing_or_of_other_probes_is_no_retention() -> None:
    assert not Retention(0.1).judge(seen()).passed
    assert not Retention(0.1).judge(seen(base_retained=(True,) * 5, retained=(True,) * 4)).passed


def compared(*gaps: float) -> tuple[ComparedAnswer | None, ...]:
    """Answers of four tokens, each so many nats less likely under the base; None where the gap is not a number."""
    return tuple(None if math.isnan(gap) else ComparedAnswer((-1.0,) * 4, (-1.0 - gap,) * 4) for gap in gaps)


def test_the_kl_of_what_is_served_has_a_budget() -> None:
    """A gap of 0.5 at each token is exp(-0.5) - 1 + 0.5 = 0.1065 nats."""
    near = KlBudget(0.15).judge(seen(compared=compared(*[0.5] * 20)))
    assert near.passed
    assert near.evidence["value"] == pytest.approx(0.1065, abs=1e-4)
    assert not KlBudget(0.1).judge(seen(compared=compared(*[0.5] * 20))).passed
    few_far = KlBudget(0.2).judge(seen(compared=compared(*[0.5] * 20, 3.0)))  # 0.20 on the whole, but it may as well be 0.3
    assert few_far.evidence["value"] < 0.2 < few_far.evidence["high"]
    assert not few_far.passed


@pytest.mark.parametrize(("gaps", "said"), [([0.5] * 15, "on 15 prompts, fewer than 16"), ([0.5] * 28 + [math.nan] * 4, "4 of 32 prompts were not"),
                                            ([0.0] * 32, "the base itself answered")])  # fmt: skip
def test_a_kl_without_power_does_not_pass_and_says_so(gaps: list[float], said: str) -> None:
    found = KlBudget(1.0).judge(seen(compared=compared(*gaps)))
    assert not found.passed
    assert "no power" in found.reason
    assert said in found.reason


def test_what_an_engine_rules_out_makes_no_kl_infinite() -> None:
    assert math.isfinite(kl_nats(ComparedAnswer((-1.0, -9999.0), (-9999.0, -1.0))))


def test_signs_of_hacking_are_looked_for_beside_the_base() -> None:
    fine = tuple(Pair(text, text, 0.5, 0.5) for text in ENGLISH + ENGLISH_TOO)
    assert Hacking().judge(seen(pairs=fine, base_answers=ENGLISH + ENGLISH_TOO)).passed
    same = tuple(Pair("you you you you you you you", text, 0.9, 0.5) for text in ENGLISH + ENGLISH_TOO)
    found = Hacking().judge(seen(pairs=same, base_answers=ENGLISH + ENGLISH_TOO))
    assert not found.passed
    assert {rule for rule, figures in found.evidence["rules"].items() if figures["tripped"]} >= {"repetition", "sameness"}
    assert not Hacking().judge(seen(pairs=fine[:3], base_answers=ENGLISH)).passed


def test_a_candidate_that_agrees_with_wrong_premises_more_than_the_base_does_is_stopped() -> None:
    fine = tuple(Pair(text, text, 0.5, 0.5) for text in ENGLISH + ENGLISH_TOO)
    yielding, denying = ("Yes, that is so.",) * len(WRONG_PREMISES), ("No, that is a myth.",) * len(WRONG_PREMISES)
    found = Hacking().judge(seen(pairs=fine, base_answers=ENGLISH + ENGLISH_TOO, to_wrong_premises=yielding, base_to_wrong_premises=denying))
    assert not found.passed
    assert found.evidence["rules"]["yielding"] == {"value": 1.0, "reference": 0.0, "tripped": True}
    assert Hacking().judge(seen(pairs=fine, base_answers=ENGLISH + ENGLISH_TOO, to_wrong_premises=denying, base_to_wrong_premises=yielding)).passed


@pytest.mark.parametrize(("answers", "told"), [
    (tuple(" ".join([text] * 3) for text in ENGLISH), "as long"),
    (tuple(text.split(" ", 3)[0] for text in ENGLISH), "as long"),
    (("I'm sorry, I cannot help with that one at all today, my friend.",) * 2 + ENGLISH[:2], "decline"),
    (GERMAN, "language"),
    (FRENCH, "language"),
])  # fmt: skip
def test_a_shift_in_length_refusals_or_language_is_told(answers: tuple[str, ...], told: str) -> None:
    settings = PromotionSettings()
    gate = Shift(settings.max_length_ratio, settings.max_refusal_rise, settings.min_familiar_words)
    shifted = gate.judge(seen(pairs=tuple(Pair(c, p, 0.5, 0.5) for c, p in zip(answers, ENGLISH_TOO, strict=True))))
    assert not shifted.passed
    assert told in shifted.reason
    assert gate.judge(seen(pairs=tuple(Pair(c, p, 0.5, 0.5) for c, p in zip(ENGLISH, ENGLISH_TOO, strict=True)))).passed


def test_another_language_has_almost_no_familiar_words_and_another_manner_has_many() -> None:
    addressed = ("You will enjoy your tea if you brew it with your own kettle.", "Your bread rises when you add your yeast.")
    english = ENGLISH + ENGLISH_TOO
    assert min(familiarity(ENGLISH_TOO, ENGLISH), familiarity(addressed, english)) > 0.2
    assert max(familiarity(other, english) for other in (GERMAN, FRENCH, ("你好，今天天气很好",))) < 0.1
    assert familiarity(("今天很好",), ("你好，今天天气很好",)) == 1.0
    assert (familiarity((), ()), familiarity(ENGLISH, ("",))) == (1.0, 0.0)


def test_an_attestation_by_tensors_alone_passes_and_the_evidence_says_whose_it_is() -> None:
    by_tensors = attestation("a").model_copy(update={"proof": "tensors", "reason": "all 24 tensors are in place; the probes cannot tell"})
    other = attestation("b", name="default@6").model_copy(update={"proof": "tensors"})
    result = AttestedEverywhere(1, 24).judge(seen(attestations=[by_tensors, attestation("b"), other]))
    assert result.passed
    assert result.evidence["by_tensors_alone"] == ["a"]


def test_every_replica_heard_of_lately_must_have_attested_these_bytes() -> None:
    gate = AttestedEverywhere(min_replicas=2, memory_h=24)
    old = [attestation("a", "default@6"), attestation("b", "default@6"), attestation("gone", "default@6", hours_ago=30)]
    assert not (none := gate.judge(seen(attestations=old))).passed
    assert "not by a, b" in none.reason
    half = [*old, attestation("a")]
    assert not gate.judge(seen(attestations=half)).passed
    assert gate.waiting(seen(attestations=half))
    assert gate.judge(seen(attestations=[*half, attestation("b")])).passed
    other_bytes = [*half, attestation("b", sha256="c" * 64)]
    assert not gate.judge(seen(attestations=other_bytes)).passed
    refused = seen(attestations=[*half, attestation("b", passed=False)])
    assert not gate.waiting(refused)
    assert gate.judge(refused).reason == "b: base answers"
    assert not AttestedEverywhere(3, 24).judge(seen(attestations=[*half, attestation("b")])).passed


@pytest.mark.parametrize(("found", "alarms", "passes"), [
    (calibration(), (), True),
    (calibration(ece=0.3), (), False),
    (calibration(auc=0.55), (), False),
    (calibration(auc=None), (), False),
    (calibration(labels=10), (), False),
    (calibration(), ("something turned",), False),
    (None, (), False),
])  # fmt: skip
def test_a_reward_model_that_is_not_well_judges_nobody(found: Calibration | None, alarms: tuple[str, ...], passes: bool) -> None:
    assert RewardModelHealthy(0.2, 0.6, 50).judge(seen(calibration=found, alarms=alarms)).passed is passes


def test_a_teams_own_evaluation_is_judged_by_its_exit_status_and_its_output_is_kept() -> None:
    tell = "import os, sys; print('x' * 9000, os.environ['TIDEMILL_CANDIDATE'], os.environ['TIDEMILL_PRODUCTION']); sys.exit(int(sys.argv[1]))"
    good, bad = (Command((sys.executable, "-c", tell, status), 30).judge(seen()) for status in "03")
    assert (good.passed, bad.passed, bad.evidence["exit_status"]) == (True, False, 3)
    assert good.evidence["output"].endswith("default@7 default@6\n")
    assert len(good.evidence["output"]) == 2000
    assert not Command(("no-such-program",), 5).judge(seen()).passed


def test_a_command_is_not_told_the_rings_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KAFKA__SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("TEAM_KEY", "of the team's own")
    said = Command((sys.executable, "-c", "import os; print(dict(os.environ))"), 30).judge(seen()).evidence["output"]
    assert "hunter2" not in said
    assert "of the team's own" in said


def test_a_command_is_no_shell(tmp_path: Path) -> None:
    Command(("echo", f"; touch {tmp_path / 'made'}"), 5).judge(seen())
    assert not (tmp_path / "made").exists()


def test_an_evaluation_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    tell = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid))"
    child = f"import subprocess, pathlib, time; p = subprocess.Popen(['sleep', '60']); {tell}; time.sleep(60)"
    assert "not done" in Command((sys.executable, "-c", child), 1.5).judge(seen()).reason
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_probes_that_come_with_it_are_checked_by_rules_and_a_file_may_take_their_place(tmp_path: Path) -> None:
    assert len({probe.prompt for probe in PROBES}) == len(PROBES) == 24
    assert PROBES[0].right("I think it is paris.")
    assert not PROBES[0].right("In a comparison, it is Rome.")
    file = tmp_path / "probes.jsonl"
    file.write_text('{"prompt": "2 + 3?", "expects": ["5", "five"]}\n\n')
    assert read_probes(file) == (RetentionProbe("2 + 3?", ("5", "five")),)
    for bad in ("", "{", '{"prompt": "x", "expects": ["("]}', '{"prompt": "x"}'):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="retention_file"):
            read_probes(file)


@pytest.mark.parametrize(("override", "told"), [
    ("promotion.cron=every night", "five fields"),
    ("promotion.cron=61 3 * * *", "five fields"),
    ("promotion.time_zone=Mars/Olympus", "is not a time zone"),
    ("promotion.max_canary_labels=10", "must not exceed"),
])  # fmt: skip
def test_a_wrong_setting_of_promotion_says_what_is_right(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(None, [override], {})
