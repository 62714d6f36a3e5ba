"""What is taken out before anything is kept, and what is left alone."""

import json
import random
import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actor.redaction.card_numbers import passes_luhn
from actor.redaction.redaction import KINDS, Presidio, Rules, redacted, redacted_episode, redacted_feedback, redactor_of
from actor.settings import ActorSettings
from streams.core.errors import ConfigError
from streams.core.events import Episode, Feedback
from tests.support.captured import CHAT, World, whole

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CARD = "4111 1111 1111 1111"


def redact(text: str, *kinds: Any) -> tuple[str, dict[str, int]]:
    found: Counter[str] = Counter()
    return Rules(kinds or KINDS).text(text, found), dict(found)


@pytest.mark.parametrize(("text", "left"), [
    ("write to ann.b+c@mail.example.org.", "write to [email]."),
    ("<ünal@bücher.example> and a@b.co", "<[email]> and [email]"),
    (f"card {CARD}, please", "card [card], please"),
    ("5500-0000-0000-0004", "[card]"),
    ("378282246310005", "[card]"),
    ("call +49 30 901820 now", "call [phone] now"),
    ("(415) 555-2671 or 415.555.2671", "[phone] or [phone]"),
    ("01 23 45 67 89", "[phone]"),
    ("key sk-proj-abcdefghij0123456789, ok", "key [key], ok"),
    ("ghp_" + "a1" * 18, "[key]"),
    ("AKIAIOSFODNN7EXAMPLE", "[key]"),
    ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz012345==", "Authorization: Bearer [key]"),
    ("tm-" + "A_-z" * 11, "[key]"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcDEF123_-456", "[key]"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nxyz=\n-----END RSA PRIVATE KEY-----", "[key]"),
    ("我的邮箱是foo@bar.com谢谢, 用户@例子.中国", "我的邮箱是[email]谢谢, [email]"),
    ("是" * 80 + "foo@bar.com", "是" * 80 + "[email]"),
    ("josé@exämple.de, a@b.xn--p1ai, иван@пример.рф", "[email], [email], [email]"),
    ("https://x.example/?to=foo%40example.com&b=1 foo\uff20bar.com", "https://x.example/?to=[email]&b=1 [email]"),
    ("電話+49 30 901820です", "電話[phone]です"),
    ("415\u2011555\u20112671 or 01\u00a023\u202f45\u00a067\u00a089", "[phone] or [phone]"),
    ("1-800-555-0199 or 1 (415) 555-2671", "[phone] or [phone]"),
    ("(11) 91234-5678 or (030) 901820 or 138-1234-5678", "[phone] or [phone] or [phone]"),
    ("+\u0664\u0669 \u0663\u0660 \u0669\u0660\u0661\u0668\u0662\u0660", "[phone]"),
    ("密钥sk-proj-abcdefghij0123456789好", "密钥[key]好"),
])  # fmt: skip
def test_what_is_personal_or_secret_is_taken_out(text: str, left: str) -> None:
    assert redact(text)[0] == left


@pytest.mark.parametrize("text", [
    "on 2024-01-05 at 12:30, version 3.11.0", "192.168.100.200:8000", "4111 1111 1111 1112", "order 1234567890123", "1 000 000 000",
    "3.14159265358979", "0.4111111111111111 0,4111111111111111 .4111111111111111", "(1999) 1234-5678", "4000\n4100\n4200\n4306",
    "@ann and user@host", "task-based risk-adjusted", "0 1 2 3", "0.1 + 0.25", "", "1234", "the 2000-2010s",
])  # fmt: skip
def test_numbers_dates_and_words_are_left_alone(text: str) -> None:
    assert redact(text) == (text, {})


def test_only_the_kinds_that_are_asked_for() -> None:
    assert redact(f"a@b.co {CARD}", "emails") == (f"[email] {CARD}", {"emails": 1})
    assert redact(f"a@b.co {CARD}") == ("[email] [card]", {"emails": 1, "cards": 1})


@pytest.mark.parametrize(("number", "valid"), [("79927398713", True), ("79927398710", False), ("0000000000000", False), (CARD, True)])
def test_the_check_digit_of_cards(number: str, valid: bool) -> None:
    assert passes_luhn(number.replace(" ", "")) is valid


PIECES = ["a", "a.", "1", "1 ", "+1 ", "(", "a@", "a@a.", "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaa.", "sk-", "0-", "Bearer "]


@pytest.mark.parametrize("piece", PIECES)
def test_a_long_text_that_nearly_matches_everywhere_is_read_in_one_go(piece: str) -> None:
    """With time that grows as the square of the length this would not end."""
    text, found = redact(piece * 50_000)
    assert (text != piece * 50_000) == bool(found)


def episode(**fields: Any) -> Episode:
    said = {"messages": [{"role": "user", "content": "hi", "name": "x"}], "answer": "hello", "prompt_ids": [1, 2], "output_ids": [3],
            "output_logprobs": [-0.1], "episode_id": "e", "started_at": NOW, "ended_at": NOW}  # fmt: skip
    return Episode.model_validate(said | fields)


CALL = {"id": "c", "type": "function", "function": {"name": "send", "arguments": '{"to": "a@b.co"}'}}


@pytest.mark.parametrize("fields", [
    {"messages": [{"role": "user", "content": "I am a@b.co"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "I am a@b.co"}]}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [{"role": "tool", "content": "sent to a@b.co", "tool_call_id": "c"}]},
    {"answer": "I wrote to a@b.co"},
    {"tool_calls": [CALL]},
    {"tools": [{"type": "function", "function": {"name": "send", "description": "to a@b.co"}}]},
    {"chat_template_kwargs": {"note": "to a@b.co"}},
], ids=str)  # fmt: skip
def test_wherever_it_stands_in_an_episode_and_its_tokens_go_with_it(fields: dict[str, Any]) -> None:
    kept = redacted_episode(episode(**fields), Rules(KINDS), Counter())
    assert b"a@b.co" not in kept.encode()
    assert b"[email]" in kept.encode()
    assert (kept.prompt_ids, kept.output_ids, kept.output_logprobs, kept.redacted) == ((), (), (), {"emails": 1})
    assert Episode.decode(kept.encode()) == kept


def test_an_episode_without_anything_is_left_as_it_is() -> None:
    before = episode()
    assert redacted_episode(before, Rules(KINDS), Counter()) is before


def test_a_checksum_stays_though_a_card_could_be_read_in_it() -> None:
    url = "sha256:cb4111111111111111ccb32c6487f4f2ead45bddcdbc408266d26b24f60b7bd5"
    assert redact(url) == (url, {})
    before = episode(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert redacted_episode(before, Rules(KINDS), Counter()) is before
    spoken = redacted_episode(episode(messages=[{"role": "user", "content": f"{url}, {CARD}"}]), Rules(KINDS), Counter())
    assert dict(spoken.redacted) == {"cards": 1}


def test_the_text_of_feedback() -> None:
    said = Feedback.model_validate({"feedback_id": "f", "episode_id": "e", "kind": "comment", "text": f"charge {CARD}", "at": NOW})
    assert redacted_feedback(said, Rules(KINDS), Counter()).text == "charge [card]"


async def test_nothing_of_it_reaches_the_outbox_nor_who_asks_for_the_episode() -> None:
    world = World(whole)
    await world.post(CHAT | {"messages": [{"role": "user", "content": "I am a@b.co"}]})
    said = [{"role": "user", "content": "I am a@b.co"}, {"role": "assistant", "content": "Ahoy"}, {"role": "user", "content": f"charge {CARD}"}]
    await world.post(CHAT | {"messages": said})
    assert [each.text for each in world.spool.feedback] == ["charge [card]"]  # found again all the same: prefixes are of what was said
    assert [dict(each.redacted) for each in world.spool.episodes] == [{"emails": 1}, {"emails": 1, "cards": 1}]
    assert b"a@b.co" not in b"".join(each.encode() for each in world.spool.episodes)
    assert world.bodies[0].count(b"a@b.co") == 1  # the engine is asked what the person asked
    assert world.metrics.value("tidemill_redactions_total", kind="cards") == 2


def test_presidio_that_is_not_installed_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match=r"pip install presidio-analyzer"):
        redactor_of(ActorSettings(redact_with="presidio"))


class Analyzer:
    """Answers as Presidio's analyzer does: spans with a type, in no order, some overlapping. Not Presidio itself."""

    def __init__(self, **_: Any) -> None:
        return

    def analyze(self, text: str, language: str) -> list[Any]:
        places = {"Ann Bee": "PERSON", "Bee of Paris": "ORGANIZATION", "Paris": "LOCATION", "noon": "DATE_TIME", "Rome": "LOCATION"}
        return [SimpleNamespace(start=text.index(word), end=text.index(word) + len(word), entity_type=kind) for word, kind in places.items()]


@pytest.fixture
def presidio(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the packages, which the lock does not hold."""
    provider = SimpleNamespace(create_engine=lambda: None)
    monkeypatch.setitem(
        sys.modules, "spacy", SimpleNamespace(util=SimpleNamespace(is_package="small".__eq__, get_installed_models=lambda: ["small"]))
    )
    monkeypatch.setitem(sys.modules, "presidio_analyzer", SimpleNamespace(AnalyzerEngine=Analyzer))
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", SimpleNamespace(NlpEngineProvider=lambda nlp_configuration: provider))


def test_spans_of_presidio_are_taken_out_whole_even_where_they_overlap(presidio: None) -> None:
    found: Counter[str] = Counter()
    text = Presidio(KINDS, "small").text("I am Ann Bee of Paris, a@b.co, at noon in Rome", found)
    assert text == "I am [person], [email], at noon in [location]"
    assert found == {"person": 1, "location": 1, "emails": 1}


def test_a_model_that_is_not_installed_is_told_with_those_that_are(presidio: None) -> None:
    with pytest.raises(ConfigError, match=r"'large' is not installed; spaCy knows small"):
        redactor_of(ActorSettings(redact_with="presidio", presidio_model="large"))


@pytest.mark.parametrize(("text", "left"), [
    ("my card is 4111 1111 1111 1111 12/28", "my card is [card] 12/28"),
    ("4111111111111111 123", "[card] 123"),
    ("visa 4111111111111111 09 27 cvc 123", "visa [card] 09 27 cvc 123"),
    ("2026 4111 1111 1111 1111", "2026 [card]"),
    ("3782 822463 10005 1228", "[card] 1228"),
    ("415-555-2671 4111 1111 1111 1111", "415-555-[card]"),  # 2671 4111 1111 1111 is one too
    ("4111\u00a01111\u20091111\u200b1111, or 4111\u20111111\u20111111\u20111111", "[card], or [card]"),
    ("\u0664\u0661\u0661\u0661 \u0661\u0661\u0661\u0661 \u0661\u0661\u0661\u0661 \u0661\u0661\u0661\u0661", "[card]"),
    ("\uff14\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11", "[card]"),
    ("5500 0000 0000 0004 4111 1111 1111 1111", "[card] [card]"),
    ("我的卡号是4111111111111111，请扣款", "我的卡号是[card]，请扣款"),  # scripts that put no space before a number
    ("カード4111ー1111ー1111ー1111です", "カード[card]です"),
    ("карта4111111111111111", "карта[card]"),
    ("Jane,4111111111111111,0927,123", "Jane,[card],0927,123"),  # a row of a table
    ("no.4111111111111111", "no.[card]"),
    ("Visa4111 1111 1111 1111exp 12/28, id4111111111111111", "Visa[card]exp 12/28, id4111111111111111"),
    ("4111-1111-1111-1111 -- 2, 99   4111-1111-1111-1111", "[card] -- 2, 99   [card]"),
    ("http://x.example/1 4111 1111 1111 1111", "http://x.example/1 [card]"),
    ("4111.1111.1111.1111 4111/1111/1111/1111 4111_1111_1111_1111 4111 - 1111 - 1111 - 1111", "[card] [card] [card] [card]"),
    ("3782.822463.10005 and 4111 1111\n1111 1111", "[card] and [card]"),
    ("<td>4111&nbsp;1111&nbsp;1111&nbsp;1111</td>", "<td>[card]</td>"),
    ("?card=4111%201111%201111%201111&cvc=4111+1111+1111+1111", "?card=[card]&cvc=[card]"),
    ("4111\u22121111\u22121111\u22121111, \u202a4111\u20661111\u034f1111\u00ad1111\u202c", "[card], \u202a[card]\u202c"),
    ("\U0001d7d2\U0001d7cf\U0001d7cf\U0001d7cf 1111 1111 1111", "[card]"),
    ("4\ufe0f\u20e31\ufe0f\u20e31\ufe0f\u20e31\ufe0f\u20e3 1111 1111 1111", "[card]"),
])  # fmt: skip
def test_a_card_is_found_beside_dates_and_codes_in_any_digits_and_spaces(text: str, left: str) -> None:
    assert redact(text)[0] == left


NETWORKS = [("34", 15), ("37", 15), ("36", 14), ("38", 14), ("4", 16), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("6011", 16),
            ("65", 16), ("3528", 16), ("62", 16), ("62", 19), ("5018", 16), ("6304", 16), ("6759", 16)]  # fmt: skip
SPACES = ["", " ", "-", "\u00a0", "\u2009", "\u200b", "\u2011", " \u200b", ".", "/", " - ", "\u2212", "&nbsp;"]
AROUND = [
    "{}",
    "card {} please",
    "{} 12/28",
    "{} 03/2027 cvc 999",
    "visa:{}",
    "2026 {}",
    "{}, 49 Main St",
    "exp 09 27 {}",
    "({})",
    "tel 415-555-2671 card {}",
    "卡号{}。",
    "ann,{},0927",
]
NOT_CARDS: list[Callable[[random.Random], str]] = [
    lambda r: str(1_500_000_000_000 + r.randrange(5 * 10**11)),  # milliseconds, microseconds and nanoseconds since 1970, until 2033
    lambda r: str(1_500_000_000_000_000 + r.randrange(5 * 10**14)),
    lambda r: str(1_500_000_000_000_000_000 + r.randrange(5 * 10**17)),
    lambda r: str(r.randrange(10**17, 2 * 10**18)),  # snowflakes
    lambda r: str(uuid.UUID(int=r.getrandbits(128))),
    lambda r: f"{r.getrandbits(256):064x}",
    lambda r: f"{r.getrandbits(160):040x}",
    lambda r: f"978-{r.randrange(10)}-{r.randrange(10**4):04d}-{r.randrange(10**4):04d}-{r.randrange(10)}",
    lambda r: f"40{r.randrange(10**11):011d}",  # barcodes
    lambda r: f"{r.random():.16f}",
    lambda r: f"2026-0{r.randrange(1, 9)}-1{r.randrange(10)} 1{r.randrange(10)}:{r.randrange(10, 60)}:{r.randrange(10, 60)}",
    lambda r: f"192.168.{r.randrange(256)}.{r.randrange(256)}",
    lambda r: str(r.randrange(10**8, 10**12)),  # orders
    lambda r: f"{r.randrange(10**6)},{r.randrange(10**3):03d},{r.randrange(10**3):03d},{r.randrange(10**3):03d},{r.randrange(10**3):03d}",
]


def a_card(chance: random.Random) -> str:
    prefix, length = chance.choice(NETWORKS)
    body = prefix + "".join(str(chance.randrange(10)) for _ in range(length - len(prefix) - 1))
    digits = next(body + str(check) for check in range(10) if passes_luhn(body + str(check)))
    sizes = [4, 6, 5] if length == 15 else [4, 6, 4] if length == 14 else [4, 4, 4, 4, 3]
    groups = [digits[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
    written = chance.choice(SPACES).join(group for group in groups if group)
    return "".join(chr(0x0660 + int(c)) if c.isdecimal() else c for c in written) if chance.random() < 0.1 else written


def test_of_a_hundred_cards_ninety_nine_are_found_and_of_ten_thousand_other_numbers_one_is_taken_for_a_card_at_most() -> None:
    """A corpus that is made anew from each of five seeds: 2,000 cards as people write them, 28,000 times, ids, hashes, barcodes and orders."""
    for seed in range(5):
        chance, rules = random.Random(seed), Rules(("cards",))
        cards = [chance.choice(AROUND).format(a_card(chance)) for _ in range(2000)]
        others = [make(chance) for make in NOT_CARDS for _ in range(2000)]
        missed = [text for text in cards if "[card]" not in rules.text(text, Counter())]
        alarms = [text for text in others if "[card]" in rules.text(text, Counter())]
        assert len(missed) <= 0.01 * len(cards), missed[:5]
        assert len(alarms) <= 1e-4 * len(others), alarms[:5]


def test_times_in_json_stay_times_and_a_card_in_json_leaves_json() -> None:
    rules = Rules(KINDS)
    times = [json.dumps({"ts": 1772366400000 + 1000 * k}) for k in range(1000)]
    assert [redacted(text, rules, Counter()) for text in times] == times
    found: Counter[str] = Counter()
    left = redacted('{"n": 4111111111111111, "to": ["a@b.co", 7], "a@b.co": {"deep": "4111 1111 1111 1111"}}', rules, found)
    assert json.loads(left) == {"n": "[card]", "to": ["[email]", 7], "[email]": {"deep": "[card]"}}
    assert found == {"cards": 2, "emails": 2}


@pytest.mark.parametrize(("said", "left"), [
    ('{"n": "4111\\u00a01111\\u00a01111\\u00a01111"}', '{"n": "[card]"}'),  # escapes hide it from who reads the text alone
    ('{"to": "a\\u0040b.co"}', '{"to": "[email]"}'),
    ('{"inner": "{\\"n\\": 4111111111111111}"}', '{"inner": "{\\"n\\": \\"[card]\\"}"}'),
    ('{"n": 4111111111111111.0, "x": 1e999}', '{"n": "[card]", "x": "1e999"}'),
    ({"n": 4111111111111111, "a@b.co": [4.111111111111111e15, True, None, 7.5]}, {"n": "[card]", "[email]": ["[card]", True, None, 7.5]}),
    ('{"path": "C:\\\\tmp"}', '{"path": "C:\\\\tmp"}'),
    ("{not json \\u0040", "{not json \\u0040"),
])  # fmt: skip
def test_json_is_read_as_what_it_says(said: Any, left: Any) -> None:
    assert redacted(said, Rules(KINDS), Counter()) == left


@given(st.text(st.sampled_from('4 1-.,/_a是\u200b\u00a0\uff14\ufe0f@+0\n%&\\{"') | st.characters(), max_size=80))
def test_text_of_any_kind_keeps_what_is_not_taken_out(text: str) -> None:
    """What is left are passages of the text in their order, with marks between them."""
    left, found = redact(text)
    pieces = re.split(r"\[(?:card|phone|email|key)\]", left)
    place = 0
    for piece in pieces:
        place = text.index(piece, place) + len(piece)
    assert (left == text) == (not found)
