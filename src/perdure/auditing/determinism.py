"""How far a recipe's numbers move where they should not: by threads, sizes of test batches, processes, devices.

Knows how a recipe is run in several ways, and how what moved is kept for the cards of later runs. Does not know
why numbers move: sums are taken in another order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perdure import api, recipe, recording
from perdure.auditing.comparing import Apart, apart
from perdure.errors import Interrupted, PerdureError, RecipeError
from perdure.files.written_whole import write_json
from perdure.recipe import Recipe
from perdure.run_folder import run_files
from perdure.runtime import devices
from perdure.settings.config import Named

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "perdure")


@dataclass(frozen=True)
class Way:
    """A way to run the recipe once more."""

    name: str
    said: str
    settings: tuple[str, ...]
    processes: int = 1


@dataclass(frozen=True)
class Moved:
    """What one way moved; `refused` says why it could not be gone."""

    way: Way
    found: Apart | None
    refused: str = ""


def measure(asked: Recipe, *, tasks: int | None = None, note: Callable[[str], None] = lambda said: None) -> list[Moved]:
    """Run a recipe on one thread, and again in each way of `ways`; write what moved to ``determinism.json`` in the
    folder of its runs, which the cards of later runs there take up as their tolerance.

    Args:
        tasks: the first so many alone; None for all.
        note: told of each run before it begins.

    Raises:
        RecipeError: the plain run fails; its message is passed on.
    """
    cut = asked.for_seed(asked.seeds[0])
    if tasks is not None:
        first = {"parts": [cut.stream.plain()], "tasks": tasks}
        cut = replace(cut, stream=Named(place="streams", name="chained", settings=first))
    with tempfile.TemporaryDirectory(prefix="perdure-determinism-") as folder:
        text, plain = Path(folder) / "recipe.yaml", Way("plain", "one thread, one process", ())
        text.write_text(recipe.to_yaml(cut), encoding="utf-8")
        note(plain.said)
        base, failed = _run(text, plain, Path(folder))
        if failed:
            raise RecipeError(f"the recipe fails: {failed}", todo="Type: perdure run, and see what is wrong.")
        found = []
        for way in ways(asked):
            note(way.said)
            other, failed = _run(text, way, Path(folder))
            found.append(Moved(way, None if failed else apart(base, other), failed))
    measured = {moved.way.name: moved.found.to_json() for moved in found if moved.found is not None}
    said = {"settings": recording.settings_digest(asked), "tasks": tasks, "measured": measured}
    write_json(asked.folder(asked.seeds[0]).parent / run_files.DETERMINISM, said)
    return found


def ways(asked: Recipe) -> list[Way]:
    """What is tried beside the plain run: another device where this machine has one."""
    size = asked.evaluate.batch_size
    found = [
        Way("threads", "two threads", ("run.threads=2",)),
        Way("test batches", f"tests in batches of {max(size // 2, 1)}", (f"evaluate.batch_size={max(size // 2, 1)}",)),
    ]
    found.append(Way("processes", "two processes", (), processes=2))
    plain = str(devices.chosen(asked.run.device))
    other = next((name for name in devices.available() if name.split(":")[0] != plain.split(":")[0]), "")
    return [*found, *([Way("device", f"on {other}", (f"run.device={other}",))] if other else [])]


def _run(text: Path, way: Way, folder: Path) -> tuple[Path, str]:
    """The folder of a run, and the message where it failed."""
    out = folder / way.name.replace(" ", "_")
    settings = {"run.threads": "1", "run.trackers": "[]", "run.out": str(out), "run.name": "run"}
    settings |= dict(each.split("=", 1) for each in way.settings)
    given = [f"{key}={value}" for key, value in settings.items()]
    failed = _together([str(text), *given]) if way.processes > 1 else _here(text, given)
    runs = run_files.runs_below(out)
    return (runs[0] if runs else out), failed


def _here(text: Path, given: Sequence[str]) -> str:
    """Run in this process; the message where it fails."""
    threads = torch.get_num_threads()
    try:
        api.execute(recipe.load(text, given), quiet=True)
    except Interrupted:
        raise
    except PerdureError as fault:
        return str(fault)
    finally:
        torch.set_num_threads(threads)
    return ""


def _together(words: Sequence[str]) -> str:
    """Run in two processes of their own; the message where they fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, *TWO, "run", *words, "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if "Error" in line or "Expected" in line), lines[-1] if lines else "no message")
    return said if done.returncode else ""


def tolerance(card: Mapping[str, Any]) -> dict[str, Any]:
    """The widest of what a card states, over all ways; empty if it states none."""
    measured = list(card.get("tolerance", {}).values())
    keys = ("score", "numbers")
    if not measured:
        return {}
    widest = {key: max(each[key] for each in measured) for key in keys}
    most = max(measured, key=lambda each: each["answers"] / max(each["records"], 1))
    return {**widest, "answers": most["answers"], "records": most["records"]}
