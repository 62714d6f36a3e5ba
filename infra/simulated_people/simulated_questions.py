"""What simulated people ask: questions about subjects, a third of which are held out for measuring."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class SimulatedQuestion:
    """What a person asks, and about what."""

    subject: str
    text: str


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
