"""The report says that the loop closed only when it did, and shows what was measured."""

import json
import threading
from collections import deque
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.build.reference_pages import EXAMPLES, T0
from infra.demo.held_out_exam import PairsAsked
from infra.demo.machine_facts import MachineFacts
from infra.demo.paired_rise import PairedRise
from infra.demo.report import Report, goodness, write_json
from infra.demo.report_page import write_html
from infra.demo.skills_kept import Skills, mean_logprob, measure
from infra.operate.log_watch import LogFacts
from infra.settings.config import load
from infra.simulated_people.simulated_questions import SimulatedQuestion
from infra.simulated_people.simulated_talk import Answer, TalkTally
from streams.core.events import AdapterVersion, Attestation, Label, RewardModelVersion
from streams.join.ledger import Ledger, balance

BALANCED: Ledger = balance([], [], [], [], {})


def answers(approved: int, of: int, adapter: str) -> list[Answer]:
    return [
        Answer(SimulatedQuestion("tea", f"Question <{n}>?"), f"{adapter} says <b>{n}</b>", f"ep-{n}", adapter, n < approved, 5) for n in range(of)
    ]


@pytest.fixture
def report() -> Report:
    facts = LogFacts()
    for kind, name in ((Label, "labels"), (RewardModelVersion, "reward-models"), (AdapterVersion, "adapters"), (Attestation, "attestations")):
        facts.take(kind.model_validate(EXAMPLES[name]))
    return Report(
        settings=load("demo", (), {}),
        seconds=600,
        before=answers(8, 48, "base"),
        after=answers(36, 48, "default@7"),
        tally=TalkTally(answers=200, thumbs=150, thumbs_up=70, failures=deque(["Timeout: too slow"])),
        facts=facts,
        ledger=BALANCED,
        samples=[(1.0, 0.2, "base"), (2.0, 0.7, "default@7")],
        peak_memory_mib=7000,
        restarts={},
        machine=MachineFacts(processor="A processor", cores=2, loads=[0.5, 2.5], predicted_step_s=17.0, cpu_s={"learner": 400.0, "actor": 300.0}),
        pairs=PairsAsked(
            PairedRise(30, 40, 4), [(60.0, PairedRise(2, 2, 0)), (100.0, PairedRise(9, 9, 0)), (400.0, PairedRise(30, 40, 4))], shown_with=18
        ),
    )


def test_a_rise_that_pairs_have_shown_on_a_ring_that_carries_closes_the_loop(report: Report) -> None:
    assert report.verdict == "closed"
    assert report.served_after == ["default@7"]
    assert "The loop closed" in report.as_text()
    assert "with 18 of 74 pairs (base against adapter, asked during the run): +35 points" in report.as_text()


def test_a_rise_that_no_pair_has_shown_leaves_a_ring_that_works(report: Report) -> None:
    flat = replace(report, after=answers(9, 48, "default@7"), pairs=PairsAsked(PairedRise(5, 40, 4), [(60.0, PairedRise(5, 40, 4))]))
    assert (flat.verdict, flat.broken) == ("not shown", [])
    assert "The ring works: no arrow is broken. But the rise was not shown in 10 minutes." in flat.as_text()
    early = replace(flat, facts=LogFacts(), pairs=PairsAsked())
    assert early.verdict == "not shown"
    assert "no adapter was served yet" in early.as_text()
    assert "no adapter answered a held-out question" in early.as_text()


def test_a_broken_ring_is_told_by_its_arrow_whatever_was_shown(report: Report) -> None:
    def broken(**changed: Any) -> list[str]:
        found = replace(report, **changed)
        assert (found.verdict == "broken") == bool(found.broken)
        return found.broken

    late = TalkTally(answers=90, failed=10, failures=deque(["Timeout: too slow"]))
    assert broken(tally=late) == ["the arrow people → actor is broken: 10 of 100 did not arrive, such as Timeout: too slow"]
    assert broken(tally=TalkTally(answers=99, failed=1, failures=deque(["Timeout: too slow"]))) == []  # a starved machine times out now and then
    assert broken(tally=TalkTally(thumbs=10, thumbs_lost=2)) == ["the arrow people → feedback is broken: 2 of 12 did not arrive"]
    assert broken(broken_arrow="the arrow a → b is broken", after=[]) == ["the arrow a → b is broken"]
    refused, none_passed = Attestation.model_validate(EXAMPLES["attestations"] | {"passed": False, "reason": "serves the base"}), LogFacts()
    none_passed.attestations += [refused] * 3
    assert broken(facts=none_passed) == [
        "the arrow adapters → attestations is broken: replicas refused all 3 adapters, the last because it serves the base"
    ]
    missing = Ledger((replace(BALANCED.rows[0], published=1, missing=("ep-1",)), *BALANCED.rows[1:]))
    assert broken(ledger=missing) == ["the arrow episodes, feedback → labels is broken: the ledger does not balance"]


def test_a_reward_model_is_set_beside_guessing(report: Report) -> None:
    model = report.facts.reward_models[-1]
    told = model.calibration.model_copy(update={"labels": 105, "auc": 0.78, "log_loss": 0.55, "baseline_log_loss": 0.66})
    words = goodness(model.model_copy(update={"calibration": told}))
    assert "on 105 unseen labels: AUC 0.78 (guessing: 0.50); log loss 0.55 against 0.66 for always guessing the base rate" in words
    assert "not tested yet" in goodness(model.model_copy(update={"calibration": told.model_copy(update={"labels": 0})}))


def test_what_the_machine_gave_is_told(report: Report) -> None:
    told = dict(report.rows())
    assert told["machine"] == "A processor, 2 cores; load 0.5 before the start, 1.5 on average"
    assert "17 s predicted for the learner alone; 5 x 6 x" in told["learner"]
    assert told["processor time"] == "learner 400 s, actor 300 s, of 1200 s available"


def test_the_page_is_self_contained_escapes_what_people_said_and_says_simulated(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "<b>3</b>" not in page
    assert "&lt;b&gt;3&lt;/b&gt;" in page
    assert "simulated" in page
    assert "http-equiv" not in page
    assert 'src="http' not in page


def test_the_json_holds_every_figure_and_answer(report: Report, tmp_path: Path) -> None:
    write_json(report, tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["approval_after"]["estimate"] == 0.75
    assert len(told["held_out"]) == 48
    assert told["simulated_people"]["thumbs"] == 150


def test_skills_kept_are_told_as_the_engines_own_loglikelihoods(report: Report) -> None:
    assert "not measured" in report.as_text()
    told = replace(report, skills=Skills(-2.5, -2.61))
    assert "-2.50 nats per token of fixed texts under the base, -2.61 under the served policy (-0.11)" in told.as_text()
    assert told.figures()["skills_nats"] == {"base": -2.5, "served": -2.61}
    texts = [[None, {"5": {"logprob": -1.0}}, {"9": {"logprob": -2.0}}], [None, {"7": {"logprob": -6.0}}]]
    assert mean_logprob(texts) == -3.0  # over tokens, not over texts


def test_skills_are_asked_of_the_base_and_of_the_policy_as_no_episode() -> None:
    heard: list[tuple[str, str]] = []

    class Engine(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            heard.append((asked["model"], self.headers["x-tidemill-capture"]))
            told = [None, {"5": {"logprob": -1.0 if asked["model"] == "base" else -1.5, "rank": 1, "decoded_token": "x"}}]
            choices = [{"index": n, "text": "", "finish_reason": "length", "prompt_logprobs": told if asked["model"] != "mute" else None}
                       for n in range(len(asked["prompt"]))]  # fmt: skip
            body = json.dumps({"id": "c", "object": "text_completion", "created": 0, "model": asked["model"], "choices": choices}).encode()
            self.send_response(404 if asked["model"] == "gone" else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        found = [measure(url, policy) for policy in ("default", "mute", "gone")]
        server.shutdown()
        thread.join()
    assert found == [Skills(-1.0, -1.5), None, None]
    assert heard[:2] == [("base", "off"), ("default", "off")]


def test_the_time_from_the_first_thumb_is_to_the_first_adapter() -> None:
    facts = LogFacts()
    assert facts.first_thumb_to_adapter_s() is None
    label = Label.model_validate(EXAMPLES["labels"])
    facts.take(label)
    facts.take(label.model_copy(update={"episode_id": "ep-2", "first_feedback_at": T0 + timedelta(seconds=5)}))
    adapter = AdapterVersion.model_validate(EXAMPLES["adapters"])
    facts.take(adapter.model_copy(update={"created_at": T0 + timedelta(seconds=40)}))
    facts.take(adapter.model_copy(update={"version": 8, "created_at": T0 + timedelta(seconds=70)}))
    assert facts.first_thumb_to_adapter_s() == 40


def test_a_refused_adapter_is_not_what_is_served() -> None:
    facts = LogFacts()
    attestation = Attestation.model_validate(EXAMPLES["attestations"])
    facts.take(attestation)
    facts.take(attestation.model_copy(update={"adapter": "default@8", "passed": False, "reason": "serves the base"}))
    assert facts.serving == "default@7"
