"""Long texts in windows, each short enough for one pass of the backbone. Pure: token ids in, windows out.

A prompt is cut from its end backwards and an answer from its beginning on, so that a text that fits into one window of each is read as a whole. Of a
text with too many windows the middle is left out: a prompt begins with its rules and tools and ends with the question, an answer begins with what it
says and ends with what it comes to.
"""

from collections.abc import Sequence
from typing import TypeVar

Window = TypeVar("Window")


def prompt_windows(ids: Sequence[int], size: int, most: int) -> list[tuple[int, ...]]:
    """Windows of at most ``size`` tokens, the nearest to the answer first; the last one holds the prompt's beginning."""
    ends = range(len(ids), 0, -size)
    return _without_the_middle([tuple(ids[max(0, end - size) : end]) for end in ends] or [()], most)


def answer_windows(ids: Sequence[int], size: int, most: int) -> list[tuple[int, tuple[int, ...]]]:
    """Windows of at most ``size`` tokens in the order of the text, each with the place of its first token."""
    starts = range(0, max(1, len(ids)), size)
    return _without_the_middle([(start, tuple(ids[start : start + size])) for start in starts], most)


def _without_the_middle(windows: list[Window], most: int) -> list[Window]:
    if len(windows) <= most:
        return windows
    return windows[:1] if most == 1 else [*windows[: most - 1], windows[-1]]
