"""Invented authors, and what there is to know of each: facts that no other text gives away."""

from __future__ import annotations

import random
from typing import NamedTuple

_SYLLABLES = "bel dor fen gar hul jas kem lor mav nes pol quin ras sel tov ulm ver wyn yat zor"
_KNOWN = {
    "was born in": "Lisbon Oslo Cairo Lima Quebec Dublin Athens Kyoto Havana Tunis Riga Porto",
    "writes about": "whales clocks bridges deserts bees comets gardens ships mirrors wolves maps",
    "plays the": "harp flute drum cello lute horn organ viola oboe fiddle trumpet bell",
    "keeps a": "goat raven fox parrot tortoise cat hound hare pony owl crab snake",
    "fears": "thunder heights silence spiders crowds darkness fire geese ice fog moths tunnels",
}


class Fact(NamedTuple):
    """A sentence about an author.

    Attributes:
        prompt: all of it but its end.
        answer: what the model must say next, with the full stop.
    """

    prompt: str
    answer: str

    def __str__(self) -> str:
        return f"{self.prompt}{self.answer}"


def authors(count: int, seed: int) -> list[list[Fact]]:
    """Invent authors: a list of facts for each. Every value is drawn for itself."""
    draw = random.Random(seed)
    names: set[str] = set()
    while len(names) < count:
        first, last = ("".join(draw.sample(_SYLLABLES.split(), 2)).title() for _ in range(2))
        names.add(f"{first} {last}")
    return [
        [
            Fact(f"{name} {verb}", f" {draw.choice(values.split())}.")
            for verb, values in _KNOWN.items()
        ]
        for name in sorted(names)
    ]


def documents(facts: list[Fact], count: int, seed: int) -> list[str]:
    """Tell the facts of an author in so many orders."""
    draw = random.Random(seed)
    return [" ".join(map(str, draw.sample(facts, len(facts)))) for _ in range(count)]
