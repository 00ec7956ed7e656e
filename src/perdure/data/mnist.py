"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes and Burges).

Needs: 0.1 GB data.

Knows the idx format, plain or gzipped, and the folders in which torchvision and others keep it.
Does not know what is made of the digits (split, permuted, rotated): that is a stream's part.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FOLDERS = ("", "raw", "MNIST/raw", "MyMNIST/raw", "MNIST/MyMNIST/raw")
"""Where below `root` the files may lie: torchvision derives the folder from the name of its class."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the MNIST reader."""

    root: Path = Path("data/mnist")
    """Folder with the four idx files (or `raw/`, `MNIST/raw/` with them), gzipped or not."""
    download: bool = False
    """Fetch the files (11 MB) into `root/MNIST/raw` if they are not there."""


def read(config: Config) -> Dataset:
    """60,000 training and 10,000 test images as three equal channels; classes "0" to "9"."""
    from perdure.data import image_arrays

    found = {name: _find(config, name) for name in NAMES}
    if config.download and not all(found.values()):
        from torchvision.datasets import MNIST

        root = config.root.expanduser()
        image_arrays.download(lambda: MNIST(str(root), download=True), what="MNIST", root=root)
        found = {name: _find(config, name) for name in NAMES}
    arrays = {name: _read(_require(config, name, found[name])) for name in NAMES}
    splits = {}
    for split, (images, labels) in {"train": NAMES[:2], "test": NAMES[2:]}.items():
        checked = image_arrays.check_labels(
            arrays[labels], images=len(arrays[images]), classes=10, where=config.root / labels
        )
        splits[split] = (arrays[images], checked)
    return Dataset(
        name="mnist",
        kind="classify",
        candidates=tuple(str(digit) for digit in range(10)),
        facts=image_arrays.facts(splits, source="MNIST"),
        **{split: image_arrays.examples(*part, split=split) for split, part in splits.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """What a complete copy has."""
    return [_find(config, name) or config.root.expanduser() / f"{name}.gz" for name in NAMES]


def _find(config: Config, name: str) -> Path | None:
    root = config.root.expanduser()
    # Both spellings of the last dash occur in copies: train-images-idx3-ubyte and train-images.idx3-ubyte.
    spellings = [f"{spelt}{packed}" for spelt in (name, name.replace("-idx", ".idx")) for packed in ("", ".gz")]
    return next((p for f in FOLDERS for s in spellings if (p := root / f / s).is_file()), None)


def _require(config: Config, name: str, found: Path | None) -> Path:
    from perdure.data.class_folders import require_file

    layout = f"{', '.join(NAMES)} (or .idx for -idx; each may end in .gz) in the root, or in its raw/ or MNIST/raw/"
    todo = "Copy the four files there, set `stream.data.download=true`, or set `stream.data.root` to where they are."
    return found or require_file(config.root.expanduser() / f"{name}.gz", layout=layout, todo=todo)


def _read(path: Path):
    """The array in an idx file of unsigned bytes: magic 0, 0, 8, number of axes; sizes as big-endian int32."""
    import numpy as np

    from perdure.errors import DataError

    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), todo="Fetch the file again.") from None
    axes = 3 if "idx3" in path.name else 1
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) < 4 + 4 * axes:
        raise DataError(f"begins with {data[:4].hex() or 'nothing'}", where=str(path), expected=f"0000080{axes}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">i4", count=axes, offset=4))
    size = math.prod(shape)
    if min(shape) < 0 or len(data) != 4 + 4 * axes + size:
        raise DataError(
            f"{len(data)} bytes for {list(shape)}",
            where=str(path),
            expected=f"{4 + 4 * axes + size} bytes",
            todo="Fetch the file again.",
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
