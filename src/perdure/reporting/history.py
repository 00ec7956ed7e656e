"""What a run has become: its versions in a table.

Knows versions' files. Does not know how a table is laid out; imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.files.text_files import read_json
from perdure.run_folder import run_files, versions
from perdure.run_folder.versions import Version

COLUMNS = ("version", "parent", "time", "task", "learned from", "accuracy", "earlier", "gate", "MiB", "")


def history(run: Path) -> list[list[str]]:
    """A row a version, as `COLUMNS` says; none where the run was never updated nor another version promoted."""
    in_use = versions.updates(run) or versions.pointer(run)["history"]
    return [cells(version) for version in versions.listed(run)] if in_use else []


def described(version: Version) -> dict[str, Any]:
    """A version, JSON-ready: its last task, its headline there and on earlier tasks, what the gate said."""
    scores, about = version.scores, version.about
    last = max((row["after"] for row in scores.get("rows", [])), default=len(scores.get("tasks", [])) - 1)
    rows = [row for row in scores.get("rows", []) if row["after"] == last]
    headline = scores.get("headline", "")
    pairs = [(row["asked"], row["n"], row["values"].get(headline)) for row in rows]
    numbers = [(asked, n, value) for asked, n, value in pairs if isinstance(value, int | float)]
    earlier = [(n, value) for asked, n, value in numbers if asked < last]
    count = sum(n for n, _ in earlier)
    return {
        "version": version.number,
        "parent": version.parent,
        "current": version.current,
        "time": about.get("time") or _finished(version.folder),
        "task": [*scores.get("tasks", []), ""][last],
        **_learned_from(version.folder, last),
        "headline": headline,
        "new": next((value for asked, _, value in numbers if asked == last), None),
        "earlier": sum(n * value for n, value in earlier) / count if count else None,
        "gate": about.get("gate", {}).get("outcome"),
        "changed": about.get("changed", {}),
        "bytes": version.state.stat().st_size if version.state.is_file() else 0,
        "pruned": bool(about.get("pruned")),
    }


def _finished(folder: Path) -> str | None:
    """When its last task was done, local time with its offset from UTC."""
    done = [event["time"] for event in run_files.read_lines(folder / "events.jsonl")[0] if event["event"] == "task"]
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(done[-1])) if done else None


def _learned_from(folder: Path, task: int) -> dict[str, Any]:
    """The data of a version's last task: ``data``, in a word or two, and ``examples``, that were learned from."""
    file = folder / "data.json"
    manifest = read_json(file) if run_files.is_there(file) else {}
    tasks = manifest.get("tasks", [])
    learned = tasks[task].get("train", {}) if 0 <= task < len(tasks) else {}
    while parts := manifest.get("parts"):
        manifest = parts[-1]
    stated = manifest.get("source")
    source: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    place = next((source[key] for key in ("root", "path", "table", "shards", "train") if source.get(key)), "")
    words = [str(source.get("name", "")), Path(str(place)).name]
    return {"data": " ".join(filter(None, words)) or None, "examples": learned.get("n")}


def cells(version: Version) -> list[str]:
    """A version as a row of the table."""
    row = described(version)
    numbers = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("new", "earlier")]
    size = "pruned" if row["pruned"] else f"{row['bytes'] / 2**20:.2f}"
    mark = "promoted" if row["current"] else ""
    parent = "" if row["parent"] is None else str(row["parent"])
    learned = " of ".join(str(part) for part in (row["examples"], row["data"]) if part is not None)
    said = [str(row["version"]), parent, (row["time"] or "")[:16], row["task"], learned, *numbers]
    return [*said, row["gate"] or "", size, mark]
