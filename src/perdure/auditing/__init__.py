"""Whether a run's number means what it says: leaks of the protocol, looked for by experiment.

Knows which experiments there are and how their findings are kept. Does not know any method, model or stream by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from perdure import api, recipe
from perdure.auditing import answers, claims, copies, teaching
from perdure.auditing.finding import Finding, Subject
from perdure.errors import RecipeError
from perdure.files.written_whole import write_json
from perdure.run_folder import run_files
from perdure.types import Stream

FILE = "audit.json"
"""In a run's folder."""
EXPERIMENTS: Sequence[Callable[[Subject], Finding]] = (
    answers.batches_of_one,
    answers.another_order,
    answers.other_companions,
    answers.task_name_hidden,
    answers.target_hidden,
    teaching.later_classes,
    teaching.tests_unread,
    copies.tests_in_training,
    copies.nearly_tests_in_training,
    copies.validation_is_test,
    claims.chosen_on_test,
    claims.seeds_differ,
)


def audit(run: str | Path, *, count: int = 32, device: str = "auto") -> list[Finding]:
    """Look for leaks in a run, and write what was found to ``audit.json`` in its folder.

    Args:
        run: its folder, or the folder of its seeds: then the first is audited, and all of them are compared.
        count: test examples that are asked in each experiment.

    Raises:
        RecipeError, CheckpointError: this is no run, or no task of it is finished.
        DataError: its data are not here.
    """
    folders = seeds_of(Path(run))
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError("an audit is made in one process", expected="no launcher before the command")
    opened = api.reopen(folders[0], device=device)
    stream: Stream = recipe.build_stream(opened.recipe)
    asked = opened.recipe

    def make():
        return recipe.build_method(asked, asked.run.seed)[0]

    subject = Subject(
        method=opened.method,
        make=make,
        stream=stream,
        done=opened.done,
        evaluation=asked.evaluate,
        runtime=opened.runtime,
        settings={name: setting.value for name, setting in recipe.resolved(asked).items()},
        card=run_files.read_card(folders[0]),
        folders=folders,
        count=count,
    )
    findings = examine(subject)
    write_json(folders[0] / FILE, {"run": str(folders[0]), "findings": [each._asdict() for each in findings]})
    return findings


def examine(subject: Subject) -> list[Finding]:
    """Every experiment on a method, its stream and what its run left."""
    return [experiment(subject) for experiment in EXPERIMENTS]


def seeds_of(folder: Path) -> list[Path]:
    """The run in a folder, and runs of the same recipe with other seeds beside it."""
    if (folder / "recipe.yaml").is_file():
        beside = folder.parent.glob("seed_*") if folder.name.startswith("seed_") else []
        others = sorted(child for child in beside if child != folder and (child / "recipe.yaml").is_file())
        return [folder, *others]
    below = sorted(child for child in folder.glob("seed_*") if (child / "recipe.yaml").is_file())
    return below or [run_files.one_run(folder)]
