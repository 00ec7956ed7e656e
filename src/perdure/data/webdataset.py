"""Your own images in tar shards, as WebDataset has them: `key.jpg` beside `key.cls`, `key.txt` or `key.json`.

Needs: your data.

Knows keys (the path up to the first dot of the name), shards by a pattern, and an index of where each image lies, so
that images are read in any order. Members of one key must lie next to each other, and a key may occur once in all
shards: what other readers split or mix silently is refused here. Compressed shards cannot be read in any order.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.data.rows import COLUMNS, SPLITS, Row, Rows, column, dataset, text, texts
from perdure.errors import DataError
from perdure.images import is_image
from perdure.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Config(Rows):
    """Settings of the reader of tar shards."""

    shards: str
    """A folder of .tar files, or a pattern: `data/shard-{000000..000012}.tar`, `data/train-*.tar`. A shard whose name
    begins with train, val or test is of that split."""


@dataclass(frozen=True)
class Part:
    """An image's bytes within a shard, read when asked for."""

    shard: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read(config: Config) -> Dataset:
    """Images in the order of the shards.

    Raises:
        DataError: a shard is missing, compressed or truncated, a key is torn apart or occurs twice; or all faults of
            the rows.
    """
    found = files(config)
    source = f"{len(found)} shards, {found[0].name} ..." if len(found) > 1 else f"shard {found[0].name}"
    return dataset("webdataset", list(rows(config)), config, source=source, folder=found[0].parent.name)


def files(config: Config) -> list[Path]:
    """The shards, sorted.

    Raises:
        DataError: there is none, or one of the range is missing.
    """
    pattern = str(Path(config.shards).expanduser())
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
    else:
        found = [path for one in braces(pattern) for path in _globbed(Path(one))]
    if not found:
        raise DataError("no shard there", where=config.shards, expected="a folder of .tar files, or a pattern of them")
    return found


def braces(pattern: str) -> list[str]:
    """``a-{00..02}`` -> a-00, a-01, a-02; ``{a,b}`` -> a, b."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        inside = match[3].split(",")
    else:
        inside = [str(i).zfill(len(match[1])) for i in range(int(match[1]), int(match[2]) + 1)]
    return [one for part in inside for one in braces(pattern[: match.start()] + part + pattern[match.end() :])]


def _globbed(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else []
    if not found:
        raise DataError("there is no such shard", where=str(path))
    return found


def rows(config: Config, *, unlabelled: bool = False) -> Iterator[Row]:
    """A row a key, faulty ones among them. `unlabelled` changes nothing here: an image is enough."""
    first: dict[str, Path] = {}
    for shard in files(config):
        split = re.split(r"[-_.\d]", shard.name, maxsplit=1)[0].lower()
        for sample in _samples(shard, config.group_column):
            if sample.key in first:
                other = first[sample.key]
                where = f"{shard}, {sample.key}"
                if other == shard:
                    what = "the members of this key do not lie next to each other"
                    raise DataError(what, where=where, todo="Sort the names before the tar is made: tar --sort=name.")
                raise DataError(f"the key is in {other.name}, too", where=where, expected="a key of its own")
            first[sample.key] = shard
            if sample.image or sample.said:
                yield _row(sample, shard, split if split in SPLITS else "")


@dataclass
class _Sample:
    key: str
    image: Part | None = None
    said: dict[str, Any] = field(default_factory=dict)


def _samples(shard: Path, group: str) -> Iterator[_Sample]:
    """Neighbouring members of one key. `group`: where a sample's JSON says its group."""
    size, sample = shard.stat().st_size, None
    for member, tar in _members(shard):
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = name.partition(".")
        if not stem or not member.isfile():  # hidden files and macOS's ._ beside them
            continue
        if member.offset_data + member.size > size:
            raise DataError("the shard is truncated", where=f"{shard}, {member.name}", todo="Copy it again.")
        key = f"{folder}/{stem}" if folder else stem
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if is_image(name):
            if sample.image is not None:
                raise DataError("a second image of this key", where=f"{shard}, {member.name}", expected="one")
            sample.image = Part(shard, member.offset_data, member.size)
        elif suffix in ("cls", "txt", "json"):
            opened = tar.extractfile(member)
            assert opened is not None
            sample.said |= _said(suffix, opened.read(), f"{shard}, {member.name}", group)
    if sample is not None:
        yield sample


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with shard.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            todo = "Unpack it first: gunzip."
            raise DataError("a compressed shard cannot be read in any order", where=str(shard), todo=todo)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                yield member, tar
    except tarfile.TarError as error:
        raise DataError(f"is no whole tar ({error})", where=str(shard), todo="Copy it again.") from None


def _said(suffix: str, data: bytes, where: str, group: str) -> dict[str, Any]:
    try:
        content = data.decode("utf-8-sig").strip()
        if suffix != "json":
            return {"label" if suffix == "cls" else "text": content}
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no {'JSON' if suffix == 'json' else 'text in UTF-8'} ({error})", where=where) from None
    if not isinstance(found, dict):
        raise DataError("is no JSON object", where=where, expected='{"label": ..., "caption": ...}')
    roles = {role: column(found, role) for role in COLUMNS if role not in ("image", "group")}
    roles["group"] = group if group in found else None
    return {role: found[name] for role, name in roles.items() if name is not None}


def _row(sample: _Sample, shard: Path, split: str) -> Row:
    said = sample.said
    return Row(
        id=sample.key,
        where=f"{shard}, {sample.key}",
        image=sample.image,
        label=text(said.get("label")),
        texts=texts(said.get("text")),
        question=text(said.get("question")),
        answer=text(said.get("answer")),
        split=text(said.get("split")) or split,
        group=text(said.get("group")),
    )
