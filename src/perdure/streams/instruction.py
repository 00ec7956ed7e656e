"""Instruction data sets one after another: the tasks of CoIN, UCIT or MLLM-CL in their order, or your own files.

Knows which files make a task, in which order tasks come, and how each is scored. Does not know records (that is
`perdure.data.instruction`), images or models. No task is named at test time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.data import instruction
from perdure.data.instruction import Form, Scorer
from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named, Seed
from perdure.streams.selection import at_most
from perdure.types import NO_EXAMPLES, Dataset, Examples, Stream, Task

BENCHMARKS: dict[str, tuple[tuple[str, Scorer, Form | None], ...]] = {
    "CoIN": (
        ("ScienceQA", "scienceqa", None),
        ("TextVQA", "textvqa", None),
        ("ImageNet", "imagenet", None),
        ("GQA", "gqa", None),
        ("VizWiz", "vizwiz", None),
        ("Grounding", "grounding", None),
        ("VQAv2", "vqav2", None),
        ("OCRVQA", "ocrvqa", None),
    ),
    "UCIT": (
        ("ImageNet-R", "equal", "phrase"),
        ("ArxivQA", "equal", "letter"),
        ("VizWiz-caption", "caption", None),
        ("IconQA", "equal", None),
        ("CLEVR-Math", "equal", "phrase"),
        ("Flickr30k", "caption", None),
    ),
    "MLLM-DCL": (
        ("RS", "contains_word", None),
        ("Med", "contains", None),
        ("AD", "contains_word", None),
        ("Sci", "science", None),
        ("Fin", "loose_letter", None),
    ),
    "MLLM-ACL": (
        ("OCR", "ocrbench", None),
        ("Math", "exact", None),
        ("VP", "squeezed", None),
        ("APP", "exact", None),
    ),
}
"""Tasks of each benchmark in their order, with scorer and form. Math and APP (interfaces) are published with a language
model and a server as judges: here their answers are compared as they are, and `perdure prepare judge` asks a model."""
TRAIN = ("train_4w.json", "train_brief_4w.json", "train.json")
TEST = ("test_3000.json", "test.json")
CAPTIONS = ("val_coco_type_3000.json", "test_coco_type.json")
"""Names of a task's files in these repositories, the likeliest first."""
ANSWERS = {
    "scienceqa": "ScienceQA",
    "textvqa": "TextVQA/TextVQA_0.5.1_val.json",
    "gqa": "GQA/testdev_balanced_questions.json",
}
"""Where, under CoIN's root, the reference answers of a scorer are that needs more than the test file."""
METRICS = ("answer_accuracy", "format_errors", "superficial", "essential")


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """One task of your own."""

    name: str
    """What it is called in scores and reports."""
    train: Path | None = None
    """Training conversations; none: `annotations/<name>/` and the stream's `train`."""
    test: Path | None = None
    """Test questions; none: `annotations/<name>/test.json`."""
    answers: Path | None = None
    """Reference answers, if the test file has none."""
    images: Path | None = None
    """Folder that image paths start from; none: the stream's root."""
    test_images: Path | None = None
    """The same for test records; none: `images`."""
    scorer: Scorer = "exact"
    """How an answer is compared with its reference."""
    form: Form | None = None
    """The form that the questions ask for; none: that of the scorer's task."""
    data: Annotated[Named, "data"] | None = None
    """Instead of all these: a data set of kind `instruct`, such as a `table` of questions and answers."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of instruction tasks."""

    root: Path = Path("data/CoIN")
    """Folder with `annotations/<task>/train.json` and `test.json`; image paths start here. Of other benchmarks: as it
    comes from its hub repository."""
    benchmark: Literal["CoIN", "UCIT", "MLLM-DCL", "MLLM-ACL"] = "CoIN"
    """Whose tasks, files and scorers, where `tasks` is empty."""
    tasks: tuple[TaskFiles, ...] = ()
    """Your own tasks in order; empty: those of `benchmark`."""
    order: tuple[str, ...] = ()
    """Names of the tasks to take, in this order; empty: all as they come."""
    train: str = "train.json"
    """Training file of each task: `train_x20.json` has a fifth of its answers in other styles."""
    train_per_task: Annotated[int, Field(ge=1)] | None = None
    """Only so many training conversations of each task, chosen by `seed` and what they are about: the same of
    `train.json` and of `train_x20.json`."""
    test_per_task: Annotated[int, Field(ge=1)] | None = None
    """Only so many test questions of each task, chosen by `seed`."""
    seed: Seed = 0
    """Chooses the examples of `train_per_task` and `test_per_task`."""
    official: bool = False
    """Score as the published code does, with its defects."""
    multitask: bool = False
    """All tasks' training data in the first task: the upper bound; the others bring tests only."""
    on_fault: Literal["stop", "skip"] = "stop"
    """Stop and report all faulty records at once, or leave them out and count them."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""

    def faults(self):
        names = [t.name for t in self.tasks] or [name for name, *_ in BENCHMARKS[self.benchmark]]
        if len(set(names)) != len(names):
            yield "tasks", "the same name twice"
        for name in self.order:
            if name not in names:
                yield "order", f"unknown task `{name}`; expected one of {', '.join(names)}"
        if len(set(self.order)) != len(self.order):
            yield "order", "the same name twice"


def build(config: Config) -> Stream:
    """One task a data set.

    Raises:
        RecipeError: `order` names no task.
        DataError: a file is missing, or records are faulty.
    """
    for name, what in config.faults():
        raise RecipeError(what, where=f"stream instruction: {name}")
    config = replace(config, root=config.root.expanduser())
    chosen = _ordered(config)
    datasets = [_limited(_read(task, config), config) for task in chosen]
    tasks = tuple(
        Task(
            index=i,
            name=task.name,
            kind="instruct",
            train=data.train,
            test=data.test,
            metrics=METRICS,
            facts={"scorer": task.scorer, **data.facts},
        )
        for i, (task, data) in enumerate(zip(chosen, datasets))
    )
    return Stream(
        name="instruction: " + ", ".join(task.name for task in chosen),
        tasks=_multitask(tasks) if config.multitask else tasks,
        shared_candidates=False,
        manifest=_manifest(config, chosen, datasets),
    )


def _ordered(config: Config) -> list[TaskFiles]:
    tasks = list(config.tasks) or [_listed(config, *task) for task in BENCHMARKS[config.benchmark]]
    if not config.order:
        return tasks
    by_name = {task.name: task for task in tasks}
    return [by_name[name] for name in config.order]


def _listed(config: Config, name: str, scorer: Scorer, form: Form | None) -> TaskFiles:
    """A task of the benchmark, with its files as they are called there."""
    if config.benchmark == "CoIN":
        return TaskFiles(name=name, scorer=scorer, form=form)
    folder = config.root / name
    apart = config.root / f"{name}_test"  # MLLM-ACL tests on other data than it learns from
    tested = apart if config.benchmark == "MLLM-ACL" else folder
    images = config.root / "datasets" if config.benchmark == "UCIT" else folder
    own = TRAIN if config.train == "train.json" else (config.train,)
    return TaskFiles(
        name=name,
        train=_first(folder, own),
        test=_first(tested, TEST),
        answers=_first(folder, CAPTIONS) if scorer == "caption" else None,
        images=images,
        test_images=None if tested == folder else tested,
        scorer=scorer,
        form=form,
    )


def _first(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that is there; else the last, which a reader then says is missing."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])


def _read(task: TaskFiles, config: Config) -> Dataset:
    if task.data is not None:
        return _require_questions(task.data.build(), task.name)
    folder = config.root / "annotations" / task.name
    answers = task.answers
    if answers is None and not config.tasks and config.benchmark == "CoIN" and task.scorer in ANSWERS:
        standard = config.root / ANSWERS[task.scorer]
        exists = (standard / "problems.json").is_file() if standard.is_dir() else standard.is_file()
        if not exists and task.scorer == "textvqa":
            raise DataError("TextVQA's reference answers are missing", where=str(standard))
        answers = standard if exists else None
    return instruction.read(
        instruction.Config(
            name=task.name,
            train=task.train or folder / config.train,
            test=task.test or folder / "test.json",
            images=task.images or config.root,
            test_images=task.test_images,
            answers=answers,
            scorer=task.scorer,
            form=task.form,
            official=config.official,
            on_fault=config.on_fault,
            check_images=config.check_images,
        )
    )


def _require_questions(data: Dataset, name: str) -> Dataset:
    if data.kind != "instruct":
        raise RecipeError(f"{data.name} is of kind {data.kind}", where=f"task {name}", expected="kind instruct")
    return replace(data, name=name, facts={"left_out": 0, **data.facts})


def _limited(data: Dataset, config: Config) -> Dataset:
    train = at_most(data.train, config.train_per_task, (config.seed, data.name, "train"))
    test = at_most(data.test, config.test_per_task, (config.seed, data.name, "test"))
    return replace(data, train=train, test=test)


def _multitask(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    union = Examples.of([example for task in tasks for example in task.train])
    first, *others = tasks
    return (replace(first, train=union), *(replace(task, train=NO_EXAMPLES) for task in others))


def _manifest(config: Config, chosen: list[TaskFiles], datasets: list[Dataset]) -> dict[str, Any]:
    return {
        "stream": "instruction",
        **({} if config.tasks or config.benchmark == "CoIN" else {"benchmark": config.benchmark}),
        "train_file": config.train,
        "seed": config.seed,
        "official": config.official,
        "multitask": config.multitask,
        "tasks": [
            {
                "name": task.name,
                "scorer": task.scorer,
                "train": len(data.train),
                "test": len(data.test),
                "left_out": data.facts["left_out"],
                "fingerprint": data.facts.get("fingerprint") or _fingerprint(data),
            }
            for task, data in zip(chosen, datasets)
        ],
    }


def _fingerprint(data: Dataset) -> str:
    """sha256 over all conversations, questions and references, and the images' names."""
    digest = hashlib.sha256()
    for example in [*data.train, *data.test]:
        said = {name: _named(value) for name, value in example.inputs.items()}
        digest.update(json.dumps([example.id, said, example.target], sort_keys=True).encode())
    return digest.hexdigest()


def _named(value: Any) -> Any:
    """An image by its file's name, several by theirs."""
    return [_named(v) for v in value] if isinstance(value, list) else value.name if isinstance(value, Path) else value
