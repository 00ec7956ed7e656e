"""Prepared clips on disk: a folder of frames and a ``.npy`` file of sound a clip.

Knows ``frames/<id>/00000001.jpg ...`` (one a second) and ``wave/<id>.npy`` (32,000 mono samples a second), and which
are missing. Does not know annotations; decodes nothing.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perdure.errors import DataError, UnreadableExample
from perdure.files.restricted_pickle import Restricted
from perdure.files.text_files import lines, read_text
from perdure.types import Example, Examples

OnMissing = Literal["stop", "skip"]
"""What to do with annotated clips of which there are no files: stop with a list, or leave them out and count them."""
TODO = "Prepare the videos with `perdure data prepare`, or set `on_missing: skip`."


@dataclass(frozen=True)
class Item:
    """One annotated clip."""

    id: str
    """Unique among the examples of a split."""
    clip: str
    """Name of its folder of frames and of its wave."""
    target: Any
    more: tuple[tuple[str, Any], ...] = ()
    """Further inputs by name."""


@dataclass(frozen=True)
class _Make:
    """Makes Examples of prepared clips (a class, so that loader workers can receive it)."""

    items: list[Item]
    frames: str
    waves: str
    count: int

    def __call__(self, index: int, target: Any) -> Example:
        item = self.items[index]
        paths = [Path(self.frames, item.clip, f"{i + 1:08d}.jpg") for i in range(self.count)]
        wave = Path(self.waves, f"{item.clip}.npy")
        return Example(id=item.id, inputs={"frames": paths, "wave": wave, **dict(item.more)}, target=target)


def examples(
    items: Sequence[Item], root: Path, *, segments: int, on_missing: OnMissing, what: str
) -> tuple[Examples, int]:
    """Examples of the clips whose files are there, and how many were left out.

    Raises:
        DataError: files are missing and `on_missing` is "stop"; the first of them are named.
    """
    frames, waves = root / "frames", wave_folder(root)
    kept, missing = present(items, frames, waves)
    if missing and on_missing == "stop":
        raise missing_clips([item.clip for item in missing], len(items), where=f"{what} below {root}")
    return Examples(maker(kept, root, segments=segments), [item.target for item in kept]), len(missing)


def maker(items: list[Item], root: Path, *, segments: int) -> Callable[[int, Any], Example]:
    """Makes the Example of an item by its index."""
    return _Make(items, str(root / "frames"), str(wave_folder(root)), segments)


def wave_folder(root: Path) -> Path:
    """``wave``, or ``audio_wave``, as other releases call it."""
    return root / "wave" if (root / "wave").is_dir() or not (root / "audio_wave").is_dir() else root / "audio_wave"


def present(items: Sequence[Item], frames: Path, waves: Path) -> tuple[list[Item], list[Item]]:
    """Items with both files, and those without; one look at each folder."""
    shown, heard = _names(frames), _names(waves)
    kept = [item for item in items if item.clip in shown and f"{item.clip}.npy" in heard]
    found = {id(item) for item in kept}
    return kept, [item for item in items if id(item) not in found]


def missing_clips(clips: Sequence[str], total: int, *, where: str) -> DataError:
    """Names the first of the clips that have no frames or no sound."""
    named = ", ".join(list(dict.fromkeys(clips))[:3])
    return DataError(
        f"{len(clips)} of {total} annotated clips lack frames or sound, first {named}",
        where=where,
        expected="frames/<id>/00000001.jpg ... and wave/<id>.npy",
        todo=TODO,
    )


def read_table(path: Path, columns: Sequence[str], *, separator: str = "\t", todo: str = "") -> list[dict[str, str]]:
    """Rows of a text table with a head, as dicts; its head must hold `columns`.

    Raises:
        DataError: no such file, another head, or a row of another width; the line is named.
    """
    filled = [line for line in lines(read_text(path, todo=todo)) if line.strip()]
    head = filled[0].split(separator) if filled else []
    if lacking := [column for column in columns if column not in head]:
        raise DataError(
            f"its head is {head}", where=f"{path}, line 1", expected=f"columns {', '.join(columns)}; lacks {lacking[0]}"
        )
    rows = []
    for number, line in enumerate(filled[1:], 2):
        cells = line.split(separator)
        if len(cells) < len(head):
            raise DataError(f"{len(cells)} cells", where=f"{path}, line {number}", expected=f"{len(head)} cells")
        rows.append(dict(zip(head, cells)))
    return rows


def class_names(labels: Path, published: Sequence[str]) -> list[str]:
    """Classes by label: the lines of ``categories.txt`` if it lies in the folder `labels`, else the published ones."""
    file = labels / "categories.txt"
    if not file.is_file():
        return list(published)
    names = [line.strip() for line in lines(read_text(file)) if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"the class {twice[0]!r} is there twice", where=str(file))
    return names


def label_of(name: str, classes: Sequence[str], *, where: str) -> int:
    """Index of a class name; DataError with the line if there is none."""
    try:
        return classes.index(name)
    except ValueError:
        raise DataError(f"there is no class {name!r}", where=where, expected=f"one of {len(classes)} classes") from None


def unique_ids(items: Sequence[Item]) -> list[Item]:
    """The items with ``#2``, ``#3`` ... behind an id that has occurred before."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        times = seen[item.id] = seen.get(item.id, 0) + 1
        result.append(item if times == 1 else Item(f"{item.id}#{times}", item.clip, item.target, item.more))
    return result


# -- arrays in a pickled dict -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedWave:
    """One array of a ``.npy`` file that holds a dict of arrays; read when it is asked for, by an unpickler that makes
    arrays and nothing else."""

    path: Path
    key: str

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        content = _read_packed(str(self.path), os.stat(self.path).st_mtime_ns)
        if self.key not in content:
            raise UnreadableExample(f"it holds no {self.key!r}", where=str(self.path))
        return np.asarray(content[self.key], dtype=dtype)


@lru_cache(maxsize=2)
def _read_packed(path: str, _time: int) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_head: Callable[..., Any] = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_head(file)
            if not dtype.hasobject:
                raise UnreadableExample("it is an array", where=path, expected="a dict of arrays")
            content = Restricted(io.BytesIO(file.read()), _array_parts).load()
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, TypeError, IndexError) as error:
        raise UnreadableExample(f"not a readable dict of arrays ({error})", where=path) from None
    value = content.item() if isinstance(content, np.ndarray) else content
    if shape != () or not isinstance(value, dict):
        raise UnreadableExample(f"it holds a {type(value).__name__}", where=path, expected="a dict of arrays")
    return value


def _array_parts(module: str, name: str) -> Any:
    """What numpy arrays are pickled with."""
    parts = ("_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar")
    if (module.split(".")[0] == "numpy" and name in parts) or (module, name) == ("_codecs", "encode"):
        return getattr(import_module(module), name, None)
    return None


@lru_cache(maxsize=64)
def _names_at(folder: str, _time: int) -> frozenset[str]:
    return frozenset(entry.name for entry in os.scandir(folder))


def _names(folder: Path) -> frozenset[str]:
    """Names in a folder; none if there is no such folder."""
    return _names_at(str(folder), os.stat(folder).st_mtime_ns) if folder.is_dir() else frozenset()
