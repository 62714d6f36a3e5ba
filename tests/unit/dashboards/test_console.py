"""The operator's page: it shows what the log says, escapes it, and acts only for whom has the key."""

import base64
import hmac
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr, ValidationError
from starlette.testclient import TestClient

from dashboards.console import console_actions as actions
from dashboards.console import page_contents as pages
from dashboards.console.console_app import KEY_HEADER, Console
from dashboards.console.console_facts import ConsoleFacts
from dashboards.console.console_settings import ConsoleSettings
from dashboards.console.log_following import LogFollowing
from dashboards.console.svg_charts import Line, chart
from infra.build.reference_pages import EXAMPLES
from streams.core.clock import SystemClock
from streams.core.errors import ConfigError, Refused
from streams.core.events import DeadLetter, Event, Promotion
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, DEAD_LETTERS, EPISODES, FEEDBACK, LABELS, PROMOTIONS, REWARD_MODELS, TOPICS, Topic
from streams.kafka import KafkaSettings, Record
from tests.support.simulated_clients import producer_on
from tests.support.simulated_log import SimulatedLog

KEY = "a key that is long enough"
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>'
HANDLERS = {"onerror", "onclick", "onload", "style"}
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Ring:
    """A console over a log in memory."""

    def __init__(self, key: str | None = KEY) -> None:
        self.log, self.facts = SimulatedLog(), ConsoleFacts()
        following = LogFollowing(KafkaSettings(bootstrap_servers="nowhere:1"), self.facts, Metrics())
        settings = ConsoleSettings(operator_key=SecretStr(key) if key else None)
        self.app = Console(settings, following, producer_on(self.log), SystemClock()).app()
        self.browser = TestClient(self.app, base_url="http://localhost", raise_server_exceptions=True)

    def tell(self, topic: Topic[Any], now_ms: int = 0, at_ms: int = 0, **changes: Any) -> Event:
        event: Event = topic.event.model_validate({**EXAMPLES[topic.short_name], **changes})
        self.tell_raw(topic, event.encode(), now_ms, at_ms)
        return event

    def tell_raw(self, topic: Topic[Any], value: bytes, now_ms: int = 0, at_ms: int = 0) -> None:
        self.facts.take(Record(topic.name, 0, self.facts.totals[topic.name], at_ms, b"k", value), now_ms)

    def act(self, path: str, body: object, key: str | None = KEY, **headers: str) -> Any:
        return self.browser.post(path, json=body, headers=headers | ({KEY_HEADER: key} if key is not None else {}))


@pytest.fixture
def ring() -> Ring:
    """One of each event, the newest adapter attested."""
    found = Ring()
    for topic in TOPICS:
        if topic is not PROMOTIONS:
            found.tell(topic)
    return found


class Attributes(HTMLParser):
    """The names of all attributes in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}

    @classmethod
    def of(cls, page: str) -> set[str]:
        parser = cls()
        parser.feed(page)
        return parser.names


def letter(value: bytes, **changes: Any) -> dict[str, Any]:
    return {"record_base64": base64.b64encode(value).decode(), **changes}


PAGES = ["/", "/curves", "/adapters", "/episodes", "/episodes/ep-1", "/dead-letters"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_stands_with_and_without_anything_to_show(ring: Ring, page: str) -> None:
    assert ring.browser.get(page).status_code == 200
    assert Ring().browser.get(page).status_code == (404 if "ep-1" in page else 200)


def test_what_people_and_records_say_is_text_and_never_markup(ring: Ring) -> None:
    ring.tell(EPISODES, messages=[{"role": EVIL, "content": EVIL}], answer=EVIL, error=EVIL, user_id=EVIL, tool_calls=[{"x": EVIL}], adapter=EVIL)
    ring.tell(LABELS, votes=[{"feedback_id": EVIL, "user_id": EVIL, "kind": "comment", "text": EVIL, "at": T0}])
    ring.tell(DEAD_LETTERS, **letter(EVIL.encode(), reason=EVIL, message=EVIL, source_topic=EVIL, record_key=EVIL, part=EVIL))
    ring.tell(PROMOTIONS, reason=EVIL, by=EVIL, evidence={EVIL: EVIL})
    ring.tell(ATTESTATIONS, replica=EVIL, reason=EVIL)
    ring.tell(ADAPTERS, targets=[EVIL], metrics={EVIL: 1.0})
    for page in [*PAGES, f"/episodes?q={EVIL}&adapter={EVIL}", f"/episodes/{EVIL}", f"/dead-letters?reason={EVIL}"]:
        told = ring.browser.get(page).text
        assert "<img src=x" not in told, page
        assert re.findall(r"<script(?![^>]*\bsrc=\"/static)", told) == [], page
        assert Attributes.of(told).isdisjoint(HANDLERS), page
    assert "&lt;script&gt;" in ring.browser.get("/episodes/ep-1").text


def test_nothing_is_asked_of_another_server_and_no_page_may_frame_or_script_it(ring: Ring) -> None:
    answer = ring.browser.get("/")
    assert set(re.findall(r'(?:src|href)="([^"]*)"', answer.text)) <= {
        *PAGES,
        "#main",
        "/static/console.css",
        "/static/console.js",
        "/static/mill.svg",
    }
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_a_name_that_is_not_its_own_is_refused(ring: Ring) -> None:
    assert ring.browser.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_rate_is_what_came_within_the_last_minute() -> None:
    facts = ConsoleFacts()
    for at_s in (0, 30, 70, 100):
        facts.take(Record(FEEDBACK.name, 0, 0, at_s * 1000, b"k", b"{}"), at_s * 1000)
    flow = facts.flows(110_000)["feedback"]
    assert (flow.total, flow.per_minute, flow.idle_s) == (4, 2, 10.0)
    assert facts.flows(300_000)["feedback"].per_minute == 0
    assert facts.undecodable == 4


def test_records_of_long_ago_do_not_count_as_a_rate_when_the_log_is_read() -> None:
    ring = Ring()
    ring.tell(EPISODES, now_ms=10**9, at_ms=5)
    assert ring.facts.flows(10**9)["episodes"].per_minute == 0
    assert ring.facts.flows(10**9)["episodes"].total == 1


def test_memory_is_bounded_and_the_newest_stay() -> None:
    ring = Ring()
    ring.facts = facts = ConsoleFacts(kept=3)
    for number in range(5):
        ring.tell(EPISODES, episode_id=f"ep-{number}")
    ring.tell(EPISODES, episode_id="ep-2", answer="again")
    assert list(facts.episodes) == ["ep-3", "ep-4", "ep-2"]


def test_episodes_are_found_by_words_adapter_and_verdict(ring: Ring) -> None:
    ring.tell(EPISODES, episode_id="ep-2", adapter=None, answer="Coffee, of course", messages=[{"role": "user", "content": "What now?"}])
    ring.tell(LABELS, episode_id="ep-2", verdict=0.0, adapter=None)

    def ids(**asked: str) -> list[str]:
        return [e.episode_id for e in ring.facts.search(**asked)]

    assert ids() == ["ep-2", "ep-1"]
    assert ids(text="COFFEE now") == ["ep-2"]
    assert ids(text="coffee tea") == []
    assert ids(text="u-7") == ["ep-2", "ep-1"]
    assert (ids(adapter="base"), ids(adapter="default@6")) == (["ep-2"], ["ep-1"])
    assert (ids(verdict="up"), ids(verdict="down"), ids(verdict="none")) == (["ep-1"], ["ep-2"], [])
    assert "1 found" in ring.browser.get("/episodes?verdict=down").text


def test_an_id_with_a_slash_has_its_page(ring: Ring) -> None:
    ring.tell(EPISODES, episode_id="team/ep?1")
    (link,) = re.findall(r'href="(/episodes/team[^"]*)"', ring.browser.get("/episodes?q=team").text)
    assert ring.browser.get(link).status_code == 200


def test_approval_counts_verdicts_by_version_in_their_order() -> None:
    ring = Ring()
    for number, (adapter, verdict) in enumerate([("default@10", 1.0), ("default@9", 0.0), ("default@9", 1.0), (None, 0.0), ("default@9", None)]):
        ring.tell(LABELS, episode_id=f"ep-{number}", adapter=adapter, verdict=verdict)
    assert [(a.adapter, a.labels, a.interval.estimate) for a in ring.facts.approvals()] == [
        ("base", 1, 0.0),
        ("default@9", 2, 0.5),
        ("default@10", 1, 1.0),
    ]


def test_thumb_to_served_ends_at_the_first_attestation_that_passed() -> None:
    ring = Ring()
    ring.tell(ADAPTERS, newest_feedback_at=T0)
    for replica, passed, after_s in (("a", False, 5), ("b", True, 90), ("c", True, 60)):
        ring.tell(ATTESTATIONS, replica=replica, passed=passed, at=T0 + timedelta(seconds=after_s))
    assert [s for _, s in ring.facts.served_after_s()] == [60.0]


def test_adapters_stand_where_every_replica_sees_them_and_a_void_move_is_called_void() -> None:
    ring = Ring()
    for version in (1, 2, 3, 4):
        ring.tell(ADAPTERS, version=version)
        ring.tell(ATTESTATIONS, adapter=f"default@{version}")
    steps = [(1, "promoted", {"by": "operator"}), (2, "promoted", {"by": "operator"}), (3, "candidate", {}), (3, "promoted", {}), (3, "shadow", {}),
             (3, "canary", {"canary_share": 0.25})]  # fmt: skip
    for number, (version, move, more) in enumerate(steps):
        ring.tell(PROMOTIONS, **{"promotion_id": f"pr-{number}", "adapter": f"default@{version}", "move": move, "canary_share": None, **more})
    shown = {v["adapter"].version: (v["stands"], v["may_promote"], v["may_roll_back"]) for v in pages.adapters(ring.facts)}
    assert shown == {4: ("attested", True, False), 3: ("canary 25%", True, True), 2: ("production", False, True), 1: ("attested", True, False)}
    assert [move.void is not None for move in ring.facts.moves] == [False, False, False, True, False, False]
    assert "Void: " in ring.browser.get("/adapters").text
    ring.tell(PROMOTIONS, promotion_id="pr-9", adapter="default@3", move="canary", awaits_approval=True)
    told = ring.browser.get("/adapters").text
    assert ">Approve</button>" in told
    ring.tell(PROMOTIONS, promotion_id="pr-10", adapter="default@2", move="rolled_back")
    assert (ring.facts.standing("default").production, pages.adapters(ring.facts)[2]["stands"]) == ("default@1", "rejected")


def test_where_replicas_do_not_follow_promotions_the_page_says_so() -> None:
    ring = Ring()
    note = "Replicas ignore promotions"
    assert note not in ring.browser.get("/adapters").text
    app = Console(ConsoleSettings(), LogFollowing(KafkaSettings(), ring.facts, Metrics()), producer_on(ring.log), SystemClock(), gated=False).app()
    assert note in TestClient(app, base_url="http://localhost").get("/adapters").text


@pytest.mark.parametrize("path", ["/api/replay", "/api/move"])
def test_nobody_acts_without_the_key(ring: Ring, path: str) -> None:
    body = {"offset": 0, "adapter": "default@7", "move": "promoted", "reason": "better"}
    assert ring.act(path, body, key=None).status_code == 401
    assert ring.act(path, body, key="a wrong key, of some length").status_code == 401
    assert ring.act(path, body, key="").status_code == 401
    assert ring.browser.get(path).status_code == 405
    assert Ring(key=None).act(path, body, key="").status_code == 403
    assert not actions.is_operator(None, "")
    assert ring.log.everything() == []


def test_the_key_is_compared_in_constant_time_and_shown_nowhere(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared: list[object] = []
    real = hmac.compare_digest
    monkeypatch.setattr(actions.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    told = ring.act("/api/move", {"adapter": "default@7", "move": "promoted", "reason": "better"}).text
    told += "".join(ring.browser.get(page).text for page in PAGES) + repr(ConsoleSettings(operator_key=SecretStr(KEY)))
    assert compared == [KEY.encode()]
    assert KEY not in told + "".join(capsys.readouterr())


def test_a_key_that_can_be_guessed_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError):
        ConsoleSettings(operator_key=SecretStr("short"))


def test_a_promotion_is_an_event_with_its_reason(ring: Ring) -> None:
    answer = ring.act("/api/move", {"adapter": "default@7", "move": "promoted", "reason": " better "})
    assert answer.status_code == 200, answer.text
    (event,) = ring.log.events(PROMOTIONS)
    assert isinstance(event, Promotion)
    assert (event.adapter, event.move, event.reason, event.by, event.policy) == ("default@7", "promoted", "better", "operator", "default")
    assert event.evidence["production_before"] == "base"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"adapter": "default@7", "move": "promoted", "reason": " "}, "give a reason"),
        ({"adapter": "default@8", "move": "promoted", "reason": "x"}, "does not know this adapter"),
        ({"adapter": "default@7", "move": "canary", "reason": "x"}, "not a move"),
        ({"adapter": "default@7", "move": "rolled_back", "reason": "x"}, "not being tried"),
        ({}, "does not know this adapter"),
    ],
)
def test_a_move_that_makes_no_sense_is_refused_and_nothing_is_published(ring: Ring, body: dict[str, str], says: str) -> None:
    answer = ring.act("/api/move", body)
    assert (answer.status_code, says in answer.json()["error"]) == (409, True), answer.text
    assert ring.log.everything() == []


def test_what_is_in_production_can_be_rolled_back_but_not_promoted_again(ring: Ring) -> None:
    ring.tell(PROMOTIONS, move="promoted", by="operator")
    assert ring.act("/api/move", {"adapter": "default@7", "move": "promoted", "reason": "x"}).status_code == 409
    assert ring.act("/api/move", {"adapter": "default@7", "move": "rolled_back", "reason": "worse"}).status_code == 200
    (event,) = ring.log.events(PROMOTIONS)
    assert (event.move, event.evidence["production_before"]) == ("rolled_back", "default@7")


def test_a_replay_publishes_the_same_bytes_under_the_key_of_the_event(ring: Ring) -> None:
    value = FEEDBACK.event.model_validate(EXAMPLES["feedback"]).encode()
    ring.tell(DEAD_LETTERS, **letter(value, reason="expired", record_key="cut"))
    assert ring.act("/api/replay", {"offset": 1}).status_code == 200
    (record,) = ring.log.records(FEEDBACK)
    assert (record.value, record.key) == (value, b"ep-1")


def test_bytes_that_are_no_event_go_back_as_they_came(ring: Ring) -> None:
    ring.tell(DEAD_LETTERS, **letter(b"not json \xff", record_key="k-1"))
    assert ring.act("/api/replay", {"offset": 1}).status_code == 200
    (record,) = ring.log.everything()
    assert (record.value, record.key) == (b"not json \xff", b"k-1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (letter(b"x", source_topic="__consumer_offsets"), "cannot be replayed to"),
        (letter(b"x", source_topic=DEAD_LETTERS.name), "cannot be replayed to"),
        (letter(b""), "no value"),
        (letter(b"x" * (64 << 10)), "cut at"),
        ({"record_base64": "?"}, "cannot be read"),
    ],
)
def test_what_cannot_be_replayed_is_said(changes: dict[str, Any], says: str) -> None:
    ring = Ring()
    event = ring.tell(DEAD_LETTERS, **changes)
    assert isinstance(event, DeadLetter)
    with pytest.raises(Refused, match=says):
        actions.replay(ring.facts.letters["0"], producer_on(ring.log))
    assert ring.act("/api/replay", {"offset": 0}).status_code == 409
    assert ring.act("/api/replay", {"offset": 99}).status_code == 409
    assert ring.browser.get("/dead-letters").status_code == 200
    assert ring.log.everything() == []


def test_a_body_that_is_not_what_is_wanted_is_told(ring: Ring) -> None:
    for content, status in ((b"not json", 400), (b"[1]", 400), (b" " * 20_000, 413)):
        assert ring.browser.post("/api/move", content=content, headers={KEY_HEADER: KEY}).status_code == status


def test_the_numbers_that_a_page_asks_for_again_are_those_that_it_shows(ring: Ring) -> None:
    now, page = ring.browser.get("/api/ring").json(), ring.browser.get("/").text
    assert set(now["flows"]) == {topic.short_name for topic in TOPICS}
    for name, value in now["tiles"].items():
        assert f'data-tile="{name}">{value}<' in page
    assert now["failure"] is not None
    assert ring.browser.get("/readyz").status_code == 503
    assert ring.browser.get("/healthz").status_code == 200
    assert ring.browser.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_pages_are_for_keyboards_and_screen_readers(ring: Ring) -> None:
    for page in PAGES:
        told = ring.browser.get(page).text
        assert '<html lang="en">' in told
        assert len(re.findall(r"<h1[ >]", told)) == 1
        assert "<main" in told
        assert "<nav aria-label=" in told
        assert 'href="#main"' in told
        for field in re.findall(r"<(?:input|select)[^>]*\bid=\"([^\"]+)\"", told):
            assert f'<label for="{field}">' in told, (page, field)
        assert re.findall(r"<svg(?![^>]*(?:aria-label=|aria-hidden=))", told) == []


def test_a_chart_places_points_by_their_values_and_says_when_there_are_none() -> None:
    drawn = chart("t", [Line("a", [(0, 0.0), (10, 1.0)])], "x", "y", percent=True)
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x1 > x0
    assert y1 < y0, "up is up"
    assert "Nothing to draw" in chart("t", [Line("a", [])], "x", "y")
    assert chart("t", [Line("a", [(3, 7.0)])], "x", "y").count("<circle") == 1
    counted = re.findall(r'class="tick"[^>]*text-anchor="middle">([^<]+)<', chart("t", [Line("a", [(1, 1.0), (3, 2.0)])], "x", "y"))
    assert counted == ["1", "2", "3"], "there is no step one and a half"
    assert 'aria-label="&lt;b&gt;"' in chart("<b>", [Line("a", [(3, 7.0)])], "x", "y")


def test_the_reward_model_is_shown_only_with_labels_it_was_tested_on() -> None:
    ring = Ring()
    ring.tell(REWARD_MODELS, calibration={"labels": 0, "accuracy": 0, "baseline": 0, "brier": 0, "ece": 0})
    assert ring.browser.get("/api/ring").json()["tiles"]["accuracy"] == "not tested yet"
    ring.tell(REWARD_MODELS, version=13)
    assert ring.browser.get("/api/ring").json()["tiles"]["accuracy"].startswith("84%")


def test_why_an_episode_scores_as_it_does_is_told_on_request_and_what_stands_against_it_too() -> None:
    def explain(episode_id: str) -> dict[str, Any]:
        if episode_id != "ep-1":
            raise ConfigError(f"the lake has no episode {episode_id}")
        return {"episode_id": "ep-1", "version": 3, "mean": 0.7}

    ring = Ring()
    following = LogFollowing(KafkaSettings(), ring.facts, Metrics())
    asked = TestClient(
        Console(ConsoleSettings(), following, producer_on(ring.log), SystemClock(), explain=explain).app(), base_url="http://localhost"
    )
    assert asked.get("/api/explain?episode=ep-1").json()["mean"] == 0.7
    told = asked.get("/api/explain?episode=ep-2")
    assert (told.status_code, told.json()) == (409, {"error": "the lake has no episode ep-2"})
    assert ring.browser.get("/api/explain?episode=ep-1").status_code == 404


def test_sentences_of_a_note_are_told_apart(ring: Ring) -> None:
    following = LogFollowing(KafkaSettings(), ConsoleFacts(), Metrics())
    app = Console(ConsoleSettings(), following, producer_on(ring.log), SystemClock(), gated=False).app()
    page = TestClient(app, base_url="http://localhost").get("/adapters").text
    assert "promoted. Replicas ignore promotions" in page
    assert "attested. Promoting and rolling back" in page


def test_links_to_the_former_address_of_the_adapters_page_still_lead_there() -> None:
    answer = Ring().browser.get("/versions", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (301, "/adapters")


class Part(NamedTuple):
    """A part's health as the console is given it."""

    name: str
    state: str = "ready"
    told: str = "ready"
    restarts: int = 0
    lag: int | None = None


def looks(parts: list[Part], stale: bool = False) -> dict[str, str]:
    return {name: told["look"] for name, told in pages.health(parts, stale).items()}


def test_a_box_is_green_only_while_its_part_is_ready_and_kafka_answers() -> None:
    parts = [Part("kafka"), Part("actor"), Part("streams", "waits", "waits for lake"), Part("reward", "keeps dying", "keeps dying")]
    assert looks(parts) == {"kafka": "well", "actor": "well", "streams": "waits", "reward": "ill", "learner": "stale"}
    for dead in (looks(parts, stale=True), looks([Part("kafka", "died", "died"), *parts[1:]])):
        assert "well" not in dead.values(), "whatever a part answers, the ring stands still"
    assert pages.health([Part("actor", lag=3, restarts=2)], False)["actor"]["told"] == "ready, 3 behind, 2× restarted"


def test_the_ring_page_shows_parts_and_marks_old_numbers(ring: Ring) -> None:
    page = ring.browser.get("/").text
    assert 'class="tiles stale"' in page, "the log has not been read yet"
    assert "flows" not in re.findall(r'class="(arrow[^"]*)"', page)
    boxes = re.findall(r'<rect class="node([^"]*)"(?: data-look="(\w+)")?', page)
    assert [part for _, part in boxes] == ["actor", "", "streams", "streams", "reward", "learner"], "the lake is written by the streams"
    assert {look.strip() for look, part in boxes if part} == {"stale"}
    assert ring.browser.get("/api/ring").json()["stale"] is True


def test_facts_are_old_once_kafka_has_said_nothing_for_a_while() -> None:
    now_s = [0.0]
    following = LogFollowing(KafkaSettings(bootstrap_servers="nowhere:1"), ConsoleFacts(), Metrics(), lambda: now_s[0])
    following._failure = None
    assert following.failure is None
    now_s[0] = 16.0
    assert following.failure == "Kafka has not answered for 16 s: these numbers are as old as that"


def test_a_reward_model_that_no_label_tested_says_so(ring: Ring) -> None:
    untested = {**EXAMPLES["reward-models"]["calibration"], "labels": 0}
    ring.tell(REWARD_MODELS, calibration=untested)
    tiles = pages.ring(ring.facts, 0)["tiles"]
    assert (tiles["accuracy"], tiles["ece"]) == ("not tested yet", "not tested yet")
    assert pages.ring(ConsoleFacts(), 0)["tiles"]["accuracy"] == "–"


def test_episodes_are_in_order_of_time_whatever_partition_they_came_from() -> None:
    ring = Ring()
    for minute in (5, 1, 9, 3):
        at = T0 + timedelta(minutes=minute)
        ring.tell(EPISODES, episode_id=f"ep-{minute}", started_at=at, ended_at=at + timedelta(seconds=4), user_id="ann")
    page = ring.browser.get("/episodes").text
    assert re.findall(r'href="/episodes/(ep-\d+)"', page) == ["ep-9", "ep-5", "ep-3", "ep-1"]
    assert "ann" in page
    assert ">4 s<" in page
