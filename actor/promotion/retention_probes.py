"""Retention probes: fixed questions with answers that a rule can check. A candidate must not lose those that the base answers correctly."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.core.errors import ConfigError


@dataclass(frozen=True)
class RetentionProbe:
    """A question, and regular expressions of which one must match the answer."""

    prompt: str
    expects: tuple[str, ...]

    def right(self, answer: str) -> bool:
        """True when one of the expressions matches the answer, ignoring case."""
        return any(re.search(pattern, answer, re.I) for pattern in self.expects)


def read_probes(file: Path | None) -> tuple[RetentionProbe, ...]:
    """The probes of a file of JSON lines, or those below. Raises ConfigError."""
    if file is None:
        return PROBES
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        probes = tuple(RetentionProbe(str(row["prompt"]), tuple(map(str, row["expects"]))) for row in rows)
        for probe in probes:
            for pattern in probe.expects:
                re.compile(pattern)
    except (OSError, ValueError, KeyError, TypeError, re.error) as error:
        raise ConfigError(f"promotion.retention_file = {file} cannot be read: {error!r}") from None
    if not probes:
        raise ConfigError(f"promotion.retention_file = {file} has no probe")
    return probes


def _probes(rows: Sequence[tuple[str, str]]) -> tuple[RetentionProbe, ...]:
    return tuple(RetentionProbe(prompt, (expected,)) for prompt, expected in rows)


PROBES = _probes([
    ("What is the capital of France?", r"\bParis\b"),
    ("What is the capital of Japan?", r"\bTokyo\b"),
    ("What is the capital of Italy?", r"\bRome\b"),
    ("What is the capital of Germany?", r"\bBerlin\b"),
    ("What is the capital of Egypt?", r"\bCairo\b"),
    ("What is two plus two?", r"\b(4|four)\b"),
    ("How many days are in a week?", r"\b(7|seven)\b"),
    ("How many months are in a year?", r"\b(12|twelve)\b"),
    ("How many legs does a spider have?", r"\b(8|eight)\b"),
    ("What color is the sky on a clear day?", r"\bblue\b"),
    ("Which planet is known as the red planet?", r"\bMars\b"),
    ("Which planet is the largest in the solar system?", r"\bJupiter\b"),
    ("What is the chemical formula of water?", r"H\s*(2|₂)\s*O"),
    ("What gas do people need to breathe?", r"\boxygen\b"),
    ("Who wrote Romeo and Juliet?", r"Shakespeare"),
    ("What is the opposite of hot?", r"\bcold\b"),
    ("What is the frozen form of water called?", r"\bice\b"),
    ("Which animal is known as man's best friend?", r"\bdogs?\b"),
    ("In which direction does the sun rise?", r"\beast"),
    ("What do bees make?", r"\bhoney\b"),
    ("Which ocean lies between Europe and America?", r"\bAtlantic\b"),
    ("What language is spoken in Spain?", r"\bSpanish\b"),
    ("What is the largest ocean?", r"\bPacific\b"),
    ("Which metal is attracted to a magnet?", r"\b(iron|steel|nickel|cobalt)\b"),
])  # fmt: skip
