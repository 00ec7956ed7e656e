"""The result card: everything that is needed to judge a number and to make it again.

Knows which parts a card has and how two cards differ. Does not measure or read anything but the versions
of installed packages and the state of the git work tree; the parts are given.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from perdure import __version__
from perdure.metrics import continual
from perdure.reporting.load import flatten, name_of

VERSION = 1
"""Of the card's form."""
PACKAGES = ("perdure", "torch", "torchvision", "transformers", "peft", "accelerate", "numpy", "safetensors")
MEASURED = ("versions", "git", "device", "wall_seconds", "peak_memory", "accuracy_matrix", "recipe_sha256", "finished")
MEASURED += ("tolerance",)
"""Parts that tell how a run went, not what was asked of it."""
PLACES = ("root", "path", "file")
"""Where something lies on one machine."""


def make_card(
    *,
    recipe: Mapping[str, Any],
    scores: Mapping[str, Any],
    weights: Mapping[str, Any],
    data: Mapping[str, Any],
    stream: Mapping[str, Any],
    seeds: Mapping[str, int],
    precision: str,
    device: str,
    wall_seconds: float,
    peak_memory: Mapping[str, int],
    code: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    repository: Path | None = None,
) -> dict[str, Any]:
    """The card as JSON-ready dict.

    Args:
        recipe, scores: the merged recipe; what ``scores.json`` holds.
        weights: role -> provenance of the pretrained model (source, revision, sha256 of the file).
        code: file of the user's own -> its path and sha256.
        data: name -> facts of the data set (counts, fingerprint of the file list).
        stream, seeds: the stream's manifest (class order, cuts); ``{"seed": ..., "class_order": ...}``.
        wall_seconds, peak_memory: of the whole run, resumed parts included; bytes, ``{"resident": ..., "gpu": ...}``.
        origins: dotted setting -> "default", "file:line" or "command line".
        facts: the method's own (``extra_parameters``, ``stored_bytes``, ...).
        repository: a folder in the git work tree whose state is noted beside perdure's own; None for none.
    """
    own = dict(facts or {})
    given = {"weights": weights, "data": data, "code": code or {}, "stream": stream, "seeds": seeds}
    return {
        "card": VERSION,
        "method": name_of(recipe.get("method")),
        "recipe": dict(recipe),
        "recipe_sha256": digest(recipe),
        **{part: dict(value) for part, value in given.items()},
        "origins": dict(origins or {}),
        "precision": precision,
        "extra_parameters": own.pop("extra_parameters", None),
        "stored_bytes": own.pop("stored_bytes", None),
        "facts": own,
        **_costs(device, wall_seconds, peak_memory),
        "versions": versions(),
        "git": {"perdure": _state_at_start(), "folder": git_state(repository) if repository else None},
        "accuracy_matrix": matrix(scores),
    }


def _costs(device: str, wall_seconds: float, peak_memory: Mapping[str, int]) -> dict[str, Any]:
    return {"device": device, "wall_seconds": round(wall_seconds, 3), "peak_memory": dict(peak_memory)}


class Difference(NamedTuple):
    """One value that two cards do not share; None where a card lacks it."""

    field: str
    a: Any
    b: Any


def compare_cards(a: Mapping[str, Any], b: Mapping[str, Any], *, measured: bool = False) -> list[Difference]:
    """What differs between two cards, by dotted field in order; with `measured`, times and scores as well."""
    left, right = (flatten({k: v for k, v in card.items() if measured or k not in MEASURED}) for card in (a, b))
    fields = sorted(left.keys() | right.keys())
    return [Difference(f, left.get(f), right.get(f)) for f in fields if left.get(f) != right.get(f)]


def identity(part: Any) -> dict[str, Any]:
    """What makes weights or data the same on another machine: hashes, fingerprints, revisions; else all."""
    flat = flatten(part) if isinstance(part, Mapping) else {}
    marks = ("sha256", "fingerprint", "revision", "hash")  # a hash may lie below, by the name of its file
    firm = {f: value for f, value in flat.items() if value and any(part.endswith(marks) for part in f.split("."))}
    return firm or {field: value for field, value in flat.items() if field.rsplit(".", 1)[-1] not in PLACES}


def digest(tree: Any) -> str:
    """SHA-256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python, platform and the packages that are installed; nothing is imported."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def own_state(source: Path = Path(__file__).parents[1]) -> dict[str, Any]:
    """perdure's version, and the commit of its source where that is a work tree's: not that of a project in whose
    folder perdure happens to be installed."""
    tracked = _git(source, "ls-files", "--error-unmatch", "__init__.py") is not None
    return {"version": __version__, **((git_state(source) if tracked else None) or {})}


@cache
def _state_at_start() -> dict[str, Any]:
    """Of the source that this process runs: a later commit does not change it."""
    return own_state()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the work tree around `folder`, and whether tracked files were changed; None if there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def matrix(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The headline's cells ``[after][asked]``, before rounding; `initial` is the row before the first task."""
    metric = scores["headline"]
    values, counts = continual.cells(scores["rows"], len(scores["tasks"]), metric)
    return {"metric": metric, "values": values[:-1], "n": counts[:-1], "initial": values[-1]}
