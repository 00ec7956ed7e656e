"""Corrected answers, kept for the next update: ``RUN/inbox/metadata.jsonl`` and the images beside it.

Knows the layout, which the reader `table` takes as it is (``perdure update RUN --data RUN/inbox``). Writes only where
the server was started with ``--inbox``.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from perdure.errors import DataError
from perdure.files.text_files import read_json_lines, to_json

TABLE = "metadata.jsonl"
SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


class Inbox:
    """Images with the class that people say they are of.

    Args:
        most: bytes that it may hold.
    """

    def __init__(self, run: Path, *, most: int = 2**30) -> None:
        self.folder, self.most = run / "inbox", most
        self._lock = threading.Lock()
        table = self.folder / TABLE
        rows = [row for _, row in read_json_lines(table)] if table.is_file() else []
        self._labels: dict[str, str] = {Path(row["file_name"]).stem: row["label"] for row in rows}
        self._bytes = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file()) if rows else 0

    def __len__(self) -> int:
        return len(self._labels)

    def put(self, name: str, image: bytes, label: str, *, version: int) -> bool:
        """Keep an image; False if it is there already, with this label.

        Args:
            name: digest of the image.

        Raises:
            DataError: it is there with another label, or the inbox is full.
        """
        from perdure.images import encoded_as

        with self._lock:
            known = self._labels.get(name)
            if known is not None and known != label:
                raise DataError(f"this image is in the inbox as {known!r}", where=str(self.folder))
            if known is not None:
                return False
            if self._bytes + len(image) > self.most:
                raise DataError("the inbox is full", where=str(self.folder), todo="Update the run, and empty it.")
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            file = f"images/{name}{SUFFIX.get(encoded_as(image), '.img')}"
            (self.folder / file).write_bytes(image)
            row = {"file_name": file, "label": label, "version": version, "time": time.strftime("%Y-%m-%d %H:%M:%S%z")}
            with (self.folder / TABLE).open("a", encoding="utf-8") as table:
                table.write(to_json(row) + "\n")
            self._labels[name] = label
            self._bytes += len(image) + len(json.dumps(row))
            return True
