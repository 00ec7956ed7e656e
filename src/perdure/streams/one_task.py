"""One task from one data set: what a model in use is taught by an update.

Knows a data set of any kind, and which of its examples test. Does not know other tasks: labels are those of the data
set until a stream that goes on (`chained`, `perdure update`) gives classes their place.

Where nothing says what is for testing, a share is, chosen by what each example holds: the same image stays on its side
in every later update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.keys import key_seed
from perdure.settings.config import Named, Seed
from perdure.streams import contents, selection
from perdure.types import Dataset, Example, Examples, Stream, Task

METRICS = {
    "classify": ("accuracy",),
    "instruct": ("answer_accuracy", "format_errors", "superficial", "essential"),
    "caption": ("cider", "bleu_4", "rouge_l", "caption_scores"),
}
"""Metrics by kind, where no earlier task has this kind; `score` for all others."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of one task."""

    data: Annotated[Named, "data"]
    """What is learned, and tested unless `test` says otherwise."""
    test: Annotated[Named, "data"] | None = None
    """Another data set whose test examples (all, if it names none) are the test."""
    called: str = ""
    """Name of the task; empty: folder or name of the data set."""
    teaches: Literal["classes", "domain"] = "classes"
    """`classes`: new ones, more examples of known ones, or both. `domain`: all known classes in a new look."""
    renames: dict[str, str] = field(default_factory=dict)
    """A class's name in the data -> the known class that it means; or the name itself, for a new class."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the examples that test, where the data name no test examples."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training examples that are held out for validation, where the data name none."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""


def build(config: Config) -> Stream:
    """The task alone.

    Raises:
        DataError: nothing to learn from, or a class of which nothing is left to learn from.
        RecipeError: the test is of another kind.
    """
    dataset = config.data.build()
    train, validation, test = dataset.train, dataset.validation, dataset.test
    if config.test is not None:
        test = _tests(config.test.build(), dataset)
    elif not len(test):
        train, test = _split(train, config.test_share, (config.split_seed, "split"))
        if dataset.kind == "instruct":
            test = Examples.of([_question(example) for example in test])
    if not len(validation) and config.validation_share:
        train, validation = _split(train, config.validation_share, (config.split_seed, "validation"))
    if not len(train):
        raise DataError("nothing to learn from", where=f"data set {dataset.name}", expected="training examples")
    task = Task(
        index=0,
        name=config.called or dataset.called,
        kind=dataset.kind,
        candidates=dataset.candidates,
        train=train,
        validation=validation,
        test=test,
        metrics=METRICS.get(dataset.kind, ("score",)),
        facts={**dataset.facts, "teaches": config.teaches, "renames": dict(config.renames)},
    )
    return Stream(
        name=task.name,
        tasks=(task,),
        manifest={
            "stream": "one_task",
            "source": config.data.plain(),
            "data": selection.identity(dataset),
            "tasks": [{"name": task.name, **{s: _record(getattr(task, s)) for s in ("train", "validation", "test")}}],
        },
    )


def _split(examples: Examples, share: float, key: tuple[Any, ...]) -> tuple[Examples, Examples]:
    """(kept, taken): each example by a draw that hangs on what it holds, each group by one that hangs on its name. A
    class of which all would be taken keeps one."""
    if not share:
        return examples, examples.select([])
    own = [f"group {e.group}" if e.group else contents.digest(e) for e in examples]
    drawn = [key_seed(*key, name) / 2**63 for name in own]
    taken = {i for i, value in enumerate(drawn) if value < share}
    groups: dict[Any, list[int]] = {}
    for i, target in enumerate(examples.targets):
        groups.setdefault(target if isinstance(target, int) else None, []).append(i)
    for members in groups.values():
        if taken.issuperset(members):
            stays = max(drawn[i] for i in members)
            taken -= {i for i, value in enumerate(drawn) if value == stays}
    positions = range(len(examples))
    return examples.select([i for i in positions if i not in taken]), examples.select(sorted(taken))


def _tests(dataset: Dataset, learned: Dataset) -> Examples:
    """All examples of a data set that is for testing alone; classes by their names."""
    found = dataset.test if len(dataset.test) else dataset.train
    if dataset.kind != learned.kind:
        what = f"the test is of kind {dataset.kind}, what is learned of kind {learned.kind}"
        raise RecipeError(what, where="stream.test")
    if dataset.candidates == learned.candidates or dataset.kind != "classify":
        return found
    if foreign := [name for name in dataset.candidates if name not in learned.candidates]:
        raise DataError(
            f"the test has the class {foreign[0]!r}, of which there is nothing to learn from",
            where=f"data set {dataset.name}",
            expected="classes of what is learned",
        )
    return found.relabel([learned.candidates.index(name) for name in dataset.candidates].__getitem__)


def _question(example: Example) -> Example:
    """A conversation that is held out, as a test question: its first question, and the answer that it got."""
    if "conversations" not in example.inputs:
        return example
    turns: Sequence[Any] = [m for m in example.inputs["conversations"] if m["from"] in ("human", "gpt")]
    asked = next(i for i, message in enumerate(turns) if message["from"] == "human")
    inputs = {key: value for key, value in example.inputs.items() if key != "conversations"}
    target = {"answer": turns[asked + 1]["value"], "scorer": "exact", "form": "any", "official": False}
    text = turns[asked]["value"].replace("<image>", "").strip()
    return replace(example, inputs={**inputs, "text": text}, target=target)


def _record(examples: Examples) -> dict[str, Any]:
    """Count, and a digest of which examples with which targets."""
    names = [f"{example.id}:{example.target}" for example in examples]
    return {"n": len(names), "sha256": selection.fingerprint(names)}
