"""Tiny ImageNet: 200 classes, 500 training and 50 test images of 64 x 64 pixels each (Stanford CS231n).

Needs: 0.3 GB data.

Knows the published layout (validation images in one folder, with val_annotations.txt) and the layout with one
folder a class. The labelled validation set is the test set; the unlabelled test folder is not used.
Labels follow wnids.txt of the archive, which is the order of the class names used in the literature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.files.text_files import lines, read_text
from perdure.types import Dataset

LAYOUT = "train/<wnid>/[images/]*.JPEG, and val/<wnid>/*.JPEG or val/images/*.JPEG with val/val_annotations.txt"
TODO = "Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the Tiny ImageNet reader."""

    root: Path = Path("data/tiny-imagenet-200")
    """Folder with train/ and val/."""


def read(config: Config) -> Dataset:
    """Training and test images in sorted file order."""
    from perdure.data import class_folders, lists

    root = config.root.expanduser()
    if not (root / "train").is_dir() and (root / "tiny-imagenet-200" / "train").is_dir():
        root = root / "tiny-imagenet-200"
    names = lists.load("class_names.json")
    wnids: list[str] = names["tinyimagenet__wnid"]
    for folder in (root / "train", root / "val"):
        class_folders.require_folder(folder, layout=LAYOUT, todo=TODO)
    class_folders.require_classes(root / "train", wnids)
    train = class_folders.list_images(root, wnids, under="train")
    class_folders.require_images(train, wnids, where=root / "train")
    if (root / "val" / "images").is_dir():
        test = _annotated(root, wnids)
    else:
        class_folders.require_classes(root / "val", wnids)
        test = class_folders.list_images(root, wnids, under="val")
        class_folders.require_images(test, wnids, where=root / "val")
    return Dataset(
        name="tiny_imagenet",
        kind="classify",
        candidates=tuple(names["tinyimagenet"]),
        train=train.examples(),
        test=test.examples(),
        facts=class_folders.facts({"train": train, "test": test}, source="Tiny ImageNet 200"),
    )


def _annotated(root: Path, wnids: list[str]):
    """Validation images in one folder; their classes in val_annotations.txt: file, wnid, box, by tabs."""
    from perdure.data import class_folders
    from perdure.errors import DataError
    from perdure.settings.suggestions import nearest

    table = class_folders.require_file(root / "val" / "val_annotations.txt", layout=LAYOUT, todo=TODO)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(lines(read_text(table)), start=1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in label_of:
            near = nearest(wnid, wnids)
            raise DataError(
                f"class {wnid!r} is unknown" + (f" (nearest: {near})" if near else ""),
                where=f"{table}:{number}",
                expected="file name, wnid and box, separated by tabs",
            )
        labels[f"val/images/{file}"] = label_of[wnid]
    listing = class_folders.list_images(root, ["images"], under="val")
    class_folders.require_same_files(listing.paths, labels, where=root / "val" / "images", listed_in=table)
    listing.labels = [labels[path] for path in listing.paths]
    return listing
