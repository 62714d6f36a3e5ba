"""The page at /chat in a real browser, over the actor's real layers and an engine that speaks when told to: by keyboard, in light and dark.

Screenshots are left in ``runs/chat`` for a person to look at.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from actor.adapters.request_routing import Route, Router
from actor.api_keys import Key, KeyGate, Keys, new_key, write_keys
from actor.capture.capture_middleware import Capture
from actor.capture.conversations import Conversations
from actor.capture.engine_recorder import wrap_engine
from actor.capture.episode_publisher import EpisodePublisher
from actor.doors.http_doors import Doors
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from streams.core.clock import SystemClock
from streams.core.metrics import Metrics
from tests.operators.axe import assert_open_to_all
from tests.operators.browser import Browser
from tests.operators.test_console_browser import LOW_CONTRAST
from tests.support.captured import Spool

SHOTS = Path(__file__).parents[2] / "runs" / "chat"
PARTS = ("Tea is a drink ", "that you will enjoy. ", "Steep it for <b>three</b> minutes.")


class Speaker:
    """An engine that says one part after another; where it was told to wait it waits after the first."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        for number, text in enumerate(PARTS):
            while number and not self.go_on.is_set():
                await asyncio.sleep(0.02)
            last = number == len(PARTS) - 1
            part = SimpleNamespace(index=0, token_ids=[number], logprobs=SimpleNamespace(logprobs=[-0.5]), text=text,
                                   finish_reason="stop" if last else None)  # fmt: skip
            yield SimpleNamespace(outputs=[part], prompt_token_ids=[1])

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What vLLM does with a streamed chat, a client that leaves included."""
        body = json.loads((await receive())["body"])
        if body["messages"][-1]["content"] == "fail":
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "The engine is unwell."}}'})
            return
        leaving = asyncio.create_task(receive())
        params = SimpleNamespace(logprobs=None, flat_logprobs=False, output_kind=SimpleNamespace(name="DELTA"))
        outputs = self.generate("p", params, "id", lora_request=SimpleNamespace(lora_name=body["model"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        speaking = asyncio.ensure_future(anext(outputs, None))
        while True:
            await asyncio.wait({speaking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() or speaking.result() is None:
                break
            event = {"choices": [{"index": 0, "delta": {"content": speaking.result().outputs[0].text}}]}
            await send({"type": "http.response.body", "body": b"data: " + json.dumps(event).encode() + b"\n\n", "more_body": True})
            speaking = asyncio.ensure_future(anext(outputs, None))
        if not leaving.done():
            leaving.cancel()
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        else:
            speaking.cancel()
            await outputs.aclose()


class Actor:
    """The layers as wiring.py puts them together, with that engine in the middle, asking for a key."""

    def __init__(self, folder: Path) -> None:
        self.speaker, self.spool, settings, metrics, clock = Speaker(), Spool(), ActorSettings(), Metrics(), SystemClock()
        wrap_engine(self.speaker)
        router, conversations = Router("default", Route("default@7")), Conversations(100)
        router.add("default@7", "a" * 64)
        publisher = EpisodePublisher(self.spool, metrics, settings, Rules(settings.redact))  # type: ignore[arg-type]
        captured = Capture(self.speaker.serve, settings, router, publisher, conversations, clock, "replica")
        self.key, sha256 = new_key()
        write_keys(folder / "keys.json", [Key(sha256=sha256, tenant="acme", scopes=("talk", "feedback"), requests_per_minute=6000)])
        doors = Doors(captured, settings, publisher, conversations, metrics, clock, "default", list)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(KeyGate(doors, Keys(folder / "keys.json")), log_level="warning", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def feedback(self, count: int) -> list[Any]:
        """What was given, once there is so much of it, without what a next turn says."""
        until = time.monotonic() + 30
        while len(given := [each for each in self.spool.feedback if each.kind != "reply"]) < count:
            assert time.monotonic() < until, given
            time.sleep(0.05)
        return given


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actor]:
    found = Actor(tmp_path_factory.mktemp("actor"))
    yield found
    found.speaker.go_on.set()
    found.server.should_exit = True
    found.thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(actor: Actor, browser: Browser) -> Browser:
    """Opened anew, with the key that a person was given."""
    actor.spool.feedback.clear()
    actor.spool.episodes.clear()
    actor.speaker.go_on.set()
    browser.complaints.clear()
    browser.see(1280, "light")
    browser.go(actor.url + "/chat")
    browser.run(f"document.getElementById('key').value = {json.dumps(actor.key)}")
    return browser


ANSWERED = "document.querySelectorAll('.answer:not([aria-busy])').length === {} && !document.getElementById('send').disabled"


def say(page: Browser, text: str, answers: int) -> None:
    """Type a message, send it with Enter, and wait until so many answers are whole."""
    page.run("document.getElementById('said').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(ANSWERED.format(answers))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_can_be_read(page: Browser, width: int, scheme: str) -> None:
    page.see(width, scheme)
    assert_open_to_all(page)
    say(page, "Tell me about tea, and how long a black one should stand before it turns bitter.", 1)
    say(page, "https://example.org/a-word-that-is-much-longer-than-the-screen-of-a-telephone-is-wide-and-has-no-place-to-break", 2)
    page.run("document.querySelector('[data-thumb=up]').click()")
    page.wait("document.querySelector('[data-thumb=up]').getAttribute('aria-pressed') === 'true'")
    page.run("document.querySelectorAll('[data-write=correction]')[1].click()")
    page.run("document.getElementById('setup').open = true")
    page.shoot(SHOTS / f"chat-{width}-{scheme}.png")
    assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.run("document.querySelector('main').scrollWidth - document.querySelector('main').clientWidth") <= 0
    assert page.run(LOW_CONTRAST) == []
    assert_open_to_all(page)
    small = "[...document.querySelectorAll('button, input, textarea, summary')].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24)"
    assert page.run(f"{small}.map((e) => e.outerHTML)") == []
    assert page.complaints == []


def test_an_answer_is_seen_while_it_is_spoken_and_text_is_never_html(actor: Actor, page: Browser) -> None:
    actor.speaker.go_on.clear()
    page.run("document.getElementById('said').focus()")
    page.type("tea?")
    page.press("Enter")
    page.wait(f"document.querySelector('.answer .text')?.textContent === {json.dumps(PARTS[0])}")
    assert page.run("document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    assert page.run("document.querySelector('.judge').checkVisibility()") is False
    actor.speaker.go_on.set()
    page.wait(ANSWERED.format(1))
    assert page.run("document.querySelector('.answer .text').textContent") == "".join(PARTS)
    assert page.run("document.querySelector('.answer b')") is None
    assert page.run("document.querySelector('.adapter').textContent") == "default@7"
    assert [episode.answer for episode in actor.spool.episodes] == ["".join(PARTS)]


def test_a_person_talks_thumbs_and_changes_their_mind_by_keyboard_alone(actor: Actor, page: Browser) -> None:
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Skip to the message field"
    page.press("Enter")
    page.wait("document.activeElement.id === 'said'")
    say(page, "tea?", 1)
    (episode,) = actor.spool.episodes
    page.run("document.querySelector('[data-thumb=up]').focus()")
    page.press("Enter")
    (up,) = actor.feedback(1)
    assert (up.episode_id, up.kind, up.thumb, up.user_id) == (episode.episode_id, "thumb", "up", episode.user_id)
    page.wait("document.activeElement.getAttribute('aria-pressed') === 'true'")
    assert page.run("document.getElementById('told').textContent") == "Thank you. Your feedback is recorded."
    page.press("Enter")
    assert [(each.kind, each.retracts) for each in actor.feedback(2)[1:]] == [("retraction", up.feedback_id)]
    page.wait("document.activeElement.getAttribute('aria-pressed') === 'false'")
    page.press("Tab")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert actor.feedback(3)[2].thumb == "down"


def test_a_comment_and_a_correction_are_given_in_words(actor: Actor, page: Browser) -> None:
    say(page, "tea?", 1)
    page.run("document.querySelector('[data-write=comment]').focus()")
    page.press("Enter")
    page.wait(
        "document.activeElement.tagName === 'TEXTAREA' && document.activeElement.labels[0].textContent === 'What is good or bad about this answer?'"
    )
    page.press("Escape")
    assert page.run("document.activeElement.dataset.write") == "comment"
    assert actor.spool.feedback == []
    page.press("Enter")
    page.wait("document.activeElement.tagName === 'TEXTAREA'")
    page.type("Too long.")
    page.run("document.activeElement.form.requestSubmit()")
    assert [(each.kind, each.text) for each in actor.feedback(1)] == [("comment", "Too long.")]
    page.wait("document.activeElement.dataset.write === 'comment'")
    page.run("document.querySelector('[data-write=correction]').click()")
    assert page.run("document.activeElement.value") == "".join(PARTS)
    page.run("document.activeElement.value = ''")
    page.type("Three minutes.")
    page.run("document.activeElement.form.requestSubmit()")
    assert [(each.kind, each.text) for each in actor.feedback(2)[1:]] == [("correction", "Three minutes.")]


def test_turns_are_one_conversation_and_the_next_words_reply_to_the_last_answer(actor: Actor, page: Browser) -> None:
    say(page, "tea?", 1)
    say(page, "and coffee?", 2)
    first, second = actor.spool.episodes
    assert (first.conversation_id, second.turn, second.replies_to) == (second.conversation_id, 1, first.episode_id)
    assert [(each.kind, each.text) for each in actor.spool.feedback] == [("reply", "and coffee?")]
    page.run("document.getElementById('anew').click()")
    assert page.run("document.querySelectorAll('#talk li').length") == 0
    say(page, "tea?", 1)
    assert actor.spool.episodes[2].conversation_id != first.conversation_id


def test_an_answer_can_be_stopped_and_what_was_said_stays(actor: Actor, page: Browser) -> None:
    actor.speaker.go_on.clear()
    page.run("document.getElementById('said').focus()")
    page.type("tea?")
    page.press("Enter")
    page.wait(f"document.querySelector('.answer .text')?.textContent === {json.dumps(PARTS[0])}")
    page.run("document.getElementById('stop').click()")
    page.wait("document.getElementById('told').textContent === 'Stopped.'")
    until = time.monotonic() + 30
    while not actor.spool.episodes:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [(episode.outcome, episode.answer) for episode in actor.spool.episodes] == [("cancelled", PARTS[0])]
    assert page.run("document.querySelector('.answer .text').textContent") == PARTS[0]


def test_what_goes_wrong_is_told_and_the_question_is_not_lost(actor: Actor, page: Browser) -> None:
    page.run("document.getElementById('said').focus()")
    page.type("fail")
    page.press("Enter")
    page.wait("document.getElementById('told').textContent === 'The engine is unwell.'")
    assert page.run("[document.querySelectorAll('#talk li').length, document.getElementById('said').value]") == [0, "fail"]
    page.run("document.getElementById('key').value = ''; document.getElementById('said').value = 'tea?'")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("document.activeElement.id === 'key' && document.getElementById('told').textContent.startsWith('no such key')")
    assert_open_to_all(page)
    page.type(actor.key)
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait(ANSWERED.format(1))


def test_a_screen_reader_finds_everything_by_name(actor: Actor, page: Browser) -> None:
    say(page, "tea?", 1)
    page.run("document.querySelector('[data-write=comment]').click()")
    named = page.named()
    assert ("log", "Conversation") in named
    assert ("group", "What do you think of this answer?") in named
    assert ("textbox", "Your message") in named
    assert ("textbox", "What is good or bad about this answer?") in named
    assert [name for role, name in named if role == "heading"] == ["Talk to default"]
    assert {role for role, name in named if not name} & {"button", "textbox", "link"} == set()
