"""Which examples of a data set a task takes, as positions, and how they are written down.

Knows labels and positions. Does not know files or images, and makes no Example: a stream over a million
images is cut in seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from perdure.data.class_folders import split_by_share
from perdure.errors import DataError
from perdure.keys import key_seed
from perdure.types import Dataset, Examples


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the splits of a data set are thinned out."""

    train_per_class: int | None = None
    test_per_class: int | None = None
    validation_share: float = 0.0

    def splits(self, dataset: Dataset) -> dict[str, list[int]]:
        """Positions in ``dataset.train`` (train and validation) or in that of the same name, in data set order.

        With a validation share, validation is a part of ``dataset.train``; else it is ``dataset.validation``.
        """
        train = first_of_each(dataset.train.targets, self.train_per_class)
        if self.validation_share:
            train, validation = _held_out(dataset, train, self.validation_share)
        else:
            validation = first_of_each(dataset.validation.targets, self.test_per_class)
        test = first_of_each(dataset.test.targets, self.test_per_class)
        return {"train": train, "validation": validation, "test": test}

    def cut(self, dataset: Dataset, label_of: Callable[[int], int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Examples of the splits with other labels, and what a manifest says of each."""
        parts, written = {}, {}
        for split, positions in self.splits(dataset).items():
            parts[split] = self.source(dataset, split).select(positions).relabel(label_of)
            written[split] = record(positions, parts[split].targets)
        return parts, written

    def source(self, dataset: Dataset, split: str) -> Examples:
        """The examples that the positions of `split` point into."""
        from_train = split == "train" or (split == "validation" and self.validation_share)
        return dataset.train if from_train else getattr(dataset, split)


def rules_of(config: Any) -> Rules:
    """The rules that the settings of a stream state."""
    stated = {field.name for field in fields(config)} & {field.name for field in fields(Rules)}
    return Rules(**{name: getattr(config, name) for name in stated})


def settings_of(config: Any) -> dict[str, Any]:
    """``{"source": the data set as named, "settings": all others}`` of a stream over one data set, JSON-ready."""
    stated = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "data"}
    return {"source": config.data.plain(), "settings": json.loads(json.dumps(stated))}


def first_of_each(targets: Sequence[int], limit: int | None) -> list[int]:
    """Positions of the first `limit` examples of each class (all, if None), in order."""
    if limit is None:
        return list(range(len(targets)))
    seen: Counter[int] = Counter()
    kept = []
    for position, target in enumerate(targets):
        if seen[target] < limit:
            kept.append(position)
        seen[target] += 1
    return kept


def by_task(positions: Iterable[int], targets: Sequence[int], task_of: Mapping[int, int]) -> list[list[int]]:
    """The positions that each task takes, in order; `task_of` gives the task of a class."""
    tasks: list[list[int]] = [[] for _ in range(max(task_of.values()) + 1)]
    for position in positions:
        tasks[task_of[targets[position]]].append(position)
    return tasks


def record(positions: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
    """Count and sha256 of which examples, in which order, with which labels: for a manifest."""
    text = ",".join(f"{p}:{label}" for p, label in zip(positions, labels))
    return {"n": len(positions), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def fingerprint(names: Iterable[str]) -> str:
    """sha256 of names in their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells a data set from another copy or version: name, classes, fingerprint."""
    facts = json.dumps(dataset.facts, sort_keys=True, default=str)
    return {
        "name": dataset.name,
        "classes": list(dataset.candidates),
        "fingerprint": dataset.facts.get("fingerprint") or hashlib.sha256(facts.encode()).hexdigest(),
    }


def require_training_images(
    targets: Sequence[int], names: Mapping[int, str], *, where: str, data: str, limit: int | None
) -> None:
    """Every class of a task has a training image, unless none are wanted (``limit == 0``)."""
    if limit == 0:
        return
    present = set(targets)
    absent = [name for label, name in names.items() if label not in present]
    if absent:
        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise DataError(
            f"no training image of {len(absent)} class(es) of this task: {shown}",
            where=f"{data}, {where}",
            expected="at least one image of every class",
            todo="Complete the data, or set `train_per_class: 0` for methods that do not train.",
        )


def require_test_images(targets: Sequence[int], *, data: str) -> None:
    """There is a test image."""
    if not targets:
        raise DataError("no test image", where=data, todo="Set the data set's `test_share`, or complete the data.")


def _held_out(dataset: Dataset, train: list[int], share: float) -> tuple[list[int], list[int]]:
    """(train, validation) positions: of each class a share, chosen by its place among those of the class."""
    labels = [dataset.train.targets[p] for p in train]
    place: Counter[int] = Counter()
    keys = []
    for label in labels:
        keys.append(f"{label}/{place[label]}")
        place[label] += 1
    kept, taken = split_by_share(keys, labels, share, "validation")
    return [train[i] for i in kept], [train[i] for i in taken]


def at_most(examples: Examples, limit: int | None, key: tuple[Any, ...]) -> Examples:
    """`limit` examples, in their order; which ones depends on the key and their ids alone. None: all."""
    if limit is None or limit >= len(examples):
        return examples
    ranked = sorted(range(len(examples)), key=lambda i: key_seed(*key, examples[i].id))
    return examples.select(sorted(ranked[:limit]))
