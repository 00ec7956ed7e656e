"""Your own videos: a folder a class, prepared as frames and sound.

Needs: your data.

Below `root`: ``frames/<class>/<id>/00000001.jpg ...`` (one a second) and ``wave/<class>/<id>.npy`` (32 kHz), as
``perdure data prepare`` writes them. Class names are those of the folders; a keyed share of each class is for testing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from perdure.settings.config import Seed
from perdure.types import Dataset

TODO = "Prepare the videos with `perdure data prepare VIDEOS OUT` and set `root` to OUT."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of prepared folders of videos."""

    root: Path
    """Folder with `frames/<class>/<id>` and `wave/<class>/<id>.npy`."""
    classes: tuple[str, ...] = ()
    """Names of the class folders, in label order; empty: all folders, sorted."""
    segments: Annotated[int, Field(ge=1)] = 10
    """Seconds of every video."""
    test_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of each class that is for testing."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""


def read(config: Config) -> Dataset:
    """One label a video (kind `classify`)."""
    from perdure.data import class_folders, clips

    root = class_folders.require_folder(config.root.expanduser(), layout="frames/<class>/<id>/*.jpg", todo=TODO)
    frames = class_folders.require_folder(root / "frames", layout="<class>/<id>/*.jpg", todo=TODO)
    classes = config.classes or tuple(class_folders.subfolders(frames))
    class_folders.require_classes(frames, classes, extra=bool(config.classes))
    items = []
    for label, name in enumerate(classes):
        for clip in class_folders.subfolders(frames / name):
            if (root / "wave" / name / f"{clip}.npy").is_file():
                items.append(clips.Item(f"{name}/{clip}", f"{name}/{clip}", label))
    labels = [item.target for item in items]
    kept, taken = class_folders.split_by_share(
        [item.id for item in items], labels, config.test_share, "clip_folder", config.split_seed
    )
    if config.test_share == 1:
        kept, taken = [], list(range(len(items)))
    make = clips.maker(items, root, segments=config.segments)
    parts = {"train": kept, "test": taken}
    from perdure.types import Examples

    return Dataset(
        name="clip_folder",
        kind="classify",
        candidates=classes,
        facts={"segments": config.segments, "source": f"folder {root.name}", "folder": root.name},
        **{split: Examples(make, [labels[i] for i in chosen], indices=chosen) for split, chosen in parts.items()},
    )
