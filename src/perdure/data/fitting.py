"""Which reader fits a path: what people hand to `perdure update`, `predict` and `data check`.

Knows what each reader's data look like from outside. Reads no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perdure.errors import DataError
from perdure.settings.config import Named


def fitting(source: str | Path) -> Named:
    """The reader of a folder, a table, shards or ``hf:owner/name[@revision][:config]``, with its settings.

    Raises:
        DataError: there is no such path, or no reader for it.
    """
    from perdure.data import class_folders, hf_dataset, table

    said = str(source)
    if said.startswith("hf:"):
        name, _, config = said.removeprefix("hf:").partition(":")
        name, _, revision = name.partition("@")
        return _named("hf_dataset", path=name, revision=revision, config=config)
    path = Path(said).expanduser()
    if path.suffix.lower() in table.SUFFIXES and (path.is_file() or not path.exists()):
        return _named("table", path=said)
    if path.suffix.lower() == ".tar":
        return _named("webdataset", shards=said)
    if not path.is_dir():
        raise _unfitting(path, table.SUFFIXES)
    if any((path / mark).is_file() for mark in hf_dataset.MARKS):
        return _named("hf_dataset", path=said)
    for name in table.METADATA:
        if (path / name).is_file():
            return _named("table", path=str(path / name))
    if any(path.glob("*.tar")):
        return _named("webdataset", shards=said)
    if {"frames", "wave"} <= set(class_folders.subfolders(path)):
        return _named("clip_folder", root=said)
    return _named("image_folder", root=said)


def _unfitting(path: Path, tables: Sequence[str]) -> DataError:
    from perdure.settings.suggestions import nearest

    near = None
    if not path.exists() and path.parent.is_dir():
        near = nearest(path.name, [one.name for one in path.parent.iterdir()])
    return DataError(
        "there is no reader for it" if path.exists() else "there is no such file or folder",
        where=str(path),
        expected=f"a folder of class folders, a table ({', '.join(tables)}), .tar shards, or hf:owner/name",
        todo=f"Did you mean {str(path.parent / near)!r}?" if near else "",
    )


def _named(name: str, **settings: str) -> Named:
    return Named(place="data", name=name, settings={key: value for key, value in settings.items() if value})
