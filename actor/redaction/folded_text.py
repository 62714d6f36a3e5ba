"""One reading of text for all rules of redaction, however it is written: other scripts' digits, wide letters, spaces and dashes of all kinds, and
characters that nobody sees. Pure."""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_UNSEEN = frozenset("\u034f\u180e\u20e3") | frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Marks that change how the character before them is drawn, as in the digits of keycap emoji."""
_DASHES = frozenset("\u2212\u30fc")
"""Signs that people type for a hyphen and that Unicode calls none: the minus, and Japanese's mark of a long vowel."""


@dataclass(frozen=True, slots=True)
class FoldedText:
    """The text as rules read it, and where each of its characters stands in the original."""

    text: str
    places: tuple[int, ...] | None = None
    """None: every character stands at its own place."""

    def original(self, begin: int, end: int) -> tuple[int, int]:
        """The stretch of the original text that was read as ``text[begin:end]``, which must not be empty."""
        return (begin, end) if self.places is None else (self.places[begin], self.places[end - 1] + 1)


def folded(text: str) -> FoldedText:
    """The text in its plain reading: ASCII digits, spaces and hyphens, without what nobody sees. Letters of other scripts stay."""
    if text.isascii():
        return FoldedText(text)
    read = [_plain(character) for character in text]
    if all(read):
        return FoldedText("".join(read))
    return FoldedText("".join(read), tuple(place for place, character in enumerate(read) if character))


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """One character, or none."""
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Cf" or character in _UNSEEN:
        return ""
    if category in ("Zs", "Zl", "Zp"):
        return " "
    if category == "Pd" or character in _DASHES:
        return "-"
    compatible = unicodedata.normalize("NFKC", character)
    return compatible if len(compatible) == 1 and compatible.isascii() else character
