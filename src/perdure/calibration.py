"""Probabilities out of scores, and the one temperature under which they say how often an answer is right.

Knows validation examples, logits and the file that keeps the temperature of a run. Does not know methods by name, nor
test examples: nothing here reads one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import Interrupted
from perdure.evaluate import predicting
from perdure.files.written_whole import write_json
from perdure.keys import key_seed
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.runtime.collectives import Agreement
from perdure.runtime.devices import seed_torch
from perdure.types import Evaluation, Stream, Task

FILE = "calibration.json"
"""In a run's folder."""
MOST = 1000
"""Validation examples that are asked at most, spread evenly over each task's."""
FEWEST = 20
"""Below that no temperature is fitted."""
RANGE = (0.05, 20.0)
"""Temperatures that are looked at. A minimum at an end is none: if all examples are right, surer is always better."""

Logits = Float[Tensor, "examples candidates"]
Labels = Int[Tensor, " examples"]


def probabilities(method: Any, scores: Logits, *, temperature: float = 1.0) -> Logits | None:
    """The softmax of a method's logits over `temperature`; None where its scores rank alone (`logits`)."""
    found = logits(method, scores)
    return None if found is None else (found / temperature).softmax(dim=1)


def logits(method: Any, scores: Logits) -> Logits | None:
    """A method's scores as they are where it says that they are logits (``scores_are = "logits"``), else what its
    `logits_of` makes of them, in the same order; None where it has neither."""
    if hasattr(method, "logits_of"):
        return method.logits_of(scores)
    return scores if has_logits(method) else None


def has_logits(method: Any) -> bool:
    """Whether `logits` has any of this method."""
    return hasattr(method, "logits_of") or getattr(method, "scores_are", "") == "logits"


def calibrate(method: Any, stream: Stream, settings: Evaluation, *, runtime: Runtime) -> dict[str, float] | None:
    """Fit a temperature on validation examples of all tasks and keep it in ``calibration.json`` of the run's folder.

    Returns:
        What the file holds: ``temperature``, ``n`` (examples), ``nll_before`` and ``nll_after`` (nats an example).
        None, and no file, where a task has no examples or all have too few, where the method has no logits or is
        another one at each test example, where no temperature is best, or where the run keeps nothing.
    """
    if runtime.out is None:
        return None
    (runtime.out / FILE).unlink(missing_ok=True)  # of a run that has gone on since
    shares = _asked(method, stream)
    if not shares:
        return None
    found = runtime.gather([_answers(method, stream, task, share, settings, runtime) for task, share in shares])
    fitted = fit([pair for pair in found if len(pair[1])])
    if fitted is not None:
        runtime.log("calibration", **fitted)
        if runtime.main:
            write_json(runtime.out / FILE, fitted)
    return fitted


def examples(method: Any, stream: Stream) -> int:
    """How many validation examples `calibrate` asks."""
    return sum(len(share) for _, share in _asked(method, stream))


def fit(answers: Sequence[tuple[Logits, Labels]]) -> dict[str, float] | None:
    """The temperature of least mean negative log-likelihood (Guo et al. 2017); one for all pairs, whose
    numbers of candidates may differ.

    The likelihood is concave in 1/temperature, so a bounded search over its logarithm finds the one minimum.
    """
    from scipy.optimize import minimize_scalar

    pairs = [(scores.double(), labels) for scores, labels in answers]
    count = sum(len(labels) for _, labels in pairs)

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        sums = [torch.nn.functional.cross_entropy(x * scale, y, reduction="sum").item() for x, y in pairs]
        return math.fsum(sums) / max(count, 1)

    low, high = (math.log(end) for end in RANGE)
    if count < FEWEST or not math.isfinite(loss(0.0)):
        return None
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    best = float(found.x)
    if min(best - low, high - best) < 1e-3:
        return None
    return {
        "temperature": round(math.exp(best), 6),
        "n": count,
        "nll_before": round(loss(0.0), 6),
        "nll_after": round(loss(best), 6),
    }


def _asked(method: Any, stream: Stream) -> list[tuple[Task, list[int]]]:
    """Tasks and positions of the validation examples that are asked; empty where no temperature is fitted."""
    tasks = [task for task in stream if task.kind == "classify"]
    fixed = not any(getattr(method, name, False) for name in ("adapts", "carries_state", "encoder"))
    if not (fixed and has_logits(method)) or sum(len(task.validation) for task in tasks) < FEWEST:
        return []
    if not all(len(task.validation) for task in tasks):
        return []  # as where a task was added and the others' data are gone: it would be fitted to that one alone
    return _shares(tasks)


def _shares(tasks: Sequence[Task]) -> list[tuple[Task, list[int]]]:
    """Positions in each task's validation examples: all, or evenly spread ones, as many as its share of `MOST`."""
    total = sum(len(task.validation) for task in tasks)
    counts = [(task, len(task.validation)) for task in tasks]
    asked = [min(n, max(1, n * MOST // total)) for _, n in counts]
    return [(task, [i * n // k for i in range(k)]) for (task, n), k in zip(counts, asked)]


def _answers(
    method: Any, stream: Stream, task: Task, positions: Sequence[int], settings: Evaluation, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Logits and labels (columns) of this process's part of a task's validation examples, asked as its test is."""
    query = stream.query(task, after=len(stream) - 1)
    examples = task.validation.select(positions)
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=settings.batch_size,
        runtime=runtime,
        stage="calibrate",
        training=False,
        collate=getattr(method, "collate", None),
    )
    scores, labels = [torch.zeros(0, len(query.candidates))], [torch.zeros(0, dtype=torch.int64)]
    agreement = Agreement(runtime.processes, lambda: (runtime.stop_requested,))
    with predicting(method, runtime):
        predict = method.predictor(query)
    with runtime.progress(f"calibrate {task.name}", total=len(batches)) as progress:
        for batch, share in batches.epoch(0):
            if batch is not None:
                seed_torch(key_seed("predict", *batch["seed"].tolist()))
                with predicting(method, runtime), torch.no_grad():
                    found = logits(method, predict(batch).float())
                assert found is not None
                if share:  # else this is a peer's batch, run along with it
                    scores.append(found.cpu())
                    own = [examples.targets[i] - query.offset for i in batch["position"].tolist()]
                    labels.append(torch.tensor(own))
            progress.advance()
            if any(agreement.answers()):
                raise Interrupted("stopped while the temperature was fitted")
            agreement.ask()
        agreement.settle()
    return torch.cat(scores), torch.cat(labels)
