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
    |- TrainingError             training cannot go on (NaN loss, no sample of a class)
    '- Interrupted               the user or the scheduler asked to stop; exit code 130

A message says where, what was found, what was expected and what to do, in that order. Input that is
wrong raises one of these; what cannot happen is an `assert`.
"""

from __future__ import annotations


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


class TrainingError(PerdureError):
    """Training cannot go on."""


class Interrupted(PerdureError):
    """The user or the scheduler asked to stop."""

    exit_code = 130
