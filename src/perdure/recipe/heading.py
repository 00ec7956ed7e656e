"""The comment at the head of a recipe's file: what it is, how its data come about, what must run beside it.

Knows comments. Does not know settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from perdure.errors import DataError, UnreadableExample

MAKERS = ("perdure data ", "perdure prepare ", "python -m perdure")
"""What lines hold that say how data are made."""


def heading(text: str) -> tuple[str, ...]:
    """The opening comment of a recipe, line by line, without marks and without what is meant for editors."""
    lines = []
    for line in text.split("\n"):
        if not line.startswith("#"):
            break
        if not line.startswith("# yaml-language-server:"):
            lines.append(line.lstrip("#").strip())
    return tuple(lines)


@contextmanager
def data_explained(lines: Sequence[str]) -> Iterator[None]:
    """A DataError from within says, too, how the recipe has its data made."""
    try:
        yield
    except UnreadableExample:
        raise
    except DataError as fault:
        said = [line for line in lines if any(maker in line for maker in MAKERS)]
        if not said:
            raise
        todo = " ".join(part for part in (fault.todo, "The recipe says:", " ".join(said)) if part)
        raise DataError(fault.what, where=fault.where, expected=fault.expected, todo=todo) from fault
