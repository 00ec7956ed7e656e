"""Your own images in a table: CSV, TSV, JSON lines or parquet with a path and a class, captions or a question a row.

Needs: your data.

Knows the columns that `perdure.data.rows` lists (image or path; label, caption, or question and answer; split), and
paths relative to the table. A CSV may be separated by commas, semicolons, tabs or bars. All cells are read as text, so
that 007 stays what it is. A parquet may hold the images themselves, as Hugging Face writes them; they are then
in memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.data.rows import COLUMNS, Row, Rows, column, dataset, is_address, text, texts
from perdure.errors import DataError, MissingExtra
from perdure.types import Dataset

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Beside images, as Hugging Face's imagefolder has it: the table of its folder."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
HEAD, NAMES = 0, -1
"""Numbers of what is no row: columns; and class names by number, that a parquet brings along by column."""


@dataclass(frozen=True, kw_only=True)
class Config(Rows):
    """Settings of the reader of tables."""

    path: Path
    """A .csv, .tsv, .jsonl or .parquet."""
    root: Path | None = None
    """Folder that paths in the table start from; null: the table's own."""
    image_column: str = ""
    """Column of the images; empty: the one called image, path, file_name or alike."""
    label_column: str = ""
    """Column of the classes; empty: the one called label, class, category or alike."""
    text_column: str = ""
    """Column of the captions (a text or a list of them); empty: the one called caption, text or alike."""


def read(config: Config) -> Dataset:
    """Images in the order of the table.

    Raises:
        DataError: the table cannot be read, or all faults of its rows.
    """
    path = config.path.expanduser()
    folder = path.parent.name if path.name in METADATA else path.stem
    return dataset("table", list(rows(config)), config, source=f"table {path.name}", folder=folder)


def files(config: Config) -> list[Path]:
    """The table itself."""
    return [config.path.expanduser()]


def rows(config: Config, *, unlabelled: bool = False) -> Iterator[Row]:
    """The table's rows as they are, faulty ones among them.

    Args:
        unlabelled: a column of images is enough.

    Raises:
        DataError: no such file, none of these formats, or no column for images or for what is said of them.
    """
    path = config.path.expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError("is no table", where=str(path), expected=", ".join(SUFFIXES))
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    root = (config.root or path.parent).expanduser()
    numbered = _parquet(path) if suffix == ".parquet" else _json(path) if "json" in suffix else _csv(path)
    roles: dict[str, str | None] = {}
    names: dict[str, Sequence[str]] = {}
    for number, row in numbered:
        if number == NAMES:
            names = dict(row)
        if number == HEAD or "json" in suffix:
            roles = _roles(list(row), config, path, unlabelled)
        if number > HEAD:
            yield _row(row, roles, names, root, f"{path}, line {number}", number)


def _roles(columns: Sequence[str], config: Config, path: Path, unlabelled: bool) -> dict[str, str | None]:
    stated = {"image": config.image_column, "label": config.label_column, "text": config.text_column}
    stated["group"] = config.group_column
    found = {role: column(columns, role, stated=stated.get(role, ""), where=str(path)) for role in COLUMNS}
    if found["image"] is None and found["question"] is None:
        raise _missing("image", columns, path)
    if not unlabelled and not any(found[role] for role in ("label", "text", "question")):
        raise _missing("label", columns, path)
    return found


def _missing(role: str, columns: Sequence[str], path: Path) -> DataError:
    from perdure.settings.suggestions import nearest

    said = {"image": "path", "label": "label"}[role]
    near = next((found for name in COLUMNS[role] if (found := nearest(name, columns))), None)
    return DataError(
        f"has no column for the {said}: {', '.join(columns) or 'it is empty'}",
        where=str(path),
        expected=f"one of {', '.join(COLUMNS[role])}",
        todo=f"Is it {near!r}? Rename it to {said!r}, or set `{role}_column`." if near else f"Or set `{role}_column`.",
    )


def _row(
    row: Mapping[str, Any],
    roles: Mapping[str, str | None],
    names: Mapping[str, Sequence[str]],
    root: Path,
    where: str,
    number: int,
) -> Row:
    cells = {role: None if name is None else row.get(name) for role, name in roles.items()}
    image, said = _image(cells["image"], root, number)
    label = cells["label"]
    known = names.get(roles["label"] or "", ())
    if known and isinstance(label, int):
        label = known[label] if 0 <= label < len(known) else None
    return Row(
        id=said,
        where=where,
        image=image,
        label=text(label),
        texts=texts(cells["text"]),
        question=text(cells["question"]),
        answer=text(cells["answer"]),
        split=text(cells["split"]),
        group=text(cells["group"]),
    )


def _image(cell: Any, root: Path, number: int) -> tuple[Any, str]:
    """(what `open_image` takes, its id): a path, or the bytes that the table holds."""
    if isinstance(cell, Mapping):  # Hugging Face's {"bytes", "path"}
        said = text(cell.get("path"))
        return (cell["bytes"], f"row {number}") if cell.get("bytes") else _image(said, root, number)
    if isinstance(cell, bytes):
        return cell, f"row {number}"
    said = text(cell)
    if not said:
        return None, f"row {number}"
    return (Path(said) if is_address(said) else root / said), said


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from perdure.files.text_files import read_text

    content = read_text(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(content.split("\n", 1)[0])
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
        head = [name.strip() for name in reader.fieldnames or []]
        if twice := next((name for name in head if head.count(name) > 1), None):
            raise DataError(f"the column {twice!r} stands there twice", where=f"{path}, line 1")
        reader.fieldnames = head
        yield HEAD, dict.fromkeys(head)
        for row in reader:
            if None in row or None in row.values():
                what = "more" if None in row else "fewer"
                todo = "Put texts that hold the separator in double quotes."
                raise DataError(f"{what} cells than the head has", where=f"{path}, line {reader.line_num}", todo=todo)
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"is not CSV ({error})", where=str(path)) from None


def _separator(head: str) -> str:
    """The one that makes a head with a column for images; else that of the most columns."""
    split = {s: next(csv.reader([head], delimiter=s), []) for s in ",;\t|"}
    return max(split, key=lambda s: (column(split[s], "image") is not None, len(split[s])))


def _json(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from perdure.files.text_files import read_json_lines

    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise DataError("is no JSON object", where=f"{path}, line {number}", expected='{"path": ..., "label": ...}')
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows from 1; before them the class names that Hugging Face keeps in the schema."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        todo = 'Type: pip install "perdure[parquet]"'
        raise MissingExtra("parquet needs pyarrow", where=str(path), todo=todo) from None
    try:
        with parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            features = about.get("info", {}).get("features", {})
            yield NAMES, {name: f["names"] for name, f in features.items() if isinstance(f, dict) and f.get("names")}
            yield HEAD, dict.fromkeys(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"is no parquet that can be read ({error})", where=str(path)) from None
