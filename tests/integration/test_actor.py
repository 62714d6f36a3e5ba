"""One real vLLM with capture inside it, one real Kafka: what clients see is what the log holds, and only proven adapters serve."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from actor.actor_client import OpenAiActorClient, PromptRequest
from actor.promotion.promotion_gates import kl_nats
from infra.demo import skills_kept as skills
from learner.models.base_cache import prepare_base
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.rollouts.actor_rollouts import ActorEngine
from learner.rollouts.published_adapters import PublishedAdapter, note_published
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.events import AdapterVersion, Artifact, Attestation, Episode, Event, Feedback, Message
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, EPISODES, FEEDBACK, Topic
from streams.kafka import KafkaSettings, Producer, read_to_end
from tests.support.actor_process import ActorProcess

POLICY = "actor-test"  # of its own: the broker is shared with other suites
HELLO = [{"role": "user", "content": "Say hello to the sea."}]


class Served(ActorProcess):
    """A running actor and what is needed to talk to it and to look at what it wrote."""

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.folder / "artifacts"))

    def chat(self, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": POLICY, "messages": HELLO, "max_tokens": 8, "ignore_eos": True} | fields)

    def find(self, topic: Topic[Any], wanted: Callable[[Any], bool], timeout_s: float = 20) -> Any:
        """The first event on the log that is wanted; fails when it does not come."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for record in read_to_end(self.kafka, topic, "test", Metrics()):
                if wanted(event := topic.decode(record.value)):
                    return event
            time.sleep(0.2)
        raise AssertionError(f"nothing on {topic.name} within {timeout_s} s; the actor's log ends:\n{self.log.read_text()[-3000:]}")

    def episode(self, episode_id: str) -> Episode:
        found = self.find(EPISODES, lambda event: event.episode_id == episode_id)
        assert isinstance(found, Episode)
        return found

    def attestation(self, adapter: str) -> Attestation:
        found = self.find(ATTESTATIONS, lambda event: event.adapter == adapter, timeout_s=60)
        assert isinstance(found, Attestation)
        return found

    def adapters(self) -> set[str]:
        """Those that vLLM has loaded."""
        return {model["id"] for model in self.http.get("/v1/models").json()["data"] if "@" in model["id"]}

    def waiting(self) -> float:
        """Answers that wait for a place in the engine's batch."""
        rows = [row for row in self.http.get("/metrics").text.splitlines() if row.startswith("vllm:num_requests_waiting{")]
        return sum(float(row.split()[-1]) for row in rows)

    def metric(self, line: str) -> float:
        rows = [row for row in self.http.get("/metrics").text.splitlines() if row.startswith(line + " ")]
        return float(rows[0].split()[-1]) if rows else 0.0


@pytest.fixture(scope="module")
def served(kafka_settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("actor")
    settings = {"policy.name": POLICY, "actor.max_rank": 8, "actor.max_model_tokens": 1024, "actor.drain_s": 60, "actor.tool_call_parser": "hermes"}
    with Served(kafka_settings, prepare_base("tiny", folder / "cache"), folder, "test", settings) as running:
        yield running


def test_an_episode_holds_the_tokens_and_logprobs_that_the_engine_gave(served: Served) -> None:
    response = served.chat(logprobs=True, user="ann", temperature=0.7)
    answer = response.json()["choices"][0]
    episode = served.episode(response.headers["x-tidemill-episode"])
    assert response.json()["id"] == f"chatcmpl-{episode.episode_id}"
    assert episode.answer == answer["message"]["content"]
    assert len(episode.output_ids) == response.json()["usage"]["completion_tokens"]
    assert episode.output_logprobs == pytest.approx([token["logprob"] for token in answer["logprobs"]["content"]], abs=1e-4)
    assert len(episode.prompt_ids) == response.json()["usage"]["prompt_tokens"]
    assert (episode.outcome, episode.adapter, episode.user_id, episode.sampling["temperature"]) == ("truncated", None, "ann", 0.7)
    assert [message.text for message in episode.messages] == [HELLO[0]["content"]]


def test_the_answer_does_not_show_that_it_was_captured(served: Served) -> None:
    choice = served.chat().json()["choices"][0]
    assert choice["logprobs"] is None
    assert choice["token_ids"] is None


def test_a_streamed_answer_is_captured_whole_and_named_before_its_first_byte(served: Served) -> None:
    body = {"model": POLICY, "messages": HELLO, "max_tokens": 8, "stream": True, "ignore_eos": True}
    headers = {"x-tidemill-conversation": "talk-1", "x-tidemill-user": "bob"}
    with served.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        episode_id = response.headers["x-tidemill-episode"]
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    episode = served.episode(episode_id)
    assert episode.answer == text
    assert len(episode.output_ids) == len(episode.output_logprobs) == 8
    assert (episode.conversation_id, episode.user_id) == ("talk-1", "bob")


@pytest.mark.parametrize("streamed", [False, True])
def test_each_of_several_choices_is_an_episode_of_its_own(served: Served, streamed: bool) -> None:
    response = served.chat(n=2, temperature=1.0, stream=streamed)
    ids = response.headers["x-tidemill-episode"].split(",")
    assert len(ids) == 2
    first, second = (served.episode(episode_id) for episode_id in ids)
    assert first.output_ids != second.output_ids
    if not streamed:
        assert [first.answer, second.answer] == [choice["message"]["content"] for choice in response.json()["choices"]]


def test_completions_of_several_prompts_keep_each_its_own(served: Served) -> None:
    response = served.http.post("/v1/completions", json={"model": POLICY, "prompt": ["the sea", "a hill"], "max_tokens": 5})
    episodes = [served.episode(episode_id) for episode_id in response.headers["x-tidemill-episode"].split(",")]
    assert [episode.messages[0].text for episode in episodes] == ["the sea", "a hill"]
    assert [episode.answer for episode in episodes] == [choice["text"] for choice in response.json()["choices"]]
    assert {episode.api for episode in episodes} == {"completion"}


def test_responses_are_captured_like_chats(served: Served) -> None:
    response = served.http.post("/v1/responses", json={"model": POLICY, "input": "the sea", "instructions": "Be brief.", "max_output_tokens": 6})
    assert response.status_code == 200, response.text
    episode = served.episode(response.headers["x-tidemill-episode"])
    assert [(message.role, message.text) for message in episode.messages] == [("system", "Be brief."), ("user", "the sea")]
    assert (episode.api, len(episode.output_ids)) == ("response", len(episode.output_logprobs))
    assert episode.output_ids


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_are_captured_as_the_client_got_them(served: Served, streamed: bool) -> None:
    tool = {"type": "function", "function": {"name": "sail", "parameters": {"type": "object", "properties": {}}}}
    forced = {"regex": r'<tool_call>\{"name": "sail", "arguments": \{"to": "[a-z]{1,3}"\}\}</tool_call>'}  # a random model never calls by itself
    response = served.chat(tools=[tool], structured_outputs=forced, max_tokens=60, ignore_eos=False, stream=streamed)
    assert response.status_code == 200, response.text
    episode = served.episode(response.headers["x-tidemill-episode"])
    assert episode.tools == (tool,)
    (call,) = episode.tool_calls
    assert call["function"]["name"] == "sail"
    assert set(json.loads(call["function"]["arguments"])) == {"to"}
    if not streamed:
        assert [call] == response.json()["choices"][0]["message"]["tool_calls"]


def test_a_client_that_leaves_in_the_middle_is_an_outcome(served: Served) -> None:
    body = {"model": POLICY, "messages": HELLO, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        for count, _ in enumerate(response.iter_lines()):
            if count == 8:
                break
    episode = served.episode(response.headers["x-tidemill-episode"])
    assert episode.outcome == "cancelled"
    assert 0 < len(episode.output_ids) < 900


def test_a_second_turn_finds_its_conversation_and_what_the_person_says_is_feedback(served: Served) -> None:
    first = served.chat(user="cyd", temperature=1.0)
    said = [
        *HELLO,
        {"role": "assistant", "content": first.json()["choices"][0]["message"]["content"]},
        {"role": "user", "content": "Say it to a hill."},
    ]
    second = served.chat(user="cyd", messages=said)
    episode = served.episode(second.headers["x-tidemill-episode"])
    assert (episode.turn, episode.replies_to) == (1, first.headers["x-tidemill-episode"])
    assert episode.conversation_id == first.headers["x-tidemill-conversation"] == second.headers["x-tidemill-conversation"]
    reply = served.find(FEEDBACK, lambda event: event.kind == "reply" and event.episode_id == episode.replies_to)
    assert (reply.text, reply.user_id) == ("Say it to a hill.", "cyd")
    thumb = served.http.post("/v1/feedback", json={"conversation_id": episode.conversation_id, "thumb": "up"})
    assert thumb.json()["episode_id"] == episode.episode_id


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("n", [1, 2])
def test_a_streamed_completion_is_captured_choice_by_choice(served: Served, n: int, logprobs: int | None) -> None:
    body = {"model": POLICY, "prompt": "the sea", "max_tokens": 6, "n": n, "temperature": 1.0, "stream": True, "logprobs": logprobs}
    texts = dict.fromkeys(range(n), "")
    with served.http.stream("POST", "/v1/completions", json=body) as response:
        ids = response.headers["x-tidemill-episode"].split(",")
        for line in response.iter_lines():
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                texts[choice["index"]] += choice["text"]
                assert (choice["logprobs"] is None) == (logprobs is None)
    episodes = [served.episode(episode_id) for episode_id in ids]
    assert [episode.answer for episode in episodes] == list(texts.values())
    assert [0 < len(episode.output_ids) == len(episode.output_logprobs) for episode in episodes] == [True] * n


def test_a_streamed_response_is_captured_and_known_by_its_own_id(served: Served) -> None:
    body = {"model": POLICY, "input": "the sea", "max_output_tokens": 6, "stream": True}
    with served.http.stream("POST", "/v1/responses", json=body) as response:
        episode_id = response.headers["x-tidemill-episode"]
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    episode = served.episode(episode_id)
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert (episode.answer, episode.api) == (text, "response")
    assert 0 < len(episode.output_ids) == len(episode.output_logprobs)
    ended = next(event["response"] for event in events if event["type"] in ("response.completed", "response.incomplete"))
    assert served.http.post("/v1/feedback", json={"episode_id": ended["id"], "rating": 4}).json()["episode_id"] == episode_id


def test_a_response_that_calls_a_tool_keeps_the_call(served: Served) -> None:
    tool = {
        "type": "function",
        "name": "sail",
        "parameters": {"type": "object", "properties": {"to": {"type": "string", "maxLength": 3}}, "required": ["to"]},
    }
    body = {"model": POLICY, "input": "the sea", "max_output_tokens": 80, "tools": [tool], "tool_choice": "required"}
    response = served.http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    episode = served.episode(response.headers["x-tidemill-episode"])
    calls = [item for item in response.json()["output"] if item["type"] == "function_call"]
    assert [call["function"]["arguments"] for call in episode.tool_calls] == [call["arguments"] for call in calls]
    assert episode.tools[0]["name"] == "sail"


def test_a_version_that_is_not_loaded_is_refused_and_becomes_no_episode(served: Served) -> None:
    before = served.metric('tidemill_capture_skipped_total{reason="refused"}')
    response = served.chat(model=f"tinker://{POLICY}/sampler_weights/999")
    assert response.status_code == 404
    assert f"{POLICY}@999 is not loaded on this replica" in response.json()["error"]["message"]
    assert "x-tidemill-episode" not in response.headers
    assert served.metric('tidemill_capture_skipped_total{reason="refused"}') == before + 1


def test_a_thumb_reaches_the_log_and_a_bad_one_is_told_why(served: Served) -> None:
    response = served.chat()
    given = served.http.post("/v1/feedback", json={"episode_id": response.json()["id"], "thumb": "up", "feedback_id": "fb-mine"})
    assert (given.status_code, given.json()) == (202, {"feedback_id": "fb-mine", "episode_id": response.headers["x-tidemill-episode"]})
    feedback = served.find(FEEDBACK, lambda event: event.feedback_id == "fb-mine")
    assert isinstance(feedback, Feedback)
    assert (feedback.episode_id, feedback.kind, feedback.thumb) == (response.headers["x-tidemill-episode"], "thumb", "up")
    assert served.http.get(f"/v1/episodes/{feedback.episode_id}").json()["answer"] == response.json()["choices"][0]["message"]["content"]
    bad = served.http.post("/v1/feedback", json={"episode_id": "ep", "thumb": 7})
    assert bad.status_code == 400
    assert "'up' or 'down'" in bad.json()["error"]["message"]
    assert served.http.post("/v1/feedback", content=b"x" * 300_000, headers={"content-type": "application/json"}).status_code == 413


class Maker:
    """Stands for the learner: makes adapters that move the policy, and the events that announce them."""

    def __init__(self, served: Served, folder: Path) -> None:
        settings = LearnerSettings(dtype="float32", rank=8)
        self._served, self.folder, self._settings = served, folder, settings
        self._made: dict[int, tuple[AdapterVersion, Artifact]] = {}
        self._policy = Policy(served.base, settings)
        self._prompt = self._policy.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)

    def publish(
        self, version: int, spoil_probes: float = 0.0, spoil_weights: Callable[[str], float] | None = None
    ) -> tuple[AdapterVersion, Artifact]:
        """``spoil_weights`` says by its name how large each weight is in the file that goes out, when the probes were made with another."""
        self._draw(version, lambda name: 0.05)
        probe = self._probe(spoil_probes)
        if spoil_weights is not None:
            self._draw(version, spoil_weights)
        folder = self.folder / str(version)
        self._policy.save_adapter(folder)
        (folder / "probes.json").write_text(json.dumps({"probes": [probe]}))
        artifact = self._served.store.put(folder, f"adapters/{POLICY}/{version}")
        event = AdapterVersion(
            policy=POLICY, version=version, artifact=artifact, base_fingerprint=fingerprint(self._served.base), rank=8, targets=self._policy.targets,
            reward_model_version=1, step=version, created_at=datetime.now(UTC),
        )  # fmt: skip
        self._made[version] = event, artifact
        return event, artifact

    def announced(self, version: int) -> tuple[AdapterVersion, Artifact]:
        """One that was published before; published and attested now where a test runs alone."""
        if version not in self._made:
            self.send(self.publish(version)[0])
            self._served.attestation(self._made[version][0].name)
        return self._made[version]

    def _draw(self, seed: int, size: Callable[[str], float]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self._policy.parameters.items():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * size(name)

    def send(self, event: Event) -> None:
        producer = Producer(self._served.kafka, Metrics(), "test")
        producer.publish(ADAPTERS, event)
        producer.close()

    @torch.no_grad()
    def _probe(self, spoil: float) -> dict[str, Any]:
        output = list(range(400, 424))
        packed = pack([Branches(tuple(self._prompt), (tuple(output),))], 2)
        adapter = self._policy.stats(packed).logprobs_BT[0]
        with self._policy.reference():
            base = self._policy.stats(packed).logprobs_BT[0]
        return {
            "prompt_ids": list(self._prompt),
            "output_ids": output,
            "adapter_logprobs": (adapter + spoil).tolist(),
            "base_logprobs": base.tolist(),
        }


@pytest.fixture(scope="module")
def maker(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(served, tmp_path_factory.mktemp("adapters"))


class Talkers:
    """Clients that keep asking while something else happens; no request of theirs may fail."""

    def __init__(self, served: Served, count: int = 3) -> None:
        self._served, self._over = served, threading.Event()
        self.statuses: list[int] = []
        self.adapters: list[str] = []
        self._threads = [threading.Thread(target=self._talk) for _ in range(count)]

    def _talk(self) -> None:
        while not self._over.is_set():
            response = self._served.chat(max_tokens=24)
            self.statuses.append(response.status_code)
            self.adapters.append(response.headers.get("x-tidemill-adapter", "none"))

    def wait_for(self, adapter: str, timeout_s: float = 180) -> None:
        """Until somebody was answered by that adapter."""
        deadline = time.monotonic() + timeout_s
        while adapter not in self.adapters:
            assert time.monotonic() < deadline, f"{adapter} never answered"
            time.sleep(0.1)

    def __enter__(self) -> "Talkers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_an_adapter_is_taken_while_answers_go_on_and_answers_as_the_learner_says(served: Served, maker: Maker) -> None:
    event, artifact = maker.publish(1)
    with Talkers(served) as talkers:
        maker.send(event)
        attestation = served.attestation(event.name)
        talkers.wait_for(event.name)
    assert (attestation.passed, attestation.reason, attestation.proof, attestation.replica) == (True, "attested", "answers", "test")
    assert attestation.learner_gap is not None
    assert attestation.base_gap is not None
    assert attestation.learner_gap < 1e-3  # PEFT's logprobs and vLLM's, attention and experts, in float32
    assert attestation.base_gap > 0.1
    assert set(talkers.statuses) == {200}
    response = served.chat()
    assert response.headers["x-tidemill-adapter-sha256"] == artifact.sha256
    episode = served.episode(response.headers["x-tidemill-episode"])
    assert (episode.adapter, episode.adapter_sha256) == (event.name, artifact.sha256)
    assert served.metric(f'tidemill_serving_version{{policy="{POLICY}"}}') == 1


def test_in_one_batch_the_base_answers_as_the_base_and_the_adapter_as_itself(served: Served) -> None:
    fields = {"temperature": 0.0, "logprobs": True, "max_tokens": 12}
    alone = [served.chat(model=model, **fields).json()["choices"][0]["message"]["content"] for model in ("base", POLICY)]
    together: dict[str, str] = {}

    def ask(model: str) -> None:
        together[model] = served.chat(model=model, **fields).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(model,)) for model in ("base", POLICY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone[0] != alone[1]
    assert [together["base"], together[POLICY]] == alone


def test_a_learner_samples_here_with_its_adapters_own_logprobs_and_leaves_no_episode(served: Served, maker: Maker, tmp_path: Path) -> None:
    event, artifact = maker.announced(1)
    note_published(tmp_path, PublishedAdapter(event.name, 1, artifact.sha256))
    settings = LearnerSettings(dtype="float32", engine="actor", rollout_url=f"{served.http.base_url}/v1")
    engine, before = ActorEngine(settings, tmp_path), served.metric('tidemill_engine_tokens_total{kind="output",work="rollouts"}')
    policy = Policy(served.base, settings)
    policy.load_adapter(maker.folder / "1")
    prompts = [policy.prompt_ids([Message(role="user", content=text)]) for text in ("Say hello to the sea.", "And to a hill.")]
    captured = served.metric('tidemill_capture_skipped_total{reason="rollout"}')
    with Talkers(served):  # people ask meanwhile, and are served
        engine.adopt(policy, 1)
        rollouts = engine.sample(prompts, 3, 10, 1.0, seed=5)
        again = engine.sample(prompts, 3, 10, 1.0, seed=5)
    engine.close()
    assert [rollout.prompt_ids for rollout in rollouts] == [prompt for prompt in prompts for _ in range(3)]
    assert {rollout.policy_version for rollout in rollouts} == {1}
    assert len({rollout.output_ids for rollout in rollouts}) > 3
    same = [one.output_ids == two.output_ids for one, two in zip(again, rollouts, strict=True)]
    assert sum(same) >= 5, "the seed decides; at most rounding in another batch moves one"
    packed = pack([Branches(rollout.prompt_ids, (rollout.output_ids,)) for rollout in rollouts], policy.eos_id)
    with torch.no_grad():
        own = policy.stats(packed).logprobs_BT[packed.mask_BT]
    told = torch.tensor([logprob for rollout in rollouts for logprob in rollout.behaviour_logprobs])
    torch.testing.assert_close(told, own, atol=2e-3, rtol=0)
    tokens = sum(len(rollout.output_ids) for rollout in (*rollouts, *again))
    assert served.metric('tidemill_engine_tokens_total{kind="output",work="rollouts"}') == before + tokens
    assert served.metric('tidemill_capture_skipped_total{reason="rollout"}') == captured + 4


def test_people_are_answered_before_what_a_learner_samples(served: Served, tmp_path: Path) -> None:
    """256 answers are asked for, 64 of which run at the same time: who came last would be answered after nearly all of them."""
    settings = LearnerSettings(dtype="float32", engine="actor", rollout_url=f"{served.http.base_url}/v1")
    engine, finished = ActorEngine(settings, tmp_path), [0]
    prompts = [(1, 50 + n, 900, 44) for n in range(32)]
    sampling = threading.Thread(target=engine.sample, args=(prompts, 8, 64, 1.0, 1, lambda done, at_most: finished.append(done)))
    sampling.start()
    deadline = time.monotonic() + 60
    while served.waiting() < 64:
        assert time.monotonic() < deadline, "the rollouts never waited for a place"
    answer = served.chat(model="base", max_tokens=2)
    before = finished[-1]
    sampling.join()
    engine.close()
    assert answer.status_code == 200
    assert before < finished[-1] / 2, f"{before} of {finished[-1]} tokens came before the person's two"


def test_skills_kept_are_loglikelihoods_of_the_base_and_of_what_is_served(served: Served) -> None:
    kept = skills.measure(f"{served.http.base_url}/v1", POLICY)
    assert kept is not None
    policy = Policy(served.base, LearnerSettings(dtype="float32"))
    ids = [policy.tokenizer.encode(text) for text in skills.TEXTS]
    packed = pack([Branches((first,), (tuple(rest),)) for first, *rest in ids], policy.eos_id)
    with torch.no_grad(), policy.reference():
        expected = policy.stats(packed).logprobs_BT[packed.mask_BT].mean()
    assert kept.base_nats == pytest.approx(float(expected), abs=1e-3)
    assert abs(kept.change_nats) > 1e-3  # and the adapter is another policy


def test_the_kl_gate_gets_the_tokens_that_the_adapter_sampled_as_adapter_and_base_see_them(served: Served) -> None:
    asked = [PromptRequest((Message(role="user", content=f"Say {n} to the sea."),)) for n in range(4)]
    actors = OpenAiActorClient(f"{served.http.base_url}/v1", None, at_once=2, answer_tokens=12, temperature=0.7, seed=0)
    found = [each for each in actors.compare(f"{POLICY}@1", f"{POLICY}@0", asked) if each is not None]
    assert len(found) == 4
    assert all(0 < len(each.own) == len(each.other) <= 12 for each in found)
    assert sum(map(kl_nats, found)) / 4 > 1e-3
    itself = [each for each in actors.compare(f"{POLICY}@0", f"{POLICY}@0", asked) if each is not None]
    assert sum(map(kl_nats, itself)) / 4 < 1e-4


def test_a_corrupted_artifact_is_refused_and_the_old_adapter_goes_on(served: Served, maker: Maker) -> None:
    event, artifact = maker.publish(2)
    weights = served.folder / "artifacts" / artifact.path / "adapter_model.safetensors"
    broken = bytearray(weights.read_bytes())
    broken[-10] ^= 1
    weights.write_bytes(broken)
    maker.send(event)
    attestation = served.attestation(event.name)
    assert not attestation.passed
    assert "truncated or altered" in attestation.reason
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@1"


def test_an_adapter_that_does_not_answer_as_its_probes_say_is_refused(served: Served, maker: Maker) -> None:
    event, _ = maker.publish(3, spoil_probes=0.5)
    maker.send(event)
    attestation = served.attestation(event.name)
    assert not attestation.passed
    assert re.search(NOT_SHOWN, attestation.reason), attestation.reason
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@1"
    assert served.chat(model=event.name).status_code == 404


NOT_SHOWN = "nats from the learner|of the adapter's step|that the adapter does not explain"
PLANTED: dict[str, Callable[[str], float]] = {
    "another adapter under its name": lambda name: -0.05,
    "the base in its place": lambda name: 0.0,
    "attention alone, without the experts": lambda name: 0.05 * ("experts" not in name),
    "experts alone, without attention": lambda name: 0.05 * ("experts" in name),
    "half of each step": lambda name: 0.025,
}


@pytest.mark.parametrize(("number", "fault"), enumerate(PLANTED), ids=PLANTED)
def test_a_replica_that_serves_something_else_under_the_name_of_an_adapter_does_not_pass(
    served: Served, maker: Maker, number: int, fault: str
) -> None:
    event, _ = maker.publish(10 + number, spoil_weights=PLANTED[fault])
    maker.send(event)
    attestation = served.attestation(event.name)
    assert not attestation.passed
    assert re.search(NOT_SHOWN, attestation.reason), attestation.reason
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@1"


def test_an_adapter_of_another_base_or_of_a_truncated_file_is_refused_and_the_old_adapter_goes_on(served: Served, maker: Maker) -> None:
    stranger, _ = maker.publish(20)
    maker.send(stranger.model_copy(update={"base_fingerprint": "0" * 64}))
    assert "was trained on base" in served.attestation(stranger.name).reason
    short, artifact = maker.publish(21)
    weights = served.folder / "artifacts" / artifact.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    maker.send(short)
    assert "truncated or altered" in served.attestation(short.name).reason
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@1"


def test_of_several_that_wait_the_newest_is_taken_and_spare_ones_leave_when_there_is_no_room(served: Served, maker: Maker) -> None:
    with Talkers(served) as talkers:
        for version in (30, 31, 32, 33):
            event, _ = maker.publish(version)
            maker.send(event)
            assert served.attestation(event.name).passed
    assert set(talkers.statuses) == {200}
    deadline = time.monotonic() + 60
    while len(loaded := served.adapters()) > 4:  # actor.max_loras
        assert time.monotonic() < deadline, loaded
        time.sleep(0.2)
    assert {f"{POLICY}@32", f"{POLICY}@33"} < loaded  # production and the one before
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@33"


def test_a_version_that_left_is_loaded_again_when_it_is_asked_for_and_production_is_as_before(served: Served) -> None:
    (left,) = {f"{POLICY}@{version}" for version in (1, 30, 31)} - served.adapters()
    answer = served.chat(model=left)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tidemill-adapter"] == left
    published = served.find(ADAPTERS, lambda event: event.name == left)
    assert answer.headers["x-tidemill-adapter-sha256"] == published.artifact.sha256
    assert served.chat(model=f"tinker://{POLICY}/sampler_weights/32").headers["x-tidemill-adapter"] == f"{POLICY}@32"
    assert served.chat(model=f"{POLICY}@3").status_code == 404  # it was refused
    assert served.chat().headers["x-tidemill-adapter"] == f"{POLICY}@33"


def test_a_stop_lets_an_answer_finish_and_leaves_nothing_behind(served: Served) -> None:
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert children
    answered: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answered.append(served.chat(max_tokens=60)))
    thread.start()
    time.sleep(0.3)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(90) == 0, served.log.read_text()[-3000:]
    thread.join()
    assert answered[0].status_code == 200
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert served.episode(answered[0].headers["x-tidemill-episode"]).outcome in ("truncated", "completed")
