"""Everything that a user can fix, as one tree of exceptions.

    PerdureError                 exit code 2, one message, no traceback
    |- RecipeError               a recipe, a setting or an override is wrong
    |- MissingExtra              an optional dependency is not installed
    |- DataError                 a data set on disk is not what the reader expects
    |  '- UnreadableExample      one example cannot be decoded; may be skipped (`run.unreadable: skip`)
    |- WeightsError              a checkpoint of a pretrained model cannot be used
    |- CheckpointError           a run's checkpoint is damaged, foreign or of another recipe
    |- BusyError                 another process runs in the same folder
    |- DeviceMemoryError         a device's memory is too small for what was set
    |- SystemRefused             the system refused to read or write: full or read-only disk, no permission, a file
    |                            where a folder must be
    |- TrainingError             training cannot go on (NaN loss, no sample of a class)
    '- Interrupted               the user or the scheduler asked to stop; exit code 130

A message says where, what was found, what was expected and what to do, in that order. Input that is
wrong raises one of these; what cannot happen is an `assert`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


class PerdureError(Exception):
    """Base of all errors that a user can fix.

    Args:
        what: what was found, in one sentence.
        where: file, record, setting or folder.
        expected: what would have been right.
        todo: what to type or change.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", expected: str = "", todo: str = "") -> None:
        self.what, self.where, self.expected, self.todo = what, str(where), expected, todo
        super().__init__(self._text())

    def _text(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        rest = [f"Expected {self.expected}." if self.expected else "", self.todo]
        return " ".join([head.rstrip(".") + "." if any(rest) else head, *(r for r in rest if r)])

    def __reduce__(self):
        # Loader workers send exceptions between processes; keyword-only fields need help to travel.
        return _rebuild, (type(self), self.what, self.where, self.expected, self.todo)


def _rebuild(kind: type[PerdureError], what: str, where: str, expected: str, todo: str) -> PerdureError:
    return kind(what, where=where, expected=expected, todo=todo)


class RecipeError(PerdureError):
    """A recipe, a setting or an override is wrong."""


class MissingExtra(PerdureError):
    """An optional dependency is not installed."""


class DataError(PerdureError):
    """A data set on disk is not what its reader expects."""


class UnreadableExample(DataError):
    """One example cannot be decoded."""


class WeightsError(PerdureError):
    """A pretrained checkpoint cannot be used."""


class CheckpointError(PerdureError):
    """A run's checkpoint is damaged, foreign or of another recipe."""


class BusyError(PerdureError):
    """Another process is at work in a run's folder."""


class DeviceMemoryError(PerdureError):
    """A device's memory is too small for what was set."""


class SystemRefused(PerdureError):
    """The system refused to read or write."""


class TrainingError(PerdureError):
    """Training cannot go on."""


class Interrupted(PerdureError):
    """The user or the scheduler asked to stop."""

    exit_code = 130


_KEPT = "What a run has saved is kept; the same command goes on from there."
_ADVICE = {
    errno.ENOSPC: f"Free some space. {_KEPT}",
    errno.EDQUOT: f"Free some space. {_KEPT}",
    errno.EROFS: "Choose another folder (run.out=... for a run, --out elsewhere).",
    errno.EACCES: "Choose another folder, or change its permissions.",
    errno.EPERM: "Choose another folder, or change its permissions.",
    errno.ENOTDIR: "A part of this path is a file; move it, or choose another folder.",
    errno.EEXIST: "A file lies where a folder must be; move it, or choose another folder.",
    errno.EISDIR: "A folder lies where a file must be; move it.",
    errno.ENOTEMPTY: "Remove the folder, or choose another.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Symbolic links lead in a circle; remove one.",
    errno.ENOENT: "Look whether it was moved or removed meanwhile.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096.",
    errno.ENFILE: "Close other programs: the system has no free file handle.",
    errno.EFBIG: "The file would be larger than its disk or the limit (ulimit -f) allows.",
    errno.ENOMEM: "Free some memory, or choose smaller settings.",
    errno.EIO: "The disk or the network behind it does not answer; look at the system's log.",
    errno.ESTALE: "The network disk was lost; mount it again.",
    errno.ENODEV: "Choose another folder: this one takes no files.",
    errno.ENXIO: "Choose another folder: this one takes no files.",
    errno.EINVAL: "Choose another folder or name: this one takes no such file.",
    errno.EBUSY: "Another program uses it; end that program, or choose another folder.",
    errno.ETXTBSY: "Another program uses it; end that program.",
}
"""What to do about each refusal of the system that a user can mend."""


def refused_by_system(error: OSError) -> SystemRefused | None:
    """The message for a refusal of the system; None where it says nothing that a user could mend."""
    if error.errno not in _ADVICE:
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    said = (error.strerror or os.strerror(error.errno)).lower()
    return SystemRefused(said, where=names[-1] if names else "", todo=_ADVICE[error.errno])


def too_little_memory(error: Exception) -> DeviceMemoryError | None:
    """The message for a request of memory that the machine has not; None where the error is another."""
    text = str(error)
    wanted = re.search(r"tried to allocate (\d+) bytes|Unable to allocate ([\d.]+ \w+)", text)
    unsaid = ("Storage size calculation overflowed", "bad_alloc")
    if not (wanted or isinstance(error, MemoryError) or any(part in text for part in unsaid)):
        return None
    size = f" {wanted[2] or wanted[1] + ' bytes'}" if wanted else ""
    return DeviceMemoryError(
        f"this machine has too little memory{' for' if size else ''}{size}",
        todo=f"Choose smaller sizes or batches, or another machine. {_KEPT}",
    )


@contextmanager
def system_explained() -> Iterator[None]:
    """Refusals of the system as messages: `SystemRefused` in place of OSError."""
    try:
        yield
    except OSError as fault:
        if refused := refused_by_system(fault):
            raise refused from fault
        raise


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Text as a terminal may show it: control characters, which it would obey, and marks that turn the direction of
    writing are escaped (``\x1b``), all but those in `keep`."""
    return "".join(c if c in keep or _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(c: str) -> bool:
    code = ord(c)
    control = code < 0x20 or 0x7F <= code < 0xA0 or code in (0x2028, 0x2029) or 0xD800 <= code <= 0xDFFF
    return not (control or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069)
