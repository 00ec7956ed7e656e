"""Run folders with made-up numbers, to test reports with. Nothing here was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from perdure.reporting import make_card


def write_run(
    folder: Path,
    *,
    matrix: list[list[float | None]],
    method: str = "made_up",
    seed: int = 0,
    tasks: list[str] | None = None,
    initial: list[float | None] | None = None,
    settings: dict[str, Any] | None = None,
    expect: Any = None,
    weights: str = "a" * 64,
    gap: bool = False,
    parts: tuple[str, ...] = ("scores", "card", "recipe", "events"),
) -> Path:
    """A run's folder whose accuracy matrix is `matrix` (None: not measured), ten test examples a task."""
    tasks = tasks or [f"task {i + 1}" for i in range(len(matrix))]
    rows = [
        {"after": t, "asked": j, "n": 10, "values": {"accuracy": value}}
        for t, line in [(-1, initial or []), *enumerate(matrix)]
        for j, value in enumerate(line)
        if value is not None
    ]
    recipe = {
        "stream": {"name": "class_incremental", "data": "made_up_digits", "increment": 2},
        "method": {"name": method, "lr": 0.001, **(settings or {})},
        "run": {"seed": seed, "precision": "float32"},
    }
    if expect is not None:
        recipe["expect"] = expect
    scores = {"tasks": tasks, "headline": "accuracy", "rows": rows}
    events = [event for t in range(len(matrix)) for event in _events(t, seed, gap)]
    texts = {
        "scores": ("scores.json", json.dumps(scores)),
        "card": ("card.json", json.dumps(_card(recipe, scores, seed, weights))),
        "recipe": ("recipe.yaml", json.dumps(recipe)),  # JSON is YAML
        "events": ("events.jsonl", "".join(json.dumps(event) + "\n" for event in events)),
    }
    folder.mkdir(parents=True)
    for part in parts:
        name, text = texts[part]
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def falling(tasks: int, *, start: float = 90.0, loss: float = 4.0, seed: int = 0) -> list[list[float | None]]:
    """Made-up matrix: task j is learned to start - 2 j and loses `loss` with each later task, wobbling by seed."""
    return [
        [start - 2 * j - loss * (t - j) + math.sin(7 * t + 3 * j + seed) if j <= t else None for j in range(tasks)]
        for t in range(tasks)
    ]


def _events(task: int, seed: int, gap: bool) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"time": 100.0 * task, "event": "step", "task": task, "stage": "lora", "step": 0, "loss": 1.0},
        {
            "time": 100.0 * task + 50,
            "event": "task",
            "task": task,
            "learn_seconds": 40 + task + seed,
            "test_seconds": 5 + 2 * task,
        },
    ]
    if gap:
        for when, shift in (("before", 0.0), ("after", 1.5)):
            values = {"positive": 24 + shift + 0.1 * task + 0.2 * seed, "negative": 17 - shift}
            events.append({"time": 100.0 * task + 10, "event": "gap", "task": task, "when": when, **values})
    return events


def _card(recipe: dict[str, Any], scores: dict[str, Any], seed: int, weights: str) -> dict[str, Any]:
    names = [f"recipe.yaml:{i + 1}" for i in range(3)]
    card = make_card(
        recipe=recipe,
        scores=scores,
        weights={"clip": {"source": "made/up", "sha256": weights}},
        data={"made_up_digits": {"train": 100, "test": 50, "fingerprint": "f" * 16}},
        stream={"name": "class_incremental", "class_order": list(range(2 * len(scores["tasks"])))},
        seeds={"seed": seed, "class_order": 0},
        precision="float32",
        device="made-up device",
        wall_seconds=3700.0 + 10 * seed,
        peak_memory={"resident": 3 * 2**30, "gpu": 5 * 2**30},
        origins=dict(zip(("stream.data", "method.lr", "run.seed"), names)) | {"run.precision": "default"},
        facts={"extra_parameters": 491520, "stored_bytes": 2_000_000},
    )
    return card | {"versions": {"python": "3.11.0", "perdure": "0.1.0"}}
