"""Tiny streams, made of nothing but a seed.

Knows tasks and examples. Does not know methods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perdure.types import Example, Examples, Stream, Task


def tiny_stream(*, tasks: int = 3, classes: int = 2, train: int = 6, test: int = 4, size: int = 32) -> Stream:
    """Class-incremental images that a linear model can tell apart: one base color a class, with noise.

    Args:
        tasks: number of tasks, each with `classes` new classes.
        train: training images a class; `test`: test images a class.
        size: height and width in pixels.
    """
    made = []
    for index in range(tasks):
        offset = index * classes
        labels = range(offset, offset + classes)
        made.append(
            Task(
                index=index,
                name=f"task {index}",
                kind="classify",
                candidates=tuple(f"color {label}" for label in labels),
                offset=offset,
                train=_images(labels, train, size, "train"),
                test=_images(labels, test, size, "test"),
            )
        )
    return Stream(name="tiny", tasks=tuple(made))


def _images(labels: Sequence[int], per_class: int, size: int, split: str) -> Examples:
    return Examples.of(
        [
            Example(id=f"{split}/{label}/{i}", inputs={"image": _image(label, i, size, split)}, target=label)
            for label in labels
            for i in range(per_class)
        ]
    )


def _image(label: int, i: int, size: int, split: str) -> np.ndarray:
    """uint8 [size, size, 3]."""
    rng = np.random.default_rng([label, i, split == "test"])
    base = np.random.default_rng(label).integers(40, 216, 3)
    noise = rng.integers(-30, 31, (size, size, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)
