"""The trained parts of an audio-visual method by name: which are shared by all tasks, which each task keeps.

Knows named modules, and how a task starts from the one before (PHP, Yin et al. 2025).
Does not know what the parts do.

A part in `per_task` is kept as it was when its task was learned, and is the start of the next task's. All others are
shared: old tasks are answered with their newest state. Tensors are handed on where name and shape are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import RecipeError
from perdure.families.audio_visual.inputs import Problem
from perdure.runtime import Runtime
from perdure.types import Query

Make = Callable[[Problem], nn.ModuleDict]
Kept = dict[str, dict[str, Tensor]]


class TaskParts(nn.Module):
    """`current`: the parts of the task learned last (or being learned); `kept`: those that each task keeps.

    Args:
        make: fresh parts for a problem. A problem's parts may lack some that others have.
        per_task: names of parts that each task keeps.
        fresh: names of parts that do not start from the task before.
    """

    def __init__(self, make: Make, *, per_task: Collection[str], fresh: Collection[str] = ()) -> None:
        super().__init__()
        self.make, self.per_task, self.fresh = make, frozenset(per_task), frozenset(fresh)
        self.current: nn.ModuleDict | None = None
        self.kept: dict[str, Kept] = {}
        self.problems: dict[str, Problem] = {}

    def begin(self, problem: Problem, runtime: Runtime) -> nn.ModuleDict:
        """Parts to learn a problem with, on the run's device, in training mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.key("parts"))
            parts = self.make(problem)
        if self.current is not None:
            for name, part in parts.items():
                if name not in self.fresh:
                    copy_matching_tensors(self._newest(name), part)
        self.current = parts.to(runtime.device).train()
        return self.current

    def finish(self, problem: Problem) -> None:
        """Keep what the problem's task keeps."""
        assert self.current is not None
        self.current.eval()
        self.problems[problem.name] = problem
        self.kept.pop(problem.name, None)  # a task learned again is the newest
        self.kept[problem.name] = {name: _copy(part) for name, part in self.current.items()}
        for kept in self.kept.values():  # shared parts matter only where the newest task has none of that name
            for name in [n for n in kept if n in self.current and n not in self.per_task]:
                if kept is not self.kept[problem.name] and name != "context":
                    del kept[name]

    def of(self, query: Query) -> tuple[Problem, nn.ModuleDict]:
        """The problem and parts that answer a query, apart from those that go on learning.

        Raises:
            RecipeError: the task needs a head of its own and has not been learned.
        """
        name = query.task or ""
        problem = self.problems.get(name)
        if problem is None:
            if query.kind in ("answer", "segment"):
                raise RecipeError(
                    f"task '{name}' has not been learned, and there is no head for it",
                    where="query",
                    expected="a task seen",
                )
            known = next(reversed(self.problems.values()), None)  # clips are as long as those seen last
            plain = Problem(name=name, kind=query.kind, candidates=query.candidates, offset=query.offset)
            problem = plain if known is None else replace(plain, clip_seconds=known.clip_seconds)
        parts = self.assemble(problem)
        return problem, parts.eval()

    def assemble(self, problem: Problem, *, borrowed: Collection[str] = (), lender: str = "") -> nn.ModuleDict:
        """Copies: shared parts as they are now, those that the task keeps, fresh ones where there are none.

        Args:
            borrowed: names of parts that are those of the task `lender` instead.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts = self.make(problem)
        own, lent = self.kept.get(problem.name, {}), self.kept.get(lender, {})
        kept = own | {name: lent[name] for name in borrowed if name in lent}
        for name, part in parts.items():
            if name in kept and (name in self.per_task or self.current is None or name not in self.current):
                part.load_state_dict(kept[name])
            elif self.current is not None and name in self.current:
                copy_matching_tensors(self.current[name].state_dict(), part)
        device = next((p.device for p in self.current.parameters()), None) if self.current is not None else None
        return parts.to(device) if device is not None else parts

    def _newest(self, name: str) -> Mapping[str, Tensor]:
        """What a new task's part starts from: that of the task before; of parts that tasks keep, the last there was."""
        if self.current is not None and name in self.current:
            return self.current[name].state_dict()
        if name not in self.per_task:
            return {}
        return next((kept[name] for kept in reversed(self.kept.values()) if name in kept), {})

    def state(self) -> dict[str, Any]:
        """Problems, what each task keeps, and the shared parts: tensors and JSON."""
        shared = {n: _copy(p) for n, p in (self.current or {}).items() if n not in self.per_task}
        last = list(self.kept)[-1] if self.kept else ""
        kept = {
            task: {n: dict(tensors) for n, tensors in parts.items() if task != last or n not in shared}
            for task, parts in self.kept.items()
        }
        return {
            "problems": [asdict(p) for p in self.problems.values()],
            "kept": kept,
            "order": list(kept),
            "shared": shared,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.problems = {p["name"]: _problem(p) for p in state["problems"]}
        self.kept = {task: {n: dict(t) for n, t in state["kept"][task].items()} for task in state["order"]}
        if not self.kept:
            self.current = None
            return
        last = list(self.kept)[-1]
        self.kept[last] |= {name: dict(tensors) for name, tensors in state["shared"].items()}
        self.current = self.make(self.problems[last]).eval()
        for name, part in self.current.items():
            part.load_state_dict(self.kept[last][name])


def copy_matching_tensors(old: Mapping[str, Tensor], new: nn.Module) -> None:
    """Copy every tensor to that of the same name and shape in `new`."""
    target = new.state_dict()
    with torch.no_grad():
        for name, tensor in old.items():
            if name in target and target[name].shape == tensor.shape:
                target[name].copy_(tensor)


def _copy(part: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in part.state_dict().items()}


def _problem(facts: Mapping[str, Any]) -> Problem:
    return Problem(**{**facts, "candidates": tuple(facts["candidates"])})
