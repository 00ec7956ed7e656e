"""A data set of Hugging Face `datasets`: a folder saved to disk, an imagefolder with metadata, or an id on the hub.

Needs: your data; the package datasets.

Knows features by their types (Image, ClassLabel) and columns by their names (`perdure.data.rows`). An id on the hub is
looked up on the network, at a revision that is written down; a folder never is. Code of a data set is never run.
Images are decoded when they are asked for. A split without labels (-1 in a test set) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.data.rows import Row, Rows, column, dataset, text, texts
from perdure.errors import DataError, MissingExtra
from perdure.types import Dataset

MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")
"""Files by which a folder of `save_to_disk` is known."""


@dataclass(frozen=True, kw_only=True)
class Config(Rows):
    """Settings of the reader of Hugging Face data sets."""

    path: str
    """A folder that `save_to_disk` wrote, one that `load_dataset("imagefolder")` takes, or a hub id `owner/name`."""
    config: str = ""
    """Of a hub id with several configurations: which."""
    revision: str = ""
    """Of a hub id: a commit, tag or branch; empty: today's, whose commit the card says."""
    image_column: str = ""
    """Column of the images; empty: the one of type Image."""
    label_column: str = ""
    """Column of the classes; empty: the one of type ClassLabel, or called label or alike."""
    text_column: str = ""
    """Column of the captions; empty: the one called caption, text or alike."""


def read(config: Config) -> Dataset:
    """Images in the order of the data set, split by split.

    Raises:
        MissingExtra: `datasets` is not installed.
        DataError: it cannot be loaded, has no images, or all faults of its rows.
    """
    found, about = load(config)
    return dataset("hf_dataset", list(rows(config, found)), config, **about)


def load(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its splits by name, and where they are from. Raises as `read` does."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise MissingExtra("needs the package datasets", todo='Type: pip install "perdure[datasets]"') from None
    folder = Path(config.path).expanduser()
    datasets.disable_progress_bars()
    try:
        if folder.is_dir():
            saved = any((folder / mark).is_file() for mark in MARKS)
            found: Any = datasets.load_from_disk(str(folder)) if saved else _imagefolder(str(folder))
            about = {"source": f"folder {folder.name}", "folder": folder.name}
        elif config.path.count("/") == 1 and not config.path.startswith((".", "~", "/")):
            revision = _commit(config)
            found = datasets.load_dataset(config.path, config.config or None, revision=revision or None)
            about = {"source": f"hub {config.path}", "revision": revision}
        else:
            raise DataError("is no folder and no hub id", where=config.path, expected="a folder, or owner/name")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        todo = "Is the id right, and the network there?" if not folder.is_dir() else ""
        raise DataError(f"cannot be loaded ({first})", where=config.path, todo=todo) from None
    return (dict(found) if isinstance(found, Mapping) else {"": found}), about


def _imagefolder(folder: str) -> Any:
    import datasets

    return datasets.load_dataset("imagefolder", data_dir=folder)


def _commit(config: Config) -> str:
    """The commit that a revision stands for today; the revision itself where the hub is not to be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(config.path, revision=config.revision or None).sha or config.revision
    except (HfHubHTTPError, OSError):  # offline: what an earlier look-up has left may do
        return config.revision


def rows(config: Config, found: Mapping[str, Any] | None = None, *, unlabelled: bool = False) -> Iterator[Row]:
    """The rows of all splits, faulty ones among them.

    Args:
        found: what `load` gave.
        unlabelled: also splits without labels.
    """
    found = load(config)[0] if found is None else found
    import datasets

    for split, part in found.items():
        roles, names = _roles(part.features, config, datasets)
        columns = {role: part[name] for role, name in roles.items() if name and role != "image"}
        images = None
        if roles["image"]:
            images = part.select_columns([roles["image"]])
            if isinstance(part.features[roles["image"]], datasets.Image):
                images = images.cast_column(roles["image"], datasets.Image(decode=False))
        labels = columns.get("label")
        if not unlabelled and labels is not None and len(part) and all(label in (-1, None) for label in labels):
            continue
        for i in range(len(part)):
            cells = {role: values[i] for role, values in columns.items()}
            label = cells.get("label")
            if names and isinstance(label, int):
                label = names[label] if 0 <= label < len(names) else None
            yield Row(
                id=f"{split}/{i}" if split else str(i),
                where=f"{config.path}, {split or 'row'} {i}",
                image=None if images is None else Stored(images, str(roles["image"]), i),
                label=text(label),
                texts=texts(cells.get("text")),
                question=text(cells.get("question")),
                answer=text(cells.get("answer")),
                split=text(cells.get("split")) or (split if len(found) > 1 else ""),
                group=text(cells.get("group")),
            )


@dataclass(frozen=True, eq=False)
class Stored:
    """One image of a data set, read when asked for."""

    part: Any
    column: str
    index: int

    def read_bytes(self) -> bytes:
        cell = self.part[self.index][self.column]
        if isinstance(cell, bytes):
            return cell
        return cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes()


def _roles(features: Mapping[str, Any], config: Config, datasets: Any) -> tuple[dict[str, str | None], list[str]]:
    """The column of each role, and the names of classes where the data set has them."""
    stated = {"image": config.image_column, "label": config.label_column, "text": config.text_column}
    stated["group"] = config.group_column
    roles = {
        role: column(features, role, stated=stated.get(role, ""), where=config.path)
        for role in ("image", "label", "text", "question", "answer", "split", "group")
    }
    for role, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        typed = next((name for name, feature in features.items() if isinstance(feature, kind)), None)
        roles[role] = stated[role] or typed or roles[role]
    if roles["image"] is None and roles["question"] is None:
        raise DataError(f"no images among {', '.join(features)}", where=config.path, todo="Set `image_column`.")
    classes: Any = features[roles["label"]] if roles["label"] else None
    return roles, list(classes.names) if isinstance(classes, datasets.ClassLabel) else []
