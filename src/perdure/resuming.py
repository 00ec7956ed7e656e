"""What a run's folder holds already, and whether a recipe and its data may go on with it.

Knows a run's files, settings that move numbers, and the data's fingerprints in a stream's manifest. Imports no torch,
so that a finished run is told from an unfinished one at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure import recipe
from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json
from perdure.recipe import Recipe
from perdure.run_folder import run_files, versions

MADE = (
    "checkpoint",
    "predictions",
    "scores.json",
    "events.jsonl",
    "log.txt",
    "card.json",
    "calibration.json",
    "data.json",
    "tasks.json",
    "versions",
    "recipe.yaml",
)
"""What a run makes in its folder; `recipe.yaml`, which says that it is a run's, goes last."""
BESIDE = "Set run.name=... for a run beside it, or add --again to make it anew."


def finished_scores(folder: Path) -> dict[str, Any] | None:
    """What `scores.json` holds, if the run is complete: its card is written last."""
    saved = run_files.read_scores(folder)
    return saved if saved and run_files.read_card(folder) else None


def require_same_settings(asked: Recipe, folder: Path) -> None:
    """RecipeError, naming the settings, if something was learned in `folder` under a recipe that moves other numbers.

    A folder in which nothing was learned is emptied instead.
    """
    file = folder / "recipe.yaml"
    if not file.exists():
        return
    changed = recipe.differences(recipe.load(file), asked)
    if changed and not _anything_learned(folder):
        clear(folder)
    elif changed:
        listed = "; ".join(f"{name}: was {was!r}, now {now!r}" for name, was, now in changed)
        raise RecipeError(f"holds a run with other settings: {listed}", where=str(folder), todo=BESIDE)


def require_same_data(manifest: Mapping[str, Any], folder: Path) -> None:
    """RecipeError, naming data set, task and split, if the run in `folder` learned from other data.

    Args:
        manifest: of the stream as it is now.
    """
    before = _manifest(folder)
    changed = list(other_data(before, manifest)) if before else []
    if changed and _anything_learned(folder):
        listed = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise RecipeError(
            f"holds a run on other data: {listed}",
            where=str(folder),
            expected="the data that it began with; nothing was trained",
            todo=BESIDE,
        )


def other_data(before: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    """What differs between a manifest that was kept and a stream's, most telling first: each task's splits, then data
    sets as a whole."""
    now = _plain(manifest)
    yield from _other_tasks(_listed(before.get("tasks")), _listed(now.get("tasks")))
    sets, sets_now = _by_name(before.get("data")), _by_name(now.get("data"))
    for name in sets.keys() & sets_now.keys():
        old, new = sets[name], sets_now[name]
        gone = [c for c in _listed(old.get("classes")) if c not in _listed(new.get("classes"))]
        come = [c for c in _listed(new.get("classes")) if c not in _listed(old.get("classes"))]
        if gone or come:
            parts = [f"without {', '.join(map(str, gone[:3]))}"] * bool(gone)
            parts += [f"with {', '.join(map(str, come[:3]))}"] * bool(come)
            counts = f"{len(_listed(old.get('classes')))} classes then, {len(_listed(new.get('classes')))} now"
            yield f"data set {name}: {counts} ({', '.join(parts)})"
        elif old.get("fingerprint") != new.get("fingerprint"):
            yield f"data set {name}: its files or labels are others (fingerprint)"


def require_same_data_if_there(asked: Recipe, folders: Iterable[Path]) -> str:
    """As `require_same_data`, for finished runs of one recipe, whose seeds share the data; what to say if those are not
    here any more."""
    try:
        stream = recipe.build_stream(asked)
    except DataError as gone:
        return f"its data could not be compared: {gone}"
    for folder in folders:
        require_same_data(stream.manifest, folder)
    return ""


def require_no_versions(folder: Path) -> None:
    """RecipeError if updates have been built on the run, which is not made anew under them."""
    under_way = (folder / versions.FOLDER / versions.UNDER_WAY).is_dir()
    if (folder / versions.FOLDER).is_dir() and (versions.updates(folder) or under_way):
        raise RecipeError(
            "versions have been built on this run",
            where=str(folder),
            expected="a run without updates",
            todo="Set run.name=... for a run beside it, or remove the folder.",
        )


def clear(folder: Path) -> None:
    """Remove what a run made."""
    for name in MADE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _anything_learned(folder: Path) -> bool:
    return any((folder / "checkpoint").glob("**/*.safetensors")) or (folder / "card.json").exists()


def _manifest(folder: Path) -> dict[str, Any]:
    """As the run began; of runs that did not keep it, as they ended."""
    file = folder / "data.json"
    if run_files.is_there(file):
        found = read_json(file, todo=run_files.AGAIN)
        return found if isinstance(found, dict) else {}
    return run_files.read_card(folder).get("stream", {})


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(manifest), default=str))


def _other_tasks(before: list[Any], now: list[Any]) -> Iterator[str]:
    if before and now and len(before) != len(now):
        yield f"{len(before)} tasks then, {len(now)} now"
    for old, new in zip(before, now):
        for split in ("train", "validation", "test"):
            was, became = old.get(split), new.get(split)
            if isinstance(was, Mapping) and isinstance(became, Mapping) and was != became:
                counts = f"{was.get('n')} examples then, {became.get('n')} now"
                same = f"{was.get('n')} examples as before, but others"
                yield f"task '{old.get('name')}', {split}: {same if was.get('n') == became.get('n') else counts}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _by_name(data: Any) -> dict[str, Mapping[str, Any]]:
    """Data sets of a manifest, which holds one or a list."""
    sets = [item for item in ([data] if isinstance(data, Mapping) else _listed(data)) if isinstance(item, Mapping)]
    return {f"{item.get('name')}{f' ({i + 1})' if len(sets) > 1 else ''}": item for i, item in enumerate(sets)}
