"""Tiny data sets in the published layouts, written to a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """A plain picture whose red value tells it apart; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, value // 256 % 256, 90)).save(path)
    return path


@pytest.fixture
def image() -> Callable[..., Path]:
    return write_image


@pytest.fixture
def class_tree(tmp_path) -> Callable[..., Path]:
    """``class_tree("train", ["cat", "dog"], 3)`` writes three different images for each class."""
    written = iter(range(10**6))

    def write(under: str, folders: Iterable[str], each: int, suffix: str = ".png", inner: str = "") -> Path:
        for folder in folders:
            for k in range(each):
                write_image(tmp_path / under / folder / inner / f"{folder}_{k}{suffix}", next(written))
        return tmp_path

    return write


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Random bytes of a shape; the same each time."""
    return lambda *shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
