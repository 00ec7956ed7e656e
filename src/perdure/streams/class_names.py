"""Names of classes that come again: which of them are classes that are known already.

Knows spelling. Does not know images or labels' meaning.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from perdure.errors import DataError

SHORT = 5
"""Below so many letters, names of different things lie one letter apart: cat, car, rat."""


def match(names: Sequence[str], known: Sequence[str], renames: Mapping[str, str], *, where: str) -> list[int | None]:
    """For each name the label of the known class that it is, or None for a new class.

    Names are equal after Unicode's NFC, without outer spaces, with spaces for underscores, in one case.

    Args:
        known: names by label.
        renames: a name in the data -> the known class that it means; or itself, for a new class that looks like one.

    Raises:
        DataError: two names are one class, a name is nearly that of a known class, or `renames` names no class.
    """
    labels = {_plain(name): label for label, name in reversed(list(enumerate(known)))}
    if absent := [name for name in renames if name not in names]:
        raise DataError(f"there is no class {absent[0]!r} in the data", where=f"{where}, renames", expected=_few(names))
    found = [_label(name, labels, known, renames, where) for name in names]
    taken: dict[object, str] = {}
    for name, label in zip(names, found):
        other = taken.setdefault(_plain(name) if label is None else label, name)
        if other != name:
            raise DataError(f"the classes {other!r} and {name!r} are one", where=where, todo="Put them in one folder.")
    return found


def _label(
    name: str, labels: Mapping[str, int], known: Sequence[str], renames: Mapping[str, str], where: str
) -> int | None:
    said = renames.get(name, name)
    label = labels.get(_plain(said))
    if label is not None:
        return label
    if name in renames and said != name:
        raise DataError(f"{name!r} is said to be {said!r}, which is no known class", where=where, expected=_few(known))
    near = next((other for other in known if _near(_plain(name), _plain(other))), None)
    if name not in renames and near is not None:
        raise DataError(
            f"the class {name!r} is nearly the known class {near!r}",
            where=where,
            expected="a known class by its name, or a new one that is not mistaken for it",
            todo=f"Say which it is: --rename {name!r}={near!r}, or --rename {name!r}={name!r} for a new class.",
        )
    return None


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


def _near(one: str, other: str) -> bool:
    """A plural, or one letter more, less or other; names that differ in a digit are different."""
    short, long = sorted((one, other), key=len)
    if long in (short + "s", short + "es"):
        return True
    if len(short) < SHORT or len(long) - len(short) > 1:
        return False
    i = next((i for i, (a, b) in enumerate(zip(short, long)) if a != b), len(short))
    same_length = len(short) == len(long)
    differ = long[i] + (short[i] if same_length else "")
    rest = short[i + 1 :] if same_length else short[i:]
    return rest == long[i + 1 :] and not any(c.isdigit() for c in differ)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
