"""A run in use: a model with its version, its classes, and answers for what it is given.

Knows opened runs, tasks, batches, and which question each task asks. Does not know commands or servers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perdure import api
from perdure.errors import DataError, RecipeError
from perdure.evaluate import predicting
from perdure.loading import ExampleBatches
from perdure.prediction import asked, galleries
from perdure.prediction.answers import Answer, answers
from perdure.run_folder import versions
from perdure.settings.suggestions import nearest
from perdure.streams import appending
from perdure.types import Batch, Example, Predictions, Query, Stream

ABOUT_IMAGES = ("classify", "caption", "instruct")
"""Kinds whose input is an image (and a question), unless the task says how long its clips are."""


class Loaded:
    """What a run has learned, ready to answer. Made by `load`."""

    def __init__(self, opened: api.Opened, version: int) -> None:
        self.opened, self.version = opened, version
        known = versions.read_tasks(opened.folder)
        self.stream: Stream | None = appending.from_known(opened.recipe.stream.name, known) if known else None
        self._predictors: dict[Query, Callable[[Batch], Predictions]] = {}

    @property
    def kind(self) -> str:
        """Of the task that it is asked by default: `classify`, `instruct` ..."""
        return self.opened.query.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """What it answers among, by default; empty where answers are free text."""
        return () if self.kind == "retrieve" else self.opened.query.candidates

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it has learned; empty for a run that did not write them down."""
        return tuple(task.name for task in self.stream.tasks[: self.opened.done]) if self.stream else ()

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self.opened.runtime.device)

    @property
    def converses(self) -> bool:
        """Whether a question may follow earlier turns and show several images (`said` and a list of images)."""
        return bool(getattr(getattr(self.opened.method, "llm", None), "converses", False))

    @property
    def skipped(self) -> dict[str, str]:
        """What could not be read under ``unreadable="skip"``: name -> why."""
        return self.opened.runtime.skipped

    def predict(
        self,
        given: Any = (),
        *,
        ask: str = "",
        top: int = 5,
        task: str = "",
        gallery: Any = (),
        index: str | Path | None = None,
        unknown_below: float = 0.0,
        batch_size: int | None = None,
        unreadable: str = "stop",
    ) -> list[Answer]:
        """Answers, one mapping for each thing given (`perdure.prediction.answers` lists them by kind).

        Args:
            given: paths, folders, tables or shards of images, PIL images, uint8 arrays; questions as mappings with
                ``text`` and ``image`` or ``video``; folders of prepared clips, or videos. One or several.
            ask: the question about each; for retrieval the text that is searched with.
            top: answers of each, where answers are ranked.
            task: by name, where the run's tasks ask different things; empty: the last one.
            gallery: of a run that retrieves: images to search in (or texts).
            index: a file that keeps the gallery's features: made once, read later.
            unknown_below: adds ``"unknown": true`` where the first answer is less probable, else false.
            batch_size: empty: the recipe's.
            unreadable: `stop` at what cannot be read, or `skip` it.

        Raises:
            UnreadableExample: an image cannot be read.
            DataError: nothing is given, or another thing than the kind takes.
            RecipeError: there is no such task; or `unknown_below`, and the method has no probabilities.
        """
        query = self.query(task)
        self.opened.runtime.unreadable = unreadable
        with ExitStack() as stack:
            found = self._examples(query, task, _listed(given), ask, stack)
            if query.kind == "retrieve":
                query = galleries.query(query, _listed(gallery))
                answer = self._retriever(query, index)
            else:
                answer = self._predictor(query)
            how = {"top": top, "unknown_below": unknown_below}
            rows: list[Answer] = []
            for batch, examples in self._batches(found, batch_size):
                with predicting(self.opened.method, self.opened.runtime):
                    predictions = answer(batch)
                for example, row in zip(examples, answers(self.opened, query, predictions, examples, **how)):
                    rows.append({"file": example.id, **row})
            return rows

    def query(self, task: str = "") -> Query:
        """The question that a task asks; of the last finished one by default.

        Raises:
            RecipeError: there is no such task.
        """
        if not task:
            return self.opened.query
        if self.stream is None or task not in self.tasks:
            near = nearest(task, self.tasks)
            raise RecipeError(
                f"there is no task {task!r}",
                where=str(self.opened.folder),
                expected=f"one of {', '.join(self.tasks)}" if self.tasks else "none: the run did not write them down",
                todo=f"Did you mean {near!r}?" if near else "",
            )
        return self.stream.query(self.stream.tasks[self.tasks.index(task)], after=self.opened.done - 1)

    def facts(self, task: str = "") -> dict[str, Any]:
        """What a question of the task needs: how long clips are, which words there are."""
        if self.stream is None:
            return {}
        index = self.tasks.index(task) if task else self.opened.done - 1
        return dict(self.stream.tasks[index].facts)

    def _examples(self, query: Query, task: str, given: list[Any], ask: str, stack: ExitStack) -> list[Example]:
        facts = self.facts(task)
        if query.kind == "retrieve":
            found = asked.images(given) if given else asked.images([{"text": ask, "name": ask}] if ask else [])
            if not found:
                raise DataError("nothing to search with", expected="a text to ask with, or an image")
            return found
        if query.kind not in ABOUT_IMAGES or "segments" in facts:
            if query.kind == "answer" and not ask:
                raise DataError("there is no question", where=str(self.opened.folder), expected="ask='...'")
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-clips-")))
            segments, words = int(facts.get("segments", 10)), facts.get("vocabulary", ())
            return asked.clip_examples(given, segments=segments, ask=ask, vocabulary=words, work=work)
        instructs = query.kind == "instruct"
        found = asked.images(given or ([{"text": ask}] if ask and instructs else []), ask=ask, videos=instructs)
        asked.require_images(found, given)
        if not instructs:
            return [Example(id=e.id, inputs={"image": e.inputs.get("image")}) for e in found]
        if lacking := [e.id for e in found if not e.inputs.get("text", "").strip()]:
            raise DataError("there is no question", where=lacking[0], expected="a question about each image")
        return found

    def _predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        """Made once for each query, but where answers change the method's state."""
        method = self.opened.method
        if query not in self._predictors or getattr(method, "carries_state", False):
            with predicting(method, self.opened.runtime):
                self._predictors[query] = method.predictor(query)
        return self._predictors[query]

    def _retriever(self, query: Query, index: str | Path | None) -> Callable[[Batch], Predictions]:
        with predicting(self.opened.method, self.opened.runtime):
            return galleries.predictor(self.opened, query, None if index is None else Path(index))

    def _batches(self, examples: Sequence[Example], batch_size: int | None) -> Iterator[tuple[Batch, list[Example]]]:
        opened = self.opened
        batches = ExampleBatches(
            examples,
            opened.method.preprocess,
            batch_size=batch_size or opened.recipe.evaluate.batch_size,
            runtime=opened.runtime,
            stage="predict",
            training=False,
            collate=getattr(opened.method, "collate", None),
        )
        for batch, _ in batches.epoch(0):
            if batch is not None:
                yield batch, [examples[i] for i in batch["position"].tolist()]


def load(run: str | Path, *, device: str = "auto") -> Loaded:
    """``perdure.load``: what a run has learned, to be asked as often as you like.

    Args:
        run: its folder, which stands for the promoted version; ``RUN@3``; or an export that says ``perdure.predict``.
        device: auto, cpu, cuda, cuda:1, xpu or mps.

    Raises:
        CheckpointError: no task of the run is finished.
        RecipeError: it has no such version.
    """
    version = versions.resolve(run)
    return Loaded(api.reopen(run, device=device), version.number)


def _listed(given: Any) -> list[Any]:
    """Several things, or one."""
    one = isinstance(given, str | Path | bytes | dict) or (hasattr(given, "shape") and given.ndim < 4)
    return list(given) if isinstance(given, Iterable) and not one else [given]
