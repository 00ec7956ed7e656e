"""Images with several captions each, as the annotation files of the field have them.

Knows three layouts and their faults: Karpathy's ``{"images": [{"filepath", "filename", "split", "sentences":
[{"raw"}]}]}``; LAVIS's lists ``[{"image", "caption"}]`` (a text or a list of them); COCO's own ``{"images": [{"id",
"file_name"}], "annotations": [{"image_id", "caption"}]}``. Does not know tokens, models or order.

An Example has ``inputs={"image": Path}``; its target is its list of captions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.files.text_files import read_json
from perdure.types import Dataset, Example, Examples

MOST_WORDS = 50


@dataclass(kw_only=True)
class Captioned:
    """One image and what is said of it."""

    image: str
    """Path below the folder of images."""
    captions: list[str]
    id: str = ""
    """As the file names it; empty: the path."""
    split: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def read_captions(path: Path) -> list[Captioned]:
    """The images of an annotation file of any of the three layouts, in the file's order.

    Raises:
        DataError: another layout, an image without captions, an image twice with other captions beside a list.
    """
    content = read_json(path)
    images = content.get("images", content.get("data")) if isinstance(content, Mapping) else None
    if isinstance(content, list):
        found = list(_pairs(content, path))
    elif isinstance(content, Mapping) and isinstance(content.get("annotations"), list) and isinstance(images, list):
        found = list(_coco(images, content["annotations"], path))
    elif isinstance(images, list) and images and isinstance(images[0], Mapping) and "sentences" in images[0]:
        found = [_karpathy(record, path, i) for i, record in enumerate(images)]
    elif isinstance(images, list):
        found = list(_pairs(images, path))
    else:
        raise DataError("no images with captions", where=str(path), expected="Karpathy's, LAVIS's or COCO's layout")
    _check(found, path)
    return found


def examples(found: Sequence[Captioned], root: Path) -> Examples:
    """Examples of images below `root`."""
    return Examples.of(
        [
            Example(
                id=one.id or one.image,
                inputs={"image": root / one.image, **{k: v for k, v in one.facts.items() if k == "image_id"}},
                target=list(one.captions),
            )
            for one in found
        ]
    )


def require_images(found: Sequence[Captioned], root: Path) -> None:
    """DataError that names the first missing image and counts the others; a folder is listed once."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for one in found:
        path = root / one.image
        if path.parent not in listed:
            folder = path.parent
            listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in listed[path.parent]:
            missing.append(path)
    if missing:
        more = f" ({len(missing)} of {len(found)} images are missing)" if len(missing) > 1 else ""
        raise DataError(f"there is no such image{more}", where=str(missing[0]), todo="Check `root` and `images`.")


SPLITS = {"train": "train", "restval": "train", "val": "validation", "validation": "validation", "test": "test"}
"""How annotation files call a split -> its name here; COCO's `restval` is for training, as everyone uses it."""


def dataset(
    name: str,
    sources: Mapping[str, Path],
    root: Path,
    *,
    check_images: bool = True,
    keep: Any = None,
    image_id: Callable[[str], int | None] = lambda path: None,
) -> Dataset:
    """A data set of kind `caption`.

    Args:
        sources: split -> annotation file; under "all" one file whose records name their split (no split: test).
        root: folder that the files' image paths start from.
        keep: which images are wanted; all by default.
        image_id: the number that the published layout puts in an image's path, where the file itself says none.

    Raises:
        DataError: a fault in a file, two images of a split with the same id, or a missing image.
    """
    parts: dict[str, list[Captioned]] = {"train": [], "validation": [], "test": []}
    for split, path in sources.items():
        for one in read_captions(path):
            if keep is None or keep(one):
                if "image_id" not in one.facts and (number := image_id(one.image)) is not None:
                    one.facts["image_id"] = number
                parts[_split(one, path) if split == "all" else split].append(one)
    for split, part in parts.items():
        _require_own_ids(part, f"{name}, {split}")
    if check_images:
        require_images([one for part in parts.values() for one in part], root)
    ids = "".join(one.image for part in parts.values() for one in part)
    facts = {split: len(part) for split, part in parts.items()}
    facts |= {"captions": sum(len(one.captions) for part in parts.values() for one in part)}
    facts |= {"fingerprint": hashlib.sha256(ids.encode()).hexdigest()}
    train, validation, test = (examples(parts[split], root) for split in ("train", "validation", "test"))
    return Dataset(name=name, kind="caption", facts=facts, train=train, validation=validation, test=test)


def first_file(candidates: Sequence[Path], what: str) -> Path:
    """The first of these that exists; DataError that names all."""
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        expected = " or ".join(map(str, candidates))
        raise DataError(f"no {what}", where=str(candidates[0].parent), expected=expected, todo="Check `root`.")
    return found


def splits_of(folders: Sequence[Path], names: Mapping[str, str], together: str, what: str) -> dict[str, Path]:
    """Annotation files by split where they are there (LAVIS), else the one file that holds all (Karpathy)."""
    found = {}
    for split, name in names.items():
        path = next((f / name for f in folders if (f / name).is_file()), None)
        if path is not None:
            found[split] = path
    if found:
        return found
    return {"all": first_file([f / together for f in folders], f"{what} annotations ({', '.join(names.values())})")}


def _split(one: Captioned, path: Path) -> str:
    if one.split and one.split not in SPLITS:
        raise DataError(f"the split is {one.split!r}", where=f"{path}, {one.image}", expected=", ".join(SPLITS))
    return SPLITS.get(one.split, "test")


def retrieval_text(caption: str) -> str:
    """A caption as retrieval compares it: lower case, ``.!"()*#:;~`` as spaces, at most fifty words."""
    spaced = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    words = re.sub(r"\s{2,}", " ", spaced).rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:MOST_WORDS])


def _pairs(records: Sequence[Any], path: Path) -> Iterator[Captioned]:
    """LAVIS: one record an image with its captions, or one a caption (images then repeat)."""
    by_image: dict[str, Captioned] = {}
    for i, record in enumerate(records):
        where = f"{path}, record {i}"
        if not isinstance(record, Mapping):
            raise DataError(f"a {type(record).__name__}, no record", where=where, expected='{"image", "caption"}')
        image = record.get("image", record.get("file_name", record.get("file")))
        if not isinstance(image, str) or not image:
            raise DataError("'image' is missing", where=where, expected='{"image": path, "caption": text or texts}')
        said = record.get("caption", record.get("captions"))
        listed = said if isinstance(said, list) else [said] if isinstance(said, str) else []
        if image in by_image and isinstance(said, list):
            raise DataError(f"the image {image} occurs twice", where=where, todo="Join its captions in one record.")
        if image in by_image:
            by_image[image].captions += listed
            continue
        kept = {k: record[k] for k in ("domain", "image_id") if k in record}
        by_image[image] = Captioned(
            image=image, captions=_texts(listed, where), split=str(record.get("split", "")), facts=kept
        )
    yield from by_image.values()


def _karpathy(record: Any, path: Path, i: int) -> Captioned:
    where = f"{path}, image {i}"
    name = record.get("filename") if isinstance(record, Mapping) else None
    if not isinstance(name, str):
        raise DataError("'filename' is missing", where=where)
    said = [s.get("raw", " ".join(s.get("tokens", []))) for s in record.get("sentences", [])]
    folder = record.get("filepath", "")
    image = f"{folder}/{name}" if folder else name
    facts = {"image_id": record["cocoid"]} if "cocoid" in record else {}
    return Captioned(image=image, captions=_texts(said, where), split=str(record.get("split", "")), facts=facts)


def _coco(images: Sequence[Any], annotations: Sequence[Any], path: Path) -> Iterator[Captioned]:
    """COCO and nocaps: captions refer to images by number."""
    said: dict[Any, list[str]] = {}
    for annotation in annotations:
        said.setdefault(annotation.get("image_id"), []).append(annotation.get("caption"))
    ids = [record.get("id") for record in images]
    if twice := _first_twice(ids):
        raise DataError(f"the image id {twice} occurs twice", where=str(path))
    unknown = set(said) - set(ids)
    if unknown:
        raise DataError(f"captions of an image {min(map(str, unknown))} that is not listed", where=str(path))
    for i, record in enumerate(images):
        where = f"{path}, image {i}"
        facts = {"image_id": record["id"]} | ({"domain": record["domain"]} if "domain" in record else {})
        name = record.get("file_name")
        if not isinstance(name, str):
            raise DataError("'file_name' is missing", where=where)
        yield Captioned(image=name, captions=_texts(said.get(record["id"], []), where), facts=facts)


def _texts(captions: Sequence[Any], where: str) -> list[str]:
    if not captions:
        raise DataError("an image without captions", where=where, expected="at least one", todo="Remove it.")
    if bad := [c for c in captions if not isinstance(c, str) or not c.strip()]:
        raise DataError(f"a caption is {bad[0]!r}", where=where, expected="a text")
    return list(captions)


def _check(found: Sequence[Captioned], path: Path) -> None:
    if not found:
        raise DataError("there are no images", where=str(path))
    if twice := _first_twice([one.id or one.image for one in found]):
        raise DataError(f"the image {twice} occurs twice", where=str(path), todo="Remove one of the two records.")


def _require_own_ids(found: Sequence[Captioned], where: str) -> None:
    """A result is told by its image's id: two images of one would be scored as one."""
    image_of: dict[Any, str] = {}
    for one in found:
        number = one.facts.get("image_id", one.image)
        if image_of.setdefault(number, one.image) != one.image:
            raise DataError(
                f"{image_of[number]} and {one.image} have the same image id {number}",
                where=where,
                expected="an id of its own for each image",
                todo="Correct `image_id` in the annotations.",
            )


def _first_twice(values: Sequence[Any]) -> Any:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
