"""What a run writes down of itself: its card, and the version that each task leaves.

Knows recipes, streams, scores and a run's folder. Does not know how a run goes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import checkpoint, recipe
from perdure.files.sizes import in_words
from perdure.keys import key_seed
from perdure.loop import Scores
from perdure.recipe import Built, Recipe, Setting
from perdure.reporting.card import digest, make_card
from perdure.run_folder import leaving, promoting, run_files
from perdure.run_folder.run_files import checkpoint_file
from perdure.runtime import Runtime, devices
from perdure.settings import registry
from perdure.settings.config import Named
from perdure.settings.inert import moves_no_number
from perdure.streams import appending
from perdure.types import Task


def leaves_versions(asked: Recipe, built: Built) -> bool:
    """Whether there is anything to go back to or to build upon: the stream brings something to learn, task by task, and
    the method learns it."""
    learns = not registry.describe("methods", asked.method.name).not_updatable
    return learns and any(len(task.train) for task in built.stream)


def say_notes(models: Mapping[str, Any], runtime: Runtime) -> None:
    """What models assumed of their weights (`notes`)."""
    for role, model in models.items():
        for note in getattr(model, "notes", ()):
            runtime.say(f"models.{role}: {note}")


def say_sizes(asked: Recipe, built: Built, runtime: Runtime, folder: Path) -> None:
    """What versions will take on the disk, before they do."""
    saved = checkpoint_file(folder)
    size = saved.stat().st_size if saved.is_file() else checkpoint.stored_bytes(built.method.state_dict())
    kept = len(built.stream) if asked.run.keep == "all" else min(asked.run.keep, len(built.stream))
    runtime.say(
        f"each task leaves a version; {kept} are kept (run.keep), {in_words(kept * size)} by what the method holds now"
    )
    if kept * size > shutil.disk_usage(folder).free:
        runtime.say(f"there is no room for so many versions in {folder}: later ones may lack their states")


def leave(asked: Recipe, built: Built, task: Task, scores: Scores, runtime: Runtime, folder: Path) -> None:
    """The version that a task leaves, with what any run's folder says; old ones are pruned (`run.keep`)."""
    count = task.index + 1
    first = Named(place="streams", name="chained", settings={"parts": [asked.stream.plain()], "tasks": count})
    so_far = appending.first(built.stream, count)
    own = Scores(scores.tasks[:count], scores.headline, [row for row in scores.rows if row["asked"] < count])
    known = appending.known(so_far)
    files = {
        "recipe.yaml": recipe.to_yaml(replace(asked, stream=first)),
        "data.json": so_far.manifest,
        "tasks.json": known,
        "scores.json": own.to_json(),
        "card.json": card(replace(asked, stream=first), built._replace(stream=so_far), own, runtime, folder),
    }
    if said := leaving.leave(folder, count, known["tasks"][-1], files):
        runtime.say(said)
    if asked.run.keep != "all":
        promoting.prune(folder, asked.run.keep)


def card(asked: Recipe, built: Built, scores: Scores, runtime: Runtime, folder: Path) -> dict[str, Any]:
    """The result card of what a run has come to."""
    settings = recipe.resolved(asked)
    method = built.method
    facts = {
        "extra_parameters": None,
        "stored_bytes": checkpoint.stored_in(checkpoint_file(folder)),
        **(method.facts() if hasattr(method, "facts") else {}),
        "skipped": runtime.skipped,
        "processes": runtime.processes,
        "matmul": _matmul(runtime),
        "compiled_layers": runtime.compiled_layers,
    }
    manifest = dict(built.stream.manifest)
    data = manifest.get("data", {})
    # A stream of several data sets lists theirs.
    data = {str(item.get("name", i)): item for i, item in enumerate(data)} if isinstance(data, list) else data
    tolerance = _tolerance(asked, folder)
    made = make_card(
        recipe=recipe.to_mapping(asked),
        scores=scores.to_json(),
        weights={role: model.provenance() for role, model in built.models.items() if hasattr(model, "provenance")},
        data=data,
        code=own_code(settings),
        stream=manifest,
        seeds={"seed": asked.run.seed, "torch": key_seed(asked.run.seed, "build")},
        precision=asked.run.precision,
        device=devices.full_name(runtime.device),
        wall_seconds=_wall_seconds(folder / "events.jsonl"),
        peak_memory=runtime.peak_memory(),
        origins={name: setting.origin for name, setting in settings.items()},
        facts=facts,
        repository=Path.cwd(),
    )
    return made | ({"tolerance": tolerance} if tolerance else {})


def settings_digest(asked: Recipe) -> str:
    """Of the settings that move numbers, seed apart: of runs that may share what was measured of their determinism."""
    settings = recipe.flat(recipe.resolved(asked))
    moving = {name: value for name, value in settings.items() if not moves_no_number(name, settings)}
    return digest({name: value for name, value in moving.items() if name != "run.seed" and name[:6] != "expect"})


def _tolerance(asked: Recipe, folder: Path) -> dict[str, Any]:
    """What ``perdure check --determinism`` left beside the run, if it was of these settings."""
    found = run_files.read_determinism(folder.parent)
    return found["measured"] if found and found["settings"] == settings_digest(asked) else {}


def own_code(settings: Mapping[str, Setting]) -> dict[str, dict[str, str]]:
    """Files of the user's own that the recipe names, by their names: where they lie, and their digest."""
    values = [v for s in settings.values() for v in (s.value if isinstance(s.value, list) else [s.value])]
    files = [Path(v) for v in values if isinstance(v, str) and registry.is_file(v) and Path(v).is_file()]
    return {f.name: {"path": str(f), "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files}


def _matmul(runtime: Runtime) -> str:
    """How float32 numbers were multiplied: what the setting allows and the device can."""
    import torch

    can = runtime.device.type == "cuda" and torch.cuda.get_device_capability(runtime.device) >= (8, 0)
    return "tf32" if can and torch.get_float32_matmul_precision() != "highest" else "float32"


def _wall_seconds(events: Path) -> float:
    """Time from the first to the last event of each session, summed: the pauses between them do not count."""
    total, begin, last = 0.0, None, None
    for event in run_files.read_lines(events)[0]:
        if event["event"] == "session" or begin is None:
            total += last - begin if begin is not None and last is not None else 0.0
            begin = event["time"]
        last = event["time"]
    return total + (last - begin if begin is not None and last is not None else 0.0)
