"""From a predictor and a task to records on disk and numbers.

Knows batches, records, metrics, processes, and how to go on with a part of the records already there.
Does not know methods, models or streams.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from perdure import checkpoint, features, metrics
from perdure.draws import in_bursts
from perdure.errors import DataError, Interrupted, RecipeError
from perdure.files.text_files import lines, to_json
from perdure.files.written_whole import write_text
from perdure.keys import key_seed
from perdure.loading import ExampleBatches
from perdure.run_folder import run_files
from perdure.runtime import Runtime
from perdure.runtime.collectives import Agreement
from perdure.runtime.devices import seed_torch
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

    Raises: as `answered`.
    """
    found = answered(method, predict, task, query, settings, runtime=runtime, after=after)
    return measured(task, settings, found), len(found)


def answered(
    method: Any,
    predict: Callable[[Batch], Predictions],
    task: Task,
    query: Query,
    settings: Evaluation,
    *,
    runtime: Runtime,
    after: int,
) -> list[Record]:
    """The records of a task's tests, in their order, those that are on disk already among them.

    Raises:
        DataError: no example could be read.
        RecipeError: a method whose state goes from sample to sample is run on several processes.
    """
    carries = getattr(method, "carries_state", False)
    if carries and runtime.processes > 1:
        raise RecipeError("the method carries state from sample to sample", expected="one process")
    examples: Examples = getattr(task, settings.split)
    name = f"{after}_{task.index}"
    part = _Part(runtime, name if settings.save_predictions else None, stream=method if carries else None)
    done = part.read()
    order = _order(len(examples), task, settings, runtime)
    order = [order[i] for i in asked(method, task, settings)][part.gone :]
    todo = [i for i in order if carries or not done or examples[i].id not in done]
    own = _predict(method, predict, examples.select(todo), query, settings, runtime, part, task)
    fresh = {record["id"]: record for record in runtime.gather(own)}
    found = [record for e in examples if (record := done.get(e.id) or fresh.get(e.id)) is not None]
    if len(examples) and not found:
        raise DataError("no example could be read", where=f"task '{task.name}', split {settings.split}")
    part.finish(found)
    return found


def measured(task: Task, settings: Evaluation, records: Sequence[Record]) -> dict[str, Any]:
    """Metric name -> value, of all the records of a test: those of the task, those asked for beside them."""
    inferred = ["task_accuracy"] if any("inferred" in record for record in records) else []
    names = dict.fromkeys([*task.metrics, *settings.metrics, *inferred])
    return {registry.label(metric): metrics.compute(metric, records) for metric in names}


def asked(method: Any, task: Task, settings: Evaluation) -> range:
    """Places, in the order of asking, of the examples that a test asks: all, or those of its shard.

    Shards are cut between batches, which therefore hold what they hold in one process.

    Raises:
        RecipeError: the method carries state from one test set to the next.
    """
    count = len(getattr(task, settings.split))
    if not settings.shard:
        return range(count)
    number, parts = map(int, settings.shard.split("/"))
    if getattr(method, "carries_state", False):
        require_anew(getattr(method, "config", None))
        return range(count) if task.index % parts == number - 1 else range(0)
    size = getattr(method, "test_batch", settings.batch_size) or max(count, 1)
    batches = -(-count // size)
    first, last = ((number - 1 + i) * batches // parts * size for i in (0, 1))
    return range(min(first, count), min(last, count))


def require_anew(config: Any) -> None:
    """RecipeError if a method of these settings, which carries state, does not begin anew with each test set."""
    if getattr(config, "continual", True):
        raise RecipeError(
            "the method carries what it adapts from test set to test set, so that no part can be asked by itself",
            where="evaluate.shard",
            expected="a method that answers each example by itself, or begins anew with each set (continual: false)",
        )


def _own_labels(task: Task, query: Query, examples: Examples) -> range:
    """The labels that a task brought; none where it asks also for others, or is not asked among these."""
    own = range(task.offset, task.offset + len(task.candidates))
    asked = range(query.offset, query.offset + len(query.candidates))
    if not own or own.start < asked.start or own.stop > asked.stop:
        return range(0)
    again = task.kind == "classify" and any(isinstance(t, int) and t not in own for t in examples.targets)
    return range(0) if again else own


def _order(count: int, task: Task, settings: Evaluation, runtime: Runtime) -> Sequence[int]:
    """Positions of the examples in the order in which they are asked; a task is asked alike every time."""
    if settings.order == "dataset":
        return range(count)
    seed = key_seed(runtime.seed, "test order", task.index)
    if settings.order == "dirichlet":
        return in_bursts(getattr(task, settings.split).targets, settings.concentration, seed=seed)
    generator = torch.Generator().manual_seed(seed)
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
    task: Task,
) -> list[Record]:
    """Records of this process's share of `examples`, appended to its part file batch by batch."""
    size = getattr(method, "test_batch", settings.batch_size) or max(len(examples), 1)
    label, own = task.name, _own_labels(task, query, examples)
    source, steps = _batches(method, examples, size, settings.batch_size, runtime, label)
    records: list[Record] = []
    agreement = Agreement(runtime.processes, lambda: (runtime.stop_requested,))
    with runtime.progress(f"test {label}", total=steps) as progress:
        for step, batch in enumerate(source, start=1):
            if batch is not None:
                seed_torch(key_seed("predict", *batch["seed"].tolist()))
                with predicting(method, runtime):
                    predictions = predict(batch)
                chosen = [examples[i] for i in batch["position"].tolist()]
                made = metrics.records(query.kind, predictions, chosen, query, task=label, own=own)
                new = [row | {"group": e.group} if e.group else row for row, e in zip(made, chosen)]
                part.append(new)
                records += new
            progress.advance()
            stop = any(agreement.answers())
            part.keep(min(step * size, len(examples)), now=stop)
            if stop:
                raise Interrupted(f"stopped in {runtime.within(f'test {label}')}")
            agreement.ask()
        agreement.settle()
    return records


def _batches(
    method: Any, examples: Examples, size: int, encoded_at_once: int, runtime: Runtime, label: str
) -> tuple[Iterator[Batch | None], int]:
    """Batches of test examples as `predict` takes them, and how many. Of a method with frozen features (`encoder`)
    these stand in place of the examples, from the run's cache where they are there."""
    stage = f"test {label}"
    if hasattr(method, "encoder"):
        at_once = min(size, encoded_at_once)
        found = features.batches(method, examples, batch_size=at_once, runtime=runtime, stage=stage)
        return (found if size == at_once else _joined(found, size)), -(-len(examples) // size)
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=size,
        runtime=runtime,
        stage=stage,
        training=False,
        collate=getattr(method, "collate", None),
    )
    return (batch for batch, _ in batches.epoch(0)), len(batches)


def _joined(batches: Iterable[Batch | None], size: int) -> Iterator[Batch]:
    """Smaller batches as batches of `size`; the last may be smaller."""
    held: Batch = {}
    for batch in batches:
        if batch is not None:
            held = {name: torch.cat([held[name], part]) if held else part for name, part in batch.items()}
        while held and len(held["position"]) >= size:
            yield {name: part[:size] for name, part in held.items()}
            held = {name: part[size:] for name, part in held.items()} if len(held["position"]) > size else {}
    if held:
        yield held


class _Part:
    """Records of a test pass that is under way, one file a process; a torn last line is ignored.

    A method that carries state from batch to batch goes on where it stood if it has `stream_state` and
    `load_stream_state`: its state is kept beside the records now and then. Without, its pass begins again.

    Args:
        stream: a method that carries state; None: every example is asked by itself.
    """

    def __init__(self, runtime: Runtime, name: str | None, *, stream: Any = None) -> None:
        self.runtime, self.stream = runtime, stream
        folder = runtime.out / "predictions" if runtime.out is not None and name else None
        self.final = folder and folder / f"{name}.jsonl"
        self.file = folder and folder / f"{name}.part{runtime.rank}"
        self.state = folder and folder / f"{name}.stream.safetensors"
        self.keeps = self.state is not None and hasattr(stream, "stream_state")
        self.gone, self.count, self.saved = 0, 0, time.monotonic()
        """Examples that a stopped pass has gone through; records so far; when the state was kept last."""

    def read(self) -> dict[str, Record]:
        """Records by id that earlier processes have left."""
        if self.file is None:
            return {}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        found = [record for path in self._parts() for record in read_records(path)]
        self.runtime.wait()
        if self.stream is not None:
            found = self._go_on(found)
        elif found and self.runtime.main:
            _write_records(self.file, found)
        self.runtime.wait()
        self.count = len(found)
        return {record["id"]: record for record in found}

    def _go_on(self, found: list[Record]) -> list[Record]:
        """The records up to the state that was kept, and the method in it; none where it cannot go on."""
        assert self.file is not None and self.state is not None
        if self.keeps and self.state.exists():
            kept = checkpoint.load(self.state)
            with run_files.fitting(self.state, what=type(self.stream).__name__):
                self.stream.load_stream_state(kept["state"])
                self.gone, found = kept["gone"], found[: kept["records"]]
                self.runtime.skipped.update(kept["skipped"])
            _write_records(self.file, found)
            return found
        self.file.unlink(missing_ok=True)
        return []

    def keep(self, gone: int, *, now: bool) -> None:
        """Keep the state of a method that carries one, if it is time or asked for.

        Args:
            gone: examples that this pass has gone through since it began or went on.
        """
        if not self.keeps or not (now or time.monotonic() - self.saved > self.runtime.save_every):
            return
        assert self.state is not None
        state = {"gone": self.gone + gone, "records": self.count, "state": self.stream.stream_state()}
        checkpoint.save(self.state, state | {"skipped": dict(self.runtime.skipped)})
        self.saved = time.monotonic()

    def append(self, records: Sequence[Record]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(_line(record) for record in records)
                file.flush()
        self.count += len(records)

    def finish(self, records: Sequence[Record]) -> None:
        """All records in the examples' order; the parts go."""
        self.runtime.wait()
        if self.final is not None and self.runtime.main:
            _write_records(self.final, records)
            for path in self._parts():
                path.unlink()
            if self.keeps and self.state is not None:
                self.state.unlink(missing_ok=True)
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
