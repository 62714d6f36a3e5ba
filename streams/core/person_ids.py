"""One rule for the ids by which agents name people and conversations: at every door, in every event, and on the command line.

An id reaches us as JSON (a string or a number), as bytes of an HTTP header, as an attribute of a span, or typed in a terminal. All of them
must name one person, or an erasure finds one form and leaves the others. So every form goes through ``plain_id`` before it is kept or compared.
"""

import hashlib
import hmac
import json
import os
import re
import unicodedata
from typing import Any
from urllib.parse import unquote

KEY_VARIABLE = "TIDEMILL_ERASURE__PERSON_KEY"
"""Environment variable with the key of people's hashes (``erasure.person_key``)."""
MOST_CHARACTERS = 200
"""Ids longer than this are replaced by their SHA-256. Cutting them would make one person of two."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNSEEN = r"\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_EDGES = re.compile(rf"^[{_UNSEEN}]+|[{_UNSEEN}]+$")
_HALF = re.compile(r"[\ud800-\udfff]")
_NAMES = (
    rb"(?:user_?id|user|safety_identifier|user\.id|enduser\.(?:pseudo\.)?id|gen_ai\.user(?:\.id)?|x-tidemill-user"
    rb"|traceloop\.association\.properties\.user_id)"
)
_NAMED = re.compile(
    rb"([\"'])" + _NAMES + rb"\1\s*(?::|,\s*\1value\1\s*:\s*\{\s*\1\w{1,20}\1\s*:)\s*"  # a field; or an attribute of OTLP's JSON
    rb"(?:\"((?:[^\"\\]|\\.)*)\"?|'((?:[^'\\]|\\.)*)'?|(-?\d+))",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rb'\\(["\\/])')
_NESTED = 6
"""So deep JSON inside texts of JSON is read for names."""


def plain_id(value: object) -> str | None:
    """The id in its one form; None where ``value`` names nobody.

    Whole numbers are written as digits, so that 42 and "42" are one. Text is brought to Unicode's composed form (NFC), loses control
    characters, and the space and unseen marks around it, which come along when it is copied. Where it is longer than 200 characters its SHA-256
    takes its place. The rule changes nothing when it is applied again.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        value = f"{int(value):d}" if abs(value) < 10**MOST_CHARACTERS else None
    if not isinstance(value, str):
        return None
    if value.isascii() and value.isprintable() and 0 < len(value) <= MOST_CHARACTERS and not value.startswith(" ") and not value.endswith(" "):
        return value
    text = _EDGES.sub("", unicodedata.normalize("NFC", _CONTROL.sub("", whole_characters(value))))
    if len(text) > MOST_CHARACTERS:
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text or None


def header_text(raw: bytes) -> str:
    """The text of an HTTP header's value: UTF-8 where it is UTF-8, else Latin-1; UTF-8 in percent-escapes, as some proxies write it, is read too."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
    if not text.isascii() or "%" not in text:
        return text
    try:
        unescaped = unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
    return text if unescaped.isascii() else unescaped


def whole_characters(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair, which no UTF-8 can carry."""
    return _HALF.sub("\ufffd", text)


def whole_text(value: Any) -> Any:
    """The same for every text inside a JSON value, keys included. Returns the value itself where nothing had to change."""
    if isinstance(value, str):
        return value if value.isascii() else whole_characters(value)
    if isinstance(value, dict):
        return {whole_text(name): whole_text(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole_text(inner) for inner in value) if type(value) in (list, tuple) else value
    return value


def person_key() -> bytes | None:
    """The ring's key for hashes of people, from the environment of this process; None where there is none."""
    return os.environ.get(KEY_VARIABLE, "").encode() or None


def key_id_of(key: bytes) -> str:
    """Names a key without telling it."""
    return hmac.new(key, b"tidemill: the name of this key", hashlib.sha256).hexdigest()[:16]


def person_of(user_id: str) -> str:
    """A person by a hash of their id in its one form, in hex: HMAC-SHA256 under the ring's key, so that nobody without the key can tell by trying
    whose hash it is; plain SHA-256 where there is no key."""
    return people_of(user_id)[0]


def people_of(user_id: str) -> tuple[str, ...]:
    """The person's hash, and after it the plain SHA-256, by which older events name people."""
    whole, key = (plain_id(user_id) or "").encode(), person_key()
    unsalted = hashlib.sha256(whole).hexdigest()
    return (unsalted,) if key is None else (hmac.new(key, whole, hashlib.sha256).hexdigest(), unsalted)


def masked(person: str, other: str, key: bytes) -> str:
    """``other``, a person's hash in hex, so that only who has the key can read it; masked again, it is as it was."""
    mask = hmac.new(key, b"tidemill: the plain hash of " + person.encode(), hashlib.sha256).digest()
    return bytes(a ^ b for a, b in zip(bytes.fromhex(other), mask, strict=True)).hex()


def as_utf_8(raw: bytes) -> bytes:
    """JSON in UTF-16 or UTF-32, as some platforms write text, in UTF-8; anything else as it is."""
    if b"\x00" not in raw[:4] and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return raw
    try:
        return raw.decode(json.detect_encoding(raw)).encode()
    except UnicodeError:
        return raw


def people_in(raw: bytes) -> set[str]:
    """Everybody whom JSON names, whole or cut off, by their ids in the one form: as agents, clients and telemetry name who asks. Also in JSON inside
    a text of JSON, as telemetry's attributes are, and in what Python prints of a dict."""
    found: set[str] = set()
    raw = as_utf_8(raw)
    for _ in range(_NESTED):
        for _, quoted, printed, number in _NAMED.findall(raw):
            found |= {plain for named in _readings(quoted or printed, number) if (plain := plain_id(named)) is not None}
        if b'\\"' not in raw:
            break
        raw = _ESCAPED.sub(rb"\1", raw)
    return found


def _readings(quoted: bytes, number: bytes) -> set[Any]:
    """What a value in JSON says; where escapes are left in it, also what these say."""
    try:
        found = {json.loads(number or b'"' + quoted + b'"')}
    except ValueError:
        return {header_text(quoted), quoted.decode(errors="replace")} if quoted else set()
    named = next(iter(found))
    while isinstance(named, str) and "\\" in named:
        try:
            named = json.loads(f'"{named}"')
        except ValueError:
            break
        found.add(named)
    return found
