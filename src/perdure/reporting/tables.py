"""From runs to the tables of a report: numbers of each run, seeds merged, methods compared.

Knows which runs are seeds of one experiment, and the statistics of small samples. Does not know HTML or figures.

Runs of several seeds that agree in every record count as one: there the method draws nothing. Statistics: the mean
over seeds, the sample standard deviation, and from three seeds on a 95 % interval by Student's t. Two methods are
compared by paired differences, seed by seed. A difference is called decided only if at least three seeds are shared
and both its intervals, bootstrap and t, exclude 0: with three pairs the bootstrap alone is too sure of itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from perdure.metrics import METRICS, TASK_KNOWN, continual, find
from perdure.reporting import load
from perdure.reporting.card import identity
from perdure.reporting.expected import left_out
from perdure.reporting.load import Run, flatten, shown
from perdure.settings.inert import OF_RUN

ENOUGH = 3
"""Fewest seeds for an interval or a winner."""
MOST_IN_LABEL = 3
"""Settings that a label spells out."""
AGGREGATES = {
    "average": "average incremental {}",
    "average_of_tasks": "average incremental {}, tasks weighed alike",
    "last": "final {}",
    "last_of_tasks": "final {}, tasks weighed alike",
    "when_learned": "{} when learned",
    "over_sets": "mean over sets ({})",
    "normalized": "normalized mean {}",
    "forgetting": "forgetting",
    "bwt": "backward transfer",
    "fwt": "forward transfer",
    "Transfer": "Transfer ({} of tasks before they are learned)",
    "Average": "Average ({} over all cells)",
    "Last": "Last (final {}, tasks weighed alike)",
    "MFT": "MFT ({} when learned)",
    "MFN": "MFN (final {})",
    "MAA": "MAA (average {})",
    "BWT": "BWT (MFN - MFT)",
    "kept": "{}, not taught, at the end",
    "lost": "points lost on {}",
}
"""Title of each way to draw a metric together over tasks. Transfer to Last: streams of data sets, where each is asked
after each; MFT to BWT: instruction tuning; the last two: `retention`."""
OF_SETS = ("Transfer", "Average", "Last")
"""Of ZSCL and those after it: drawn together over data sets, and of each set."""
AVERAGES = ("average", "MAA", "last", "when_learned", "over_sets")
"""Which of them one number of a whole run is; the later ones where the plan of tests does not give the first."""


@dataclass(frozen=True, slots=True)
class Number:
    """One row of the score table: a metric, and how it is drawn together over tasks."""

    metric: str
    aggregate: str
    unit: str = "%"
    direction: Literal["up", "down"] = "up"

    @property
    def title(self) -> str:
        named = AGGREGATES[self.aggregate].format(self.metric.replace("_", " "))
        return f"{named}, task known" if self.metric == TASK_KNOWN and "in task" not in named else named

    @property
    def arrow(self) -> str:
        return "↑" if self.direction == "up" else "↓"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A number over seeds. `spread` needs two, the interval three; else None."""

    n: int
    mean: float
    spread: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired differences ``b - a`` of a number over the seeds that both have."""

    number: Number
    a: str
    b: str
    seeds: list[int]
    mean: float | None
    bootstrap: tuple[float, float] | None
    student: tuple[float, float] | None
    winner: str | None
    """The better one if that is decided."""
    reason: str
    """Why there is no winner; empty if there is."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one experiment that differ in their seed only."""

    label: str
    runs: list[Run]
    numbers: dict[Number, dict[int, float]]
    """Number -> {seed: value}."""
    summaries: dict[Number, Summary]
    deterministic: bool = False
    """Its seeds do not differ in a single record: they count as one."""


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs, in the order given, those of equal (and known) settings together; labels are short and distinct."""
    sorted_out: dict[str, list[Run]] = {}
    for run in runs:
        same = repr(sorted(settings(run).items())) if run.recipe else str(run.folder)
        sorted_out.setdefault(same + str(run.tasks), []).append(run)
    together = list(sorted_out.values())
    return [_group(label, members) for label, members in zip(_labels(together), together)]


def settings(run: Run) -> dict[str, Any]:
    """Dotted settings that make the experiment: without seed, places and `expect`."""
    flat = flatten({k: v for k, v in run.recipe.items() if k != "expect"})
    inert = {"run.seed", *(f"run.{name}" for name in OF_RUN)}
    return {name: value for name, value in flat.items() if name not in inert and not name.endswith(".root")}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted setting -> its value in each run, for the settings that are not the same in all."""
    return _differing([settings(run) for run in runs])


def _differing(every: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Field -> its value in each mapping, for the fields that are not the same in all."""
    names = sorted({name for one in every for name in one})
    table = {name: [one.get(name) for one in every] for name in names}
    return {name: values for name, values in table.items() if any(v != values[0] for v in values)}


def run_numbers(run: Run) -> dict[Number, float]:
    """All numbers of a run that are defined; the headline's first."""
    found: dict[Number, float] = {}
    if not run.tasks:
        return found
    scalar = [m for row in run.rows for m, v in row["values"].items() if isinstance(v, int | float)]
    for metric in dict.fromkeys([run.headline, *scalar]):
        entry = find(metric, run.own_metrics)
        unit, direction = (entry.unit, entry.direction) if entry else ("", "up")
        for aggregate, value in _aggregates(run, metric, up=direction == "up").items():
            better = continual.DIRECTIONS.get(aggregate, direction) if aggregate == "forgetting" else direction
            if value is not None:
                found[Number(metric, aggregate, unit, better)] = value
    for name, curve in retention(run).items():
        before, last = curve[0], curve[-1]
        if last is not None:
            found[Number(name, "kept")] = last
        if before is not None and last is not None:
            found[Number(name, "lost", "", "down")] = before - last
    return found


def retention(run: Run) -> dict[str, list[float | None]]:
    """Accuracy on each set that the stream does not teach: before the first task, and after each."""
    curves: dict[str, list[float | None]] = {}
    for row in run.retention:
        curve = curves.setdefault(row["set"], [None] * (len(run.tasks) + 1))
        if row["after"] < len(run.tasks):
            curve[row["after"] + 1] = row["accuracy"]
    return curves


def average(run: Run) -> float | None:
    """The headline averaged over tasks, by the first of `AVERAGES` that the run's cells define."""
    found = {number.aggregate: value for number, value in run_numbers(run).items() if number.metric == run.headline}
    return next((found[aggregate] for aggregate in AVERAGES if aggregate in found), None)


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and the 95 % interval by Student's t (n >= 3)."""
    sample = np.asarray(values, dtype=np.float64)
    n, mean = len(sample), float(sample.mean())
    spread = float(sample.std(ddof=1)) if n >= 2 else None
    if n < ENOUGH or spread is None:
        return Summary(n=n, mean=mean, spread=spread)
    margin = _student_quantile(n) * spread / math.sqrt(n)
    return Summary(n=n, mean=mean, spread=spread, low=mean - margin, high=mean + margin)


def compare(number: Number, a: Group, b: Group) -> Comparison:
    """`b` against `a`, seed by seed."""
    left, right = a.numbers.get(number, {}), b.numbers.get(number, {})
    seeds = sorted(seed for seed in left.keys() & right.keys() if seed >= 0)  # below 0: not known
    differences = np.array([right[s] - left[s] for s in seeds])
    common: dict[str, Any] = {"number": number, "a": a.label, "b": b.label, "seeds": seeds}
    parts = [group.runs[0].unfinished for group in (a, b)]
    if any(parts):
        reason = "; ".join(f"{group.label} is unfinished" for group, part in zip((a, b), parts) if part)
        return Comparison(**common, mean=None, bootstrap=None, student=None, winner=None, reason=reason)
    if len(seeds) < ENOUGH:
        mean = float(differences.mean()) if seeds else None
        reason = f"{len(seeds)} shared seed{'' if len(seeds) == 1 else 's'}; a verdict needs {ENOUGH}"
        return Comparison(**common, mean=mean, bootstrap=None, student=None, winner=None, reason=reason)
    one = summarize(list(differences))
    assert one.low is not None and one.high is not None
    bootstrap, student = bootstrap_interval(differences), (one.low, one.high)
    decided = min(bootstrap[0], student[0]) > 0 or max(bootstrap[1], student[1]) < 0
    better = b.label if (one.mean > 0) == (number.direction == "up") else a.label
    return Comparison(
        **common,
        mean=one.mean,
        bootstrap=bootstrap,
        student=student,
        winner=better if decided else None,
        reason="" if decided else "an interval of the difference holds 0",
    )


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; the same numbers give the same interval."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    from scipy import stats

    found = stats.bootstrap(
        (differences,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def winners(together: Sequence[Group], numbers: Sequence[Number]) -> dict[Number, str]:
    """Number -> label of the group that beats every other one decidedly."""
    best: dict[Number, str] = {}
    for number in numbers:
        for group in together:
            rivals = [other for other in together if other is not group]
            if rivals and all(compare(number, rival, group).winner == group.label for rival in rivals):
                best[number] = group.label
    return best


def all_numbers(together: Sequence[Group]) -> list[Number]:
    """Every number that a group has, in the order of the first group that has it."""
    return list(dict.fromkeys(number for group in together for number in group.summaries))


def all_comparisons(together: Sequence[Group]) -> list[Comparison]:
    """Every group against the first, in every number that both have."""
    first, *others = together
    return [
        compare(number, first, other)
        for number in all_numbers(together)
        for other in others
        if number in first.summaries and number in other.summaries
    ]


def warnings(together: Sequence[Group]) -> list[str]:
    """What makes these runs hard to compare, in sentences."""
    said: list[str] = []
    runs = [run for group in together for run in group.runs]
    cards = [run.card for run in runs if run.card]
    data = [identity(card.get("data")) for card in cards]
    for part, fields in (("data", _differing(data)), ("weights", _other_weights(cards))):
        if fields:
            said.append(f"The runs were not made with the same {part}: {', '.join(fields)} differ.")
    for group in together:
        seeds = [run.seed for run in group.runs]
        twice = sorted({s for s in seeds if s is not None and seeds.count(s) > 1})
        if twice:
            said.append(f"{group.label}: seed {', '.join(map(str, twice))} occurs more than once and counts once.")
        if group.deterministic:
            said.append(f"{group.label}: deterministic: seeds do not differ; {len(group.runs)} runs count as one.")
        if why := left_out(group.runs[0]):
            said.append(f"{group.label}: {why}.")
        said += [f"{run.name}: {note}." for run in group.runs for note in run.notes]
    if len({tuple(run.tasks) for run in runs}) > 1:
        said.append("The runs do not have the same tasks.")
    return [*said, *studies(together)]


def _other_weights(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields of models that two runs give the same role, and roles of runs that have neither a role nor weights in
    common. A model that only one of them has, such as a reward model, is no reason not to compare."""
    found: set[str] = set()
    held = [{role: identity(one) for role, one in (card.get("weights") or {}).items()} for card in cards]
    for a, b in itertools.combinations(held, 2):
        shared = a.keys() & b.keys()
        found |= {f"{role}.{field}" for role in shared for field in _differing([a[role], b[role]])}
        if a and b and not shared and not any(one in b.values() for one in a.values()):
            found |= a.keys() | b.keys()
    return sorted(found)


def studies(together: Sequence[Group]) -> list[str]:
    """How settings were chosen, where the runs are part of a sweep, and that they were not, where they are many."""
    said, tested = [], False
    for group in together:
        about = group.runs[0].card.get("study")
        about = about if isinstance(about, Mapping) else {}
        if isinstance(choice := about.get("choice"), Mapping):
            seeds = ", ".join(map(str, choice.get("seeds", ())))
            by = "validation examples" if choice.get("by") == "validation" else "validation examples of the first task"
            tried = f"{choice.get('tried')} settings" + (" that Optuna proposed" if choice.get("search") else "")
            said.append(
                f"{group.label}: chosen among {tried} by {choice.get('metric')} {choice.get('value', math.nan):.2f} on "
                f"{by}, seeds {seeds}; no run shown took part."
            )
        several = isinstance(count := about.get("settings"), int) and count > 1
        tested = tested or (several and about.get("phase") == "grid")
    if tested:
        said.append(
            "Several settings of a method were compared on test examples: the best of them looks better than it is. "
            "perdure sweep --select chooses by validation examples."
        )
    return said


def _aggregates(run: Run, metric: str, *, up: bool) -> dict[str, float | None]:
    """The numbers over tasks that this run's cells define; all of them for the headline alone."""
    full = up and metric in (run.headline, TASK_KNOWN)
    cells = continual.from_rows(run.rows, tasks=len(run.tasks), metric=metric, or_first=metric == run.headline)
    found = continual.summary(cells.matrix, counts=cells.counts, initial=cells.initial)
    found["when_learned"] = continual.accuracy_when_learned(cells.matrix)
    if len(run.tasks) == 1:
        return {"last": found["last"]}
    if full and metric in METRICS and METRICS[metric].module == "instruction":
        return {**continual.sefe(cells.matrix), "forgetting": found["forgetting"], "bwt": found["bwt"]}
    if metric in METRICS and METRICS[metric].module == "audio_visual":  # units differ from task to task
        found["normalized"] = continual.normalized_mean(cells.matrix)
    if found["last"] is None:
        return {"over_sets" if run.only_tests else "when_learned": found["when_learned"]}
    for weighed in ("average", "last"):  # where tasks are of one size, both readings agree: say it once
        plain = found[f"{weighed}_of_tasks"]
        if plain is None or math.isclose(plain, found[weighed] or 0.0, abs_tol=1e-9):
            del found[f"{weighed}_of_tasks"]
    if full and not np.isnan(cells.matrix).any():
        of_sets = continual.zero_shot_transfer(cells.matrix)
        found |= {name: of_sets[name.lower()] for name in OF_SETS}
        found.pop("last_of_tasks", None)  # `Last` is the same number
    return {key: found[key] for key in (AGGREGATES if full else ("average", "last")) if key in found}


def _group(label: str, runs: list[Run]) -> Group:
    numbers: dict[Number, dict[int, float]] = {}
    for position, run in enumerate(runs):
        for number, value in run_numbers(run).items():
            seed = run.seed if run.seed is not None else -1 - position
            numbers.setdefault(number, {}).setdefault(seed, value)
    same = _are_one(runs)
    if same:
        numbers = {number: dict(list(values.items())[:1]) for number, values in numbers.items()}
    summaries = {number: summarize(list(values.values())) for number, values in numbers.items()}
    return Group(label=label, runs=runs, numbers=numbers, summaries=summaries, deterministic=same)


def _are_one(runs: Sequence[Run]) -> bool:
    """Whether runs of several seeds have equal scores and, where they kept them, equal records."""
    if len({run.seed for run in runs}) < 2 or any(run.rows != runs[0].rows for run in runs):
        return False
    return len({load.records_digest(run.folder) for run in runs}) == 1


def _labels(together: Sequence[Sequence[Run]]) -> list[str]:
    """Method names; where several groups share one, with the settings that tell them apart."""
    methods = [runs[0].method or runs[0].name for runs in together]
    labels = []
    for runs, method in zip(together, methods):
        alike = [other[0] for other, name in zip(together, methods) if name == method]
        apart = differing(alike) if len(alike) > 1 else {}
        own: Mapping[str, Any] = settings(runs[0])
        words = [f"{name.removeprefix('method.')}={shown(own.get(name))}" for name in apart]
        if len(words) > MOST_IN_LABEL:
            words = [str((runs[0].recipe.get("run") or {}).get("name") or runs[0].name)]
        words += [runs[0].unfinished] if runs[0].unfinished else []
        labels.append(f"{method} ({', '.join(words)})" if words else method)
    return [f"{label} [{i + 1}]" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def _student_quantile(n: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))
