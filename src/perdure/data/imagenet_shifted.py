"""Shifted test sets of ImageNet: -A, -R, -V2, -Sketch, and -C with one corruption at one severity.

Needs: 0.7 GB (A), 2.2 GB (R), 1.3 GB (V2), 8 GB (Sketch), 80 GB (all of C) data.

Knows the archives as they are unpacked, one folder a class. All images are test images. Class names are OpenAI's, in
the order of the sorted folders: for V2, whose folders are numbers sorted as text, label 2 is class 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.types import Dataset

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
CORRUPTIONS: tuple[Corruption, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
FOLDERS = {
    "a": "imagenet-a",
    "r": "imagenet-r",
    "v2": "imagenetv2-matched-frequency-format-val",
    "sketch": "ImageNet-Sketch",
    "c": "imagenet-c",
}
"""Where each set lies below the common root."""
LAYOUT = "<class folder>/*.jpg; for c: <corruption>/<severity>/<class folder>/*"
TODO = "Unpack the set there, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of ImageNet's shifted test sets."""

    set: Literal["a", "r", "v2", "sketch", "c"]
    """Which set: adversarial, renditions, new photographs, sketches, corruptions."""
    root: Path = Path("data")
    """Folder that holds the sets' folders (imagenet-a, imagenet-r ...), or the set's own folder."""
    corruption: Corruption = "defocus_blur"
    """With c: the kind of corruption."""
    severity: Literal[1, 2, 3, 4, 5] = 5
    """With c: its strength."""


def read(config: Config) -> Dataset:
    """Images in sorted file order."""
    from perdure.data import class_folders

    folders, names = classes(config.set)
    root, under = _place(config)
    class_folders.require_folder(root / under, layout=LAYOUT, todo=TODO)
    class_folders.require_classes(root / under, folders)
    listing = class_folders.list_images(root, folders, under=under)
    class_folders.require_images(listing, folders, where=root / under)
    corruption = {"corruption": config.corruption, "severity": config.severity} if config.set == "c" else {}
    return Dataset(
        name=f"imagenet_{config.set}",
        kind="classify",
        candidates=tuple(names),
        test=listing.examples(),
        facts=class_folders.facts({"test": listing}, source=FOLDERS[config.set], **corruption),
    )


def files(config: Config) -> Iterable[Path]:
    """The class folders of a complete copy."""
    root, under = _place(config)
    return [root / under / folder for folder in classes(config.set)[0]]


def classes(name: str) -> tuple[list[str], list[str]]:
    """Class folders in the order of the labels, and their names."""
    from perdure.data import lists

    wnids: list[str] = lists.load("imagenet_wnids.json")
    names: list[str] = lists.load("class_names.json")["imagenet1000"]
    if name == "v2":
        numbers = sorted(map(str, range(1000)))
        return numbers, [names[int(n)] for n in numbers]
    if name in ("a", "r"):
        index: list[int] = lists.load("test_time_classes.json")[f"imagenet_{name}__index"]
        return [wnids[i] for i in index], [names[i] for i in index]
    return wnids, names


def _place(config: Config) -> tuple[Path, str]:
    """The set's own folder, and what lies between it and the class folders."""
    root = config.root.expanduser()
    inner = root / FOLDERS[config.set]
    own = inner if inner.is_dir() or not root.is_dir() else root
    return own, f"{config.corruption}/{config.severity}" if config.set == "c" else ""
