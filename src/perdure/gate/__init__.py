"""The gate: may a candidate take the place of the promoted version?

Knows the records of both on the same examples, rules and margins. Does not know models, files of a run or how records
are made: a gate can be repeated over saved records.

A rule is **passed** if the bound of its interval shows that no more than the margin is lost; **failed** if more is lost
and that is no chance (the whole interval beyond the margin, or the estimate beyond it and exact McNemar p < 0.05);
else **held**: too few examples to tell. The gate fails if a rule fails, and holds if one is held. Where several tasks
are tested for losses, p is Holm's: one loss by chance among twenty tasks fails no gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from perdure import metrics
from perdure.errors import RecipeError
from perdure.gate.paired import Difference, compare, examples_needed, holm, provable_margin
from perdure.settings import config
from perdure.settings.config import Named

Record = dict[str, Any]
Points = Annotated[float, Field(ge=0, le=100)]
Times = Annotated[float, Field(gt=0, le=1000)]
PROVEN = 0.05
"""Below this p, a difference is taken for none of chance."""
SHOWN = 5
"""Examples that turned wrong, of each rule."""
ALONE = "\0"
"""Begins the name of a group of one."""
MILDEST = ("passed", "held", "failed")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a candidate must keep and win. Numbers are points of percent; null leaves a rule out."""

    retention: Points | None = 2.0
    """Most that an earlier task may lose."""
    mean: Points | None = 1.0
    """Most that all earlier tasks together may lose."""
    groups: Points | None = None
    """Most that the tests of any one group (`group_column`: a patient, a site) of an earlier task may lose."""
    learned: bool = True
    """The new test must be answered better than before, with exact McNemar p < 0.05."""
    min_learned: Points | None = None
    """Least accuracy on the new test; null: twice the chance among the classes."""
    probe: Annotated[Named, "data"] | None = None
    """A data set that nobody trains on, asked before and after: what the pretrained model could do beside the tasks."""
    probe_margin: Points = 3.0
    """Most that the probe may lose."""
    forms: Points | None = 2.0
    """Most that wrong forms of answers may grow (instruction tasks)."""
    must: tuple[str, ...] = ()
    """Ids of kept examples of which none may turn wrong."""
    confidence: Points | None = None
    """Most that `adaptive_ece` may grow on an earlier task: the mean distance of confidence and accuracy."""
    size: Times | None = None
    """Most times that the state on disk may grow; null: growth by half is told."""
    seconds: Times | None = None
    """Most times that the median seconds of an answer may grow, both versions asked in turns on this machine."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A task, and the records of both versions on its examples."""

    name: str
    metric: str
    """The headline: what grades an answer."""
    before: Sequence[Record] | None
    """None: the promoted version could not be asked."""
    after: Sequence[Record]
    classes: Sequence[str] = ()


Cost = Mapping[str, Sequence[float]]
GROWN = 1.5
"""Times that a state has grown from which on it is told."""


def read(file: Path | None) -> Gate:
    """A gate's YAML; the defaults without a file.

    Raises:
        RecipeError: a rule is unknown or its margin is none.
    """
    if file is None:
        return Gate()
    from perdure.files.text_files import read_text
    from perdure.files.yaml_limits import MOST_BYTES, plain_yaml

    text = read_text(file, error=RecipeError, most=MOST_BYTES)
    return config.parse(Gate, plain_yaml(text, where=str(file)) or {}, where=str(file))


def judge(
    gate: Gate, *, earlier: Sequence[Asked], new: Asked, probe: Asked | None = None, cost: Cost | None = None
) -> dict[str, Any]:
    """What the gate says, JSON-ready.

    Args:
        cost: what was measured of both: ``bytes`` and ``seconds``, before and after.

    Returns:
        ``outcome``; ``rules``, a row each; ``turned_wrong`` and ``classes`` by task; ``unknown``, tasks of which no
        test example was kept; ``warnings``, in words; ``cost`` as it was given.
    """
    rules = [*_retention(gate, earlier), *_learned(gate, new), *_probe(gate, probe)]
    rules += [*_forms(gate, [*earlier, new]), *_must(gate, earlier), *_confidence(gate, earlier)]
    rules += [*_groups(gate, earlier), *_cost(gate, cost or {})]
    outcomes = [rule["outcome"] for rule in rules]
    unknown = [asked.name for asked in earlier if not asked.after] if gate.retention is not None else []
    outcomes += ["held"] * bool(unknown)
    return {
        "outcome": max(outcomes, key=MILDEST.index, default="passed"),
        "rules": rules,
        "unknown": unknown,
        "warnings": _warnings(gate, cost or {}),
        "cost": dict(cost or {}),
        "turned_wrong": [row for asked in [*earlier, *([probe] if probe else [])] for row in _turned_wrong(asked)],
        "classes": [row for asked in [*earlier, new] for row in _by_class(asked)],
    }


def power(gate: Gate, counts: Mapping[str, int]) -> list[str]:
    """What the gate can prove with so many kept examples a task, in sentences."""
    said = []
    if gate.retention:
        needed = examples_needed(gate.retention / 100)
        for name, n in counts.items():
            least = f"proves a loss below {100 * provable_margin(n):.1f} points" if n else "proves nothing"
            said.append(f"{name}: {n} kept examples; {least} (80 % power, 5 % of answers differing)")
        said.append(f"a margin of {gate.retention:g} points needs {needed} examples a task")
    return said


def grades(records: Sequence[Record], metric: str) -> list[float]:
    """How right each answer is, from 0 to 1, by the metric of the task; captions by ROUGE-L, which one image has."""
    name = "rouge_l" if metric in ("cider", "bleu_1", "bleu_4", "meteor", "spice", "caption_scores") else metric
    return [float(metrics.compute(name, [record]) or 0.0) / 100 for record in records]


# -- rules --------------------------------------------------------------------------------------------------


def _retention(gate: Gate, earlier: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    pairs = [(asked, *_paired(asked)) for asked in earlier if asked.after and asked.before]
    if gate.retention is not None:
        found = [compare(before, after, asked.name, groups=_groups_of(asked)) for asked, before, after in pairs]
        known = iter(holm([difference.p for difference in found if difference.p is not None]))
        for (asked, *_), difference in zip(pairs, found):
            p = None if difference.p is None else next(known)
            yield _row("retention", asked.name, difference, gate.retention, p=p)
    if gate.mean is not None and len(pairs) > 1:
        before = [grade for _, some, _ in pairs for grade in some]
        after = [grade for _, _, some in pairs for grade in some]
        groups = [f"{asked.name}/{name}" for asked, *_ in pairs for name in _groups_of(asked, alone=True)]
        yield _row("mean", "all earlier tasks", compare(before, after, "mean", groups=groups), gate.mean)


def _groups(gate: Gate, earlier: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Of each group of each earlier task: within it, its examples stand for themselves."""
    rows: list[tuple[str, str, Difference]] = []
    for asked in earlier:
        if gate.groups is None or not asked.before or not (named := _groups_of(asked)):
            continue
        before, after = _paired(asked)
        for name in sorted(name for name in {*named} if not name.startswith(ALONE)):
            own = [i for i, group in enumerate(named) if group == name]
            found = compare([before[i] for i in own], [after[i] for i in own], asked.name, name)
            rows.append((asked.name, name, found))
    known = iter(holm([difference.p for *_, difference in rows if difference.p is not None]))
    for task, name, difference in rows:
        p = None if difference.p is None else next(known)
        yield _row("groups", f"{task}: {name}", difference, gate.groups or 0.0, p=p)


def _cost(gate: Gate, cost: Cost) -> Iterator[dict[str, Any]]:
    for rule, measured, most in (("size", "bytes", gate.size), ("seconds", "seconds", gate.seconds)):
        if most is None:
            continue
        row = {"rule": rule, "task": "", "n": 1, "margin": most}
        if not (pair := cost.get(measured)) or not pair[0]:
            yield row | {"outcome": "held"}  # nothing was measured
            continue
        times = pair[1] / pair[0]
        said = {"times": round(times, 3), measured: list(pair)}
        yield row | said | {"outcome": "passed" if times <= most else "failed"}


def _warnings(gate: Gate, cost: Cost) -> list[str]:
    """What nobody has made a rule of, and may want to."""
    before, after = cost.get("bytes", (0, 0))
    if gate.size is not None or not before or after / before < GROWN:
        return []
    return [f"the state has grown {after / before:.1f} times; a rule for it is `size`"]


def _learned(gate: Gate, new: Asked) -> Iterator[dict[str, Any]]:
    after = grades(new.after, new.metric)
    if not after:
        yield {"rule": "learned", "task": new.name, "n": 0, "outcome": "held"}
        return
    share = sum(after) / len(after)
    chance = 200 / max(len(new.classes), 1) if new.metric == "accuracy" else 0.0
    least = gate.min_learned if gate.min_learned is not None else min(chance, 100.0)
    row = {
        "rule": "min_learned",
        "task": new.name,
        "n": len(after),
        "after": _percent(share),
        "margin": round(least, 2),
    }
    yield row | {"outcome": "passed" if 100 * share >= least else "failed"}
    if gate.learned and new.before:
        difference = compare(*_paired(new), new.name, groups=_groups_of(new))
        better = difference.low > 0 if difference.p is None else difference.p < PROVEN and difference.value > 0
        worse = difference.high < 0 if difference.p is None else difference.p < PROVEN and difference.value < 0
        outcome = "passed" if better else "failed" if worse else "held"
        yield _row("learned", new.name, difference, 0.0) | {"outcome": outcome}


def _probe(gate: Gate, probe: Asked | None) -> Iterator[dict[str, Any]]:
    if probe is not None and probe.before and probe.after:
        found = compare(*_paired(probe), probe.name, groups=_groups_of(probe))
        yield _row("probe", probe.name, found, gate.probe_margin)


def _forms(gate: Gate, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    for one in asked:
        if gate.forms is None or not one.before or not one.after or "form" not in one.after[0]:
            continue
        right = [grades(some, "format_compliance") for some in _same(one)]
        yield _row("forms", one.name, compare(*right, one.name, groups=_groups_of(one)), gate.forms)


def _must(gate: Gate, earlier: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    if gate.must:
        wrong = [row["id"] for asked in earlier for row in _turned_wrong(asked, all_of=True) if row["id"] in gate.must]
        outcome = "failed" if wrong else "passed"
        yield {"rule": "must", "task": "", "n": len(gate.must), "after": len(wrong), "margin": 0, "outcome": outcome}


def _confidence(gate: Gate, earlier: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    for asked in earlier:
        if gate.confidence is None or not asked.before or not asked.after or "confidence" not in asked.after[0]:
            continue
        before, after = (float(metrics.compute("adaptive_ece", some) or 0.0) for some in _same(asked))
        row = {"rule": "confidence", "task": asked.name, "n": len(asked.after), "before": round(before, 2)}
        grown = after - before <= gate.confidence
        yield row | {"after": round(after, 2), "margin": gate.confidence, "outcome": "passed" if grown else "failed"}


def _row(rule: str, task: str, found: Difference, margin: float, *, p: float | None = None) -> dict[str, Any]:
    """Numbers in points.

    Args:
        p: as it is to be read among several tests (Holm); None: as it was found.
    """
    allowed = -margin / 100
    chance = found.p if p is None else p
    proven = found.high < allowed or (found.value < allowed and chance is not None and chance < PROVEN)
    return {
        "rule": rule,
        "task": task,
        "n": found.n,
        "before": _percent(found.before),
        "after": _percent(found.after),
        "difference": _percent(found.value),
        "low": _percent(found.low),
        "high": _percent(found.high),
        "p": None if found.p is None else round(found.p, 6),
        **({"p_holm": round(p, 6)} if p is not None and p != found.p else {}),
        **({"groups": found.groups} if found.groups else {}),
        "margin": margin,
        "outcome": "passed" if found.low >= allowed else "failed" if proven else "held",
    }


# -- what got worse -----------------------------------------------------------------------------------------


def _same(asked: Asked) -> tuple[list[Record], list[Record]]:
    """Records of the examples that both were asked, in one order."""
    before = {record["id"]: record for record in asked.before or ()}
    after = [record for record in asked.after if record["id"] in before]
    return [before[record["id"]] for record in after], after


def _groups_of(asked: Asked, *, alone: bool = False) -> list[str]:
    """The group of each example that both were asked; empty where none has one.

    Args:
        alone: an example without a group is one of its own.
    """
    found = [record.get("group") or "" for record in _same(asked)[1]]
    if not any(found) and not alone:
        return []
    return [name or f"{ALONE}{i}" for i, name in enumerate(found)]


def _paired(asked: Asked) -> tuple[list[float], list[float]]:
    before, after = _same(asked)
    return grades(before, asked.metric), grades(after, asked.metric)


def _turned_wrong(asked: Asked, *, all_of: bool = False) -> list[dict[str, Any]]:
    """Examples that were right and are wrong."""
    records, now = _same(asked)
    graded = zip(records, now, grades(records, asked.metric), grades(now, asked.metric))
    found = [row for row in graded if row[2] > row[3] and row[2] >= 0.5 > row[3]]
    rows = [{"task": asked.name, "id": row[1]["id"], **_words(asked, *row)} for row in found]
    return rows if all_of else rows[:SHOWN]


def _words(asked: Asked, was: Record, record: Record, good: float, bad: float) -> dict[str, Any]:
    """What was answered; of clips, which say it at length, how right it was in percent."""
    for said in ("prediction", "caption"):
        if said in record:
            return {"before": was.get(said), "after": record[said]}
    if not _classified(record):
        return {"before": _percent(good), "after": _percent(bad)}
    return {
        "target": _name(asked, record["target"]),
        "before": _name(asked, was["predicted"]),
        "after": _name(asked, record["predicted"]),
    }


def _classified(record: Record) -> bool:
    """Whether an answer is one class of an image."""
    return isinstance(record.get("target"), int) and isinstance(record.get("predicted"), int)


def _name(asked: Asked, label: int) -> str:
    return asked.classes[label] if 0 <= label < len(asked.classes) else str(label)


def _by_class(asked: Asked) -> list[dict[str, Any]]:
    """Accuracy of each class before and after; those that lost most first."""
    before, after = _same(asked) if asked.before else ([], list(asked.after))
    if not after or not _classified(after[0]):
        return []
    found: dict[int, list[list[bool]]] = {}
    for i, record in enumerate(after):
        pair = found.setdefault(record["target"], [[], []])
        pair[1].append(record["predicted"] == record["target"])
        if before:
            pair[0].append(before[i]["predicted"] == record["target"])
    rows = [
        {
            "task": asked.name,
            "class": _name(asked, label),
            "n": len(now),
            "before": _percent(sum(was) / len(was)) if was else None,
            "after": _percent(sum(now) / len(now)),
        }
        for label, (was, now) in sorted(found.items())
    ]
    return sorted(rows, key=lambda row: row["after"] - (row["before"] or 0.0))


def _percent(share: float) -> float:
    return round(100 * share, 2)
