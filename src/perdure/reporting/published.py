"""The published numbers that a recipe expects, beside ours.

Knows by which names papers call our numbers. Does not know how numbers were measured.

A list of ``{metric: average, value: 86.19, source: "...", note: "..."}``. `metric` is a row of the report, a
metric (its final value), or the field's usual short name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from perdure.reporting.expected import expected
from perdure.reporting.tables import OF_SETS, Group, Number, Summary

SHORT = {
    "avg": "average",
    "average accuracy": "average",
    "average incremental accuracy": "average",
    "maa": "average_of_tasks",
    "final": "last",
    "last accuracy": "last",
    "accuracy": "last",
    "mfn": "last_of_tasks",
    "mft": "when_learned",
    "mean over sets": "over_sets",
    "backward transfer": "bwt",
    "forward transfer": "fwt",
    "transfer": "Transfer",
}
"""What papers call it -> aggregate in `tables.AGGREGATES`."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number; `ours` is None if this run has none like it."""

    name: str
    value: float
    source: str = ""
    note: str = ""
    """What differs between their setting and ours."""
    number: Number | None = None
    ours: Summary | None = None

    @property
    def difference(self) -> float | None:
        """Ours less theirs."""
        return None if self.ours is None else self.ours.mean - self.value


def published(group: Group) -> list[Published]:
    """What the first run's recipe expects, with the group's numbers of the same meaning."""
    found = []
    for item in expected(group.runs[0]):
        number = match(item.metric, group)
        ours = None if number is None or group.runs[0].unfinished else group.summaries[number]
        about = {"source": item.source, "note": item.note}
        found.append(Published(name=item.metric, value=item.value, number=number, ours=ours, **about))
    return found


def match(name: str, group: Group) -> Number | None:
    """The group's number that `name` means, None if it has none like it; `..._of_tasks` falls back to the weighed form
    where both are the same."""
    plain = re.sub(r"[\s_-]+", " ", name.lower()).strip()
    numbers = list(group.summaries)
    headline = [n for n in numbers if n.metric == group.runs[0].headline]
    for number in headline:
        if number.aggregate == name.strip() in OF_SETS:  # `Average` is another number than `average`
            return number
    for number in numbers:
        if plain in (number.title, number.title.replace("final ", "last ")):
            return number
    for number in headline:
        if number.aggregate.lower() == plain and number.aggregate.isupper():
            return number
    aggregate = SHORT.get(plain, plain.replace(" ", "_"))
    same = ("over_sets",) if aggregate == "when_learned" else ()  # where nothing is learned
    for wanted in (aggregate, aggregate.removesuffix("_of_tasks"), *same):
        for number in headline:
            if number.aggregate == wanted:
                return number
    of_metric = [n for n in numbers if n.metric.replace("_", " ") == plain]
    if of_metric:
        return next((n for n in of_metric if n.aggregate == "last"), of_metric[0])
    return headline[0] if len(headline) == 1 and aggregate in ("last", "average") else None
