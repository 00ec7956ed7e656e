"""Reads the folder that a run left behind.

Knows the files of a run's folder (docs/design.md). Does not know what the numbers mean, methods or streams;
imports neither torch nor perdure's run. A missing part is empty, a damaged one is an error or, for the
append-only event log, a note; a folder that holds none of the parts is not a run and is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.files.text_files import read_text
from perdure.files.yaml_limits import MOST_BYTES, plain_yaml
from perdure.run_folder import run_files
from perdure.run_folder.run_files import PARTS
from perdure.settings.faults import display
from perdure.settings.registry import is_file, label


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run wrote down."""

    folder: Path
    tasks: list[str] = field(default_factory=list)
    """Names of the stream's tasks, in order; of an unfinished run those that are learned."""
    total: int = 0
    """Tasks of the whole stream."""
    headline: str = "accuracy"
    """The first metric of the first task."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """``{"after", "asked", "n", "values"}``, one for each test of a task."""
    retention: list[dict[str, Any]] = field(default_factory=list)
    """``{"after", "set", "n", "accuracy"}``, one for each test of a set that the stream does not teach."""
    card: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the report should know of this folder: missing and torn parts."""

    @property
    def unfinished(self) -> str:
        """``1 of 10 tasks``; empty if the run has come to its end."""
        return f"{len(self.tasks)} of {self.total} tasks" if len(self.tasks) < self.total else ""

    @property
    def only_tests(self) -> bool:
        """Whether the stream brings nothing to learn from, as test-time adaptation's do."""
        stream = self.card.get("stream")
        tasks = stream.get("tasks") if isinstance(stream, Mapping) else None
        return isinstance(tasks, list) and bool(tasks) and all("test" in t and "train" not in t for t in tasks)

    @property
    def name(self) -> str:
        """The folder's name; with the run's before it where the folder is one seed's."""
        own = self.folder.name
        return f"{self.folder.absolute().parent.name}/{own}" if own.startswith("seed_") else own

    @property
    def method(self) -> str:
        return name_of(self.recipe.get("method") or self.card.get("method"))

    @property
    def own_metrics(self) -> list[str]:
        """Files of metrics that the recipe names."""
        evaluate = self.recipe.get("evaluate")
        named = evaluate.get("metrics") if isinstance(evaluate, Mapping) else None
        return [str(name) for name in named if is_file(str(name))] if isinstance(named, list) else []

    @property
    def stream(self) -> str:
        return name_of(self.recipe.get("stream") or self.card.get("stream"))

    @property
    def data(self) -> str:
        """The data set's name, or several, as the recipe states or names them; empty where the stream has none."""
        stream = self.recipe.get("stream")
        stated = stream.get("data") if isinstance(stream, Mapping) else None
        named = stream.get("names") if isinstance(stream, Mapping) and isinstance(stated, list) else None
        names = [name_of(one) for one in (named or (stated if isinstance(stated, list) else [stated]))]
        return ", ".join(filter(None, names))

    @property
    def seed(self) -> int | None:
        """The run's seed (not that of the class order, which is a setting of the stream)."""
        places = (self.recipe.get("run"), self.recipe, self.card.get("seeds"))
        found = (place["seed"] for place in places if isinstance(place, Mapping) and "seed" in place)
        return next(found, None)


def read(folder: Path) -> Run:
    """The run in `folder`.

    Raises DataError if the folder does not exist or is no run's folder, or if a JSON or YAML part is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), expected="a run's folder")
    if not run_files.is_run(folder):
        raise DataError("this is not a run's folder", where=str(folder), expected=f"one of {', '.join(PARTS)} in it")
    scores = run_files.read_scores(folder)
    events, torn = run_files.read_lines(folder / "events.jsonl")
    tasks, rows = scores.get("tasks", []), scores.get("rows", [])
    done = 1 + max((row["after"] for row in rows), default=len(tasks) - 1)
    unfinished = done < len(tasks) and not run_files.is_there(folder / "card.json")
    notes = [f"unfinished, {done} of {len(tasks)} tasks: the numbers are of these"] if unfinished and done else []
    hidden = {"card.json"} if notes else set()
    notes += [f"{part} is missing" for part in PARTS if part not in hidden and not (folder / part).exists()]
    if torn:
        notes.append(f"events.jsonl: {torn} damaged line(s) left out")
    return Run(
        folder=folder,
        tasks=tasks[:done] if unfinished and done else tasks,
        total=len(tasks),
        headline=scores.get("headline") or "accuracy",
        rows=[row for row in rows if row["asked"] < done] if unfinished and done else rows,
        retention=[row for row in scores.get("retention", []) if row["after"] < done],
        card=run_files.read_card(folder),
        recipe=_yaml(folder / "recipe.yaml"),
        events=events,
        notes=notes,
    )


def records_digest(folder: Path) -> str:
    """Of the names and bytes of all kept records; of nothing where none were kept."""
    digest = hashlib.sha256()
    for file in sorted((folder / "predictions").glob("*.jsonl")):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> ``{"a.b.c": leaf}``; an empty mapping and a list are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shown(value: Any) -> str:
    """A setting as people write it in a recipe; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def name_of(item: Any) -> str:
    """Name of something that recipes write as ``name`` or as ``{name: ..., settings}``."""
    return label(str(item.get("name", "")) if isinstance(item, Mapping) else str(item or ""))


def _yaml(file: Path) -> dict[str, Any]:
    """The settings of a run's recipe, whatever they are: reports are made of older runs and of other packages' too."""
    if not run_files.is_there(file):
        return {}
    found = plain_yaml(read_text(file, most=MOST_BYTES), where=str(file))
    if not isinstance(found, dict):
        raise DataError(f"holds {display(found)}", where=str(file), expected="settings by name", todo=run_files.AGAIN)
    return found
