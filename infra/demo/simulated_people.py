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


def mostly_says_e(question: SimulatedQuestion, answer: str) -> bool:
    """At least three words, and at least six in ten have an e."""
    words = answer.lower().split()
    return len(words) >= 3 and sum("e" in word for word in words) / len(words) >= 0.6


def _stem(word: str) -> str:
    return word[:-3] if word.endswith("ies") else word.removesuffix("s")


_CLAUSES = {rule.__name__: rule for rule in (speaks_to_the_reader, names_the_subject, is_no_babble, mostly_says_e)}
PREFERENCES = {
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


def held_out_questions(count: int, seed: int) -> list[SimulatedQuestion]:
    """``count`` questions, all different while they last, about subjects that ``training_question`` never asks about."""
    every = [SimulatedQuestion(subject, form.format(subject)) for subject in SUBJECTS[::HELD_OUT_EVERY] for form in FORMS]
    random.Random(seed).shuffle(every)
    return [every[i % len(every)] for i in range(count)]
