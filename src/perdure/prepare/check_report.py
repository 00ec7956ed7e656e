"""What a look through images has found, as text and as JSON.

Knows kinds of findings and how they are told. Does not know how they are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST = 10
"""Findings of a kind that `CheckReport.lines` shows."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found. Each list is empty where all is well."""

    source: str
    decoded: bool
    """Whether every pixel was decoded, or headers and ends read."""
    counts: dict[str, dict[str, int]]
    """Split -> class -> images, unreadable ones included."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(image, what is wrong): missing, empty, truncated, not an image, too large."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """The same bytes in two splits."""
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    """The same bytes under two classes of one split."""
    class_names: list[str] = field(default_factory=list)
    """Classes that one split has and another has not, with the nearest name; classes without an image."""
    rows: list[str] = field(default_factory=list)
    """Rows of a list without path or label."""
    ignored: list[str] = field(default_factory=list)
    """Files that no reader takes, by their suffix or place: a remark, not a fault."""
    remarks: list[str] = field(default_factory=list)
    """What a run takes as it is, and may not be meant: classes that are never tested, names that differ in case."""

    @property
    def images(self) -> int:
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def exit_code(self) -> int:
        """0: sound; 1: something was found; 2: not one image can be read."""
        if len(self.unreadable) >= self.images:
            return 2
        return int(any(getattr(self, kind) for kind in _FAULTS))

    def lines(self) -> list[str]:
        """The report as text."""
        how = "every pixel decoded" if self.decoded else "headers and ends read"
        text = [f"{self.source}: {self.images} images; {how}"]
        for split, classes in self.counts.items():
            text.append(f"  {split}: {sum(classes.values())} images, {len(classes)} classes{_extremes(classes)}")
        for kind, title in {**_FAULTS, **_REMARKS}.items():
            found = getattr(self, kind)
            if found:
                text.append(f"{title}: {len(found)}{_kinds(found) if kind == 'unreadable' else ''}")
                text += [f"  {_said(kind, item)}" for item in found[:FIRST]]
                text += [f"  ... and {len(found) - FIRST} more"] if len(found) > FIRST else []
        text.append("sound" if self.exit_code == 0 else "faults were found")
        return text

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        listed = {kind: [list(i) if isinstance(i, tuple) else i for i in getattr(self, kind)] for kind in _FAULTS}
        return {
            "source": self.source,
            "decoded": self.decoded,
            "images": self.images,
            "counts": self.counts,
            **listed,
            "ignored": self.ignored,
            "remarks": self.remarks,
            "exit_code": self.exit_code,
        }


_FAULTS = {
    "unreadable": "unreadable",
    "duplicates": "the same image in two splits",
    "conflicts": "the same image under two classes",
    "class_names": "class names",
    "rows": "rows of the list",
}
_REMARKS = {"ignored": "left out (no image suffix, or outside the class folders)", "remarks": "worth a look"}


def _extremes(classes: Mapping[str, int]) -> str:
    if len(classes) < 2:
        return ""
    least, most = min(classes, key=classes.__getitem__), max(classes, key=classes.__getitem__)
    if classes[least] == classes[most]:
        return f", {classes[least]} each"
    return f", {classes[least]} ({least}) to {classes[most]} ({most}) each"


def _kinds(found: Sequence[tuple[str, str]]) -> str:
    """`` (2 empty, 1 truncated)``: what was said, without its details in brackets."""
    times = Counter(what.split(" (")[0] for _, what in found)
    return " (" + ", ".join(f"{n}: {what}" for what, n in times.most_common()) + ")" if len(times) > 1 else ""


def _said(kind: str, item: Any) -> str:
    if isinstance(item, str):
        return item
    return f"{item[0]}: {item[1]}" if kind == "unreadable" else f"{item[0]} = {item[1]}"
