"""A test over large sets cut over processes and machines, and put together: the records of one process.

Knows runs whose recipes differ in `evaluate.shard` alone, and what the files of a run say of a test. Does not know
methods, nor where runs take place. Nothing is believed: every example must be there once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import recipe as recipes
from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json, read_json_lines, to_json
from perdure.files.written_whole import write_json, write_text
from perdure.recipe import Recipe
from perdure.reporting.card import compare_cards, digest, matrix
from perdure.run_folder import lock, run_files
from perdure.settings import config, registry
from perdure.sweeping.cells import Cell, below
from perdure.types import Stream, Task

IGNORED = ("recipe.", "origins.", "study.", "facts.skipped", "stored_bytes", "seeds.")
"""Of the cards of shards: what differs by construction, or is put together."""


def cells(cell: Cell, count: int) -> list[Cell]:
    """The parts of a run, each a run of its own."""
    found = []
    for number in range(1, count + 1):
        name = f"{cell.name}-{number}_of_{count}"
        run = replace(cell.recipe.run, out=cell.recipe.run.out / below("shards", "x").rpartition("/")[0], name=name)
        asked = replace(cell.recipe, run=run, evaluate=replace(cell.recipe.evaluate, shard=f"{number}/{count}"))
        found.append(replace(cell, name=name, recipe=asked, phase="shards"))
    return found


def require(asked: Recipe, stream: Stream, count: int) -> None:
    """Assert that a test can be cut into so many parts.

    Raises:
        RecipeError: the stream is learned from, its records are not kept, or the method carries state over the cuts.
    """
    if any(len(task.train) for task in stream.tasks[1:]):
        raise RecipeError(
            "there is something to learn in every task, which each shard would learn again",
            where=f"stream {stream.name}",
            expected="test sets alone, as of test-time adaptation",
            todo="Run it without --shards.",
        )
    if not asked.evaluate.save_predictions:
        raise RecipeError("is false", where="evaluate.save_predictions", expected="true: shards are merged by records")
    method = registry.load("methods", asked.method.name)
    if getattr(method, "carries_state", False):
        from perdure.evaluate import require_anew

        settings = config.parse(method.Config, asked.method.settings, where="method")
        require_anew(settings)
        if count > len(stream):
            what = f"the method carries state within a test set, and there are {len(stream)} sets for {count} shards"
            raise RecipeError(what, where="--shards", expected=f"at most {len(stream)}")


def merge(cell: Cell, parts: Sequence[Cell]) -> None:
    """One run of finished parts, which are removed. It is as if it had been made in one process.

    Raises:
        DataError: an example is missing, is there twice or belongs to another set; or the parts were made from other
            data or weights.
    """
    cards = [run_files.read_card(part.folder) for part in parts]
    for part, card in zip(parts[1:], cards[1:]):
        _require_alike(parts[0].folder, cards[0], part.folder, card)
    stream = recipes.build_stream(cell.recipe)
    with lock.held(cell.folder):
        rows = [row for key in _tested(parts) for row in [_row(cell, stream, parts, *key)]]
        scores = {"tasks": [task.name for task in stream], "headline": stream.tasks[0].metrics[0], "rows": rows}
        for name in ("data.json", "tasks.json", "calibration.json"):
            if (parts[0].folder / name).exists():
                write_json(cell.folder / name, read_json(parts[0].folder / name))
        skipped = {name: why for card in cards for name, why in card.get("facts", {}).get("skipped", {}).items()}
        _events(cell.folder, parts)
        write_text(cell.folder / "recipe.yaml", recipes.to_yaml(cell.recipe))
        _checkpoint(cell.folder, parts[0].folder, rows, skipped)
        write_json(cell.folder / "scores.json", scores)
        write_json(cell.folder / "card.json", _card(cell.recipe, cards, scores, skipped))
    for part in parts:
        shutil.rmtree(part.folder.parent)


def _tested(parts: Sequence[Cell]) -> list[tuple[int, int]]:
    """Which tests there were: (after, asked), in order."""
    found = {
        (row["after"], row["asked"]) for part in parts for row in run_files.read_scores(part.folder).get("rows", [])
    }
    return sorted(found)


def _row(cell: Cell, stream: Stream, parts: Sequence[Cell], after: int, asked: int) -> dict[str, Any]:
    """The records of a test in the examples' order, written; and what is measured of them."""
    from perdure.evaluate import measured  # brings torch

    task, name = stream.tasks[asked], f"{after}_{asked}.jsonl"
    records: dict[str, Any] = {}
    for part in parts:
        for record in _records(part.folder / "predictions" / name):
            if record["id"] in records:
                raise _wrong(task, f"example {record['id']} is there twice", part.folder)
            records[record["id"]] = record
    examples = getattr(task, cell.recipe.evaluate.split)
    ids = [example.id for example in examples]
    skipped = {one for part in parts for one in run_files.read_card(part.folder).get("facts", {}).get("skipped", {})}
    if missing := [one for one in ids if one not in records and one not in skipped]:
        raise _wrong(task, f"{len(missing)} of {len(ids)} examples are missing, {missing[0]} the first", cell.folder)
    if foreign := [one for one in records if one not in set(ids)]:
        raise _wrong(task, f"{foreign[0]} is no example of it", cell.folder)
    found = [records[one] for one in ids if one in records]
    write_text(cell.folder / "predictions" / name, "".join(to_json(record) + "\n" for record in found))
    values = measured(task, cell.recipe.evaluate, found)
    return {"after": after, "asked": asked, "n": len(found), "values": values}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for line, record in read_json_lines(file):
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise DataError("holds no record", where=f"{file}, line {line}", expected="an object with an id")
            yield record


def _wrong(task: Task, what: str, folder: Path) -> DataError:
    return DataError(
        f"{what} (set '{task.name}')",
        where=str(folder),
        expected="every example once in the shards",
        todo="Remove the shards' folders; the same sweep makes them anew.",
    )


def _require_alike(first: Path, a: Mapping[str, Any], second: Path, b: Mapping[str, Any]) -> None:
    """DataError if two shards learned from, or were asked, something else."""
    apart = [one for one in compare_cards(a, b) if not one.field.startswith(IGNORED)]
    apart = [one for one in apart if one.field.partition(".")[0] in ("weights", "data", "stream", "method", "code")]
    if apart:
        one = apart[0]
        raise DataError(
            f"{one.field} is {one.b}, and {one.a} in {first}",
            where=str(second),
            expected="shards of one experiment",
            todo="Remove the shards' folders; the same sweep makes them anew.",
        )


def _events(folder: Path, parts: Sequence[Cell]) -> None:
    """The shards' events one after another, with the test's cost summed over shards in one line a test."""
    lines, costs = [], {}
    for part in parts:
        for event in run_files.read_lines(part.folder / "events.jsonl")[0]:
            if event["event"] != "test":
                lines.append(event)
                continue
            known = costs.setdefault((event.get("after"), event.get("asked")), {**event, "n": 0, "seconds": 0.0})
            known["n"] += event.get("n", 0)
            known["seconds"] += event.get("seconds", 0.0)
            known["peak_bytes"] = max(known.get("peak_bytes", 0), event.get("peak_bytes", 0))
    for known in costs.values():
        lines.append(
            {key: known[key] for key in ("time", "event", "task", "after", "asked", "n", "seconds", "peak_bytes")}
        )
    write_text(folder / "events.jsonl", "".join(to_json(line) + "\n" for line in lines))


def _checkpoint(folder: Path, first: Path, rows: list[dict[str, Any]], skipped: Mapping[str, str]) -> None:
    """What was learned (as nothing was learned from tests, the first shard's), with the scores of all."""
    from perdure import checkpoint, loop

    saved = loop.saved_state(first)
    if saved is not None:
        checkpoint.save(run_files.checkpoint_file(folder), {**saved, "rows": rows, "skipped": dict(skipped)})


def _card(
    asked: Recipe, cards: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """The first shard's, with the whole's recipe and scores, and what all of them took."""
    plain = recipes.to_mapping(asked)
    peaks = [card.get("peak_memory", {}) for card in cards]
    seconds = [float(card.get("wall_seconds") or 0) for card in cards]
    return {
        **cards[0],
        "recipe": plain,
        "recipe_sha256": digest(plain),
        "facts": {**cards[0].get("facts", {}), "skipped": dict(skipped), "shards": len(cards)},
        "wall_seconds": round(sum(seconds), 3),
        "peak_memory": {name: max(int(peak.get(name) or 0) for peak in peaks) for name in peaks[0]},
        "accuracy_matrix": matrix(scores),
    }
