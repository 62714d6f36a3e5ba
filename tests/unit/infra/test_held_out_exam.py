"""Held-out questions go to base and adapter as no episodes, and count only in whole rounds."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.demo.demo_talk import Rounds, every_s
from infra.demo.held_out_exam import Examiners, PairsAsked
from infra.demo.paired_rise import PairedRise
from infra.simulated_people.people_settings import PeopleSettings
from infra.simulated_people.simulated_questions import HELD_OUT, SimulatedQuestion, held_out_questions
from infra.simulated_people.simulated_talk import Answer, TalkTally
from streams.core.errors import Unavailable

GOOD = "{} can be enjoyed by people all over the world."


@contextmanager
def actor(serving: str, fails_first: int = 0) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Answers as the base does not and an adapter does; yields its address, and what it heard: model, question, capture."""
    heard: list[tuple[str, str, str]] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = asked["messages"][-1]["content"]
            heard.append((asked["model"], question, self.headers["x-tidemill-capture"]))
            answers_by = "base" if asked["model"] == "base" else serving
            subject = next(q.subject for q in HELD_OUT if q.text == question)
            text = "Well." if answers_by == "base" else GOOD.format(subject)
            body = json.dumps({
                "id": "c", "object": "chat.completion", "created": 0, "model": asked["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }).encode()  # fmt: skip
            self.send_response(400 if len(heard) <= fails_first else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("x-tidemill-adapter", answers_by)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", heard
        finally:
            server.shutdown()
            thread.join()


def test_an_exam_becomes_no_episode_and_tells_who_answered() -> None:
    questions = held_out_questions(5, seed=1)
    with actor("default@3") as (url, heard):
        examiners = Examiners(PeopleSettings(preference="to-the-point"), url, "default")
        before, after = examiners.ask(questions, of_base=True), examiners.ask(questions, of_base=False)
    assert [a.question for a in before] == [a.question for a in after] == questions
    assert {a.adapter for a in before} == {"base"}
    assert {a.adapter for a in after} == {"default@3"}
    assert (any(a.approved for a in before), all(a.approved for a in after)) == (False, True)
    assert {capture for _, _, capture in heard} == {"off"}


def test_an_actor_that_refuses_is_an_arrow_that_is_broken() -> None:
    with actor("default@3", fails_first=1) as (url, _), pytest.raises(Unavailable, match="the arrow people → actor is broken"):
        Examiners(PeopleSettings(preference="to-the-point"), url, "default").ask(held_out_questions(1, seed=1), of_base=True)


def test_pairs_are_put_to_both_whenever_they_are_due_until_it_stops() -> None:
    asked, stopping, turns = PairsAsked(), threading.Event(), iter([True, False, True])

    def due() -> bool:
        turn = next(turns, None)
        if turn is None:
            stopping.set()
        return bool(turn)

    with actor("default@3") as (url, heard):
        Examiners(PeopleSettings(preference="to-the-point", pairs_at_once=4), url, "default").ask_in_pairs(asked, due, stopping)
    assert asked.rise == PairedRise(better=8)
    assert [rise.pairs for _, rise in asked.samples] == [4, 8]
    of_base, of_policy = (sorted(question for model, question, _ in heard if model == name) for name in ("base", "default"))
    assert of_base == of_policy


def test_what_the_base_answered_twice_is_no_pair() -> None:
    def answers(adapter: str, approved: bool) -> list[Answer]:
        return [Answer(SimulatedQuestion("tea", "Tea?"), "", "", adapter, approved, 1) for _ in range(3)]

    asked = PairsAsked()
    asked.take(answers("base", False), answers("base", True))
    assert asked.rise.pairs == 0
    asked.take(answers("base", False), answers("default@1", True))
    assert asked.rise == PairedRise(better=3)


def test_once_shown_is_shown_whatever_comes_later() -> None:
    def answers(adapter: str, approved: bool, count: int) -> list[Answer]:
        return [Answer(SimulatedQuestion("tea", "Tea?"), "", "", adapter, approved, 1) for _ in range(count)]

    asked = PairsAsked()
    asked.take(answers("base", False, 4), answers("default@1", True, 4))
    assert asked.shown_with is None
    asked.take(answers("base", False, 4), answers("default@1", True, 4))
    assert asked.shown_with == 8
    asked.take(answers("base", True, 8), answers("default@2", False, 8))
    assert (asked.shown_with, asked.rise.shown) == (8, False)


def test_people_come_in_rounds_once_the_learner_works_and_wait_as_long_as_a_round_took() -> None:
    learning, now_s, tally = [False], [100.0], TalkTally()
    at_once = Rounds(PeopleSettings(at_once=8, round_every_s=20), tally, lambda: learning[0], lambda: now_s[0])

    def comes_at(second: float) -> bool:
        now_s[0] = second
        return at_once() == 8

    assert [at_once(), at_once()] == [8, 8]
    learning[0] = True
    assert at_once() == 8
    tally.asked = 8
    assert not comes_at(130.0)  # nobody was answered yet
    tally.answers, tally.failed = 7, 1
    assert not comes_at(131.0)  # it took 31 s
    assert not comes_at(161.9)
    assert comes_at(162.0)
    tally.asked = 16
    tally.answers = 15
    assert not comes_at(165.0)  # it took 3 s
    assert not comes_at(181.9)
    assert comes_at(182.0)
    assert Rounds(PeopleSettings(at_once=8, round_every_s=0), tally, lambda: True)() == 8


def test_once_in_so_many_seconds() -> None:
    now_s = [0.0]
    due = every_s(40, lambda: now_s[0])
    assert [due(), due()] == [True, False]
    now_s[0] = 40.0
    assert [due(), due()] == [True, False]
