"""How far two runs of one recipe lie apart: scores, and records one by one.

Knows the files of runs. Does not know how the runs came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure.evaluate import read_records
from perdure.run_folder import run_files


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What differs between two runs."""

    score: float
    """Largest difference of a score, in its unit."""
    numbers: float
    """Largest difference of a number in the records, as a share of the larger one (of 1 below that)."""
    answers: int
    """Records whose words or labels differ."""
    records: int
    """That were compared."""
    first: str = ""
    """The first task and record that differ."""

    @property
    def same(self) -> bool:
        """To the last digit."""
        return not (self.score or self.numbers or self.answers)

    def within(self, tolerance: Mapping[str, Any]) -> bool:
        """Whether nothing lies further apart than it did there (`to_json` of another comparison)."""
        share = self.answers / max(self.records, 1)
        return (
            self.score <= tolerance.get("score", 0.0)
            and self.numbers <= tolerance.get("numbers", 0.0)
            and share <= tolerance.get("answers", 0) / max(tolerance.get("records", 1), 1)
        )

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def apart(one: Path, other: Path) -> Apart:
    """Compare two runs' scores and saved predictions. DataError where a file is damaged."""
    score, first_score = _scores(run_files.read_scores(one), run_files.read_scores(other))
    numbers, answers, count, first = 0.0, 0, 0, ""
    for file in sorted((one / "predictions").glob("*.jsonl"), key=_order):
        beside = other / "predictions" / file.name
        found = {record["id"]: record for record in read_records(beside)} if beside.is_file() else {}
        for record in read_records(file):
            count += 1
            number, alike = _record(record, found.get(record["id"], {}))
            numbers, answers = max(numbers, number), answers + (not alike)
            if not first and (number or not alike):
                after, asked = _order(file)
                first = f"after task {after + 1}, task {asked + 1}, record {record['id']}"
    return Apart(score=score, numbers=numbers, answers=answers, records=count, first=first or first_score)


def scores_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> Apart:
    """Compare the matrices of two cards, where no records are."""
    first, largest = "", 0.0
    pairs = ((one.get(part) or [], other.get(part) or []) for part in ("values", "n"))
    for before, now in pairs:
        for t, row in enumerate(before):
            beside = now[t] if t < len(now) else []
            for asked, value in enumerate(row):
                new = beside[asked] if asked < len(beside) else None
                if isinstance(value, int | float) and isinstance(new, int | float):
                    away = abs(value - new)
                else:
                    away = 0.0 if value == new else float("inf")
                largest = max(largest, away)
                first = first or (f"after task {t + 1}, task {asked + 1}" if away else "")
    return Apart(score=largest, numbers=0.0, answers=0, records=0, first=first)


def _order(file: Path) -> tuple[int, int]:
    after, _, asked = file.stem.partition("_")
    return (int(after), int(asked)) if after.lstrip("-").isdigit() and asked.isdigit() else (10**9, 0)


def _scores(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, str]:
    """The largest difference, infinite where a test lacks, and the first that differs."""
    largest, first = 0.0, ""
    found = {(row["after"], row["asked"]): row for row in other.get("rows", [])}
    for row in one.get("rows", []):
        beside = found.get((row["after"], row["asked"]), {"n": -1, "values": {}})
        numbers = dict(_numbers(beside["values"]))
        each = [abs(value - numbers.get(name, float("inf"))) for name, value in _numbers(row["values"])]
        each += [float("inf")] * (row["n"] != beside["n"])
        largest = max([largest, *each])
        if not first and any(each):
            first = f"after task {row['after'] + 1}, task {row['asked'] + 1}"
    missing = len(found) > len(one.get("rows", []))
    return (float("inf"), first or "other tests") if missing else (largest, first)


def _record(one: Any, other: Any) -> tuple[float, bool]:
    """The largest relative difference of numbers, and whether all else is the same."""
    if isinstance(one, float) and isinstance(other, float):
        return (abs(one - other) / max(1.0, abs(one), abs(other)) if one != other else 0.0), True
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [_record(one[name], other[name]) for name in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [_record(a, b) for a, b in zip(one, other)]
    else:
        return 0.0, one == other
    return max((number for number, _ in parts), default=0.0), all(alike for _, alike in parts)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {part}", number) for part, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
