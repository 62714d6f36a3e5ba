"""Rollouts by actors over HTTP: what is whole and by the right adapter is learned from, all else is asked again, and waiting has an end."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from learner.rollouts.actor_rollouts import ActorEngine
from learner.rollouts.published_adapters import FILE, KEPT, PublishedAdapter, note_published, published
from learner.rollouts.rollout_engines import seed_of
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError, Unavailable

SHA = {"default@1": "1" * 64, "default@2": "2" * 64}
PROMPTS = [(1, 2, 3), (4, 5)]


class FakeActor:
    """Answers as an actor does, from ``serves``; each fault in ``faults`` spoils one answer."""

    def __init__(self) -> None:
        self.serves = {"base": "", **SHA}
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Callable[[dict[str, Any], dict[str, str]], tuple[int, Any] | None]] = []
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            fault = self.faults.pop(0) if self.faults else None
        name = body["model"]
        if name not in self.serves:
            return 404, {}, {"error": {"message": f"{name} is not loaded on this replica"}}
        choices = [
            {"index": n, "token_ids": [7 + n] * (1 + n), "logprobs": {"token_logprobs": [-0.25] * (1 + n)},
             "finish_reason": "stop" if n == 0 else "length", "prompt_token_ids": body["prompt"]}
            for n in range(body["n"])
        ]  # fmt: skip
        told = {"x-tidemill-adapter": name} | ({"x-tidemill-adapter-sha256": self.serves[name]} if self.serves[name] else {})
        answer = {"choices": choices[::-1]}
        if fault is not None and (spoiled := fault(answer, told)) is not None:
            return spoiled[0], told, spoiled[1]
        return 200, told, answer


@contextmanager
def running(actor: FakeActor) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/completions"
            status, told, answer = actor.answer(body, {name.lower(): value for name, value in self.headers.items()})
            if status == 0:  # hang up without a word
                self.close_connection = True
                return
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**told, "content-length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Bench:
    """A fake actor, and the engine that asks it for rollouts. Nobody sleeps."""

    def __init__(self, actor: FakeActor, url: str, state: Path, **settings: Any) -> None:
        self.actor, self.state = actor, state
        self.pauses: list[float] = []
        self.engine = ActorEngine(LearnerSettings(engine="actor", rollout_url=url, **settings), state, self._sleep)
        self.on_pause: Callable[[], None] = lambda: None

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.on_pause()

    def sample(self, step: int, prompts: Any = None, seed: int = 3) -> Any:
        self.engine.adopt(None, step)  # type: ignore[arg-type]
        return self.engine.sample(prompts or PROMPTS, 2, 8, 1.0, seed)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    actor = FakeActor()
    with running(actor) as url:
        made = Bench(actor, url, tmp_path)
        yield made
        made.engine.close()


def publish(state: Path, name: str, step: int) -> None:
    note_published(state, PublishedAdapter(name, step, SHA[name]))


def test_rollouts_come_in_groups_with_the_samplers_own_logprobs(bench: Bench) -> None:
    heard: list[tuple[int, int]] = []
    bench.engine.adopt(None, 0)  # type: ignore[arg-type]
    found = bench.engine.sample(PROMPTS, 2, 8, 1.0, 3, lambda done, most: heard.append((done, most)))
    assert [rollout.prompt_ids for rollout in found] == [(1, 2, 3), (1, 2, 3), (4, 5), (4, 5)]
    assert [rollout.output_ids for rollout in found[:2]] == [(7,), (8, 8)]
    assert found[1].behaviour_logprobs == (-0.25, -0.25)
    assert [rollout.finish for rollout in found[:2]] == ["stop", "cut"]
    assert {rollout.policy_version for rollout in found} == {0}
    assert heard[-1] == (6, 32)
    by_prompt = {tuple(body["prompt"]): body for body in bench.actor.asked}
    assert {body["seed"] for body in bench.actor.asked} == {seed_of(3, 0), seed_of(3, 1)}
    assert by_prompt[4, 5]["temperature"] == 1.0
    assert all(headers["x-tidemill-rollout"] == "0" for headers in bench.actor.headers)


def test_the_newest_published_adapter_samples_and_says_of_which_step_it_is(bench: Bench) -> None:
    publish(bench.state, "default@1", 1)
    publish(bench.state, "default@2", 3)
    assert {rollout.policy_version for rollout in bench.sample(4)} == {3}
    assert {body["model"] for body in bench.actor.asked} == {"default@2"}


def test_an_adapter_of_a_later_step_is_of_another_run_and_does_not_sample(bench: Bench) -> None:
    publish(bench.state, "default@1", 1)
    publish(bench.state, "default@2", 9)
    assert {rollout.policy_version for rollout in bench.sample(2)} == {1}


def test_one_that_is_not_served_yet_gives_way_to_the_one_before_it(bench: Bench) -> None:
    publish(bench.state, "default@1", 1)
    publish(bench.state, "default@2", 2)
    del bench.actor.serves["default@2"]
    assert {rollout.policy_version for rollout in bench.sample(2)} == {1}
    assert bench.pauses == []


def test_no_rollout_is_older_than_the_largest_lag(tmp_path: Path) -> None:
    actor = FakeActor()
    with running(actor) as url:
        bench = Bench(actor, url, tmp_path, max_policy_lag=1, rollout_patience_s=0.4)
        publish(tmp_path, "default@1", 1)
        with pytest.raises(Unavailable, match="no adapter was published"):
            bench.sample(5, [(1,)])
        assert actor.asked == []
        publish(tmp_path, "default@2", 5)
        del actor.serves["default@2"]
        with pytest.raises(Unavailable, match="default@2 is not served"):
            bench.sample(6, [(1,)])


def test_an_adapter_that_is_being_loaded_is_waited_for(bench: Bench) -> None:
    publish(bench.state, "default@2", 20)
    del bench.actor.serves["default@2"]
    bench.on_pause = lambda: bench.actor.serves.update({"default@2": SHA["default@2"]})
    assert {rollout.policy_version for rollout in bench.sample(20, [(1,)])} == {20}
    assert len(bench.pauses) == 1


FAULTS: dict[str, Callable[[dict[str, Any], dict[str, str]], tuple[int, Any] | None]] = {
    "503": lambda answer, told: (503, {"error": "busy"}),
    "429": lambda answer, told: (429, {"error": "slow down"}),
    "500 in words": lambda answer, told: (500, b"oh"),
    "hangs up": lambda answer, told: (0, b""),
    "another adapter": lambda answer, told: told.update({"x-tidemill-adapter": "base"}),  # type: ignore[func-returns-value]
    "no adapter told": lambda answer, told: (told.clear(), None)[1],  # type: ignore[func-returns-value]
    "other content under its name": lambda answer, told: told.update({"x-tidemill-adapter-sha256": "f" * 64}),  # type: ignore[func-returns-value]
    "an answer too few": lambda answer, told: (answer["choices"].pop(), None)[1],
    "a logprob too few": lambda answer, told: (answer["choices"][0]["logprobs"]["token_logprobs"].pop(), None)[1],
    "a logprob that is none": lambda answer, told: answer["choices"][0]["logprobs"].update({"token_logprobs": [float("nan")] * 2}),
    "no logprobs": lambda answer, told: answer["choices"][0].update({"logprobs": None}),
    "no tokens": lambda answer, told: answer["choices"][1].update({"token_ids": [], "logprobs": {"token_logprobs": []}}),
    "longer than asked": lambda answer, told: answer["choices"][1].update({"token_ids": [1] * 9, "logprobs": {"token_logprobs": [-1.0] * 9}}),
    "broken off": lambda answer, told: answer["choices"][0].update({"finish_reason": "abort"}),
    "another prompt": lambda answer, told: answer["choices"][0].update({"prompt_token_ids": [9]}),
    "no JSON": lambda answer, told: (200, b"<html>"),
    "JSON of another kind": lambda answer, told: (200, [1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_or_not_by_the_asked_adapter_is_asked_again_with_the_same_seed(bench: Bench, fault: str) -> None:
    publish(bench.state, "default@2", 2)
    bench.actor.faults = [FAULTS[fault]]
    found = bench.sample(2, [(1, 2)])
    assert [rollout.output_ids for rollout in found] == [(7,), (8, 8)]
    assert len(bench.actor.asked) == 2
    assert bench.actor.asked[0] == bench.actor.asked[1]
    assert len(bench.pauses) == 1


def test_an_answer_that_takes_too_long_is_asked_again(tmp_path: Path) -> None:
    actor, release = FakeActor(), threading.Event()
    with running(actor) as url:
        bench = Bench(actor, url, tmp_path, rollout_timeout_s=0.2)
        actor.faults = [lambda answer, told: (release.wait(30), None)[1]]
        assert len(bench.sample(0, [(1,)])) == 2
        release.set()
    assert len(actor.asked) == 2


def test_waiting_grows_and_ends_with_the_last_reason(tmp_path: Path) -> None:
    actor = FakeActor()
    with running(actor) as url:
        bench = Bench(actor, url, tmp_path, rollout_patience_s=3.0)
        actor.faults = [lambda answer, told: (503, {"error": "busy"})] * 100
        with pytest.raises(Unavailable, match=r"learner.rollout_patience_s = 3: status 503"):
            bench.sample(0, [(1,)])
        assert bench.pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("status", "told"), [
    (401, "learner.rollout_key"), (403, "needs the scope rollout"), (400, "actor.max_model_tokens"), (422, "actor.max_model_tokens"),
])  # fmt: skip
def test_what_will_be_refused_for_ever_is_the_operators_to_mend(bench: Bench, status: int, told: str) -> None:
    bench.actor.faults = [lambda answer, headers: (status, {"error": "no"})]
    with pytest.raises(ConfigError, match=told):
        bench.sample(0, [(1,)])
    assert bench.pauses == []


def test_the_key_is_sent(tmp_path: Path) -> None:
    actor = FakeActor()
    with running(actor) as url:
        Bench(actor, url, tmp_path, rollout_key="tm-secret").sample(0, [(1,)])
    assert actor.headers[0]["authorization"] == "Bearer tm-secret"
    assert "tm-secret" not in LearnerSettings(rollout_key="tm-secret").model_dump_json()


@pytest.mark.parametrize(("changes", "told"), [
    ({"temperature": 0.8}, "temperature 1 only"), ({"publish_every": 6, "checkpoint_every": 6}, "publish_every = 6 must be at most"),
    ({"replay_routing": True}, "replay_routing needs"),
])  # fmt: skip
def test_settings_that_cannot_work_with_actors_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LearnerSettings(engine="actor", rollout_url="http://a/v1", **changes)


def test_what_was_published_is_remembered_newest_first_and_not_for_ever(tmp_path: Path) -> None:
    assert published(tmp_path) == []
    for number in range(1, KEPT + 5):
        note_published(tmp_path, PublishedAdapter(f"default@{number}", number, "a" * 64))
    note_published(tmp_path, PublishedAdapter(f"default@{KEPT + 4}", KEPT + 4, "a" * 64))
    names = [each.name for each in published(tmp_path)]
    assert names[0] == f"default@{KEPT + 4}"
    assert len(names) == len(set(names)) == KEPT
    (tmp_path / FILE).write_text("[{")
    assert published(tmp_path) == []
