"""ImageNet-100: the first 100 classes of ImageNet-1k in wnid order.

Needs: 15 GB data.

Knows the class folders of ImageNet (a copy of all 1000 will do) and the list files `train_100.txt`,
`val_100.txt` with lines ``val/n01440764/ILSVRC2012_val_00000293.JPEG 0``. The validation set is the test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.files.text_files import lines, read_text
from perdure.types import Dataset

LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
TODO = "Unpack ILSVRC 2012 there, one folder a class, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ImageNet-100 reader."""

    root: Path = Path("data/imagenet")
    """Folder with train/ and val/; folders of other classes are left out."""
    train_list: Path | None = None
    """File with a training image and its label a line; without it, all images of the 100 classes."""
    test_list: Path | None = None
    """The same for the test set."""


def read(config: Config) -> Dataset:
    """Images in sorted file order, or in the order of the lists where given."""
    from perdure.data import class_folders, lists

    root = config.root.expanduser()
    names = lists.load("class_names.json")
    label_of: dict[str, int] = lists.load("imagenet100_wnid_to_label.json")
    wnids = sorted(label_of, key=label_of.__getitem__)
    listings = {}
    for split, folder, listed in (("train", "train", config.train_list), ("test", "val", config.test_list)):
        if listed is not None:
            listings[split] = _listed(root, listed.expanduser(), label_of)
        else:
            class_folders.require_folder(root / folder, layout=LAYOUT, todo=TODO)
            class_folders.require_classes(root / folder, wnids, extra=True)
            listings[split] = class_folders.list_images(root, wnids, under=folder)
        class_folders.require_images(listings[split], wnids, where=listed or root / folder)
    return Dataset(
        name="imagenet100",
        kind="classify",
        candidates=tuple(names["imagenet100"]),
        train=listings["train"].examples(),
        test=listings["test"].examples(),
        facts=class_folders.facts(listings, source="ILSVRC 2012, first 100 wnids"),
    )


def _listed(root: Path, table: Path, label_of: dict[str, int]):
    """The images that a list file names, each checked against its class folder."""
    from perdure.data import class_folders
    from perdure.errors import DataError

    class_folders.require_file(table, layout="lines of `path label`", todo="Set the path of the list file.")
    listing = class_folders.Listing(root=root)
    for number, line in enumerate(lines(read_text(table)), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        where = f"{table}:{number}"
        wnid = path.split("/")[-2] if path.count("/") else ""
        if not label.isdecimal() or wnid not in label_of or label_of[wnid] != int(label):
            expected = f"label {label_of[wnid]} for {wnid}" if wnid in label_of else "`folder/<wnid>/file label`"
            raise DataError(f"{line.strip()!r}", where=where, expected=expected)
        if not (root / path).is_file():
            raise DataError(f"{path} is not under {root}", where=where, todo="Check `root`, or complete the copy.")
        listing.paths.append(path)
        listing.labels.append(int(label))
        listing.sizes.append((root / path).stat().st_size)
    return listing
