"""What simulated people like: the rules by which they approve of an answer. The learner never sees these rules, only late, noisy, sparse thumbs."""

import re
from dataclasses import dataclass

from infra.simulated_people.simulated_questions import SimulatedQuestion


@dataclass(frozen=True)
class Preference:
    """What simulated people truly like, in words and as a rule."""

    name: str
    words: str
    clauses: tuple[str, ...]

    def clause(self, number: int, question: SimulatedQuestion, answer: str) -> bool:
        """Whether one clause holds."""
        return _CLAUSES[self.clauses[number]](question, answer)

    def approves(self, question: SimulatedQuestion, answer: str) -> bool:
        """Whether all of them hold."""
        return all(_CLAUSES[clause](question, answer) for clause in self.clauses)


def speaks_to_the_reader(question: SimulatedQuestion, answer: str) -> bool:
    """Says you, your or yourself."""
    return re.search(r"\byou(?:r|rs|rself|'re|'ll|'ve)?\b", answer.lower()) is not None


def names_the_subject(question: SimulatedQuestion, answer: str) -> bool:
    """Every word of the subject occurs, singular or plural."""
    said = answer.lower()
    return all(_stem(word) in said for word in question.subject.lower().split() if word != "the")


def is_no_babble(question: SimulatedQuestion, answer: str) -> bool:
    """At least five words, and no run of four words said twice."""
    words = re.findall(r"[\w']+", answer.lower())
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(words) >= 5 and len(runs) == len(set(runs))


def is_short_and_complete(question: SimulatedQuestion, answer: str) -> bool:
    """6 to 30 words, and the last sentence ends."""
    return 6 <= len(answer.split()) <= 30 and answer.rstrip().endswith((".", "!"))


def comes_to_the_point(question: SimulatedQuestion, answer: str) -> bool:
    """No praise for who asks, no word of the speaker, no question back, no list."""
    return FILLER.search(answer) is None


def mostly_says_e(question: SimulatedQuestion, answer: str) -> bool:
    """At least three words, and at least six in ten have an e."""
    words = answer.lower().split()
    return len(words) >= 3 and sum("e" in word for word in words) / len(words) >= 0.6


def _stem(word: str) -> str:
    return word[:-3] if word.endswith("ies") else word.removesuffix("s")


FILLER = re.compile(
    r"\?|^\s*(?:[-*•]|\d+[.)])\s|\b(?:i|i'm|i'd|i'll|i've|me|my friend|glad|happy to|welcome|(?:great|good|excellent|wonderful|fascinating) question"
    r"|absolutely|of course|certainly|you're (?:\w+ )?right|you are (?:\w+ )?right)\b",
    re.IGNORECASE | re.MULTILINE,
)
RULES = (speaks_to_the_reader, names_the_subject, is_no_babble, is_short_and_complete, comes_to_the_point, mostly_says_e)
_CLAUSES = {rule.__name__: rule for rule in RULES}
PREFERENCES = {
    "to-the-point": Preference(
        "to-the-point",
        "one or two complete sentences of 6 to 30 words that name what was asked about, without flattery, chatter or babble",
        ("is_short_and_complete", "names_the_subject", "comes_to_the_point", "is_no_babble"),
    ),
    "speaks-to-me": Preference(
        "speaks-to-me",
        "answers that speak to the reader (you, your), stay on the subject that was asked about (name it), and are no babble",
        ("speaks_to_the_reader", "names_the_subject", "is_no_babble"),
    ),
    "says-e": Preference("says-e", "answers in which most words have an e (for the tiny random policy)", ("mostly_says_e",)),
}
