"""What methods that classify with CLIP share: prompts, classes across tasks, features of images and texts.

Knows templates, labels counted from a task's offset, and a loaded Clip. Does not know losses, what a method
trains or how it scores. Functions only; a Clip (`perdure.models.clip`) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from perdure import training
from perdure.errors import DataError, RecipeError
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Examples, Task

if TYPE_CHECKING:
    from perdure.models.clip import Clip


# -- prompts ------------------------------------------------------------------------------------------------


def check_template(template: str) -> None:
    """Raise a RecipeError unless the template has exactly one place for the class name, written ``{}``."""
    if template.count("{}") != 1 or template.replace("{}", "").count("{") + template.replace("{}", "").count("}"):
        raise RecipeError(
            f"the template is {template!r}",
            where="method.template",
            expected="one {} where the class name goes",
            todo="For example: template: 'a good photo of a {}.'",
        )


def prompts(template: str, names: Sequence[str], *, clean: bool = False) -> list[str]:
    """One prompt a class. `clean` puts spaces for underscores; published numbers keep the underscores."""
    return [template.format(name.replace("_", " ") if clean else name) for name in names]


def tokenize(clip: Clip, texts: Sequence[str], device: torch.device) -> Int[Tensor, "classes tokens"]:
    """Ids up to the longest text's end: the same features as all 77 positions, for a sixth of the work."""
    return clip.cut(clip.tokenize(texts)).to(device)


# -- classes across tasks -----------------------------------------------------------------------------------


def extend_classes(known: Sequence[str], task: Task) -> list[str]:
    """Class names by label after a task: its candidates stand from its offset on.

    Raises:
        DataError: the task's labels leave a gap after the classes known so far.
    """
    if task.offset > len(known):
        raise DataError(
            f"its labels begin at {task.offset}, but only {len(known)} classes are known",
            where=f"task '{task.name}'",
            todo="Learn the tasks of a stream in order.",
        )
    end = task.offset + len(task.candidates)
    return [*known[: task.offset], *task.candidates, *known[end:]]


def require_every_class(task: Task, labels: Sequence[int] | Int[Tensor, " images"] | None = None) -> None:
    """Raise a DataError that names the classes of the task of which there is no training example.

    Args:
        labels: those that there are; None: the targets of the task's training examples.
    """
    found = labels.tolist() if isinstance(labels, Tensor) else task.train.targets if labels is None else labels
    present = set(found)
    missing = [name for i, name in enumerate(task.candidates, task.offset) if i not in present]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"no training example of {', '.join(map(repr, missing[:5]))}{more}",
            where=f"task '{task.name}'",
            expected="at least one of each class",
        )


def labels_of(task: Task) -> range:
    """The labels that a task brings."""
    return range(task.offset, task.offset + len(task.candidates))


def replace_rows(
    table: Float[Tensor, "classes ..."], rows: Float[Tensor, "new ..."], *, first: int
) -> Float[Tensor, "seen ..."]:
    """The table with `rows` from row `first` on (appended, or in place of those that were there), on the CPU."""
    table, rows = table.cpu(), rows.detach().cpu()
    return torch.cat([table[:first], rows, table[first + len(rows) :]])


def class_means(
    features: Float[Tensor, "images dim"], labels: Int[Tensor, " images"], classes: range
) -> Float[Tensor, "classes dim"]:
    """Mean feature of each class, not normalised again, in the order of `classes`; all must be present."""
    return torch.stack([features[labels == label].mean(0) for label in classes])


def widen(
    scores: Float[Tensor, "images known"], *, classes: int, fill: float = -torch.inf
) -> Float[Tensor, "images classes"]:
    """Scores with a column of `fill` for each class that a query asks for and that is not known yet."""
    absent = scores.new_full((len(scores), classes - scores.shape[1]), fill)
    return torch.cat([scores, absent], dim=1)


# -- features -----------------------------------------------------------------------------------------------


def preprocess(clip: Clip, example: Example) -> Batch:
    """``{"image": uint8 [3 size size], "label": int}``; no label where the example has no target."""
    pixels = clip.transform.pixels(example.inputs["image"])
    return {"image": pixels} if example.target is None else {"image": pixels, "label": int(example.target)}


def raw_image_features(clip: Clip, pixels: UInt8[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]:
    """Projected features of pixels that `preprocess` gave, not normalised."""
    return clip.image_features(clip.transform.normalize(pixels))


def image_features(clip: Clip, pixels: UInt8[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]:
    """Unit features of pixels that `preprocess` gave."""
    return F.normalize(raw_image_features(clip, pixels), dim=1)


def text_features(clip: Clip, ids: Int[Tensor, "classes tokens"]) -> Float[Tensor, "classes dim"]:
    """Unit features of token ids, with gradients."""
    return F.normalize(clip.text_features(ids), dim=1)


@torch.no_grad()
def encode_prompts(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "classes dim"]:
    """Unit features of prompts, without gradients."""
    return F.normalize(clip.encode_texts(texts), dim=1)


def encode_images(
    clip: Clip,
    examples: Sequence[Example],
    *,
    batch_size: int,
    runtime: Runtime,
    unit: bool = True,
    stage: str = "features",
) -> dict[str, Tensor]:
    """One pass of the frozen image tower: ``feature`` [images dim], ``label`` and ``position`` [images], on the CPU.

    Rows are in the order of `examples`; those that cannot be read are left out.
    """
    encode = image_features if unit else raw_image_features
    batches = ExampleBatches(
        examples, preprocessor(clip), batch_size=batch_size, runtime=runtime, stage=stage, training=False
    )
    return training.features(
        lambda batch: {"feature": encode(clip, batch["image"]), "label": batch["label"]}, batches, runtime=runtime
    )


def preprocessor(clip: Clip) -> Callable[[Example, bool], Batch]:
    """`preprocess` as a method has it."""
    return lambda example, training: preprocess(clip, example)


# -- raw examples in a state --------------------------------------------------------------------------------


class Joined(Sequence[Example]):
    """Two sequences of Examples one after the other; nothing is read until it is asked for."""

    def __init__(self, first: Sequence[Example], second: Sequence[Example]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        n = len(self.first)
        return self.first[index] if index < n else self.second[index - n]


def pack_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Raw classification Examples as tensors and JSON: paths stay paths, arrays become tensors."""
    return [
        {"id": e.id, "inputs": {name: _packed(value) for name, value in e.inputs.items()}, "target": int(e.target)}
        for e in examples
    ]


def unpack_examples(packed: Sequence[dict[str, Any]]) -> Examples:
    """The Examples that `pack_examples` was given."""
    return Examples.of(
        [
            Example(
                id=item["id"],
                inputs={name: _unpacked(value) for name, value in item["inputs"].items()},
                target=item["target"],
            )
            for item in packed
        ]
    )


def _packed(value: Any) -> Any:
    if isinstance(value, Path):
        return {"path": str(value)}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return Path(value["path"])
    return value.numpy() if isinstance(value, Tensor) else value
