"""What captions need of a CLIP before or after a run: features to learn from, CLIPScores of saved predictions.

Knows one CLIP, data sets of kind `caption` and records of predictions. Does not know captioners or methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import DataError
from perdure.families.captioning.features import store
from perdure.files.text_files import read_json_lines
from perdure.files.written_whole import write_text
from perdure.images import open_image
from perdure.metrics import caption_scores, captioning
from perdure.metrics.record_schemas import Captioned
from perdure.run_folder import run_files

if TYPE_CHECKING:
    from perdure.models.clip import Clip
    from perdure.types import Dataset

SAID = "A photo depicts "
"""What CLIPScore puts before every caption; the reward of RLCF puts nothing."""


def write_features(
    dataset: Dataset, clip: Clip, out: Path, *, images: bool = True, texts: bool = True
) -> dict[str, int]:
    """Features of the training images (by id) and of their different captions, for ClipCap and CapDec.

    Returns:
        How many of each were written, and how many captions had to be cut.
    """
    train = dataset.train
    if not len(train):
        raise DataError("no captions to learn from", where=dataset.name)
    parts: dict[Any, tuple[list[str], Tensor]] = {}
    if images:
        names = [example.id for example in train]
        parts["images"] = names, encode_images(clip, (e.inputs["image"] for e in train), where=names)
    if texts:
        captions = list(dict.fromkeys(text for said in train.targets for text in said))
        parts["captions"] = captions, text_features(clip, captions)
    store(out, parts)
    cut = getattr(clip.tokenizer, "cut_texts", 0)
    return {kind: len(names) for kind, (names, _) in parts.items()} | {"cut": cut}


def add_clipscores(records: Sequence[dict[str, Any]], images: Sequence[Any], clip: Clip) -> list[dict[str, Any]]:
    """The records with `clipscore` and, where there are references, `refclipscore`.

    Args:
        images: one a record: anything that `perdure.images.open_image` takes.
    """
    shown = encode_images(clip, iter(images), where=[str(r["id"]) for r in records]).numpy()
    said = text_features(clip, [SAID + r["caption"] for r in records]).numpy()
    flat = [SAID + text for r in records for text in r["references"]]
    owner = [i for i, r in enumerate(records) for _ in r["references"]]
    references = text_features(clip, flat).numpy() if flat else None
    score, both = caption_scores.clip_scores(shown, said, references, owner)
    added = []
    for i, record in enumerate(records):
        new = {"clipscore": float(score[i])}
        if both is not None and record["references"]:
            new["refclipscore"] = float(both[i])
        added.append({**record, **new})
    return added


def score_file(path: Path, root: Path, clip: Clip, out: Path) -> dict[str, float]:
    """Add CLIPScores to a file of saved predictions whose ids are image paths below `root`; their means."""
    records = read_records(path)
    added = add_clipscores(records, [root / r["id"] for r in records], clip)
    write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in added))
    names = [name for name in ("clipscore", "refclipscore") if all(name in r for r in added)]
    return {name: 100 * sum(r[name] for r in added) / len(added) for name in names}


def write_coco(path: Path, out: Path) -> list[Path]:
    """Saved predictions as the COCO evaluation reads them: ``results.json`` and ``annotations.json`` in `out`.

    Raises:
        DataError: two predictions of one image.
    """
    records = read_records(path)
    if any(not isinstance(record.get("image_id"), str | int) for record in records):
        raise DataError("a record has no image_id", where=str(path), expected="a number or a text in each")
    ids = [record["image_id"] for record in records]
    if len(set(ids)) < len(ids):
        twice = next(i for k, i in enumerate(ids) if i in ids[:k])
        raise DataError(f"image {twice} is described twice", where=str(path))
    said = [(record["image_id"], text) for record in records for text in record["references"]]
    truth = [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(said)]
    contents = {
        "results.json": captioning.coco_results(records),
        "annotations.json": {"images": [{"id": image} for image in ids], "annotations": truth},
    }
    for name, content in contents.items():
        write_text(out / name, json.dumps(content, ensure_ascii=False) + "\n")
    return [out / name for name in contents]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of captions from a run's folder of predictions."""
    found = list(read_json_lines(path))
    if not found or not all(isinstance(r, dict) and {"id", "caption", "references"} <= r.keys() for _, r in found):
        raise DataError("these are no records of captions", where=str(path), expected="predictions/*.jsonl of a run")
    for number, record in found:
        run_files.check(Captioned, record, where=f"{path}, line {number}", todo="")
    return [record for _, record in found]


@torch.no_grad()
def encode_images(clip: Clip, images: Iterator[Any], *, where: Sequence[str]) -> Float[Tensor, "images dim"]:
    """Features of pictures on the CPU, not normalised; UnreadableExample names a broken one."""
    parts, waiting = [], []
    for name, image in zip(where, images):
        waiting.append(clip.transform.pixels(open_image(image, where=name)))
        if len(waiting) == 128:
            parts.append(_encoded(clip, waiting))
            waiting = []
    return torch.cat([*parts, *([_encoded(clip, waiting)] if waiting else [])])


@torch.no_grad()
def text_features(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Features of texts on the CPU, not normalised; over-long ones are cut and counted."""
    parts = []
    for begin in range(0, len(texts), 256):
        ids = clip.tokenize(texts[begin : begin + 256], truncate="keep-eot")
        parts.append(clip.text_features(clip.cut(ids).to(clip.device)).float().cpu())
    return torch.cat(parts)


def _encoded(clip: Clip, pixels: list[Tensor]) -> Tensor:
    batch = clip.transform.normalize(torch.stack(pixels).to(clip.device))
    return clip.image_features(batch).float().cpu()
