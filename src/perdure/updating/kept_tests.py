"""Test examples of every task, kept beside a run: later versions are judged by them when the data are gone.

Knows ``RUN/kept``: files by the digest of their bytes, once, and one table of examples for each of the run's own tasks;
the table of an update's task lies in its version's folder. Does not know gates.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import checkpoint, kept_examples
from perdure.keys import key_seed
from perdure.run_folder import versions
from perdure.run_folder.versions import Version
from perdure.streams import contents
from perdure.types import Example, Examples

FOLDER = "kept"
OWN = "kept.safetensors"
"""Of an update's task, in its version's folder."""
LIMIT = 1000
"""Examples kept of a task, unless its classes are many."""
LEAST = 5
"""Examples kept of every class."""


def chosen(examples: Examples, limit: int) -> Examples:
    """So many examples of a task, the same share of every class, in their order; which ones depends on ids alone."""
    if len(examples) <= limit:
        return examples
    groups: dict[Any, list[int]] = {}
    for i, target in enumerate(examples.targets):
        groups.setdefault(target if isinstance(target, int) else None, []).append(i)
    share = max(limit // len(groups), LEAST if len(groups) > 1 else 0) if limit else 0
    taken: list[int] = []
    for members in groups.values():
        taken += sorted(members, key=lambda i: key_seed("kept", examples[i].id))[:share]
    return examples.select(sorted(taken))


def table(version: Version, task: int) -> Path:
    """Where the kept tests of a task are that a version has learned, or one that it came from."""
    known = versions.listed(version.run)
    line = {version.number, *versions.ancestors(known, version.number)}
    for one in known:
        of_update = bool(one.about) and not one.about.get("of_run")
        if one.number in line and of_update and one.about["task"]["index"] == task:
            return one.folder / OWN
    return version.run / FOLDER / f"task_{task:04d}.safetensors"


def write(run: Path, table: Path, examples: Examples, *, limit: int = LIMIT) -> None:
    """Keep test examples of a task. Doing it twice changes nothing."""
    if table.is_file():
        return
    some = list(chosen(examples, limit))
    packed = kept_examples.pack([_replaced(example, lambda path: _stored(run, path)) for example in some])
    digests = [contents.digest(example) for example in some]
    checkpoint.save(table, {"examples": packed, "digests": digests})


def read(version: Version, task: int) -> Examples | None:
    """The examples kept of a task; None if none ever were."""
    file = table(version, task)
    if not file.is_file():
        return None
    saved, run = checkpoint.load(file), version.run
    there = [_replaced(e, lambda path: run / FOLDER / "files" / path) for e in kept_examples.unpack(saved["examples"])]
    return Examples.of(there)


def digests(version: Version, task: int) -> dict[str, str]:
    """Digest of what each kept example of a task holds -> its id."""
    file = table(version, task)
    if not file.is_file():
        return {}
    saved = checkpoint.load(file)
    return dict(zip(saved["digests"], saved["examples"]["ids"]))


def _stored(run: Path, path: Path) -> Path:
    """The name under which a file is kept; it is copied if it is not there yet."""
    name = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() + path.suffix.lower()
    place = run / FOLDER / "files" / name
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{name}")
        shutil.copyfile(path, aside)
        aside.replace(place)
    return Path(name)


def _replaced(example: Example, new: Callable[[Path], Path]) -> Example:
    """The example with other paths."""

    def change(value: Any) -> Any:
        if isinstance(value, Path):
            return new(value)
        if isinstance(value, Mapping):
            return {key: change(item) for key, item in value.items()}
        return [change(item) for item in value] if isinstance(value, list | tuple) else value

    return replace(example, inputs=change(dict(example.inputs)))
