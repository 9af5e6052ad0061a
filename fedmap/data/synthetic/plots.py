"""Plots from a genre grammar: a template for each sentence, slots filled from vocabularies that overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

GENRES_BY_STORY: dict[str, tuple[str, str, str]] = {
    "heart": ("Romance", "Drama", "Comedy"),
    "secret": ("Crime", "Thriller", "Mystery"),
    "battle": ("Western", "War", "Action"),
    "wonder": ("Fantasy", "Horror", "Sci-Fi"),
}

# Words of a kind of story: people, things, places and what happens. Some words appear in two kinds on purpose.
_STORY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "heart": {
        "person": ("mother", "father", "daughter", "husband", "wife", "teacher", "widow", "neighbor", "sister", "friend", "singer"),
        "thing": ("marriage", "family", "letter", "promise", "home", "dinner", "secret", "divorce", "childhood", "dance", "past"),
        "place": ("village", "school", "kitchen", "church", "hotel", "small town", "garden", "apartment", "theater"),
        "deed": ("visits", "leaves", "invites", "remembers", "marries", "misses", "raises", "meets", "supports"),
    },
    "secret": {
        "person": ("detective", "lawyer", "stranger", "witness", "banker", "widow", "reporter", "judge", "suspect", "agent", "driver"),
        "thing": ("murder", "evidence", "money", "secret", "disguise", "killer", "body", "motive", "crime", "file", "past"),
        "place": ("city", "prison", "hotel", "court", "office", "dark street", "station", "train", "apartment"),
        "deed": ("follows", "suspects", "questions", "threatens", "hides", "watches", "hunts", "discovers", "protects"),
    },
    "battle": {
        "person": ("soldier", "captain", "stranger", "rider", "fighter", "agent", "commander", "brother", "scout", "driver", "rebel"),
        "thing": ("enemy", "gun", "revenge", "fight", "attack", "mission", "gang", "fire", "escape", "weapon", "honor"),
        "place": ("border", "desert", "camp", "bridge", "mountain", "fort", "river", "village", "station"),
        "deed": ("attacks", "guards", "hunts", "shoots", "saves", "leads", "fights", "protects", "escapes"),
    },
    "wonder": {
        "person": ("child", "doctor", "creature", "scientist", "prince", "traveler", "monster", "sister", "prophet", "orphan", "captain"),
        "thing": ("power", "world", "darkness", "body", "prophecy", "light", "door", "weapon", "dream", "blood", "machine"),
        "place": ("castle", "forest", "tower", "island", "laboratory", "mountain", "ruins", "cave", "strange land"),
        "deed": ("reveals", "discovers", "transforms", "follows", "escapes", "destroys", "saves", "summons", "enters"),
    },
}

# Words that belong to one genre alone.
_GENRE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "Romance": {"person": ("lover", "bride"), "thing": ("love", "kiss"), "place": ("wedding",), "deed": ("loves",)},
    "Drama": {"person": ("patient", "priest"), "thing": ("grief", "illness"), "place": ("hospital",), "deed": ("hurts",)},
    "Comedy": {"person": ("clown", "fool"), "thing": ("joke", "prank"), "place": ("party",), "deed": ("tricks",)},
    "Crime": {"person": ("gangster", "thief"), "thing": ("robbery", "drugs"), "place": ("casino",), "deed": ("steals",)},
    "Thriller": {"person": ("assassin", "hostage"), "thing": ("bomb", "conspiracy"), "place": ("embassy",), "deed": ("stalks",)},
    "Mystery": {"person": ("inspector", "butler"), "thing": ("riddle", "clue"), "place": ("mansion",), "deed": ("investigates",)},
    "Western": {"person": ("sheriff", "cowboy"), "thing": ("cattle", "gold"), "place": ("ranch",), "deed": ("rides",)},
    "War": {"person": ("sergeant", "nazi"), "thing": ("invasion", "army"), "place": ("trench",), "deed": ("bombs",)},
    "Action": {"person": ("mercenary", "pilot"), "thing": ("chase", "explosion"), "place": ("highway",), "deed": ("crashes",)},
    "Fantasy": {"person": ("wizard", "princess"), "thing": ("magic", "dragon"), "place": ("kingdom",), "deed": ("enchanted",)},
    "Horror": {"person": ("vampire", "ghost"), "thing": ("curse", "corpse"), "place": ("graveyard",), "deed": ("haunted",)},
    "Sci-Fi": {"person": ("robot", "alien"), "thing": ("spaceship", "planet"), "place": ("galaxy",), "deed": ("clones",)},
}

_TELLING = (
    "A {person} from the {place} {deed} a {person} and the {thing}.",
    "When the {thing} comes to the {place}, a {person} must face the {thing}.",
    "In the {place} a young {person} {deed} an old {person}.",
    "The {person} knows about the {thing}, and nobody in the {place} is safe from it.",
    "Everything changes when the {person} {deed} the {person} near the {place}.",
    "It is a story of a {person}, a {thing} and the {place}.",
)

_NEUTRAL = (
    "Nothing will ever be the same again.",
    "Time is running out.",
    "Years later they meet once more.",
    "Based on a best selling novel.",
    "But not everyone wants to hear the truth.",
    "Together they have only one night.",
    "Soon they learn what really matters.",
    "Then a phone call changes the plan.",
    "No one believes what happened that summer.",
    "The end comes sooner than expected.",
)

_SLOTS = ("person", "thing", "place", "deed")
_STRAY = 0.12  # share of words from a kind of story that the movie does not belong to


def write_plot(genres: Sequence[str], clarity: float, rng: np.random.Generator) -> str:
    """A plot of three to six sentences about one to three genres.

    Args:
        clarity: probability that a telling word is the genre's own and not one of its kind of story.
    """
    subjects = [*genres] + [genres[int(rng.integers(len(genres)))] for _ in range(int(rng.integers(1, 3)))]
    sentences = [_telling_sentence(subject, clarity, rng) for subject in subjects]
    for _ in range(int(rng.integers(0, 3))):
        sentences.append(_pick(_NEUTRAL, rng))
    return " ".join(sentences[int(i)] for i in rng.permutation(len(sentences)))


def vocabulary() -> set[str]:
    """Every word that a plot can contain, in lower case."""
    tables = [*_STORY_WORDS.values(), *_GENRE_WORDS.values()]
    slots = [word for table in tables for words in table.values() for word in words]
    sentences = " ".join([*_TELLING, *_NEUTRAL, *slots])
    for slot in _SLOTS:
        sentences = sentences.replace("{" + slot + "}", " ")
    return {"an"} | set(sentences.lower().replace(".", " ").replace(",", " ").split())


def _telling_sentence(genre: str, clarity: float, rng: np.random.Generator) -> str:
    sentence = _pick(_TELLING, rng)
    for slot in _SLOTS:
        while (place := "{" + slot + "}") in sentence:
            sentence = sentence.replace(place, _word(genre, slot, clarity, rng), 1)
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
    return sentence[0].upper() + sentence[1:]


def _word(genre: str, slot: str, clarity: float, rng: np.random.Generator) -> str:
    luck = rng.random()
    if luck < clarity:
        return _pick(_GENRE_WORDS[genre][slot], rng)
    if luck > 1 - _STRAY:
        return _pick(_STORY_WORDS[_pick(tuple(_STORY_WORDS), rng)][slot], rng)
    story = next(name for name, members in GENRES_BY_STORY.items() if genre in members)
    return _pick(_STORY_WORDS[story][slot], rng)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
