"""One person, one id: whichever door it came through and however it was written."""

import json
import unicodedata
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.errors import Refused
from streams.core.events import ANONYMOUS, Episode, Erasure, Feedback
from streams.core.person_ids import MOST_CHARACTERS, header_text, people_in, person_of, plain_id

ANY_TEXT = st.text(st.characters(), max_size=400)  # halves of surrogate pairs among them
TIMES = {"started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z"}


def as_episode(user_id: object) -> str | None:
    raw = json.dumps({"episode_id": "e", "messages": [], "user_id": user_id, **TIMES}).encode()
    return Episode.decode(raw).user_id


@given(ANY_TEXT)
def test_every_door_comes_to_the_same_id_and_the_rule_is_its_own_fixed_point(given_id: str) -> None:
    plain = plain_id(given_id)
    assert plain is None or (plain_id(plain) == plain and 0 < len(plain) <= MOST_CHARACTERS)
    assert as_episode(given_id) == plain
    feedback = Feedback.decode(
        json.dumps({"feedback_id": "f", "episode_id": "e", "user_id": given_id, "thumb": "up", "kind": "thumb", "at": TIMES["ended_at"]}).encode()
    )
    assert feedback.user_id == (plain or ANONYMOUS)
    if plain is not None:
        assert person_of(given_id) == person_of(plain)
        assert plain in people_in(feedback.encode())


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=100))
def test_a_header_names_whom_the_body_names_in_utf8_in_percent_escapes_and_in_either_unicode_form(name: str) -> None:
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, name)
        assert plain_id(header_text(written.encode())) == plain_id(name)
        if not written.isascii():
            assert plain_id(header_text(quote(written).encode())) == plain_id(name)


def test_a_header_in_latin_1_is_read_as_such_and_plain_percent_signs_stay() -> None:
    assert header_text("jos\u00e9".encode("latin-1")) == "jos\u00e9"
    assert header_text(b"100%41") == "100%41"
    assert header_text(b"50%E9") == "50%E9"  # no UTF-8


@pytest.mark.parametrize(
    ("given_id", "plain"),
    [(42, "42"), (42.0, "42"), ("42", "42"), (10**30, str(10**30)), ("  u-1\n", "u-1"), ("\ufeffu-1\u200b ", "u-1"), ("\u202au-1\u202c", "u-1")],
)
def test_numbers_and_space_around_make_no_other_person(given_id: object, plain: str) -> None:
    assert plain_id(given_id) == as_episode(given_id) == plain


@pytest.mark.parametrize("nobody", [None, "", " ", "\n", True, [], {}, float("nan"), float("inf")])
def test_what_names_nobody_is_nobody(nobody: object) -> None:
    assert plain_id(nobody) is None


def test_two_long_ids_that_differ_at_the_end_are_two_people() -> None:
    one, other = plain_id("u" * 300 + "1"), plain_id("u" * 300 + "2")
    assert one is not None
    assert one.startswith("sha256:")
    assert one != other


@pytest.mark.parametrize("named", [
    b'{"user_id": "u-77"}', b'{"user_id" : 42, "user": "u-77"}', b'{"attributes": {"user.id": "u-77"}}', b'{"enduser.id":"u-77"}',
    b'{"gen_ai.user": "u-77"}', b'{"safety_identifier": "u-77"}', b'{"body": "{\\"user_id\\": \\"u-77\\"}"}', b'{"text": "cut off", "user_id": "u-77',
    b'{"key": "user.id", "value": {"stringValue": "u-77"}}', b'{"key":"enduser.id","value":{"string_value":"u-77"',  # OTLP's JSON
    b"metadata: {'user_id': 'u-77'}", b'{"m": "{\'user\': \'u-77\'}"}',  # what Python prints of a dict
    '{"user_id": "u-77"}'.encode("utf-16"), '{"user_id": "u-77"}'.encode("utf-16-be"), '{"user_id": "u-77"}'.encode("utf-32-le"),
    json.dumps({"a": json.dumps({"b": json.dumps({"user_id": "u-77"})})}).encode(),
])  # fmt: skip
def test_people_are_found_however_a_record_names_them(named: bytes) -> None:
    assert "u-77" in people_in(named)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), st.integers(0, 3))
def test_people_are_found_in_json_inside_texts_of_json(name: str, levels: int) -> None:
    document = json.dumps({"user_id": name})
    for _ in range(levels):
        document = json.dumps({"metadata": document})
    if (plain := plain_id(name)) is not None:
        assert plain in people_in(document.encode())


def test_who_is_nobody_or_everybody_without_a_name_cannot_be_erased() -> None:
    for user in ("", " \n", "\x00", ANONYMOUS, f" {ANONYMOUS}\n"):
        with pytest.raises(Refused, match=r"nobody|without a name"):
            Erasure.of(user, "operator", datetime.now(UTC))


def test_a_name_in_latin_1_is_that_of_the_command_line() -> None:
    assert "jos\u00e9" in people_in('{"user_id": "jos\u00e9", "text": "cut'.encode("latin-1"))
