"""Questions about clips of the world, of the nine types of MUSIC-AVQA, with their answers.

Knows what is seen and heard when, and how one asks. Does not know files. An object is named by its shape; no two
objects of a clip share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from perdure.data.microworld import draws, scenes
from perdure.data.microworld.clips import Clips

NUMBERS = ("zero", "one", "two", "three")
SIDES = ("left", "middle", "right")


class Question(NamedTuple):
    """One question; ``<Object>`` stands for the `values` in turn."""

    modality: str
    kind: str
    text: str
    values: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class _Thing:
    shape: str
    side: str
    """Left, middle or right third."""
    x: float
    seen: int
    """Seconds, likewise `heard`; `begin` is the first second of sound."""
    heard: int
    begin: int


def questions(clips: Clips, *, each: int = 3) -> list[list[Question]]:
    """Up to `each` questions of different types about each clip; types take turns."""
    rolls = draws.uniform(clips.scenes.key, 90, 2 * len(_TYPES))
    chosen = []
    for row in range(len(clips)):
        things, found = _things(clips, row), []
        for step in range(len(_TYPES)):
            which = (row * each + step) % len(_TYPES)
            question = _TYPES[which](things, rolls[row, 2 * which], rolls[row, 2 * which + 1])
            if question is not None and len(found) < each:
                found.append(question)
        chosen.append(found)
    return chosen


def _things(clips: Clips, row: int) -> list[_Thing]:
    found = []
    for i, thing in enumerate(clips.scenes.objects(row)):
        heard = clips.heard[row, i]
        found.append(
            _Thing(
                shape=thing.shape,
                side=SIDES[scenes.PLACES.index(thing.place) % 3],
                x=thing.x,
                seen=int(clips.seen[row, i].sum()),
                heard=int(heard.sum()),
                begin=int(heard.argmax()),
            )
        )
    return found


# -- the nine types: (objects, two draws) -> a question, or None where there is none to ask ------------------------


def _always(things: list[_Thing], want: float, pick: float) -> Question | None:
    """Asked about an object that is seen; yes and no as often as the clips allow."""
    seconds = 10
    able = [t for t in things if t.seen]
    wanted = [t for t in able if (t.heard == seconds) == (want < 0.5)] or able
    if not wanted:
        return None
    thing = wanted[int(pick * len(wanted))]
    answer = "yes" if thing.heard == seconds else "no"
    return Question(
        "Audio-Visual", "Existential", "Is the <Object> in the video always sounding?", (thing.shape,), answer
    )


def _count_heard(things: list[_Thing], *_: float) -> Question:
    count = sum(t.heard > 0 for t in things)
    return Question("Audio", "Counting", "How many objects are heard in the video?", (), NUMBERS[count])


def _count_seen(things: list[_Thing], *_: float) -> Question:
    count = sum(t.seen > 0 for t in things)
    return Question("Visual", "Counting", "How many objects are seen in the video?", (), NUMBERS[count])


def _count_both(things: list[_Thing], *_: float) -> Question:
    count = sum(t.seen > 0 and t.heard > 0 for t in things)
    return Question("Audio-Visual", "Counting", "How many objects are both seen and heard?", (), NUMBERS[count])


def _where(things: list[_Thing], _want: float, pick: float) -> Question | None:
    able = [t for t in things if t.seen]
    if not able:
        return None
    thing = able[int(pick * len(able))]
    return Question("Visual", "Location", "Where is the <Object>?", (thing.shape,), thing.side)


def _where_heard(things: list[_Thing], *_: float) -> Question | None:
    both = [t for t in things if t.seen and t.heard]
    if len(both) != 1:
        return None
    return Question("Audio-Visual", "Location", "Where is the object that is seen and heard?", (), both[0].side)


def _longer(things: list[_Thing], want: float, pick: float) -> Question | None:
    able = [(a, b) for a in things for b in things if a.heard and b.heard and a.heard != b.heard]
    wanted = [(a, b) for a, b in able if (a.heard > b.heard) == (want < 0.5)]
    if not wanted:
        return None
    a, b = wanted[int(pick * len(wanted))]
    answer = "yes" if a.heard > b.heard else "no"
    return Question(
        "Audio", "Comparative", "Is the <Object> heard longer than the <Object>?", (a.shape, b.shape), answer
    )


def _side_longer(things: list[_Thing], *_: float) -> Question | None:
    seen = sorted((t for t in things if t.seen), key=lambda t: t.x)
    if len(seen) != 2 or seen[0].heard == seen[1].heard:
        return None
    answer = "yes" if seen[0].heard > seen[1].heard else "no"
    text = "Is the object on the left heard longer than the object on the right?"
    return Question("Audio-Visual", "Comparative", text, (), answer)


def _first(things: list[_Thing], *_: float) -> Question | None:
    heard = sorted((t for t in things if t.heard), key=lambda t: t.begin)
    if len(heard) < 2 or heard[0].begin == heard[1].begin:
        return None
    return Question("Audio-Visual", "Temporal", "Which object is heard first?", (), heard[0].shape)


_TYPES: tuple[Callable[[list[_Thing], float, float], Question | None], ...] = (
    _always,
    _count_heard,
    _where,
    _first,
    _count_seen,
    _longer,
    _count_both,
    _where_heard,
    _side_longer,
)


def known(asked: list[list[Question]], training: list[list[Question]]) -> list[list[Question]]:
    """Without the questions that use a word or an answer that no training question has."""
    words = {word for rows in training for q in rows for word in (*q.text.rstrip("?").split(), *q.values)}
    answers = {q.answer for rows in training for q in rows}
    return [
        [q for q in rows if q.answer in answers and {*q.text.rstrip("?").split(), *q.values} <= words] for rows in asked
    ]
