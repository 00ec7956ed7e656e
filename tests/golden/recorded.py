"""Recorded randomness: what the published code drew, handed to ours in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Task


class Recorded(Draws):
    """Serves recorded draws by purpose; an unexpected or missing draw is an error."""

    def __init__(
        self,
        uniforms: Mapping[str, Sequence] | None = None,
        choices: Mapping[str, Sequence[np.ndarray]] | None = None,
        reservoir: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.queues = {of: list(arrays) for of, arrays in (uniforms or {}).items()}
        self.choices = {of: list(arrays) for of, arrays in (choices or {}).items()}
        self.slots = [] if reservoir is None else list(zip(*(array.tolist() for array in reservoir)))

    def uniforms(self, *shape: int, of: str) -> Tensor:
        if of == "reservoir":
            taken, self.slots = self.slots[: shape[0]], self.slots[shape[0] :]
            assert len(taken) == shape[0], "more reservoir draws than recorded"
            return torch.tensor([(draw + 0.5) / high for high, draw in taken], dtype=torch.float64)
        array = torch.tensor(np.asarray(self.queues[of].pop(0)))
        assert array.shape == shape, f"{of}: drew {shape}, recorded {tuple(array.shape)}"
        return array

    def order(self, n: int, *, of: str) -> Tensor:
        first = [int(i) for i in self.choices[of].pop(0) if i >= 0]
        assert len(set(first)) == len(first) and max(first) < n
        return torch.tensor(first + [i for i in range(n) if i not in first])

    def left(self) -> int:
        """Draws that were recorded and not asked for."""
        queues = [*self.queues.values(), *self.choices.values(), self.slots]
        return sum(map(len, queues))


class StoredOrder(Runtime):
    """Batches come in the order of the data."""

    def __init__(self) -> None:
        super().__init__(device="cpu", quiet=True)
        self.values: list[dict] = []
        """What was logged of each step."""

    def permutation(self, n: int, *key) -> Tensor:
        return torch.arange(n)

    def log(self, event: str, **values) -> None:
        if event == "step":
            self.values.append({k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()})


def tensor_task(
    x: np.ndarray, labels: np.ndarray, *, index: int = 0, classes: int, offset: int = 0, test: tuple | None = None
) -> Task:
    """A task whose images are floating tensors."""
    return Task(
        index=index,
        name=f"task {index}",
        kind="classify",
        candidates=tuple(str(offset + i) for i in range(classes)),
        offset=offset,
        train=_examples(x, labels, f"train {index}"),
        test=_examples(*test, f"test {index}") if test else Examples.of([]),
    )


def _examples(x: np.ndarray, labels: np.ndarray, split: str) -> Examples:
    return Examples.of(
        [
            Example(id=f"{split}/{i}", inputs={"image": torch.tensor(image)}, target=int(label))
            for i, (image, label) in enumerate(zip(x, labels))
        ]
    )


def load(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def prefixed(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Arrays whose name begins with `prefix`, by the rest of their name."""
    return {n.removeprefix(prefix): torch.tensor(a) for n, a in arrays.items() if n.startswith(prefix)}
