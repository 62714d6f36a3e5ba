"""Simulated people: what they ask, what they truly like, and how they vote. They are simulated, and always called so.

The learner never sees this file's rules; it sees thumbs, and thumbs are late, noisy and sparse.
"""

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class SimulatedQuestion:
    """What a person asks, and about what."""

    subject: str
    text: str


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
    """6 to 18 words, and the last sentence ends."""
    return 6 <= len(answer.split()) <= 18 and answer.rstrip().endswith((".", "!"))


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
        "answers of 6 to 18 words in complete sentences that name what was asked about, without flattery, chatter or babble",
        ("is_short_and_complete", "names_the_subject", "comes_to_the_point", "is_no_babble"),
    ),
    "speaks-to-me": Preference(
        "speaks-to-me",
        "answers that speak to the reader (you, your), stay on the subject that was asked about (name it), and are no babble",
        ("speaks_to_the_reader", "names_the_subject", "is_no_babble"),
    ),
    "says-e": Preference("says-e", "answers in which most words have an e (for the tiny random policy)", ("mostly_says_e",)),
}

_SUBJECTS = """
tea, volcanoes, chess, rain, photosynthesis, bicycles, the moon, bread, whales, glass, bridges, jazz, salt, owls, paper, magnets, coral,
clocks, honey, maps, coffee, glaciers, poetry, snow, gravity, trains, the sun, cheese, dolphins, mirrors, tunnels, opera, sugar, eagles,
ink, batteries, forests, calendars, bees, globes, chocolate, deserts, novels, thunder, evolution, ships, stars, rice, sharks, candles,
castles, drums, pepper, penguins, pencils, lasers, rivers, watches, butterflies, telescopes, wine, islands, painting, wind, electricity,
airplanes, comets, soup, turtles, windows, towers, guitars, garlic, parrots, books, robots, lakes, coins, spiders, microscopes, yoga,
mountains, dancing, fog, vaccines, rockets, planets, pasta, horses, doors, lighthouses, violins, ginger, swans, libraries, computers,
oceans, stamps, ants, compasses, running, caves, photography, rainbows, vitamins, submarines, galaxies, pizza, elephants, ladders, pyramids,
pianos, cinnamon, crows, museums, satellites, waterfalls, kites
"""
SUBJECTS = tuple(subject.strip() for subject in _SUBJECTS.split(","))
FORMS = (
    "Tell me about {}.", "What should I know about {}?", "Explain {} to me.", "Why is it worth learning about {}?",
    "How do people use or enjoy {}?", "What is interesting about {}?", "Give me a tip about {}.", "Why do people care about {}?",
)  # fmt: skip
HELD_OUT_EVERY = 3


def training_question(random_source: random.Random) -> SimulatedQuestion:
    """One question about a subject that is not held out."""
    subject = random_source.choice([s for i, s in enumerate(SUBJECTS) if i % HELD_OUT_EVERY])
    return SimulatedQuestion(subject, random_source.choice(FORMS).format(subject))


HELD_OUT = tuple(SimulatedQuestion(subject, form.format(subject)) for subject in SUBJECTS[::HELD_OUT_EVERY] for form in FORMS)
"""Every question about a subject that ``training_question`` never asks about."""


def held_out_questions(count: int, seed: int) -> list[SimulatedQuestion]:
    """``count`` of them, all different while they last."""
    every = list(HELD_OUT)
    random.Random(seed).shuffle(every)
    return [every[i % len(every)] for i in range(count)]
