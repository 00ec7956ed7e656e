"""Parts of `gpu.py` that run methods as a user does: against the CPU, and what makes the host or the model wait.

Knows recipes, their first task cut short, and records. Does not know the methods.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import perdure
from perdure import api, evaluate, recipe
from perdure.data import microworld
from perdure.data.microworld import disk
from perdure.recipe.plan import largest_batch
from perdure.runtime import Runtime
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.settings import registry
from perdure.testing.miniature import shortened

if TYPE_CHECKING:
    from gpu import Bench, Row

RECIPES = Path(perdure.__file__).parent / "recipes"
QUICK = ("er", "finetune", "sefe")
SAME = {"float32": 0.95, "bf16": 0.8}
"""Least share of equal answers that counts as equal to the CPU's in float32."""
LLAVA = ("sefe", "lora_ewc", "lora_lwf", "moelora", "olora")
"""Methods that need more than the embedded world's own answers, or have no recipe on it: they take that of
`lora_sequential`."""


@cache
def _worlds(audio_visual: bool) -> Path:
    """The embedded world's files, few of them, where recipes look for them."""
    folder = Path(tempfile.mkdtemp(prefix="perdure-gpu-"))
    disk.write("coin", folder / "coin_microworld", microworld.Config(train_questions=32, test_questions=16))
    if audio_visual:
        disk.write("audio-visual", folder / "microworld", microworld.Config(train_clips=8, test_clips=4))
    os.chdir(folder)
    return folder


def against_cpu(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every method, one task, on the device in float32 and bf16 against the CPU."""
    for name in QUICK if bench.quick else registry.names("methods"):
        expected: dict[str, Any] = {}
        slow = bench.quick and not bench.cuda and name != "er"  # bf16 is emulated on most CPUs
        for precision in ("float32",) if slow else ("float32", "bf16"):
            yield f"{name}, {precision}", lambda n=name, p=precision, e=expected: _compared(bench, n, p, e)


def _compared(bench: Bench, name: str, precision: str, expected: dict[str, Any]) -> Row:
    if not expected:
        expected |= _answers(name, "cpu", "float32", quick=bench.quick)[0]
    found, seconds = _answers(name, str(bench.device), precision, quick=bench.quick)
    same = sum(found[key] == answer for key, answer in expected.items()) / len(expected)
    row = {"equal answers": round(same, 3), "asked for": SAME[precision], "seconds": round(seconds, 2)}
    return row if same >= SAME[precision] else row | {"error": "answers differ from the CPU's"}


def _answers(name: str, device: str, precision: str, *, quick: bool) -> tuple[dict[str, Any], float]:
    """What the method answers after the first task, by example, and the seconds of learning and answering."""
    method, stream, runtime = _built(name, device, precision, quick=quick)
    task = stream.tasks[0]
    began = time.perf_counter()
    seed_torch(runtime.key("learn"))
    method.learn(task, runtime)
    query = stream.query(task, after=0)
    with torch.set_grad_enabled(getattr(method, "adapts", False)):
        predict = method.predictor(query)
    records: dict[str, Any] = {}

    def keep(found: list[dict[str, Any]]) -> None:
        records.update(
            {r["id"]: r.get("predicted", r.get("ranking", r.get("caption", r.get("answer")))) for r in found}
        )

    settings = evaluate.Evaluation(batch_size=8, save_predictions=False)
    gathered = runtime.gather
    runtime.gather = lambda items: keep(items) or gathered(items)  # type: ignore[method-assign]
    evaluate.evaluate(method, predict, task, query, settings, runtime=runtime, after=0)
    return records, time.perf_counter() - began


def _built(name: str, device: str, precision: str, *, quick: bool) -> tuple[Any, Any, Runtime]:
    """A method on the embedded world's first task, a few batches of it, placed."""
    source = "lora_sequential" if name in LLAVA else name
    world = "microworld" if (RECIPES / source / "microworld.yaml").exists() else "digits"
    _worlds(not quick)
    asked = recipe.load(f"{source}/{world}", [f"run.device={device}", f"run.precision={precision}"])
    if source != name:
        asked = dataclasses.replace(asked, method=dataclasses.replace(asked.method, name=name, settings={}))
    stream = recipe.build_stream(asked)
    task = shortened(stream.tasks[0], 2 * largest_batch(asked))
    task = dataclasses.replace(task, test=task.test[:16])
    stream = dataclasses.replace(stream, tasks=(task,))
    method, _ = recipe.build_method(asked, asked.run.seed)
    runtime = api.make_runtime(asked, None, quiet=True)
    runtime.task = 0
    place(method, runtime)
    return method, stream, runtime


def waits(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Waits of all steps of a task by torch's own count; a CPU has none to count."""
    for name in ("er",) if bench.quick else ("er", "derpp", "dynamos", "mg_clip", "rapf", "php", "sefe"):
        yield name, lambda n=name: _waits(bench, n)


def _waits(bench: Bench, name: str) -> Row:
    method, stream, runtime = _built(name, str(bench.device), "float32", quick=bench.quick)
    steps = 0
    log = runtime.log

    def counting(event: str, **values: Any) -> None:
        nonlocal steps
        steps += event == "step"
        log(event, **values)

    runtime.log = counting  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            method.learn(stream.tasks[0], runtime)
        finally:
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("default")
    found = sum("synchronizing CUDA operation" in str(w.message) for w in said)
    count = found if bench.cuda else "not measured"
    return {"steps": steps, "waits of the whole task": count, "goal in a step": 0}


def loader(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Time within `next` of the batches, of a whole task."""
    for name in ("finetune",) if bench.quick else ("mg_clip", "finetune", "php", "sefe"):
        for workers in (0,) if bench.quick else (0, 4, 8):
            yield f"{name}, {workers} workers", lambda n=name, w=workers: _loader(bench, n, w)


def _loader(bench: Bench, name: str, workers: int) -> Row:
    from perdure.loading import ExampleBatches

    method, stream, runtime = _built(name, str(bench.device), "float32", quick=bench.quick)
    runtime.workers = workers
    waited, plain = 0.0, ExampleBatches.epoch

    def timed(self: ExampleBatches, *args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal waited
        batches = plain(self, *args, **kwargs)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                waited += time.perf_counter() - began
            yield batch

    ExampleBatches.epoch = timed  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        method.learn(stream.tasks[0], runtime)
        bench.wait()
        seconds = time.perf_counter() - began
    finally:
        ExampleBatches.epoch = plain  # type: ignore[method-assign]
    return {"seconds": round(seconds, 2), "share that the model waits": round(waited / seconds, 3)}
