"""What a recipe will cost, before it is run: seconds, memory and disk, each with what was measured and what computed.

Knows how costs of a run in little (`measuring`) are carried over to the whole: by steps, examples, tests and
candidates, which are known. Does not know methods, models or data by name, nor how a forecast is shown.

Each task's learning is measured twice, with few examples and with more, so that what grows with the examples is told
from what does not. Steps are timed and multiplied by the numbers that the stages themselves state. Tests are timed
after the first and after the last task, because each asks among more candidates, and counted by the plan.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perdure import loop, recording
from perdure import recipe as recipes
from perdure.errors import RecipeError
from perdure.files.text_files import to_json
from perdure.recipe import Recipe
from perdure.recipe.plan import largest_batch, passes
from perdure.run_folder import run_files
from perdure.testing.measuring import Learned, Passage, go_through, spread
from perdure.testing.miniature import Stage, clocks
from perdure.types import Stream

STEPS, PATIENCE = 25, 1.5
"""Steps of a stage that are timed at most, and seconds after which fewer do."""
LEARNING = 6.0
"""Seconds for which more examples than the fewest are learned."""
FEWEST = 16
"""Training examples of a task at least."""
DOUBT = 0.1
"""A forecast is not said to be surer than this, even if all steps took the same time."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run's time."""

    name: str
    """`start`, `learn`, `test` or `save`."""
    seconds: float
    cpu_seconds: float
    """Of all cores."""
    basis: str
    """What was measured, and what was computed from it."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one run (one seed) costs on this machine, from the command to its card."""

    seconds: float
    low: float
    high: float
    """`seconds` if all steps and tests took the time of the quicker, and of the slower quarter of those measured."""
    cpu_seconds: float
    """Of all cores."""
    left: float
    """Seconds of what the run's folder does not hold yet; `seconds` where nothing is there, 0 of a finished run."""
    left_cpu: float
    """The same of all cores."""
    done: int
    """Tasks that the folder holds."""
    tasks: int
    memory: Mapping[str, int]
    """Peak bytes: `resident`, and `gpu` on a GPU."""
    disk: int
    """Bytes of the run's folder at the end."""
    device: str
    parts: tuple[Part, ...]
    basis: Mapping[str, str]
    """How `memory` and `disk` were found."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def forecast(asked: Recipe, stream: Stream | None = None, *, began: float | None = None) -> Forecast:
    """Measure a recipe in little and say what the whole costs.

    Peak memory is that of this process so far: call this in a process that has done nothing else.

    Args:
        asked: of several seeds, the first is measured.
        stream: the recipe's, if it was built before.
        began: when the process began (`time.time`), so that its start is counted; None: from this call on.

    Raises:
        TrainingError: a loss is not finite.
        DataError, RecipeError, WeightsError: as `perdure run`; or this is one of several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError("a forecast is measured in one process", expected="no launcher before the command")
    asked = asked.for_seed(asked.seeds[0])
    before = 0.0 if began else clocks()[1]
    began = began or time.time()
    built: Stream = stream or recipes.build_stream(asked)
    recipes.check_fit(asked, built)
    start = np.array([time.time() - began, clocks()[1] - before])
    whole = [len(task.train) for task in built]
    few = _counts(asked, built, 1.0)
    with tempfile.TemporaryDirectory(prefix="perdure-forecast-") as folder:
        places = iter(Path(folder) / name for name in ("warm", "few", "more"))
        warm = go_through(asked, built, next(places), counts=few[:1])
        less = go_through(asked, built, next(places), counts=few)
        took = sum(float(each.rest[0]) for each in less.learned)
        more = _counts(asked, built, float(np.clip(LEARNING / max(took, 1e-3), 4, 256)))
        settings: dict[str, Any] = {"limit": STEPS, "patience": PATIENCE, "tests": True}
        most = go_through(asked, built, next(places), counts=more, **settings)
    start += warm.build + np.maximum(warm.learned[0].rest - less.learned[0].rest, 0)
    return Whole(asked, built, warm, less, most, start, whole).forecast()


def _counts(asked: Recipe, stream: Stream, times: float) -> list[int]:
    """Training examples of each task: the same share of all, which gives a task of middle size a batch (`times` 1)."""
    sizes = [len(task.train) for task in stream]
    middle = float(np.median(sizes))
    share = min(1.0, times * max(largest_batch(asked), FEWEST) / max(middle, 1))
    return [min(n, max(round(share * n), 1)) for n in sizes]


class Whole:
    """The arithmetic, over two passages with few and with more examples."""

    def __init__(
        self,
        asked: Recipe,
        stream: Stream,
        warm: Passage,
        less: Passage,
        most: Passage,
        start: np.ndarray,
        whole: list[int],
    ) -> None:
        self.asked, self.stream, self.less, self.most, self.start, self.whole = asked, stream, less, most, start, whole
        self.passes = passes(asked)
        self.looked = spread(len(stream))
        self.reading = warm.first_reading
        self.tested: set[int] = set()
        """Tasks that were tested before."""
        self.plan = loop.PLANS[asked.evaluate.plan]

    def forecast(self) -> Forecast:
        tasks = range(len(self.stream))
        extra = self.testing(-1) if self.asked.evaluate.start else np.zeros(3)
        learn = [self.learning(t) for t in tasks]
        test = [self.testing(t) for t in tasks]
        save = [self.saving(t) for t in tasks]
        each = np.mean([one.cost for one in self.most.tested] or [np.zeros(3)], axis=0)
        extra[:2] += self.most.calibrated * each[:2]
        by_task = [a[0, :2] + b[:2] + c[:2] for a, b, c in zip(learn, test, save)]
        seconds, cpu = self.start + sum(by_task) + extra[:2]
        done, finished = self._held()
        left = np.zeros(2) if finished else self.start + sum(by_task[done:], np.zeros(2)) + extra[:2]
        parts = {"start": self.start, "learn": sum(a[0] for a in learn), "test": sum(test, extra)[:2]}
        parts |= {"save": sum(save, np.zeros(3))[:2]}
        said = self._bases()
        ends = sum(a[1:, 0] for a in learn) + (seconds - parts["learn"][0])
        predictions = sum(b[2] for b in test) + extra[2] if self.asked.evaluate.save_predictions else 0.0
        return Forecast(
            seconds=float(seconds),
            low=float(min(ends[0], seconds * (1 - DOUBT))),
            high=float(max(ends[1], seconds * (1 + DOUBT))),
            cpu_seconds=float(cpu),
            left=float(left[0]),
            left_cpu=float(left[1]),
            done=done,
            tasks=len(self.stream),
            memory=self._memory(),
            disk=int(predictions + self._kept()),
            device=self.most.device,
            parts=tuple(
                Part(name=name, seconds=float(wall), cpu_seconds=float(cpu), basis=said[name])
                for name, (wall, cpu) in parts.items()
            ),
            basis={"memory": said["memory"], "disk": said["disk"]},
        )

    def learning(self, t: int) -> np.ndarray:
        """Of a task, float64 [3, 2]: its times, then those of quick and of slow steps."""
        few, more = self.less.learned[t], self.most.learned[t]
        rest = _carried(few.rest, more.rest, few, more, self.whole[t])
        rest = rest + self.whole[t] * self.reading["train"]
        total = np.tile(rest, (3, 1))
        for k, stage in enumerate(more.stages):
            before = few.stages[k] if k < len(few.stages) and few.stages[k].name == stage.name else None
            steps = self._steps(before, stage, few, more, t)
            first, each = self._step(k, t)
            total += first + steps * each
        return total

    def _steps(self, before: Stage | None, stage: Stage, few: Learned, more: Learned, t: int) -> float:
        """Steps of a stage with all examples: by the settings where they explain both passages, else in proportion."""
        for known in self.passes:
            if stage.total == known.steps(more.task) and (before is None or before.total == known.steps(few.task)):
                return known.steps(self.stream.tasks[t]) or 0
        if before is None:
            return stage.total
        both = np.array([before.total]), np.array([stage.total])
        return float(_carried(*both, few, more, self.whole[t])[0])

    def _step(self, k: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """What the first step of the k-th stage takes on top, and each step: mean, quick and slow, [3, 2]. Of a task
        that was not looked at: between its neighbors."""
        known = [i for i in self.looked if k < len(self.most.learned[i].stages)]
        found = [self.most.learned[i].stages[k] for i in known]
        found = [(i, stage) for i, stage in zip(known, found) if stage.times]
        if not found:
            return np.zeros(2), np.zeros((3, 2))
        each = np.array([_of_steps(stage) for _, stage in found])
        first = [np.maximum(stage.times[0] - mean[0], 0) for (_, stage), mean in zip(found, each)]
        at = [i for i, _ in found]
        flat = each.reshape(len(at), -1)
        between = [np.interp(t, at, column) for column in flat.T]
        return np.median(first, axis=0), np.array(between).reshape(3, 2)

    def testing(self, t: int) -> np.ndarray:
        """Times and bytes of all that is tested after a task, [3]."""
        tasks = self.plan(self.stream, t) or (self.stream.tasks[:1] if t < 0 else ())
        total, queries = np.zeros(3), set()
        for task in tasks:
            count = len(getattr(task, self.asked.evaluate.split))
            query = self.stream.query(task, after=t)
            cost, fixed, made = self._test(task.index, len(query.candidates))
            total += count * cost + fixed + (made if query not in queries else 0)
            if task.index not in self.tested:
                total[:2] += count * self.reading[self.asked.evaluate.split]
            queries.add(query)
            self.tested.add(task.index)
        return total

    def _test(self, asked: int, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of an example of a task, of the test, and of the predictor, among so many candidates: between the first and
        the last test."""
        late = [each for each in self.most.tested if each.after == len(self.stream) - 1] or self.most.tested
        if not late:
            return np.zeros(3), np.zeros(3), np.zeros(3)
        near = min(late, key=lambda each: abs(each.asked - asked))
        first = self.most.tested[0]
        like = min(late, key=lambda each: abs(each.asked - first.asked))
        more = like.candidates - first.candidates
        away = np.clip((near.candidates - candidates) / more, 0, 1) if more > 0 else 0.0
        return tuple(  # type: ignore[return-value]
            getattr(near, name) * (1 + (_ratio(getattr(first, name), getattr(like, name)) - 1) * away)
            for name in ("cost", "fixed", "predictor")
        )

    def saving(self, t: int) -> np.ndarray:
        """Times and bytes of the resume point after a task, [3]."""
        at = sorted(self.most.saves)
        return np.array([np.interp(t, at, [self.most.saves[i][j] for i in at]) for j in range(3)])

    def _memory(self) -> dict[str, int]:
        """The peak, with the tensors that grow with the training examples."""
        few, more = (sum(len(each.task.train) for each in p.learned) for p in (self.less, self.most))
        each = max(self.most.alive - self.less.alive, 0) / (more - few) if more > few else 0.0
        grown = int(each * (sum(self.whole) - more))
        where = "gpu" if "gpu" in self.most.peak_memory else "resident"
        return {name: size + (grown if name == where else 0) for name, size in self.most.peak_memory.items()}

    def _kept(self) -> float:
        """Bytes of the folder but for predictions: resume point, events, and what is said of data and recipe, which the
        card says again."""
        steps = sum(
            self._steps(a.stages[k] if k < len(a.stages) else None, stage, a, b, t)
            for t, (a, b) in enumerate(zip(self.less.learned, self.most.learned))
            for k, stage in enumerate(b.stages)
        )
        said = len(to_json(dict(self.stream.manifest))) + len(recipes.to_yaml(self.asked))
        rows = sum(len(self.plan(self.stream, t)) for t in range(len(self.stream)))
        versions = [t for t in range(len(self.stream) - 1) if self._leaves(t)]
        states = sum(self.saving(t)[2] for t in (*versions, len(self.stream) - 1))
        return states + steps * self.most.event_bytes + (2 + len(versions)) * said + 600 * rows

    def _leaves(self, t: int) -> bool:
        """Whether a task leaves a version whose state is kept; the last one's is the resume point."""
        keep = self.asked.run.keep
        learns = recording.leaves_versions(self.asked, recipes.Built(None, self.stream, {}))
        return learns and (keep == "all" or t > len(self.stream) - 1 - keep)

    def _held(self) -> tuple[int, bool]:
        """Tasks that the run's folder holds, and whether it is finished."""
        folder = self.asked.folder(self.asked.run.seed)
        rows = run_files.read_scores(folder).get("rows", [])
        done = max((row["after"] for row in rows), default=-1) + 1
        return done, bool(run_files.read_card(folder)) and done == len(self.stream)

    def _bases(self) -> dict[str, str]:
        stages = [s for each in self.most.learned if each.task.index in self.looked for s in each.stages]
        timed = sum(len(stage.times) for stage in stages)
        examples = [sum(len(each.task.train) for each in p.learned) for p in (self.less, self.most)]
        tests = sum(each.n for each in self.most.tested)
        planned = sum(
            len(getattr(task, self.asked.evaluate.split))
            for t in range(len(self.stream))
            for task in self.plan(self.stream, t)
        )
        learned = f"measured: {timed} steps in {len(self.looked)} tasks, the rest with {examples[0]} and {examples[1]}"
        return {
            "start": "measured: imports, data, models and the first pass",
            "learn": f"{learned} of {sum(self.whole)} examples; computed: all steps and examples",
            "test": f"measured: {tests} tests after the first and the last task; computed: all {planned} of the plan",
            "save": f"measured: two resume points; computed: {len(self.stream)}",
            "memory": "measured: the peak of this process; computed: tensors that grow with the examples",
            "disk": "measured: records, events of steps and the resume point; computed: their numbers",
        }


def _of_steps(stage: Stage) -> np.ndarray:
    """Times of a step, [3, 2]: their mean, and both quartiles."""
    later = np.array(stage.later)
    return np.stack([later.mean(0), np.quantile(later, 0.25, axis=0), np.quantile(later, 0.75, axis=0)])


def _carried(few_: np.ndarray, more_: np.ndarray, few: Learned, more: Learned, whole: int) -> np.ndarray:
    """What two numbers of examples gave, in a straight line to all of them; never below what the larger gave."""
    a, b = len(few.task.train), len(more.task.train)
    if a >= b:
        return more_
    return more_ + np.maximum(more_ - few_, 0) / (b - a) * (whole - b)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.ones_like(a), where=b > 0)
