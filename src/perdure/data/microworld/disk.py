"""Microworld as files, in the layouts of real data sets, so that their readers can be tried on it.

Knows the trees `imagefolder`, `coco-captions` and `flickr30k`; `coin` is a module of its own. Does not know
how they are read back.
Questions and sound bring layouts of their own: a layout is a function, named in `WRITERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from perdure.data.microworld import clip_files
from perdure.errors import DataError
from perdure.types import Example, Examples


def write(kind: str, out: Path, config: Any) -> list[Path]:
    """Write the world of a `microworld.Config` in the layout `kind` below `out`; returns the files.

    Raises:
        DataError: no such layout, or `out` holds files already.
    """
    if kind not in WRITERS:
        raise DataError(
            f"no layout is called {kind!r}", where="microworld", expected=f"one of {', '.join(sorted(WRITERS))}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("it is not an empty folder", where=str(out), todo="Give another folder or remove this one.")
    return WRITERS[kind](out, config)


def _image_folder(out: Path, config: Any) -> list[Path]:
    """``train/<class>/000123.png`` and ``test/<class>/...``; spaces in class names become underscores."""
    data = _read(config, "classes")
    written = []
    for split in ("train", "test"):
        for example in getattr(data, split):
            name = data.candidates[example.target].replace(" ", "_")
            written.append(_image(example, out / split / name / f"{_number(example):06d}.png"))
    return written


def _coco_captions(out: Path, config: Any) -> list[Path]:
    """``coco2014/coco_karpathy_{train,val,test}.json`` with images in ``train2014`` and ``val2014``."""
    data = _read(config, "captions")
    written = []
    # Images are numbered through, as in COCO; test images lie among the validation ones.
    parts = (("train", data.train, "train2014", 0), ("val", data.validation, "val2014", 1_000_000))
    parts += (("test", data.test, "val2014", 2_000_000),)
    for split, examples, folder, offset in parts:
        written += _captioned(
            examples,
            root=out / "coco2014",
            annotations=f"coco_karpathy_{split}.json",
            image=lambda n, folder=folder, offset=offset: f"{folder}/COCO_{folder}_{offset + n:012d}.jpg",
            image_id=(lambda n, offset=offset: f"coco_{offset + n}") if split == "train" else None,
        )
    return written


def _flickr30k(out: Path, config: Any) -> list[Path]:
    """``flickr30k/annotations/flickr30k_{train,val,test}.json`` with images in ``flickr30k-images``."""
    data = _read(config, "captions")
    written = []
    parts = (("train", data.train, 1_000_000), ("val", data.validation, 2_000_000), ("test", data.test, 3_000_000))
    for split, examples, offset in parts:
        written += _captioned(
            examples,
            root=out / "flickr30k",
            annotations=f"annotations/flickr30k_{split}.json",
            image=lambda n, offset=offset: f"flickr30k-images/{offset + n}.jpg",
            image_id=(lambda n, offset=offset: str(offset + n)) if split == "train" else None,
        )
    return written


def _coin(out: Path, config: Any) -> list[Path]:
    """``annotations/<task>/{train,test}.json`` of the eight instruction tasks, with pictures and reference answers."""
    from perdure.data.microworld import coin

    return coin.write(out, config)


def _captioned(
    examples: Examples,
    *,
    root: Path,
    annotations: str,
    image: Callable[[int], str],
    image_id: Callable[[int], str] | None,
) -> list[Path]:
    """Images and one JSON list; with `image_id` one record a caption (training), else one an image."""
    records: list[dict[str, Any]] = []
    written = []
    for example in examples:
        number = _number(example)
        path = image(number)
        written.append(_image(example, root / path))
        if image_id is None:
            records.append({"image": path, "caption": example.target})
        else:
            said = [{"caption": c, "image": path, "image_id": image_id(number)} for c in example.target]
            records += said
    where = root / annotations
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(records), encoding="utf-8")
    return [*written, where]


def _read(config: Any, content: str):
    """The data set of a config, with the content that a layout needs."""
    from dataclasses import replace

    from perdure.data.microworld import read

    return read(replace(config, content=content))


def _number(example: Example) -> int:
    return int(example.id.rsplit("/", 1)[1])


def _image(example: Example, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # JPEG's color subsampling would wash out objects of a few pixels.
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(example.inputs["image"]).save(path, **options)
    return path


WRITERS: dict[str, Callable[[Path, Any], list[Path]]] = {
    "imagefolder": _image_folder,
    "coco-captions": _coco_captions,
    "flickr30k": _flickr30k,
    "coin": _coin,
    **clip_files.WRITERS,
}
"""Layouts by name."""
