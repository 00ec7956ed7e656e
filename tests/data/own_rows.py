"""Twelve small pictures of two classes in every form that people have them in."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.data.conftest import write_image

SPLITS = ("train", "train", "train", "train", "val", "test")


def pictures(root: Path, classes: Sequence[str] = ("cat", "dog")) -> list[dict[str, Any]]:
    """Six images of each class below `root`, as the rows of a table."""
    rows = []
    for c, name in enumerate(classes):
        for k, split in enumerate(SPLITS):
            path = write_image(root / "images" / f"{name}{k}.png", 10 * c + k)
            rows.append({"file_name": str(path.relative_to(root)), "label": name, "split": split})
    return rows


def without(rows: Iterable[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def sample(key: str, image: Path, **said: Any) -> list[tuple[str, bytes]]:
    """Members of one key: ``cls="cat"``, ``txt="..."``, ``json={...}``."""
    texts = {suffix: json.dumps(v) if suffix == "json" else str(v) for suffix, v in said.items()}
    return [(f"{key}.png", image.read_bytes()), *((f"{key}.{s}", t.encode()) for s, t in texts.items())]
