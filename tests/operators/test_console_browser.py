"""The console in a real browser, over a real Kafka: every page in light and dark, wide and on a phone; live, by keyboard, acting.

Screenshots of each are left in ``runs/console`` for a person to look at.
"""

import base64
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.build.reference_pages import EXAMPLES
from infra.local.embedded_broker import free_port
from streams.core.events import Feedback, FeedbackKind
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, DEAD_LETTERS, EPISODES, FEEDBACK, LABELS, PROMOTIONS, REWARD_MODELS, Topic
from streams.kafka import KafkaSettings, Producer, read_to_end
from tests.operators.axe import assert_open_to_all
from tests.operators.browser import Browser

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "runs" / "console"
KEY = "a key that is long enough"
PAGES = {
    "ring": "/",
    "curves": "/curves",
    "adapters": "/adapters",
    "episodes": "/episodes",
    "episode": "/episodes/ep-3",
    "dead-letters": "/dead-letters",
}
LOW_CONTRAST = """(() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255]; };
  return [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => { const s = getComputedStyle(e), svg = e.closest("svg"); const a = light(parse(svg ? s.fill : s.color)), b = light(back(e));
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.textContent.trim().slice(0, 40)]; })
    .filter(([ratio]) => ratio < 4.5);
})()"""


@dataclass
class Site:
    """Where the console is, and the log under it."""

    url: str
    kafka: KafkaSettings
    producer: Producer


def publish(producer: Producer, topic: Topic[Any], **changes: object) -> None:
    producer.publish(topic, topic.event.model_validate({**EXAMPLES[topic.short_name], **changes}))


def fill(producer: Producer) -> None:
    """A small history: three adapters, their judged answers, reward models, dead letters."""
    now = datetime.now(UTC)
    for version in (1, 2, 3):
        at = now - timedelta(minutes=10 - version)
        publish(producer, REWARD_MODELS, version=version, labels=50 * version, created_at=at)
        publish(producer, ADAPTERS, version=version, step=version, parent=version - 1 or None, reward_model_version=version, created_at=at,
                newest_feedback_at=at - timedelta(seconds=20))  # fmt: skip
        publish(producer, ATTESTATIONS, adapter=f"default@{version}", at=at + timedelta(seconds=9))
    for number in range(8):
        publish(producer, EPISODES, episode_id=f"ep-{number}", adapter=f"default@{number % 3 + 1}", answer="You will like it. " * 12,
                started_at=now, ended_at=now)  # fmt: skip
        publish(producer, LABELS, episode_id=f"ep-{number}", adapter=f"default@{number % 3 + 1}", verdict=float(number % 2))
    late = Feedback(feedback_id="fb-late", episode_id="ep-1", kind=FeedbackKind.THUMB, thumb="up", at=now)
    publish(producer, DEAD_LETTERS, reason="expired", record_base64=base64.b64encode(late.encode()).decode())
    publish(producer, DEAD_LETTERS)


@pytest.fixture(scope="module")
def context(kafka_settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    producer = Producer(kafka_settings, Metrics(), "test")
    fill(producer)
    port, log = free_port(), tmp_path_factory.mktemp("console") / "log"
    words = ["--set", f"kafka.bootstrap_servers={kafka_settings.bootstrap_servers}", "--set", f"console.port={port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TIDEMILL_CONSOLE__OPERATOR_KEY": KEY}
    with log.open("wb") as out:
        console = subprocess.Popen([sys.executable, "-P", "-m", "infra.cli", "console", *words], cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 60
        while not is_ready(port):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield Site(f"http://127.0.0.1:{port}", kafka_settings, producer)
        assert KEY not in log.read_text()
    finally:
        console.terminate()
        console.wait(20)
        producer.close()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_fits_and_can_be_read(context: Site, browser: Browser, name: str, width: int, scheme: str) -> None:
    browser.see(width, scheme)
    browser.go(context.url + PAGES[name])
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.shoot(SHOTS / f"{name}-{width}-{scheme}.png")
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.run(LOW_CONTRAST) == []
    assert_open_to_all(browser)
    assert browser.run("[...document.querySelectorAll('button, header a, input, select')].filter((e) => e.checkVisibility()"
                       " && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)") == []  # fmt: skip
    assert browser.complaints == []


def test_the_tables_that_explain_a_score_can_be_read_and_scrolled_by_keyboard(context: Site, browser: Browser) -> None:
    browser.see(390, "light")
    browser.go(context.url + PAGES["episode"])
    told = """reasons("Nearest labelled answers", ["episode", "similarity", "verdict", "and more than a telephone is wide"], [["ep-1", "0.91", "1.00", "x"]])"""
    browser.run(f"document.getElementById('explained').replaceChildren(...{told})")  # as the answer of the server is shown; it needs a lake
    assert ("region", "Nearest labelled answers") in browser.named()
    assert browser.run("document.querySelector('#explained .scroll').tabIndex") == 0
    assert_open_to_all(browser)


def test_the_ring_lives_without_being_loaded_again(context: Site, browser: Browser) -> None:
    browser.see(1280, "light")
    browser.go(context.url)
    browser.run("window.was = true")
    before = int(browser.run("document.querySelector('[data-total=feedback]').textContent"))
    for number in range(5):
        publish(context.producer, FEEDBACK, feedback_id=f"fb-{number}")
    browser.wait(f"Number(document.querySelector('[data-total=feedback]').textContent) === {before + 5}", 20)
    browser.wait("document.querySelector('[data-flow=feedback]').classList.contains('flows')")
    assert int(browser.run("document.querySelector('svg [data-rate=feedback]').textContent")) >= 5
    assert browser.run("window.was")


def focus(browser: Browser) -> str:
    return str(browser.run("document.activeElement.id || document.activeElement.textContent.trim()"))


def test_the_first_key_leads_to_the_content_and_focus_is_seen(context: Site, browser: Browser) -> None:
    browser.go(context.url + "/adapters")
    browser.press("Tab")
    assert focus(browser) == "Skip to the content"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    browser.wait("document.activeElement.id === 'main'")


def test_an_adapter_is_promoted_and_rolled_back_by_keyboard_alone(context: Site, browser: Browser) -> None:
    browser.go(context.url + "/adapters")
    browser.run("document.querySelector('[data-adapter=\"default@3\"]').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('act').open && document.activeElement.id === 'act-reason'")
    browser.type("people like it better")
    browser.press("Tab")
    browser.type("a wrong key, of some length")
    browser.press("Enter")
    browser.wait("document.getElementById('act-told').textContent.includes('not the operator')")
    assert moves(context) == []
    browser.run("document.getElementById('act-key').value = ''; document.getElementById('act-key').focus()")
    browser.type(KEY)
    browser.shoot(SHOTS / "dialog.png")
    assert_open_to_all(browser)
    browser.press("Enter")
    browser.wait("document.getElementById('act-told').textContent.includes('offset 0 of tidemill.promotions.v1')")
    browser.press("Escape")
    browser.wait("!document.getElementById('act')?.open && document.querySelector('.badge.production') !== null")
    assert moves(context) == [("default@3", "promoted", "people like it better", "operator")]
    browser.run("document.querySelector('[data-move=rolled_back]').focus()")
    browser.press("Enter")
    browser.type("they do not")
    browser.press("Tab")
    browser.type(KEY)
    browser.press("Enter")
    browser.wait("document.getElementById('act-told').textContent.includes('rolled back')")
    assert moves(context)[1:] == [("default@3", "rolled_back", "they do not", "operator")]


def moves(context: Site) -> list[tuple[str, str, str, str]]:
    found = [PROMOTIONS.decode(record.value) for record in read_to_end(context.kafka, PROMOTIONS, "test", Metrics())]
    return [(event.adapter, event.move, event.reason, event.by) for event in found]


def test_escape_does_nothing(context: Site, browser: Browser) -> None:
    browser.go(context.url + "/dead-letters")
    before = feedback(context)
    browser.run("document.querySelector('button[data-act]').click()")
    browser.press("Escape")
    browser.wait("!document.getElementById('act').open")
    assert feedback(context) == before


def test_a_dead_letter_is_put_back_as_it_was(context: Site, browser: Browser) -> None:
    browser.go(context.url + "/dead-letters?reason=expired")
    before = feedback(context)
    browser.run("document.querySelector('button[data-act]').click()")
    assert browser.run("document.getElementById('act-reason').checkVisibility()") is False
    browser.run("document.getElementById('act-key').focus()")
    browser.type(KEY)
    browser.press("Enter")
    browser.wait("document.getElementById('act-told').textContent.startsWith('Published to tidemill.feedback.v1')")
    (again,) = [FEEDBACK.decode(value) for value in feedback(context)[len(before) :]]
    assert (again.feedback_id, again.episode_id) == ("fb-late", "ep-1")


def feedback(context: Site) -> list[bytes | None]:
    found = sorted(read_to_end(context.kafka, FEEDBACK, "test", Metrics()), key=lambda record: record.timestamp_ms)
    return [record.value for record in found]


def test_episodes_are_searched_from_the_form(context: Site, browser: Browser) -> None:
    browser.go(context.url + "/episodes")
    browser.run("document.getElementById('q').focus()")
    browser.type("ep-3")
    browser.press("Enter")
    browser.wait("location.search.includes('q=ep-3') && document.readyState === 'complete'")
    assert browser.run("[...document.querySelectorAll('tbody tr')].length") == 1
    browser.run("document.querySelector('tbody a').click()")
    browser.wait("location.pathname === '/episodes/ep-3' && document.querySelector('h1') !== null")
