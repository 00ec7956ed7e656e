"""After each task, weights between those that it found and earlier ones: WiSE-FT and MagMax around any method.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022: ``(1 - a) theta_0 + a theta_t``; with `previous`,
theta_0 are the weights at the task's start. Marczak et al., MagMax, ECCV 2024: tasks are learned one from the other,
unmerged; what is used is ``theta_0 + a m``, and m takes each number from the task vector ``theta_t - theta_0`` in which
it is largest, the later one if equal.

Low-rank updates that stay factors are merged as the products that they are (`layers.merging.between_products`).

Knows named parameters and what a method does; the arithmetic is in `perdure.layers.merging`. Does not know how a
method learns. Only weights that are trained are merged; buffers stay those of the trained model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perdure import kept_examples
from perdure.errors import RecipeError
from perdure.evaluate import evaluate, predicting
from perdure.keys import key_seed
from perdure.layers import merging
from perdure.runtime import Runtime
from perdure.types import Evaluation, Examples, Merge, Query, Task

WEIGHTS = tuple(i / 10 for i in range(11))
"""Among which `weight: auto` chooses."""
Weights = dict[str, Tensor]


class Merged:
    """A method whose weights are merged after each task. State: the method's own, and what merging must remember."""

    def __init__(self, method: Any, settings: Merge) -> None:
        self.method, self.settings = method, settings
        self.base = _copies(self._live())
        self.trained: Weights = {}
        """MagMax: the weights from which the next task is learned."""
        self.vector: Weights = {}
        """MagMax: of each number the task vector's in which it is largest."""
        self.past: list[Task] = []
        """Tasks so far with some of their validation examples, where the weight is chosen by them."""
        self.weight: float | None = None
        """The last one that was chosen."""

    def __getattr__(self, name: str) -> Any:
        if name == "method":
            raise AttributeError(name)
        return getattr(self.method, name)

    def learn(self, task: Task, runtime: Runtime) -> None:
        auto = self.settings.weight == "auto"
        if auto and not len(task.validation):
            raise RecipeError(
                f"task '{task.name}' has no validation examples",
                where="merge.weight",
                expected="auto only where there are some",
                todo="Set stream.validation_share, or merge.weight to a number.",
            )
        live = self._live()
        _put(live, self.trained)
        before, products = _copies(live), self._products()
        self.method.learn(task, runtime)
        after, learned = _copies(live), self._products()
        if self.settings.how == "magmax":
            change = merging.task_vector(self.base, after)
            self.vector, self.trained = merging.largest(self.vector or None, change), after
        previous = self.settings.how == "previous"
        start = before if previous else self.base

        def use(weight: float) -> None:
            _put(live, self._mixed(start, after, weight))
            if learned:
                first = {name: products[name] if previous else _nothing(pair) for name, pair in learned.items()}
                mixed = {n: merging.between_products(first[n], pair, weight) for n, pair in learned.items()}
                self.method.put_products(mixed)

        if auto:
            self.past.append(self._remembered(task))
            self.weight = self._chosen(use, runtime)
        else:
            self.weight = float(self.settings.weight)
        use(self.weight)
        runtime.log("merge", how=self.settings.how, weight=self.weight)

    def state_dict(self) -> dict[str, Any]:
        tasks = [
            {
                "head": [task.name, task.kind, list(task.candidates), task.offset, task.metrics[0]],
                "examples": kept_examples.pack(list(task.validation)),
            }
            for task in self.past
        ]
        remembered = {"trained": self.trained, "vector": self.vector, "past": tasks, "weight": self.weight}
        return {"method": self.method.state_dict(), "merge": remembered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        found = state["merge"]
        self.trained, self.vector, self.weight = dict(found["trained"]), dict(found["vector"]), found["weight"]
        self.past = []
        for i, part in enumerate(found["past"]):
            name, kind, candidates, offset, metric = part["head"]
            task = Task(index=i, name=name, kind=kind, candidates=tuple(candidates), offset=offset, metrics=(metric,))
            self.past.append(replace(task, validation=Examples.of(kept_examples.unpack(part["examples"]))))

    def _live(self) -> Mapping[str, Tensor]:
        """The parameters that are merged.

        Raises:
            RecipeError: the method has none that can be merged so.
        """
        how = self.settings.how
        found = self.method.merged(how) if hasattr(self.method, "merged") else {}
        if not found and not (how != "magmax" and getattr(self.method, "products", dict)()):
            raise RecipeError(
                f"{type(self.method).__name__} has no weights that {how} merges, with these settings",
                where="merge.how",
                expected="a method that trains whole networks; `base` also with low-rank updates",
                todo="Set method.trains=all where the method has it, or merge.how=none.",
            )
        return found

    def _products(self) -> dict[str, merging.Factors]:
        """Low-rank updates that are merged as products, on the CPU."""
        found = self.method.products() if hasattr(self.method, "products") else {}
        return {n: (a.detach().to("cpu", copy=True), b.detach().to("cpu", copy=True)) for n, (a, b) in found.items()}

    def _mixed(self, start: Weights, after: Weights, weight: float) -> Weights:
        if self.settings.how == "magmax":
            return merging.add_vector(self.base, self.vector, weight)
        return merging.interpolate(start, after, weight)

    def _remembered(self, task: Task) -> Task:
        """The task with at most so many validation examples as are kept."""
        order = sorted(range(len(task.validation)), key=lambda i: key_seed("merge", task.validation[i].id))
        some = task.validation.select(sorted(order[: self.settings.keep_validation]))
        return Task(
            index=len(self.past),
            name=task.name,
            kind=task.kind,
            candidates=task.candidates,
            offset=task.offset,
            metrics=task.metrics[:1],
            validation=some,
        )

    def _chosen(self, use: Callable[[float], None], runtime: Runtime) -> float:
        """The weight with the best mean over tasks on their validation examples; the largest of equal ones."""
        found = {}
        for weight in WEIGHTS:
            use(weight)
            found[weight] = sum(self._measured(task, runtime) for task in self.past) / len(self.past)
        runtime.log("merge weights", means=list(found.values()))
        return max(found, key=lambda weight: (found[weight], weight))

    def _measured(self, task: Task, runtime: Runtime) -> float:
        named = {t.offset + i: name for t in self.past if t.kind == "classify" for i, name in enumerate(t.candidates)}
        classes = tuple(named[label] for label in sorted(named)) if task.kind == "classify" else task.candidates
        query = Query(kind=task.kind, candidates=classes)
        settings = Evaluation(split="validation", save_predictions=False)
        with predicting(self.method, runtime):
            predict = self.method.predictor(query)
        values, _ = evaluate(self.method, predict, task, query, settings, runtime=runtime, after=len(self.past))
        return float(next(iter(values.values())) or 0.0)


def _nothing(pair: merging.Factors) -> merging.Factors:
    """An update of rank 0 beside this one: what there was before the first task."""
    a, b = pair
    return a[:0], b[:, :0]


def _copies(live: Mapping[str, Tensor]) -> Weights:
    """On the CPU, where they stay while a task is learned."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in live.items()}


@torch.no_grad()
def _put(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        live[name].copy_(value)
