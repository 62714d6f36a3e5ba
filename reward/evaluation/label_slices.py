"""Slices of the labels for calibration by channel, adapter, language and length: a model that is right overall may be wrong for some. Simple
rules."""

import re
from collections.abc import Sequence

import torch

from reward.evaluation.calibration import calibration
from reward.fit.buffer_entry import BufferEntry
from streams.core.events import Calibration

FEWEST = 10
"""Fewest labels of a slice: with fewer, its figures would be chance."""
MOST_ADAPTERS = 5
SHORT_WORDS, LONG_WORDS = 50, 200
SCRIPTS = (
    ("ja", re.compile(r"[぀-ヿ]")),
    ("ko", re.compile(r"[가-힯]")),
    ("zh", re.compile(r"[一-鿿]")),
    ("ru", re.compile(r"[Ѐ-ӿ]")),
    ("ar", re.compile(r"[؀-ۿ]")),
    ("hi", re.compile(r"[ऀ-ॿ]")),
    ("el", re.compile(r"[Ͱ-Ͽ]")),
)
SCRIPT_RATIO = 0.2
FREQUENT_WORDS = {
    "en": "the and of to is that it you for with this are on as be not can have from or",
    "de": "der die das und ist nicht ein eine zu mit den von sie es auf für ich im sich auch",
    "fr": "le la les et est une des que pour dans vous ce qui pas sur au avec il sont ou",
    "es": "el los las que es una en por con para se no su del lo como más pero y al",
    "it": "il che di è un una per non con sono la del si gli le anche come ma nel alla",
    "pt": "o os as que é um uma para com não em por mais do da como mas se no ao",
    "nl": "de het een en van is dat niet op te met voor zijn er aan ook als maar bij naar",
}
FREQUENT = {language: frozenset(words.split()) for language, words in FREQUENT_WORDS.items()}


def language_of(text: str) -> str:
    """Guess the language by script, otherwise by frequent words; ``other`` where neither decides. Ties go to the first in the table."""
    letters = "" if text.isascii() else "".join(c for c in text if c.isalpha())
    for language, script in SCRIPTS:
        if letters and len(script.findall(letters)) >= SCRIPT_RATIO * len(letters):
            return language
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {language: sum(word in frequent for word in words) for language, frequent in FREQUENT.items()}
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] >= max(1, 0.1 * len(words)) else "other"


def length_of(words: int) -> str:
    """``short``, ``middle`` or ``long`` by the answer's number of words."""
    return "short" if words < SHORT_WORDS else "middle" if words < LONG_WORDS else "long"


def slices_of(entry: BufferEntry) -> tuple[str, ...]:
    """Names of the slices that an entry belongs to."""
    channels = tuple(f"channel={channel}" for channel, _, _ in entry.evidence)
    return (*channels, f"adapter={entry.adapter or 'base'}", f"language={entry.language}", f"length={length_of(entry.words)}")


def by_slice(entries: Sequence[BufferEntry]) -> dict[str, Calibration]:
    """Calibration of each slice on entries (oldest first) that had been predicted before they were fitted. Of adapters, the newest."""
    adapters = list(dict.fromkeys(f"adapter={e.adapter or 'base'}" for e in reversed(entries)))
    sliced: dict[str, list[BufferEntry]] = {}
    for entry in entries:
        for name in slices_of(entry):
            sliced.setdefault(name, []).append(entry)
    return {
        name: calibration(torch.tensor([e.predicted for e in inside]), torch.tensor([e.verdict for e in inside]))
        for name, inside in sorted(sliced.items())
        if len(inside) >= FEWEST and name not in adapters[MOST_ADAPTERS:]
    }
