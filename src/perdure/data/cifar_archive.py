"""The python version of the CIFAR archives, read without running any code that they hold.

Knows the pickle dialect of these files. Does not know which of the two data sets it reads.

A pickle may call any function that it can import. This reader lets it make numpy arrays, strings and
containers, and refuses every other name, so a tampered archive is an error and not a program.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from perdure.data import class_folders, image_arrays
from perdure.errors import DataError
from perdure.files.restricted_pickle import Refused, Restricted
from perdure.types import Dataset

_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError)
_DAMAGED += (struct.error, OverflowError, MemoryError, UnicodeError, ImportError)


def read_archive(
    folder: Path,
    *,
    name: str,
    train: tuple[str, ...],
    test: str,
    meta: tuple[str, str],
    labels_key: str,
    classes: int,
    url: str,
) -> Dataset:
    """A CIFAR data set from `folder`.

    Args:
        train: files of the training set, in order; `test`: that of the test set.
        meta: (file, key) of the class names.
        labels_key: key of the labels in a batch (``labels`` or ``fine_labels``).
        url: where the archive is published, for the error message.
    """
    layout = f"the files {', '.join((*train, test, meta[0]))} of the python version"
    todo = f"Unpack {url} there, set `stream.data.download=true`, or set `stream.data.root` to where it is."
    for file in (*train, test, meta[0]):
        class_folders.require_file(folder / file, layout=layout, todo=todo)
    names = _class_names(folder / meta[0], meta[1], classes)
    batches = [_batch(folder / file, labels_key, classes) for file in train]
    images = np.concatenate([batch[0] for batch in batches])
    labels = [label for batch in batches for label in batch[1]]
    splits = {"train": (images, labels), "test": _batch(folder / test, labels_key, classes)}
    return Dataset(
        name=name,
        kind="classify",
        candidates=names,
        facts=image_arrays.facts(splits, source=url),
        **{split: image_arrays.examples(*part, split=split) for split, part in splits.items()},
    )


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR pickle, its keys as text."""
    try:
        with path.open("rb") as file:
            content = Restricted(file, lambda *name: _ALLOWED.get(name), encoding="bytes").load()
    except Refused as refused:
        raise DataError(
            f"the pickle is refused: {refused}",
            where=str(path),
            expected="numpy arrays, text and lists",
            todo="Fetch the archive from its publisher.",
        ) from None
    except _DAMAGED as error:
        raise DataError(f"the pickle is damaged ({error})", where=str(path), todo="Fetch the archive again.") from None
    if not isinstance(content, dict):
        raise DataError(f"a {type(content).__name__}", where=str(path), expected="a dictionary")
    return {_text(key): value for key, value in content.items()}


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Stands in for numpy's `_reconstruct`: an empty array, filled by the pickle's own state afterwards."""
    return np.ndarray(0, dtype=np.int8)


def _dtype(kind: str, align: Any = False, copy: Any = False) -> np.dtype:
    """Python 2 wrote the flags as 0 and 1, a damaged file may hold any number, which numpy warns of."""
    return np.dtype(kind, bool(align), bool(copy))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes into old pickles as ``encode(text, 'latin1')``; no other codec is run."""
    return codecs.latin_1_encode(text)[0]


_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("_codecs", "encode"): _encode,
}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _batch(path: Path, labels_key: str, classes: int) -> tuple[np.ndarray, list[int]]:
    content = load(path)
    if "data" not in content or labels_key not in content:
        raise DataError(f"keys {sorted(content)}", where=str(path), expected=f"'data' and '{labels_key}' among them")
    data = content["data"]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"'data' is {found}", where=str(path), expected="uint8 [images, 3072]")
    labels = content[labels_key]
    if not isinstance(labels, (list, np.ndarray)) or not all(isinstance(x, (int, np.integer)) for x in labels):
        raise DataError(f"'{labels_key}' is not a list of integers", where=str(path))
    checked = image_arrays.check_labels(np.array(labels, int), images=len(data), classes=classes, where=path)
    # Stored as 1024 red, 1024 green, 1024 blue values, each row by row.
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), checked


def _class_names(path: Path, key: str, classes: int) -> tuple[str, ...]:
    names = load(path).get(key)
    if not isinstance(names, list) or len(names) != classes:
        found = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise DataError(f"'{key}' holds {found}", where=str(path), expected=f"{classes} class names")
    return tuple(_text(name) for name in names)
