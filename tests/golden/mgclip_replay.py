"""The golden vectors of MG-CLIP, RAPF and Continual-CLIP: files by family, and what replays a recorded run.

Files are found by pattern, so that a folder with other sizes or more files of a family is checked too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_state import golden_clip
from torch import Tensor

from perdure.metrics import continual
from perdure.models.clip import Clip
from perdure.runtime import Runtime, Steps
from perdure.types import Example, Examples, Stream, Task

LORA_NAME = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.([kv])_proj_weight_lora_([AB])")
FAMILIES = (
    "clip_state",
    "lora_clip",
    "lora_attention",
    "gap_measure",
    "epoch_selection",
    "visual_classifier",
    "fusion",
    "metrics",
    "preprocess",
    "e2e_mgclip",
    "rapf_components",
    "e2e_rapf",
    "e2e_continual_clip",
)


def family(golden, name: str) -> Iterator[dict[str, Tensor]]:
    """The arrays of every file of a family, as tensors by name."""
    paths = sorted(golden("mgclip").glob(f"{name}*.npz"))
    assert paths, f"no file {name}*.npz"
    for path in paths:
        with np.load(path) as arrays:
            yield {n: torch.from_numpy(arrays[n]) for n in arrays.files}


def lora_settings(golden) -> tuple[int, float]:
    with np.load(golden("mgclip") / "clip_state.npz") as state:
        return int(state["meta_lora_r"]), float(state["meta_lora_alpha"])


def our_lora(g: Mapping[str, Tensor], prefix: str, order: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Golden adapter arrays under our names."""
    found = {}
    for name, value in g.items():
        if name.startswith(prefix):
            tower, layer, projection, part = LORA_NAME.fullmatch(name.removeprefix(prefix)).groups()
            model = "vision_model" if tower else "text_model"
            found[f"{model}.encoder.layers.{layer}.self_attn.{projection}_proj.lora_{part}.weight"] = value
    assert found
    return found if order is None else {name: found[name] for name in order}


class Replay(Runtime):
    """A Runtime with recorded orders and noise, which keeps what the stages trained."""

    def __init__(self, orders: Mapping[tuple[Any, ...], Tensor], *, noise: Tensor | None = None) -> None:
        super().__init__(device="cpu", quiet=True)
        self.orders, self.noise, self.drawn = orders, noise, 0
        self.losses: dict[str, Tensor] = {}
        self.trained: dict[str, dict[str, Tensor]] = {}
        self.trained_after: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.logged: dict[str, dict[str, Any]] = {}

    def permutation(self, n: int, *key: Any) -> Tensor:
        order = self.orders[key]
        assert sorted(order.tolist()) == list(range(n))
        return order

    def normal(self, shape, *key: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = int(np.prod(shape[:-1]))
        assert self.noise is not None
        taken = self.noise[self.drawn : self.drawn + rows]
        self.drawn += rows
        return taken.reshape(*shape).to(dtype)

    def noise_left(self) -> int:
        return 0 if self.noise is None else len(self.noise) - self.drawn

    def log(self, event: str, **values: Any) -> None:
        self.logged[event] = values

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], every: str = "") -> Steps:
        return RecordedSteps(self, stage, total=total, state=state, label=stage)


class RecordedSteps(Steps):
    """Steps that leave their losses and trained tensors with the Replay."""

    def __iter__(self) -> Iterator[int]:
        assert isinstance(self.runtime, Replay)
        for step in super().__iter__():
            yield step
            self.runtime.trained_after[self.stage, step + 1] = self._tensors()
        self.runtime.losses[self.stage] = torch.tensor(self.state["history"].losses, dtype=torch.float64)
        self.runtime.trained[self.stage] = self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        return {n.split("/", 1)[1]: p.detach().clone() for n, p in self.state["parameters"].items()}


class TableTokenizer:
    """The prompt of a class is its original number; its tokens are that row of the golden file."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.eot = table, int(table.max())

    def __call__(self, texts, *, truncate: str = "no") -> Tensor:
        return self.table[[int(text) for text in texts]]


class Passthrough:
    """The golden images are normalised already."""

    def pixels(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels


def replay_clip(folder: Path, g: Mapping[str, Tensor], dtype: torch.dtype) -> Clip:
    clip = golden_clip(folder, dtype)
    clip.tokenizer, clip.transform = TableTokenizer(g["tokens"]), Passthrough()  # type: ignore[assignment]
    return clip


def replay_stream(g: Mapping[str, Tensor]) -> Stream:
    """The run's tasks, in which a label is the place of the original class in the class order."""
    order, initial, increment = g["class_order"].tolist(), int(g["initial_increment"]), int(g["increment"])
    train = relabelled(g, "train", order)
    test = relabelled(g, "test", order)
    tasks = []
    for t in range(int(g["n_tasks"])):
        first, end = (0 if t == 0 else initial + (t - 1) * increment), initial + t * increment
        tasks.append(
            Task(
                index=t,
                name=f"task {t}",
                kind="classify",
                candidates=tuple(str(c) for c in order[first:end]),
                offset=first,
                train=between(train, first, end),
                test=between(test, first, end),
                facts={"test of all seen": between(test, 0, end)},
            )
        )
    return Stream(name="golden", tasks=tuple(tasks))


def relabelled(g: Mapping[str, Tensor], split: str, order: list[int]) -> Examples:
    images, labels = g[f"{split}_images"].numpy(), g[f"{split}_labels"].tolist()
    items = [
        Example(id=f"{split}/{i}", inputs={"image": image}, target=order.index(label))
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return Examples.of(items)


def between(examples: Examples, first: int, end: int) -> Examples:
    return examples.select([i for i, label in enumerate(examples.targets) if first <= label < end])


def learn_and_score(method: Any, stream: Stream, task: Task, runtime: Runtime) -> Tensor:
    """Scores over all seen classes, for all tests of seen classes in the data set's order."""
    runtime.task = task.index
    method.learn(task, runtime)
    images = [method.preprocess(example, False)["image"] for example in task.facts["test of all seen"]]
    with torch.no_grad():
        return method.predictor(stream.query(task, after=task.index))({"image": torch.stack(images)})


def check_predictions(g: Mapping[str, Tensor], t: int, scores: Tensor, stream: Stream) -> Tensor:
    predicted = scores.argmax(1)
    assert torch.equal(predicted, g[f"task{t}/pred"])
    targets = torch.tensor(stream.tasks[t].facts["test of all seen"].targets)
    assert torch.equal(targets, g[f"task{t}/target"])
    return predicted == targets


def check_metrics(g: Mapping[str, Tensor], stream: Stream, right: list[Tensor]) -> None:
    """The printed numbers: percent, rounded to two decimals."""
    tasks = len(stream)
    matrix, counts = np.full((tasks, tasks), np.nan), np.zeros((tasks, tasks), dtype=np.int64)
    for t in range(tasks):
        targets = torch.tensor(stream.tasks[t].facts["test of all seen"].targets)
        for j, task in enumerate(stream.tasks[: t + 1]):
            own = right[t][(targets >= task.offset) & (targets < task.offset + len(task.candidates))]
            matrix[t, j], counts[t, j] = 100 * own.double().mean().item(), len(own)
        part, n = matrix[: t + 1, : t + 1], counts[: t + 1, : t + 1]
        ours = continual.continuum_compat(part)
        ours["acc"] = continual.last_accuracy(part, counts=n)
        ours["avg_acc"] = continual.average_accuracy(part, counts=n)
        for name, value in ours.items():
            assert value == pytest.approx(g[f"task{t}/metric_{name}"].item(), abs=0.00501), (t, name)
        per_task = g.get(f"task{t}/metric_acc_per_task")
        if per_task is not None:
            np.testing.assert_allclose(matrix[t, : t + 1], per_task.numpy(), atol=0.00501)
    assert continual.last_accuracy(matrix, counts=counts) == pytest.approx(g["last"].item(), abs=0.00501)
    assert continual.average_accuracy(matrix, counts=counts) == pytest.approx(g["avg"].item(), abs=0.00501)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach().to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance)


def close_to_scale(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Close, measured by the largest entry: small gradients are sums in which large terms cancel."""
    atol = tolerance * max(theirs.abs().max().item(), 1e-3)
    torch.testing.assert_close(ours.detach().to(theirs.dtype), theirs, rtol=tolerance, atol=atol)
