"""Numbers of payment cards in what people write: beside dates and codes, in groups, in other scripts' digits, with invisible characters in between.

Text is first cut into *groups* of digits that single separators hold together; then every stretch of whole groups is asked whether it is a
card: the network's prefix, a length that this network has, and the check digit (ISO/IEC 7812-1, annex B). So a number is found beside others,
and times, ids and hashes, whose groups are longer or have no network's prefix, are left alone.
"""

import re
import unicodedata
from collections.abc import Iterator

_BETWEEN = r"[ \-\u00a0\u00ad\u2000-\u2015\u202f\u205f\u2060\u3000\ufeff]{1,2}"
_RUN = re.compile(rf"(?<![\w.,])\d+(?:{_BETWEEN}\d+)*(?![\w]|[.,]\d)")
_GROUP = re.compile(r"\d+")
MOST_DIGITS = 19
_NETWORKS: tuple[tuple[int, int, frozenset[int]], ...] = (
    (34, 34, frozenset({15})), (37, 37, frozenset({15})),  # American Express
    (300, 305, frozenset({14})), (36, 36, frozenset({14})), (38, 39, frozenset({14})),  # Diners Club
    (4, 4, frozenset({16, 19})),  # Visa; the 13 digits of old ones are those of barcodes
    (51, 55, frozenset({16})), (2221, 2720, frozenset({16})),  # Mastercard
    (6011, 6011, frozenset({16, 19})), (644, 649, frozenset({16, 19})), (65, 65, frozenset({16, 19})),  # Discover
    (3528, 3589, frozenset({16, 19})),  # JCB
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
    (5018, 5018, frozenset({16, 18, 19})), (5020, 5020, frozenset({16, 18, 19})), (5038, 5038, frozenset({16, 18, 19})),  # Maestro
    (6304, 6304, frozenset({16, 18, 19})), (6759, 6759, frozenset({16, 18, 19})), (6761, 6763, frozenset({16, 18, 19})),
    (2200, 2204, frozenset({16})),  # Mir
    (60, 60, frozenset({16})), (81, 82, frozenset({16})),  # RuPay
)  # fmt: skip
"""First and last prefix of a network, and the lengths of its numbers."""
_PREFIXES = {str(prefix): lengths for first, last, lengths in _NETWORKS for prefix in range(first, last + 1)}


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what is a card number, from left to right. Where two readings overlap, both are covered."""
    for run in _RUN.finditer(text):
        groups = [match.span() for match in _GROUP.finditer(text, *run.span())]
        begin, end = -1, -1
        for first in range(len(groups)):
            if (last := _card_from(text, groups, first)) is None:
                continue
            if groups[first][0] >= end:
                if end > 0:
                    yield begin, end
                begin = groups[first][0]
            end = max(end, groups[last][1])
        if end > 0:
            yield begin, end


def _card_from(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card that begins with group ``first``."""
    digits, found = "", None
    for last in range(first, len(groups)):
        begin, end = groups[last]
        if len(digits) + end - begin > MOST_DIGITS:
            break
        digits += "".join(str(unicodedata.decimal(character)) for character in text[begin:end])
        if is_card(digits):
            found = last
    return found


def is_card(digits: str) -> bool:
    """True for a number that a payment network could have given out. ``digits`` are ASCII."""
    return any(len(digits) in _PREFIXES.get(digits[:length], ()) for length in (1, 2, 3, 4)) and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1, annex B)."""
    numbers = [int(digit) for digit in digits]
    doubled = [digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4) for place, digit in enumerate(reversed(numbers))]
    return sum(doubled) % 10 == 0 and any(numbers)
