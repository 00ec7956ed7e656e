"""From a predictor and a task to records on disk and numbers.

Knows batches, records, metrics, processes, and how to go on with a part of the records already there.
Does not know methods, models or streams.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from perdure import metrics
from perdure.errors import DataError, Interrupted, RecipeError
from perdure.files.text_files import lines, to_json
from perdure.files.written_whole import write_text
from perdure.keys import key_seed
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.runtime.collectives import Agreement
from perdure.runtime.devices import seed_torch
from perdure.runtime.progress import Progress
from perdure.settings import registry
from perdure.types import Batch, Evaluation, Examples, Predictions, Query, Task

Record = dict[str, Any]


def evaluate(
    method: Any,
    predict: Callable[[Batch], Predictions],
    task: Task,
    query: Query,
    settings: Evaluation,
    *,
    runtime: Runtime,
    after: int,
) -> tuple[dict[str, Any], int]:
    """Test `predict` on a task.

    Returns:
        metric name -> value, and the number of examples scored.

    Raises:
        DataError: no example could be read.
        RecipeError: a method whose state goes from sample to sample is run on several processes.
    """
    carries = getattr(method, "carries_state", False)
    if carries and runtime.processes > 1:
        raise RecipeError("the method carries state from sample to sample", expected="one process")
    examples: Examples = getattr(task, settings.split)
    name = f"{after}_{task.index}"
    part = _Part(runtime, name if settings.save_predictions else None, resumable=not carries)
    done = part.read()
    todo = [i for i in _order(len(examples), task, settings, runtime) if not done or examples[i].id not in done]
    own = _predict(method, predict, examples.select(todo), query, settings, runtime, part, label=task.name)
    fresh = {record["id"]: record for record in runtime.gather(own)}
    found = [record for e in examples if (record := done.get(e.id) or fresh.get(e.id)) is not None]
    if len(examples) and not found:
        raise DataError("no example could be read", where=f"task '{task.name}', split {settings.split}")
    part.finish(found)
    inferred = ["task_accuracy"] if any("inferred" in record for record in found) else []
    names = dict.fromkeys([*task.metrics, *settings.metrics, *inferred])
    return {registry.label(metric): metrics.compute(metric, found) for metric in names}, len(found)


def _order(count: int, task: Task, settings: Evaluation, runtime: Runtime) -> Sequence[int]:
    """Positions of the examples in the order in which they are asked; a task is asked alike every time."""
    if settings.order == "dataset":
        return range(count)
    generator = torch.Generator().manual_seed(key_seed(runtime.seed, "test order", task.index))
    return torch.randperm(count, generator=generator).tolist()


@contextmanager
def predicting(method: Any, runtime: Runtime) -> Iterator[None]:
    """How every predictor is made and asked: in the run's precision, with gradients where the method adapts."""
    with torch.set_grad_enabled(getattr(method, "adapts", False)), runtime.autocast():
        yield


def _predict(
    method: Any,
    predict: Callable[[Batch], Predictions],
    examples: Examples,
    query: Query,
    settings: Evaluation,
    runtime: Runtime,
    part: _Part,
    *,
    label: str,
) -> list[Record]:
    """Records of this process's share of `examples`, appended to its part file batch by batch."""
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=settings.batch_size,
        runtime=runtime,
        stage=f"test {label}",
        training=False,
        collate=getattr(method, "collate", None),
    )
    records: list[Record] = []
    show = runtime.main and not runtime.quiet
    agreement = Agreement(runtime.processes, lambda: (runtime.stop_requested,))
    with Progress(f"test {label}", total=len(batches), show=show) as progress:
        for batch, _ in batches.epoch(0):
            if batch is not None:
                seed_torch(key_seed("predict", *batch["seed"].tolist()))
                with predicting(method, runtime):
                    predictions = predict(batch)
                chosen = [examples[i] for i in batch["position"].tolist()]
                new = metrics.records(query.kind, predictions, chosen, query, task=label)
                part.append(new)
                records += new
            progress.advance()
            if any(agreement.answers()):
                raise Interrupted(f"stopped while testing {label}")
            agreement.ask()
    return records


class _Part:
    """Records of a test pass that is under way, one file a process; a torn last line is ignored."""

    def __init__(self, runtime: Runtime, name: str | None, *, resumable: bool) -> None:
        self.runtime, self.resumable = runtime, resumable
        folder = runtime.out / "predictions" if runtime.out is not None and name else None
        self.final = folder and folder / f"{name}.jsonl"
        self.file = folder and folder / f"{name}.part{runtime.rank}"

    def read(self) -> dict[str, Record]:
        """Records by id that earlier processes have left."""
        if self.file is None:
            return {}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        found = [record for path in self._parts() for record in read_records(path)]
        self.runtime.wait()
        if self.resumable:
            if found and self.runtime.main:
                _write_records(self.file, found)
        elif self.file.exists():
            self.file.unlink()
            found = []
        self.runtime.wait()
        return {record["id"]: record for record in found}

    def append(self, records: Sequence[Record]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(_line(record) for record in records)
                file.flush()

    def finish(self, records: Sequence[Record]) -> None:
        """All records in the examples' order; the parts go."""
        self.runtime.wait()
        if self.final is not None and self.runtime.main:
            _write_records(self.final, records)
            for path in self._parts():
                path.unlink()
        self.runtime.wait()

    def _parts(self) -> list[Path]:
        assert self.final is not None
        return sorted(self.final.parent.glob(f"{self.final.stem}.part*"))


def read_records(path: Path) -> list[Record]:
    """Records of a JSON-lines file up to the first line that is torn."""
    records = []
    for line in lines(path.read_text(encoding="utf-8", errors="replace")):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or "id" not in record:
            break
        records.append(record)
    return records


def _write_records(path: Path, records: Sequence[Record]) -> None:
    write_text(path, "".join(map(_line, records)))


def _line(record: Record) -> str:
    return to_json(record) + "\n"
