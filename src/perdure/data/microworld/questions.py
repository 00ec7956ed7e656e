"""What is asked about microworld: eight small instruction tasks, named after CoIN's and formatted as they are.

Knows scenes, the form of each task's questions and answers, and what a truthful answer is. Does not know pixels,
files or the JSON around a question (`coin`). What they share with CoIN is the order, the prompts and the forms of
answers: a letter, a word, a class, a box, a title. What is asked is microworld's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.data.microworld.scenes import COLORS, FILLS, PLACES, SHAPES, SIZES, Object, relation
from perdure.data.microworld.words import SYNONYMS

LETTER = "Answer with the option's letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: {}."
NUMBERS = ("0", "1", "2", "3")
ANNOTATORS = 10


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question and its answer, as training and test records say them."""

    text: str
    """With the sentence that asks for the answer's form, without the image mark."""
    answer: str
    has_image: bool = True
    """False: the question says all that is needed (some of ScienceQA's)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a scorer needs beyond the answer: GQA's types and steps, TextVQA's ten answers, the choices."""


Ask = Callable[[Sequence[Object], random.Random], Question]
"""One question about a scene; the random numbers decide which."""


@dataclass(frozen=True, kw_only=True)
class TaskOfCoin:
    """One of the eight tasks."""

    name: str
    ask: Ask
    per_image: int = 1
    """Questions about one picture."""
    styles: tuple[str, ...] = ("plain",)
    """How pictures look."""
    images: str = ""
    """Folder of its pictures, if it is not called like the task."""


def science_qa(objects: Sequence[Object], draw: random.Random) -> Question:
    """Multiple choice by letter; a third of the questions is text alone."""
    if draw.random() < 1 / 3:
        stem, right, wrong = _in_words(draw)
        return _by_letter(stem, right, wrong, draw, has_image=False)
    thing = draw.choice(objects)
    kind = draw.choice(("shape", "color", "place"))
    if kind == "shape":
        absent = [s for s in SHAPES if s not in {o.shape for o in objects}]
        return _by_letter("Which shape is in the picture?", thing.shape, absent, draw)
    if kind == "color":
        others = [c for c in COLORS if c != thing.color]
        return _by_letter(f"Which color does {named(thing, objects, 'color')} have?", thing.color, others, draw)
    others = [p for p in PLACES if p != thing.place]
    return _by_letter(f"Where is {named(thing, objects, 'place')}?", thing.place, others, draw)


def text_vqa(objects: Sequence[Object], draw: random.Random) -> Question:
    """Words are listed as an OCR system would; the question says which of them is asked for. Ten annotators."""
    thing = draw.choice(objects)
    tokens = [o.shape for o in objects]
    tokens += draw.sample([s for s in SHAPES if s not in tokens], 2)
    draw.shuffle(tokens)
    same = [a for a in SYNONYMS.get(thing.shape, ()) if a != thing.shape]
    others = [draw.choice([*same, "unanswerable"]) for _ in range(draw.randrange(4))]
    where = f"the {thing.color} object" if _alone(thing, objects, "color") else f"the object at the {thing.place}"
    return Question(
        text=f"Which word names {where}?\nReference OCR token: {', '.join(tokens)}\n{WORD}",
        answer=thing.shape,
        facts={"answers": [thing.shape] * (ANNOTATORS - len(others)) + others},
    )


def imagenet(objects: Sequence[Object], draw: random.Random) -> Question:
    """One of 40 classes: fill and shape."""
    return Question(text=f"What is the object in the image?\n{WORD}", answer=f"{objects[0].fill} {objects[0].shape}")


def gqa(objects: Sequence[Object], draw: random.Random) -> Question:
    """Relations and attributes, open and yes/no, each with GQA's types and steps."""
    thing = draw.choice(objects)
    if len(objects) > 1 and draw.random() < 0.5:
        other = draw.choice([o for o in objects if o is not thing])
        way = relation(thing, other)
        if len(objects) == 2 and draw.random() < 0.6:
            return _gqa(f"What is {way} {named(other, objects)}?", thing.shape, "query", "rel", [other.shape, way])
        asked = draw.choice((way, _OPPOSITE[way]))
        text = f"Is {named(thing, objects)} {asked} {named(other, objects)}?"
        return _gqa(text, "yes" if asked == way else "no", "verify", "rel", [thing.shape, asked])
    kind = draw.choice(("query", "choose", "verify"))
    wrong = draw.choice([c for c in COLORS if c != thing.color])
    who = named(thing, objects, "color")
    if kind == "query":
        return _gqa(f"What color is {who}?", thing.color, "query", "attr", [thing.shape])
    if kind == "choose":
        pair = draw.sample([thing.color, wrong], 2)
        return _gqa(f"Is {who} {pair[0]} or {pair[1]}?", thing.color, "choose", "attr", [thing.shape])
    asked = draw.choice((thing.color, wrong))
    answer = "yes" if asked == thing.color else "no"
    return _gqa(f"Is {who} {asked}?", answer, "verify", "attr", [thing.shape, asked])


def vizwiz(objects: Sequence[Object], draw: random.Random) -> Question:
    """Bad pictures, and questions about things that are not there."""
    thing = draw.choice(objects)
    kind = draw.random()
    if kind < 0.3:
        missing = draw.choice([s for s in SHAPES if s not in {o.shape for o in objects}])
        text, answer = f"What color is the {missing}?", "unanswerable"
    elif kind < 0.65:
        text, answer = f"What color is {named(thing, objects, 'color')}?", thing.color
    else:
        text, answer = f"What is at the {thing.place}?", thing.shape
        if not _alone(thing, objects, "place"):
            text, answer = f"How large is {named(thing, objects, 'size')}?", thing.size
    return Question(text=f"{text}\n{UNANSWERABLE}\n{WORD}", answer=answer)


def grounding(objects: Sequence[Object], draw: random.Random) -> Question:
    """The box of an object; the answer is filled in by what knows the pixels (`coin`)."""
    thing = draw.choice(objects)
    said = f"{thing.size} {thing.color} {thing.shape}"
    return Question(text=REGION.format(said), answer="", facts={"object": list(objects).index(thing)})


def vqa_v2(objects: Sequence[Object], draw: random.Random) -> Question:
    """Counting, yes/no, colors."""
    kind = draw.random()
    if kind < 0.3:
        return Question(text=f"How many objects are there?\n{WORD}", answer=NUMBERS[len(objects)])
    if kind < 0.65:
        present = sorted({o.shape for o in objects})
        absent = [s for s in SHAPES if s not in present]
        right = draw.random() < 0.5
        shape = draw.choice(present if right else absent)
        return Question(text=f"Is there {article(shape)} in the picture?\n{WORD}", answer="yes" if right else "no")
    thing = draw.choice(objects)
    return Question(text=f"What is the color of {named(thing, objects, 'color')}?\n{WORD}", answer=thing.color)


def ocr_vqa(objects: Sequence[Object], draw: random.Random) -> Question:
    """Titles, as on the cover of a book; some yes/no."""
    if draw.random() < 0.75:
        return Question(text=f"What is the title of this picture?\n{WORD}", answer=title(objects))
    thing = draw.choice(objects)
    wrong = draw.choice([s for s in SHAPES if s not in {o.shape for o in objects}])
    right = draw.random() < 0.5
    shape = thing.shape if right else wrong
    return Question(text=f"Is this a picture of {article(shape)}?\n{WORD}", answer="Yes" if right else "No")


TASKS: tuple[TaskOfCoin, ...] = (
    TaskOfCoin(name="ScienceQA", ask=science_qa),
    TaskOfCoin(name="TextVQA", ask=text_vqa),
    TaskOfCoin(name="ImageNet", ask=imagenet),
    TaskOfCoin(name="GQA", ask=gqa, per_image=2),
    TaskOfCoin(name="VizWiz", ask=vizwiz, styles=("blur", "noise", "contrast", "tinted")),
    TaskOfCoin(name="Grounding", ask=grounding, images="COCO"),
    TaskOfCoin(name="VQAv2", ask=vqa_v2, per_image=2, images="COCO"),
    TaskOfCoin(name="OCRVQA", ask=ocr_vqa),
)
"""In CoIN's order."""


def named(thing: Object, objects: Sequence[Object], but: str = "") -> str:
    """The object in words that fit no other of the scene: ``the star``, ``the red star``; `but` is not told."""
    told = ["shape"]
    for more in ("color", "fill", "size", "place"):
        if all(any(getattr(o, t) != getattr(thing, t) for t in told) for o in objects if o is not thing):
            break
        if more != but:
            told.append(more)
    words = [getattr(thing, t) for t in ("size", "fill", "color", "shape") if t in told]
    where = f" at the {thing.place}" if "place" in told else ""
    return f"the {' '.join(words)}{where}"


def title(objects: Sequence[Object]) -> str:
    """``The Red Star and the Blue Ring``, from left to right."""
    ordered = sorted(objects, key=lambda o: o.x)
    return "The " + " and the ".join(f"{o.color} {o.shape}".title() for o in ordered)


def article(word: str) -> str:
    """The word with "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _alone(thing: Object, objects: Sequence[Object], trait: str) -> bool:
    return sum(getattr(o, trait) == getattr(thing, trait) for o in objects) == 1


def _in_words(draw: random.Random) -> tuple[str, str, list[str]]:
    """A question that needs no picture: stem, right option, wrong ones."""
    if draw.random() < 0.5:
        kinds: dict[str, Sequence[str]] = {"color": COLORS, "shape": SHAPES, "size": SIZES, "fill": FILLS}
        kind = draw.choice(sorted(kinds))
        others = [w for k, words in kinds.items() if k != kind for w in words]
        return f"Which of these is a {kind}?", draw.choice(kinds[kind]), others
    one, other = draw.sample([f"{c} {s}" for c in COLORS for s in SHAPES], 2)
    way = draw.choice(("left of", "right of", "above", "below"))
    context = f"Context: {article(one).capitalize()} is {way} {article(other)}."
    asked, right, wrong = draw.choice(((way, one, other), (_OPPOSITE[way], other, one)))
    return f"{context}\nWhich is {asked} the other?", right, [wrong]


def _by_letter(stem: str, right: str, wrong: Sequence[str], draw: random.Random, *, has_image: bool = True) -> Question:
    count = min(draw.randrange(1, 4), len(wrong))
    choices = [right, *draw.sample(list(wrong), count)]
    draw.shuffle(choices)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices))
    letter = "ABCD"[choices.index(right)]
    facts = {"choices": choices, "stem": stem}
    return Question(text=f"{stem}\n{listed}\n{LETTER}", answer=letter, has_image=has_image, facts=facts)


def _gqa(text: str, answer: str, structural: str, semantic: str, steps: Sequence[str]) -> Question:
    operations = [{"operation": "select", "argument": step} for step in steps]
    last = {"operation": structural, "argument": answer}
    facts = {"types": {"structural": structural, "semantic": semantic}, "semantic": [*operations, last]}
    return Question(text=f"{text}\n{WORD}", answer=answer, facts=facts)
