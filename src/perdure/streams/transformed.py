"""Images of a data set, each changed by a function of the image: turned, permuted.

Knows Examples and arrays. Does not know which change belongs to which task: that is a stream's part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from perdure.errors import RecipeError
from perdure.images import open_image
from perdure.streams import selection
from perdure.types import Dataset, Example, Examples, Stream, Task

if TYPE_CHECKING:
    import numpy as np


class Change(Protocol):
    """uint8 ``[height, width, channels]`` -> the same shape; `facts` are JSON-ready and say what it does."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Rotate:
    """Turns an image by an angle in degrees counter-clockwise: nearest pixel, same size, black corners (PIL's)."""

    degrees: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        import numpy as np
        from PIL import Image

        return np.asarray(Image.fromarray(image).rotate(self.degrees))

    def facts(self) -> dict[str, Any]:
        return {"degrees": self.degrees}


def domains(name: str, dataset: Dataset, changes: Sequence[tuple[str, Change]], config: Any) -> Stream:
    """One task for each named change, over all classes (domain-incremental).

    Args:
        config: of the stream `name`: its settings are kept in the manifest.
    """
    require_classes(dataset)
    rules = selection.rules_of(config)
    positions = rules.splits(dataset)
    targets = {split: [rules.source(dataset, split).targets[p] for p in own] for split, own in positions.items()}
    selection.require_training_images(
        targets["train"],
        dict(enumerate(dataset.candidates)),
        where="every task",
        data=dataset.name,
        limit=rules.train_per_class,
    )
    selection.require_test_images(targets["test"], data=dataset.name)
    tasks = []
    for index, (title, change) in enumerate(changes):
        parts = {
            split: changed(rules.source(dataset, split), chosen, lambda i, c=change: c, prefix=title)
            for split, chosen in positions.items()
        }
        facts = {"domain": title, **change.facts()}
        task = Task(index=index, name=title, kind="classify", candidates=dataset.candidates, facts=facts)
        tasks.append(replace(task, **parts))
    manifest = {
        "stream": name,
        **selection.settings_of(config),
        "data": selection.identity(dataset),
        "changes": [{"name": title, **change.facts()} for title, change in changes],
        "examples": {split: selection.record(chosen, targets[split]) for split, chosen in positions.items()},
    }
    return Stream(name=f"{name} {dataset.name}", tasks=tuple(tasks), manifest=manifest)


def changed(base: Examples, positions: Sequence[int], change: Callable[[int], Change], *, prefix: str) -> Examples:
    """The examples at `positions`, the i-th of them changed by ``change(i)``; ids are ``prefix/i/id``.

    Positions may repeat: the place makes the id unique.
    """
    return Examples(_Changed(base, list(positions), change, prefix), [base.targets[p] for p in positions])


def require_classes(dataset: Dataset) -> None:
    """The data set is one of classes."""
    if dataset.kind != "classify":
        raise RecipeError(
            f"{dataset.name} is a data set of kind {dataset.kind}", where="stream.data", expected="kind classify"
        )


@dataclass(frozen=True, eq=False)
class _Changed:
    base: Examples
    positions: list[int]
    change: Callable[[int], Change]
    prefix: str

    def __call__(self, index: int, target: Any) -> Example:
        import numpy as np

        example = self.base[self.positions[index]]
        image = example.inputs["image"]
        if not isinstance(image, np.ndarray):
            image = np.asarray(open_image(image, where=example.id))
        inputs = {**example.inputs, "image": self.change(index)(image)}
        return Example(id=f"{self.prefix}/{index:06d}/{example.id}", inputs=inputs, target=target)
