"""Numbers of payment cards in what people write: beside dates and codes, in groups, in rows of a table, next to letters of other scripts.

Text is first cut into *groups* of digits that separators hold together; then every stretch of whole groups is asked whether it is a card: the
network's prefix, a length that this network has, and the check digit (ISO/IEC 7812-1, annex B). So a number is found beside others, and times, ids
and hashes, whose groups are longer or have no network's prefix, are left alone. What also separates other things (dots, slashes, the ends of
lines) counts only between groups as they are printed on cards.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

_BETWEEN = r"(?:&nbsp;|%20|\r?\n|[ \-\t./_+]){1,3}"
_RUN = re.compile(rf"[0-9]+(?:{_BETWEEN}[0-9]+)*")
_GLUED = re.compile(r"[A-Za-z0-9_]")
_GROUP = re.compile(r"(?:%20)?([0-9]+)")
_PLAIN = re.compile(r"[ \-]{1,3}")
MOST_DIGITS = 19
_NETWORKS: tuple[tuple[int, int, frozenset[int]], ...] = (
    (34, 34, frozenset({15})), (37, 37, frozenset({15})),  # American Express
    (300, 305, frozenset({14})), (36, 36, frozenset({14})), (38, 39, frozenset({14})),  # Diners Club
    (4, 4, frozenset({16, 19})),  # Visa; the 13 digits of old ones are those of barcodes
    (51, 55, frozenset({16})), (2221, 2720, frozenset({16})),  # Mastercard
    (6011, 6011, frozenset({16, 19})), (644, 649, frozenset({16, 19})), (65, 65, frozenset({16, 19})),  # Discover
    (3528, 3589, frozenset({16, 19})),  # JCB
    (62, 62, frozenset({16, 19})),  # UnionPay; its rare ones of 17 and 18 digits would make cards of other systems' ids
    (5018, 5018, frozenset({16, 18, 19})), (5020, 5020, frozenset({16, 18, 19})), (5038, 5038, frozenset({16, 18, 19})),  # Maestro
    (6304, 6304, frozenset({16, 18, 19})), (6759, 6759, frozenset({16, 18, 19})), (6761, 6763, frozenset({16, 18, 19})),
    (2200, 2204, frozenset({16})),  # Mir
    (60, 60, frozenset({16})), (81, 82, frozenset({16})),  # RuPay
)  # fmt: skip
"""First and last prefix of a network, and the lengths of its numbers."""
_PREFIXES = {str(prefix): lengths for first, last, lengths in _NETWORKS for prefix in range(first, last + 1)}
_PRINTED = frozenset({(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3)})
"""Sizes of the groups on cards."""


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what is a card number, from left to right. Where two readings overlap, both are covered. ``text`` is folded."""
    for run in _RUN.finditer(text):
        groups = [match.span(1) for match in _GROUP.finditer(text, *run.span())]
        begin, end = -1, -1
        for first in range(len(groups)):
            if not _may_begin(text, groups[first][0]) or (last := _card_from(text, groups, first)) is None:
                continue
            if groups[first][0] >= end:
                if end > 0:
                    yield begin, end
                begin = groups[first][0]
            end = max(end, groups[last][1])
        if end > 0:
            yield begin, end


def _may_begin(text: str, at: int) -> bool:
    """False for the digits after a decimal point, or after the comma that stands for one in 0,25."""
    before = text[max(0, at - 3) : at]
    if before.endswith("."):
        return len(before) > 1 and before[-2].isalpha()  # no.4111…
    return not (before.endswith("0,") and not before[:-2].isdigit())


def _card_from(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card that begins with group ``first``."""
    digits, found = "", None
    for last in range(first, len(groups)):
        begin, end = groups[last]
        if len(digits) + end - begin > MOST_DIGITS:
            break
        digits += text[begin:end]
        if is_card(digits) and _belong_together(text, groups[first : last + 1]):
            found = last
    return found


def _belong_together(text: str, groups: list[tuple[int, int]]) -> bool:
    """Whether these groups may be one number: by spaces or hyphens in any sizes; in the sizes that cards have, by anything else that stands between
    all of them, wrapped once at the end of a line, or right beside a letter. One group beside a letter is part of an id or a hash."""
    between = [text[end:begin] for (_, end), (begin, _) in pairwise(groups)]
    strange = [each for each in between if _PLAIN.fullmatch(each) is None]
    begin, end = groups[0][0], groups[-1][1]
    glued = _GLUED.match(text[max(0, begin - 1) : begin]) or _GLUED.match(text, end)
    if not strange and not glued:
        return True
    if not between or tuple(end - begin for begin, end in groups) not in _PRINTED:
        return False
    if not strange:
        return True
    if not strange[0].strip():
        return len(strange) == 1 and "\n" in strange[0]
    return len(strange) == len(between) and len(set(strange)) == 1


def is_card(digits: str) -> bool:
    """True for a number that a payment network could have given out. ``digits`` are ASCII."""
    return any(len(digits) in _PREFIXES.get(digits[:length], ()) for length in (1, 2, 3, 4)) and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1, annex B)."""
    numbers = [int(digit) for digit in digits]
    doubled = [digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4) for place, digit in enumerate(reversed(numbers))]
    return sum(doubled) % 10 == 0 and any(numbers)
