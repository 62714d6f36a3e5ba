"""What must not leave the process is taken out of what people and models said, before it is kept: emails, phones, cards, keys.

Rules, each with a check where digits alone would say too much; or Presidio, where it is installed. They read text in its plain form
(``folded_text``), so that other digits, wide letters and unseen characters hide nothing. What was taken out leaves its kind in brackets behind.
Token ids spell the text out, so an episode that was redacted keeps none, nor their logprobs.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from actor.redaction.card_numbers import find_cards
from actor.redaction.folded_text import folded
from actor.redaction.redaction_settings import Kind, RedactionSettings
from streams.core.errors import ConfigError
from streams.core.events import Episode, Feedback

KINDS: tuple[Kind, ...] = ("keys", "emails", "cards", "phones")
"""The order of the searches: card numbers come before phone numbers."""
MARKS: dict[str, str] = {"keys": "[key]", "emails": "[email]", "cards": "[card]", "phones": "[phone]"}

_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of scripts that put no space between words: an address may stand right beside them."""
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9_.%+-])(?:[A-Za-z0-9_.%+-]{{1,64}}|(?:[^\W{_UNSPACED}]|[.%+-]){{1,64}}|[{_UNSPACED}]{{1,64}})(?:@|%40)"
    rf"(?:(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}(?:xn--[A-Za-z0-9-]{{2,59}}|[A-Za-z]{{2,24}})(?![A-Za-z0-9-])"
    rf"|(?:[\w-]{{1,63}}\.){{1,8}}[^\W\d_]{{2,24}}(?![A-Za-z0-9-]))"
)
_PHONE = re.compile(
    r"[+(0-9](?<![\w.+-].)(?:(?<=\+)\d[\d ()./-]{6,18}\d"  # with its country: +49 30 1234567
    r"|(?:(?<=1)[ .-]\(?\d{3}\)?[ .-]?|(?<=\()\d{3}\)[ .-]?|(?<=\d)\d{2}[ .-])\d{3}[ .-]\d{4}"  # North America: (415) 555-2671, 1-415-555-2671
    r"|(?<=0)(?:0[1-9]|[1-9])\d{0,3}[ /-]\d[\d /-]{4,14}\d"  # with a trunk's 0: 01 23 45 67 89
    r"|(?<=\()(?:0\d{1,4}\) ?\d{3,5}[ -]?\d{3,5}|\d{2}\) ?\d{4,5}[ -]\d{4})"  # with the area in brackets: (11) 91234-5678
    r"|(?<=1)[3-9]\d[ -]\d{4}[ -]\d{4}"  # China's mobiles: 138-1234-5678
    r")(?!\w)",
    re.ASCII,
)
_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:[^-]|-(?!----)){1,10000}-----END [A-Z ]{0,20}PRIVATE KEY-----"
    r"|\b(?:sk-|[srp]k_)[A-Za-z0-9_-]{16,200}|\bgh[opsur]_[A-Za-z0-9]{20,200}|\bgithub_pat_\w{20,200}|\bglpat-[\w-]{20,200}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bxox[abeprs]-[\w-]{10,200}|\bhf_[A-Za-z0-9]{20,200}|\btm-[\w-]{40,60}"
    r"|\beyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}"  # a JSON web token
    r"|(?<=[Bb]earer )[\w.~+/-]{20,4000}=*",
    re.ASCII,
)

_DIGIT = re.compile(r"\d")
_REFERENCE = re.compile(r"sha256:[0-9a-f]{64}")
_KEYS_BEGIN = (
    "sk-", "sk_", "rk_", "pk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "AIza", "xox", "hf_", "tm-", "eyJ",
    "earer ", " PRIVATE KEY",
)  # fmt: skip
"""A text with none of these holds no key: looking for them takes a tenth of the time."""


class Redactor(Protocol):
    """Removes personal data and secrets from text."""

    def text(self, text: str, found: Counter[str]) -> str:
        """The redacted text. Counts the removed passages by kind in ``found``."""


class Rules:
    """Regular expressions, in time linear in the text. Satisfies Redactor."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self._rules = [(kind, *_RULES[kind]) for kind in KINDS if kind in kinds]

    def text(self, text: str, found: Counter[str]) -> str:
        plain = folded(text)
        for kind, hint, spans in self._rules:
            if not hint(plain.text):
                continue
            kept, end = [], 0
            for begin, next_end in (plain.original(*span) for span in spans(plain.text)):
                kept += [text[end:begin], MARKS[kind]]
                found[kind] += 1
                end = next_end
            if kept:
                text = "".join([*kept, text[end:]])
                plain = folded(text)
        return text


class Presidio:
    """The rules, and then Microsoft's analyzer with a spaCy model. Satisfies Redactor. Raises ConfigError where it is not installed."""

    ENTITIES = {"EMAIL_ADDRESS": "emails", "PHONE_NUMBER": "phones", "CREDIT_CARD": "cards"}  # noqa: RUF012

    def __init__(self, kinds: tuple[Kind, ...], model: str) -> None:
        """``model``: a spaCy model that is installed; nothing is downloaded."""
        try:
            import spacy
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.nlp_engine import NlpEngineProvider
        except ImportError as error:
            raise ConfigError(f"actor.redact_with = 'presidio' needs `.venv/bin/uv pip install presidio-analyzer` ({error})") from None
        if not spacy.util.is_package(model):
            raise ConfigError(
                f"actor.presidio_model = {model!r} is not installed; spaCy knows {', '.join(spacy.util.get_installed_models()) or 'none'}"
            )
        engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]})
        self._analyzer: Any = AnalyzerEngine(nlp_engine=engine.create_engine(), supported_languages=["en"])
        self._rules = Rules(kinds)
        self._left_out = {"DATE_TIME"} | {entity for entity, kind in self.ENTITIES.items() if kind not in kinds}

    def text(self, text: str, found: Counter[str]) -> str:
        """What the rules find, then what it takes for personal (names and places too, but no times), but for the kinds that are not asked for."""
        text = self._rules.text(text, found)
        spans = [span for span in self._analyzer.analyze(text=text, language="en") if span.entity_type not in self._left_out]
        kept, end = "", 0
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            if span.start >= end:  # one that overlaps goes with the one before it
                kind = self.ENTITIES.get(span.entity_type, span.entity_type.lower())
                found[kind] += 1
                kept += text[end : span.start] + MARKS.get(kind, f"[{kind}]")
            end = max(end, span.end)
        return kept + text[end:]


def redactor_of(settings: RedactionSettings) -> Redactor:
    """The redactor that the settings name. Raises ConfigError when it is not installed."""
    return Presidio(settings.redact, settings.presidio_model) if settings.redact_with == "presidio" else Rules(settings.redact)


def redacted_episode(episode: Episode, redactor: Redactor, found: Counter[str]) -> Episode:
    """The redacted episode. The same object when there was nothing to remove."""
    before = found.total()
    said = [message.model_dump(exclude_unset=True) for message in episode.messages]
    given = {name: getattr(episode, name) for name in ("tools", "answer", "tool_calls", "chat_template_kwargs")}
    fields = redacted({"messages": said, **given}, redactor, found)
    if found.total() == before:
        return episode
    hidden = {"prompt_ids": (), "output_ids": (), "output_logprobs": ()}
    return Episode.model_validate(episode.model_dump() | fields | hidden | {"redacted": dict(found)})


def redacted_feedback(feedback: Feedback, redactor: Redactor, found: Counter[str]) -> Feedback:
    """The feedback with its text redacted."""
    return feedback if feedback.text is None else feedback.model_copy(update={"text": redactor.text(feedback.text, found)})


def redacted(value: Any, redactor: Redactor, found: Counter[str]) -> Any:
    """The same JSON with every text redacted, names of fields and numbers too; except references to media: a checksum can contain the digits of a
    card."""
    match value:
        case str():
            return value if _REFERENCE.fullmatch(value) else _redacted_text(value, redactor, found)
        case dict():
            return {_redacted_text(name, redactor, found): redacted(each, redactor, found) for name, each in value.items()}
        case list() | tuple():
            return [redacted(each, redactor, found) for each in value]
        case bool() | None:
            return value
        case int() | float() if 10**12 <= abs(value) < 10**19 and value == int(value):  # a card that a spreadsheet or a database holds as a number
            written = redactor.text(str(int(value)), found)
            return value if written == str(int(value)) else written
        case _:
            return value


def _redacted_text(text: str, redactor: Redactor, found: Counter[str]) -> str:
    """The text without what must not be kept. Text that is JSON, as a call's arguments are, stays JSON: what is taken out of it becomes a string;
    and it is read as what it says, since escapes may hide a number."""
    passages: Counter[str] = Counter()
    plain = redactor.text(text, passages)
    if text.lstrip()[:1] in ("{", "[") and (passages or "\\" in text):
        said: Counter[str] = Counter()
        try:
            left = redacted(json.loads(text, parse_float=_finite), redactor, said)
            plain, passages = json.dumps(left, ensure_ascii=False), said
        except (ValueError, RecursionError):
            pass  # it is no JSON after all
    if not passages:
        return text
    found.update(passages)
    return plain


def _finite(written: str) -> float | str:
    """A number of JSON; as text where it is too large for one, since "Infinity" is no JSON."""
    return number if math.isfinite(number := float(written)) else written


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdecimal())


def _is_phone(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 15 or (text.startswith("+") and len(_digits(text)) >= 8)


def _has_digits(text: str) -> bool:
    return _DIGIT.search(text) is not None


def _matches(pattern: re.Pattern[str], holds: Callable[[str], bool] = bool) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span() for match in pattern.finditer(text) if holds(match[0]))


_RULES: dict[Kind, tuple[Callable[[str], bool], Callable[[str], Iterator[tuple[int, int]]]]] = {
    "keys": (lambda text: any(map(text.__contains__, _KEYS_BEGIN)), _matches(_KEY)),
    "emails": (lambda text: "@" in text or "%40" in text, _matches(_EMAIL)),
    "cards": (_has_digits, find_cards),
    "phones": (_has_digits, _matches(_PHONE, _is_phone)),
}
"""For each kind: whether a text may hold one at all, and where they are."""
