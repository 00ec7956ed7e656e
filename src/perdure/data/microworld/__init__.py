"""Microworld: a generated world of shapes, fills, colors and places; nothing to download.

Needs: nothing.

For the demo, the tests and for finding bugs; it never replaces real data. Knows its contents and splits;
does not know how pixels (`render`, `styles`) or sentences (`words`) are made, nor files (`disk`).
Everything is a function of (seed, split, index), the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from perdure.data.microworld import draws, render, scenes, styles, words
from perdure.settings.config import Seed
from perdure.types import Dataset, Example, Examples

Style = Literal[
    "plain",
    "sketch",
    "inverted",
    "noise",
    "blur",
    "pixelated",
    "contrast",
    "textured",
    "rotated",
    "tinted",
    "natural",
]


NAMES = {
    "classes": scenes.CLASSES,
    "colors": tuple(f"{color} object" for color in scenes.COLORS),
    "colored_shapes": tuple(f"{color} {shape}" for color in scenes.COLORS for shape in scenes.SHAPES),
}
"""Names of the classes of each content that has some."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the generated world."""

    content: Literal["classes", "colors", "colored_shapes", "captions"] = "classes"
    """`classes`: one object that fills the picture, 40 classes (shape and fill). `colors`, `colored_shapes`: such
    pictures by the object's color (8) or color and shape (80). `captions`: one to three objects, five captions."""
    style: Style = "plain"
    """How pictures look. The micro models were pretrained on `plain` ones and a few `natural` ones: a blotched ground,
    bars, light from one side. Labels do not depend on it."""
    severity: Annotated[int, Field(ge=1, le=5)] = 3
    """Strength of the style; `plain` has none."""
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = 32
    """Pixels a side."""
    seed: Seed = 0
    """Another seed is another set of pictures of the same world."""
    train_per_class: Annotated[int, Field(ge=0)] = 100
    """Training pictures of each class."""
    validation_per_class: Annotated[int, Field(ge=0)] = 20
    """Validation pictures of each class."""
    test_per_class: Annotated[int, Field(ge=0)] = 100
    """Test pictures of each class; below 100, differences of a point or two mean nothing."""
    domain: Literal["in", "combinations", "synonyms"] = "in"
    """Scenes of content `captions`: as in pretraining (`in`), each with an object that pretraining never saw
    (`combinations`), or described by words that it never saw (`synonyms`)."""
    train_scenes: Annotated[int, Field(ge=0)] = 2000
    """Training scenes (content `captions`)."""
    validation_scenes: Annotated[int, Field(ge=0)] = 200
    """Validation scenes (content `captions`)."""
    test_scenes: Annotated[int, Field(ge=0)] = 500
    """Test scenes (content `captions`)."""
    train_questions: Annotated[int, Field(ge=0)] = 400
    """Training conversations of each of the eight instruction tasks (layout `coin`)."""
    test_questions: Annotated[int, Field(ge=0)] = 100
    """Test questions of each of the eight instruction tasks (layout `coin`)."""
    train_clips: Annotated[int, Field(ge=0)] = 120
    """Training clips of an audio-visual layout (`ave`, `llp`, `avs`, `avqa`)."""
    validation_clips: Annotated[int, Field(ge=0)] = 40
    """Validation clips of an audio-visual layout."""
    test_clips: Annotated[int, Field(ge=0)] = 100
    """Test clips of an audio-visual layout."""

    def bytes_needed(self) -> int:
        """Labels or captions of all pictures, and the pictures that are kept rendered."""
        if self.content in NAMES:
            count = len(NAMES[self.content]) * (self.train_per_class + self.validation_per_class + self.test_per_class)
        else:
            count = 100 * (self.train_scenes + self.validation_scenes + self.test_scenes)
        return 8 * count + 64 * 3 * self.image_size**2


def read(config: Config) -> Dataset:
    """The world as a data set: 40-way `classify` or `caption`; pictures are rendered when first asked for.

    An Example has ``inputs={"image": uint8 array [image_size, image_size, 3]}``; its target is a label or a
    list of five captions. Ids do not depend on style and severity, so the same scenes can be compared.
    """
    named = config.content in NAMES
    part = _classes if named else _captions
    return Dataset(
        name="microworld" if config.content == "classes" else f"microworld-{config.content}",
        kind="classify" if named else "caption",
        candidates=NAMES.get(config.content, ()),
        train=part(config, "train"),
        validation=part(config, "validation"),
        test=part(config, "test"),
        facts={
            "source": "generated",
            "style": config.style,
            "severity": config.severity if config.style != "plain" else 0,
            "seed": config.seed,
        },
    )


def world(config: Config, split: str, indices: np.ndarray) -> scenes.Scenes:
    """The scenes behind the examples of a split, before any style: for masks, boxes and questions."""
    if config.content == "classes":
        labels = indices % len(scenes.CLASSES)
        return scenes.of_classes(config.seed, split, indices, labels, radii=scenes.CLOSE)
    if config.content in NAMES:
        return _of_colors(config, split, indices)
    if config.domain != "combinations":
        return scenes.of_anything(config.seed, f"captions/{split}", indices, pairs=scenes.SEEN)
    # One object of each scene is of a held-out pair, wherever it stands in the scene.
    drawn = scenes.of_anything(config.seed, f"captions/{split}/combinations", indices)
    held_out = np.asarray(sorted(scenes.HELD_OUT))[indices % len(scenes.HELD_OUT)]
    shape, fill = drawn.shape.copy(), drawn.fill.copy()
    shape[:, 0], fill[:, 0] = held_out[:, 0], held_out[:, 1]
    return replace(drawn, shape=shape, fill=fill)


def _classes(config: Config, split: str) -> Examples:
    per_class = getattr(config, f"{split}_per_class")
    labels = list(range(len(NAMES[config.content]))) * per_class
    prefix = "microworld" if config.content == "classes" else f"microworld/{config.content}"
    return Examples(_Rendered(config, split, prefix), labels)


def _captions(config: Config, split: str) -> Examples:
    count = getattr(config, f"{split}_scenes")
    said = words.captions(world(config, split, np.arange(count)), held_out=config.domain == "synonyms")
    return Examples(_Rendered(config, split, f"microworld/captions-{config.domain}"), said)


def _of_colors(config: Config, split: str, indices: np.ndarray) -> scenes.Scenes:
    """One object that fills the picture, of the color, or color and shape, that stands at `indices` in NAMES."""
    split = f"{config.content}/{split}"
    pair = draws.integers(draws.keys(config.seed, split, indices), 60, len(scenes.PAIRS))[:, 0]
    drawn = scenes.of_classes(config.seed, split, indices, pair, radii=scenes.CLOSE)
    label = np.repeat(indices % len(NAMES[config.content]), scenes.MOST).reshape(-1, scenes.MOST)
    if config.content == "colors":
        return replace(drawn, color=label)
    return replace(drawn, color=label // len(scenes.SHAPES), shape=label % len(scenes.SHAPES))


@dataclass(frozen=True)
class _Rendered:
    """Makes Examples of a split (a class, so that loader workers can receive it)."""

    config: Config
    split: str
    prefix: str

    def __call__(self, index: int, target: Any) -> Example:
        block = _block(self.config, self.split, index // _BLOCK)
        image = block[index % _BLOCK].copy()
        return Example(id=f"{self.prefix}/{self.split}/{index:06d}", inputs={"image": image}, target=target)


_BLOCK = 64
"""Pictures that are rendered together and kept: 64 of 32 px take 0.2 MB and about 20 ms."""


@lru_cache(maxsize=512)
def _block(config: Config, split: str, block: int) -> render.Pictures:
    indices = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
    return styles.pictures(world(config, split, indices), config.style, config.severity, config.image_size)
