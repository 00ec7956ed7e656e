"""Words of the world: captions by a small grammar with synonyms, and the vocabulary.

Knows which words name what, which synonyms pretraining never sees, and how sentences are built. Does
not know pixels or tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from perdure.data.microworld import draws
from perdure.data.microworld.scenes import (
    CLASSES,
    COLORS,
    FILLS,
    HELD_OUT,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scenes,
    relation,
)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "loop"),
    "crescent": ("crescent", "moon"),
    "solid": ("solid", "filled"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "purple": ("purple", "violet"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
    "center": ("center", "middle"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""What pretraining says for a word; words that are not listed have no synonym."""

HELD_OUT_SYNONYMS: dict[str, str] = {
    "circle": "dot",
    "square": "block",
    "ring": "hoop",
    "diamond": "rhombus",
    "striped": "lined",
    "dotted": "speckled",
    "small": "tiny",
    "large": "huge",
    "red": "crimson",
    "purple": "lilac",
    "cyan": "turquoise",
    "above": "on top of",
    "below": "beneath",
}
"""Other words for the same things that pretraining never sees: `domain="synonyms"`."""

OPENINGS = (
    *("", "", "", "", ""),
    *("a photo of", "a photo of", "a picture of", "a good photo of", "a bad photo of", "an image of"),
    *("a good photo of the", "a bad photo of the", "a photo of the", "there is", "a drawing of", "this is"),
    *("a close-up photo of", "a bright photo of", "a dark photo of", "itap of", "a photo of one"),
    *("a rendering of", "a cropped photo of", "a photo of my", "a low resolution photo of", "a photo of many"),
)
"""How a caption may begin: the words of the usual prompt templates; ``""`` begins with the object itself."""

CAPTIONS_A_SCENE = 5
_DICE = 48  # a caption of three objects uses at most 41


def captions(scenes: Scenes, *, held_out: bool = False) -> list[list[str]]:
    """Five different captions of each scene, the same for the same scene on every machine.

    `held_out` says each thing that has one by its held-out synonym.
    """
    dice = draws.uniform(scenes.key, 40, _DICE * 2 * CAPTIONS_A_SCENE)
    return [_five(scenes.objects(i), dice[i], held_out) for i in range(len(scenes))]


def vocabulary() -> list[str]:
    """All words that captions, class names, openings and common templates use, sorted."""
    texts: list[str] = [*CLASSES, *SHAPES, *FILLS, *COLORS, *SIZES, *PLACES, *OPENINGS]
    for canonical, others in SYNONYMS.items():
        texts += [canonical, *others]
    texts += [*HELD_OUT_SYNONYMS, *HELD_OUT_SYNONYMS.values()]
    texts += ["a an the and in of at . , - it its on style sketch blurry clean nice weird object shape photos"]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})


def _five(objects: list[Object], dice: np.ndarray, held_out: bool) -> list[str]:
    found: list[str] = []
    tries = dice.reshape(2 * CAPTIONS_A_SCENE, -1)
    for row in tries:
        text = _caption(objects, list(row), held_out)
        if text not in found:
            found.append(text)
    # A sentence that names everything is always different from one that names little.
    for detail in (0.0, 0.45, 0.7, 0.9, 0.99):
        text = _caption(objects, [detail] * tries.shape[1], held_out)
        if text not in found:
            found.append(text)
    return found[:CAPTIONS_A_SCENE]


def _caption(objects: list[Object], dice: list[float], held_out: bool) -> str:
    """One sentence; `dice` in [0, 1) decides on order, detail, synonyms and opening."""
    take = iter(dice)
    opening = OPENINGS[int(next(take) * len(OPENINGS))]
    style, order, full_stop = next(take), next(take), next(take)
    if order < 0.5:
        objects = objects[::-1]
    # "the", "my", "one", "many" take the place of the article.
    own_article = opening.rsplit(" ", 1)[-1] in ("the", "my", "one", "many")
    phrases = []
    for i, thing in enumerate(objects):
        phrases.append(_phrase(thing, take, held_out, article=i > 0 or not own_article))
    if len(objects) == 2 and style < 0.5:
        how = _say(relation(objects[0], objects[1]), next(take), held_out)
        text = f"{phrases[0]} {how} {phrases[1]}"
    else:
        text = ", ".join([*phrases[:-2], " and ".join(phrases[-2:])])
    return f"{opening} {text}{'.' if full_stop < 0.5 else ''}".strip()


def _phrase(thing: Object, take, held_out: bool, *, article: bool) -> str:
    """`a small striped red star in the top left`: fill and shape always, the rest now and then."""
    said = []
    for word, share in ((thing.size, 0.4), (thing.fill, 1.0), (thing.color, 0.55), (thing.shape, 1.0)):
        keep, which = next(take), next(take)
        if keep < share:
            said.append(_say(word, which, held_out))
    # Size, fill and color come in either order: "a striped red star", "a red striped star".
    if len(said) > 2 and next(take) < 0.3:
        said[-3], said[-2] = said[-2], said[-3]
    if next(take) < 0.35:
        said.append(f"in the {_say(thing.place, next(take), held_out)}")
    text = " ".join(said)
    if article:
        text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    return text


def _say(word: str, die: float, held_out: bool) -> str:
    if held_out and word in HELD_OUT_SYNONYMS:
        return HELD_OUT_SYNONYMS[word]
    choices: Sequence[str] = SYNONYMS.get(word, (word,))
    # The canonical word is said twice as often as any other.
    return choices[max(0, int(die * (len(choices) + 1)) - 1)]


def names_held_out_pair(objects: Sequence[Object]) -> bool:
    """Whether a scene shows a combination of shape and fill that pretraining never sees."""
    return any((SHAPES.index(o.shape), FILLS.index(o.fill)) in HELD_OUT for o in objects)
