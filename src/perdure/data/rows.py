"""Rows of images with a class, captions, or a question and its answer, as a data set: what tables, Hugging Face data
sets and tar shards have in common.

Knows names of columns and of splits, classes, captions of an image in several rows, and every fault of a row. Does not
know where rows come from, and opens no image.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import DataError
from perdure.settings.config import Seed
from perdure.types import Dataset, Example, Examples

COLUMNS = {
    "image": ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target"),
    "text": ("caption", "captions", "text", "texts", "sentence", "sentences", "description"),
    "question": ("question", "instruction", "prompt"),
    "answer": ("answer", "response", "output"),
    "split": ("split", "subset"),
    "group": (),
}
"""What a column is for -> what it may be called; the first that is there counts."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""How people call a split -> its name here."""
FIRST = 20
"""Faults that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Settings of every reader of rows."""

    kind: Literal["auto", "classify", "caption", "instruct"] = "auto"
    """What rows are for: classes, captions, or questions with answers. `auto`: by the columns, in this order."""
    classes: tuple[str, ...] = ()
    """Class names in label order; empty: all that occur, sorted (numbers by size)."""
    label_names: Path | None = None
    """A file with one name a line, where labels are numbers from 0: number i stands for line i + 1."""
    test_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of each class that is the test set, where no row is for testing; 0: none, 1: everything."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""
    group_column: str = ""
    """Column that says who or what a row is of (a patient, a video): rows of one group stay on one side of the split,
    and count together where versions are compared. Empty: every row stands for itself."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One row as it was found: what is empty was not there."""

    id: str
    """The image's path as it is written, a key, or a number."""
    where: str
    """For messages: file and line."""
    image: Any = None
    """Whatever `perdure.images.open_image` takes."""
    label: str = ""
    texts: list[str] = field(default_factory=list)
    question: str = ""
    answer: str = ""
    split: str = ""
    group: str = ""


def column(names: Iterable[str], role: str, *, stated: str = "", where: str = "") -> str | None:
    """The column for a role: the one that a setting states, else by `COLUMNS`; None if there is none.

    Raises:
        DataError: the stated one is not there.
    """
    by_lower = {str(name).strip().lower(): name for name in names}
    if stated and stated.strip().lower() not in by_lower:
        raise DataError(
            f"there is no column {stated!r}", where=where, expected=f"one of {', '.join(by_lower.values())}"
        )
    if stated:
        return by_lower[stated.strip().lower()]
    return next((by_lower[name] for name in COLUMNS[role] if name in by_lower), None)


def text(value: Any) -> str:
    """A cell as text: nothing and NaN are empty, 3.0 is "3" (a column of numbers with holes)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def texts(value: Any) -> list[str]:
    """Captions of a cell: a list of texts, or one."""
    listed = list(value) if isinstance(value, list | tuple) or hasattr(value, "tolist") else [value]
    return [found for found in map(text, listed) if found]


def dataset(name: str, found: Sequence[Row], config: Rows, **facts: Any) -> Dataset:
    """The data set of these rows.

    Raises:
        DataError: all faults at once: rows without an image or a class, addresses, missing files, an image twice, an
            unknown class or split.
    """
    if not found:
        raise DataError("there are no rows", where=name, expected="a row an image")
    rows = [replace(row, split=SPLITS.get(row.split.lower(), row.split)) for row in found]
    kind = _kind(rows, config, name)
    faults = list(_faults(rows, kind, config))
    if kind == "caption":
        rows = _joined(rows)
    faults += _repeated(rows) if kind != "instruct" else []
    rows, classes = _classes(rows, config, faults) if kind == "classify" else (rows, ())
    if faults:
        more = f"\n... and {len(faults) - FIRST} more" if len(faults) > FIRST else ""
        raise DataError("\n".join(faults[:FIRST]) + more)
    make = {"classify": _classified, "caption": _captioned, "instruct": _asked}[kind]
    label = {one: i for i, one in enumerate(classes)}
    parts = _divided(rows, config, name)
    made = {split: make([rows[i] for i in chosen], label, split) for split, chosen in parts.items()}
    counts = {split: len(examples) for split, examples in made.items() if len(examples)}
    more = {**facts, "counts": counts, "fingerprint": _fingerprint(rows)}
    return Dataset(name=name, kind=kind, candidates=classes, facts=more, **made)


def read_names(path: Path) -> list[str]:
    """Class names, one a line; `label_names` points at such a file."""
    from perdure.files.text_files import lines, read_text

    return [line.strip() for line in lines(read_text(path.expanduser())) if line.strip()]


def _kind(rows: Sequence[Row], config: Rows, name: str) -> Literal["classify", "caption", "instruct"]:
    if config.kind != "auto":
        return config.kind
    if any(row.label for row in rows):
        return "classify"
    if any(row.question for row in rows):
        return "instruct"
    if any(row.texts for row in rows):
        return "caption"
    columns = "; ".join(f"{role}: {', '.join(COLUMNS[role])}" for role in ("label", "text", "question"))
    raise DataError("no row has a class, a caption or a question", where=name, expected=f"a column of ({columns})")


def _faults(rows: Sequence[Row], kind: str, config: Rows) -> Iterator[str]:
    for row in rows:
        image = row.image
        if config.group_column and not row.group:
            yield f"{row.where}: no group"
        lacking = [
            *(["image"] if image is None and kind != "instruct" else []),
            *(["label"] if kind == "classify" and not row.label else []),
            *(["caption"] if kind == "caption" and not row.texts else []),
            *(["question"] if kind == "instruct" and not row.question else []),
            *(["answer"] if kind == "instruct" and not row.answer else []),
        ]
        if lacking:
            yield f"{row.where}: no {' and no '.join(lacking)}"
        elif row.split and row.split not in SPLITS:
            yield f"{row.where}: the split is {row.split!r}; expected train, validation or test"
        elif fault := file_fault(image):
            yield f"{row.where}: {fault}"


def file_fault(image: Any) -> str:
    """What is wrong with a path before it is opened; empty if nothing, or if it is no path."""
    if not isinstance(image, Path):
        return ""
    if is_address(str(image)):
        return f"{image} is an address; images are not fetched: download them first"
    return "" if os.path.isfile(image) else f"there is no such image: {image}"


def is_address(path: str) -> bool:
    return "://" in path or path.startswith(("http:/", "https:/", "s3:/", "gs:/"))  # Path makes // one


def _joined(rows: Iterable[Row]) -> list[Row]:
    """Captions of the same image of a split become one row's, as far as images are told apart by a path or key."""
    by_id: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = by_id.get((row.split, row.id))
        if known is None:
            by_id[row.split, row.id] = replace(row, texts=list(row.texts))
        else:
            known.texts += row.texts
    return list(by_id.values())


def _repeated(rows: Iterable[Row]) -> list[str]:
    first: dict[str, Row] = {}
    faults = []
    for row in rows:
        before = first.setdefault(row.id, row)
        if before is row or not row.id:
            continue
        differing = f" as {row.label!r} and as {before.label!r}" if row.label != before.label else ""
        differing = differing or (f" in {before.split} and in {row.split}" if row.split != before.split else "")
        faults.append(f"{row.where}: {row.id} stands there twice{differing} (first: {before.where})")
    return faults


def _classes(rows: list[Row], config: Rows, faults: list[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Rows with names for labels, and the names in label order; appends to `faults`."""
    from perdure.settings.suggestions import nearest

    if config.label_names is not None:
        names = read_names(config.label_names)
        wrong = [r for r in rows if r.label and not (r.label.isdecimal() and int(r.label) < len(names))]
        faults += [f"{r.where}: the label is {r.label!r}; expected a number below {len(names)}" for r in wrong]
        if not wrong:
            rows = [replace(r, label=names[int(r.label)]) if r.label else r for r in rows]
        return rows, config.classes or tuple(names)
    present = {row.label for row in rows if row.label}
    if not config.classes:
        numbers = all(label.isdecimal() for label in present)
        return rows, tuple(sorted(present, key=(lambda x: (int(x), x)) if numbers else str))
    for label in sorted(present - set(config.classes)):
        row = next(r for r in rows if r.label == label)
        near = nearest(label, config.classes)
        faults.append(f"{row.where}: {label!r} is no class of `classes`" + (f" (nearest: {near})" if near else ""))
    return rows, config.classes


def _divided(rows: Sequence[Row], config: Rows, name: str) -> dict[str, list[int]]:
    """Positions of the rows of each split. A row without a split is for training."""
    from perdure.data.class_folders import split_by_share

    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i, row in enumerate(rows):
        parts[row.split or "train"].append(i)
    if not parts["test"] and parts["validation"]:
        parts["test"], parts["validation"] = parts["validation"], []
    if not parts["test"] and config.test_share == 1:
        parts["test"], parts["train"] = parts["train"], []
    elif not parts["test"]:
        train = parts["train"]
        if config.group_column:
            kept, taken = _by_group([rows[i].group for i in train], config, name)
        else:
            kept, taken = split_by_share(
                [rows[i].id for i in train], [rows[i].label for i in train], config.test_share, name, config.split_seed
            )
        parts["train"], parts["test"] = [train[i] for i in kept], [train[i] for i in taken]
    return parts


def _by_group(groups: Sequence[str], config: Rows, name: str) -> tuple[list[int], list[int]]:
    """Positions of (kept, taken): a share of the groups is taken, and with each all of its rows."""
    from perdure.data.class_folders import keyed_order

    named = sorted(set(groups))
    count = min(len(named) - 1, max(1, round(config.test_share * len(named)))) if config.test_share else 0
    taken = {named[i] for i in keyed_order(named, name, config.split_seed)[:count]}
    positions = range(len(groups))
    return [i for i in positions if groups[i] not in taken], [i for i in positions if groups[i] in taken]


def _classified(rows: Sequence[Row], label: Mapping[str, int], split: str) -> Examples:
    made = _Images([r.id for r in rows], [r.image for r in rows], [r.group for r in rows])
    return Examples(made, [label[r.label] for r in rows])


@dataclass(frozen=True)
class _Images:
    """Makes Examples of images with a class (a class, so that loader workers can receive it)."""

    ids: list[str]
    images: list[Any]
    groups: list[str]

    def __call__(self, index: int, target: Any) -> Example:
        image = {"image": self.images[index]}
        return Example(id=self.ids[index], inputs=image, target=target, group=self.groups[index])


def _captioned(rows: Sequence[Row], label: Mapping[str, int], split: str) -> Examples:
    made = [Example(id=r.id, inputs={"image": r.image}, target=list(r.texts), group=r.group) for r in rows]
    return Examples.of(made)


def _asked(rows: Sequence[Row], label: Mapping[str, int], split: str) -> Examples:
    """Conversations to learn from, questions to test with, as `perdure.data.instruction` gives them."""
    from perdure.data import instruction

    make = instruction.conversation if split == "train" else instruction.question
    made = [make(f"{split}/{i}/{r.id}", r.question, r.answer, r.image) for i, r in enumerate(rows)]
    return Examples.of([replace(example, group=r.group) for example, r in zip(made, rows)])


def _fingerprint(rows: Iterable[Row]) -> str:
    """sha256 over all that rows say, and the sizes of files."""
    digest = hashlib.sha256()
    for row in rows:
        size = os.stat(row.image).st_size if isinstance(row.image, Path) else getattr(row.image, "size", 0)
        said = [row.id, row.label, *row.texts, row.question, row.answer, row.split, str(size)]
        digest.update("\0".join(said).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def numbers_for_names(classes: Sequence[str]) -> bool:
    """Whether classes have no names but numbers: methods that read names know nothing of them."""
    return bool(classes) and all(name.isdecimal() for name in classes)
