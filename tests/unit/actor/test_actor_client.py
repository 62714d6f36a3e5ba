"""The promoter asks as any client does, and its questions become no episodes."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from actor.actor_client import ComparedAnswer, OpenAiActorClient, PromptRequest
from streams.core.errors import Unavailable
from streams.core.events import Message


class Server(ThreadingHTTPServer):
    """Answers with what it was asked; 400 to a question that says so, 404 to an unknown model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
        if "prompt" in body:
            self._tell_logprobs(body)
            return
        said = body["messages"][-1]["content"]
        status = 404 if body["model"] == "gone" else 400 if said == "too long" else 200
        tokens = [7, 8, 9] if body.get("return_token_ids") and said != "mute" else None
        choice = {"index": 0, "message": {"role": "assistant", "content": f"{body['model']}: {said}"}, "finish_reason": "stop", "token_ids": tokens}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self._reply(answer | {"prompt_token_ids": [1, 2] if tokens else None}, status)

    def _tell_logprobs(self, body: dict[str, Any]) -> None:
        """As vLLM does: the first token has none; the base finds everything a nat less likely."""
        told = [None, *({str(token): {"logprob": -token - (body["model"] == "default@0")}} for token in body["prompt"][1:])]
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": told}
        self._reply({"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    def _reply(self, body: dict[str, Any], status: int = 200) -> None:
        answer = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def actors(server: Server) -> OpenAiActorClient:
    return OpenAiActorClient(
        f"http://127.0.0.1:{server.server_port}/v1", SecretStr("tm-key"), at_once=3, answer_tokens=32, temperature=0.7, seed=5, timeout_s=5
    )


def questions(*texts: str, **sampling: Any) -> list[PromptRequest]:
    return [PromptRequest((Message(role="user", content=text),), sampling) for text in texts]


def test_answers_come_in_the_order_of_the_questions_and_are_not_captured(server: Server) -> None:
    texts = [f"q{n}" for n in range(12)]
    assert actors(server).ask("default@7", questions(*texts)) == [f"default@7: {text}" for text in texts]
    assert {headers["x-tidemill-capture"] for headers, _ in server.seen} == {"off"}
    assert all((body["max_tokens"], body["temperature"]) == (32, 0.7) for _, body in server.seen)
    assert sorted(body["seed"] for _, body in server.seen) == list(range(5, 17))


def test_a_copy_of_traffic_is_sampled_as_the_person_asked(server: Server) -> None:
    actors(server).ask("default@7", questions("hi", temperature=0.2, max_completion_tokens=9, n=4, tool_choice="none"))
    _, body = server.seen[0]
    assert (body["temperature"], body["max_completion_tokens"]) == (0.2, 9)
    assert not {"max_tokens", "n", "tool_choice"} & set(body)


def test_a_question_that_the_server_will_not_have_is_left_out_and_a_missing_version_is_no_answer_at_all(server: Server) -> None:
    assert actors(server).ask("default@7", questions("hi", "too long")) == ["default@7: hi", None]
    with pytest.raises(Unavailable, match="gone cannot be asked"):
        actors(server).ask("gone", questions("hi"))


def test_an_actor_that_is_away_is_unavailable() -> None:
    away = OpenAiActorClient("http://127.0.0.1:9/v1", None, 1, 8, 0.0, 0, timeout_s=2)
    with pytest.raises(Unavailable):
        away.ask("default@7", questions("hi"))


def test_an_answer_is_drawn_from_all_that_the_model_might_say_and_told_as_both_models_see_it(server: Server) -> None:
    found = actors(server).compare("default@7", "default@0", questions("hi", "too long"))
    assert found == [ComparedAnswer((-7.0, -8.0, -9.0), (-8.0, -9.0, -10.0)), None]
    asked = next(body for _, body in server.seen if "messages" in body)
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (1.0, 1.0, 0)
    assert {tuple(body["prompt"]) for _, body in server.seen if "prompt" in body} == {(1, 2, 7, 8, 9)}


def test_a_server_that_does_not_tell_its_tokens_cannot_be_compared(server: Server) -> None:
    with pytest.raises(Unavailable, match="does not tell its tokens"):
        actors(server).compare("default@7", "default@0", questions("mute"))
