"""One run at a time in a folder: a file that says which process is at work there, and whether it still is.

Knows hosts, processes and a file that its owner touches. Does not know what a run is; imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter

from perdure.errors import BusyError

NAME = "lock"
TOUCH_EVERY = 15.0
"""Seconds between signs of life."""
SILENT_FOR = 120.0
"""Seconds without a sign after which a process that cannot be asked (on another host, before a reboot) is taken for
dead."""


Seconds = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that works in a folder."""

    host: str
    process: Annotated[int, Field(gt=0, lt=2**31)]
    since: str
    """When it took the folder: local time with its offset from UTC, ISO 8601."""
    booted: Seconds
    """When its host was started, in seconds since 1970."""
    after_boot: Seconds
    """When the process was started, in seconds after its host: tells it from a later one with the same number."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else runs in `folder` meanwhile. The folder is made, and removed again if nothing was put into it.

    A lock whose process is gone is taken over.

    Raises:
        BusyError: a living process holds it; the message names it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    own = _myself()
    _take(file, own)
    done = threading.Event()
    threading.Thread(target=_touch, args=(file, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if _read(file) == own:
            file.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def holder(folder: Path) -> Holder | None:
    """The living process that holds `folder`."""
    found = _read(folder / NAME)
    return found if found is not None and _lives(found, folder / NAME) else None


def _take(file: Path, own: Holder) -> None:
    aside = file.with_name(f".{NAME}.{own.token}")
    try:
        while True:
            aside.write_text(json.dumps(asdict(own)) + "\n", encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                _place(aside, file)
                return
            found = _read(file)
            if found is not None and _lives(found, file):
                raise _busy(file.parent, found)
            if _replace_stale(file, found, aside):
                return
    finally:
        aside.unlink(missing_ok=True)


def _replace_stale(file: Path, stale: Holder | None, aside: Path) -> bool:
    """Put `aside` in the place of a stale lock; false if another process was quicker, or is at it.

    Of several that find the same stale lock, only the one with the claim may replace it."""
    claim = file.with_name(f".{NAME}.claim")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if _now(file.parent) - claim.stat().st_mtime > 10:  # its process was killed between two lines
                claim.unlink()
        time.sleep(0.02)
        return False
    try:
        if not file.exists() or _read(file) != stale:
            return False
        os.replace(aside, file)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _busy(folder: Path, found: Holder) -> BusyError:
    todo = "Wait for it or stop it, or set run.name=... for a run beside it."
    if not _is_here(found):
        todo += f" If it is dead, the folder is free {SILENT_FOR:.0f} s after its last sign of life."
    return BusyError(f"this folder is in use by {found}", where=str(folder), todo=todo)


def _place(aside: Path, file: Path) -> None:
    """`file` appears with all its text, or FileExistsError."""
    try:
        os.link(aside, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with file.open("x", encoding="utf-8") as new:
            new.write(aside.read_text(encoding="utf-8"))


def _lives(found: Holder, file: Path) -> bool:
    """Asked of the system where the process would be on this very host; else by its last sign of life."""
    if _is_here(found):
        try:
            started = psutil.Process(found.process).create_time() - psutil.boot_time()
        except psutil.NoSuchProcess:
            return False
        return abs(started - found.after_boot) < 2
    with contextlib.suppress(FileNotFoundError):
        return _now(file.parent) - file.stat().st_mtime < SILENT_FOR
    return False


def _is_here(found: Holder) -> bool:
    """On this host, since it was last started."""
    return found.host == socket.gethostname() and abs(found.booted - psutil.boot_time()) < 60


def _now(folder: Path) -> float:
    """The file system's time, which may not be this host's; this host's where one may only read."""
    probe = folder / f".{NAME}.{uuid.uuid4().hex}"
    try:
        probe.touch()
    except OSError:
        return time.time()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _touch(file: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_EVERY):
        with contextlib.suppress(OSError):
            os.utime(file)


def _read(file: Path) -> Holder | None:
    """None: there is none, or it is torn or something else."""
    try:
        return TypeAdapter(Holder).validate_json(file.read_bytes(), strict=True)
    except (OSError, ValueError):
        return None


def _myself() -> Holder:
    booted = psutil.boot_time()
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        since=time.strftime("%Y-%m-%d %H:%M:%S%z"),
        booted=booted,
        after_boot=psutil.Process().create_time() - booted,
    )
