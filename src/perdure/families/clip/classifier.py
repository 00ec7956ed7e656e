"""What methods that classify with CLIP share: prompts, classes across tasks, features of images and texts.

Knows templates, labels counted from a task's offset, and a loaded Clip. Does not know losses, stages or how a
method scores. Functions only; a Clip (`perdure.models.clip`) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.errors import CheckpointError, DataError, RecipeError
from perdure.layers import lora
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task

if TYPE_CHECKING:
    from perdure.models.clip import Clip, ClipTransform


class ImageTower(Protocol):
    """What features are taken from: a CLIP's image side, or an image backbone (`perdure.models.vit`)."""

    transform: ClipTransform

    def visual_parameters(self) -> Mapping[str, Tensor]: ...
    def provenance(self) -> dict[str, Any]: ...

    @property
    def dim(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def image_features(self, pixels: Float[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]: ...


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
    """Ids up to the longest text's end: the same features as all 77 positions, for a sixth of the work.

    Raises:
        DataError: different texts have the same ids, because the tokenizer does not know their words.
    """
    ids = clip.cut(clip.tokenize(texts))
    first: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, ids.tolist()):
        other = first.setdefault(tuple(row), text)
        if other.lower() != text.lower():
            raise DataError(
                f"to this CLIP the prompts {other!r} and {text!r} are the same: its vocabulary lacks the words",
                where=f"weights {clip.source.name}" if clip.source else "",
                todo="Take a CLIP with a larger vocabulary, or other class names.",
            )
    return ids.to(device)


def require_distinct(clip: Clip, names: Sequence[str], texts: Sequence[str]) -> None:
    """Raise a DataError where classes of different names have prompts that are the same to this CLIP.

    Args:
        texts: the prompt of each class. A name that a data set itself has twice (ImageNet's `missile`) passes.
    """
    first: dict[tuple[int, ...], int] = {}
    for here, row in enumerate(clip.cut(clip.tokenize(texts)).tolist()):
        there = first.setdefault(tuple(row), here)
        if names[there] == names[here]:
            continue
        same = texts[there].lower() == texts[here].lower()
        why = "they differ in nothing that it reads" if same else "its vocabulary lacks the words"
        raise DataError(
            f"to this CLIP the prompts of the classes {names[there]!r} and {names[here]!r} are the same: {why}",
            where=f"weights {clip.source.name}" if clip.source else "",
            expected=f"prompts that differ, found {texts[there]!r} and {texts[here]!r}",
            todo="Give one of them another name" + ("." if same else ", or take a CLIP with a larger vocabulary."),
        )


class OfNames:
    """A method that tells classes apart by their prompts, and refuses names for which this CLIP cannot."""

    config: Any
    """With `template` and `clean_names`."""
    clip: Any
    """None where classes are rows of a head."""

    def require_names(self, names: Sequence[str]) -> None:
        """Raise a DataError where two of the classes that a test may ask among have the same prompt."""
        if self.clip is not None:
            texts = prompts(self.config.template, names, clean=self.config.clean_names)
            require_distinct(self.clip, names, texts)


# -- what is trained ----------------------------------------------------------------------------------------


def trainable(
    clip: Clip, weights: Literal["lora", "all"], *, mode: str, rank: int, alpha: float
) -> dict[str, nn.Parameter]:
    """Parameters that a fine-tuning method trains, by name: new LoRA adapters, or all weights but the logit scale."""
    if weights == "lora":
        return lora.add_clip_lora(clip.model, mode=mode, r=rank, alpha=alpha)
    clip.model.requires_grad_(True)
    clip.model.logit_scale.requires_grad_(False)
    return {name: p for name, p in clip.model.named_parameters() if p.requires_grad}


def copy_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies by name."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def restore_parameters(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Put copies back, in place.

    Raises:
        CheckpointError: other names or shapes.
    """
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in saved.items()}:
        raise CheckpointError("the saved weights have other names or shapes", todo="Use the settings of the run.")
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


class FitSettings(Protocol):
    """What `fit` reads of a method's settings."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...


def fit(
    loss: training.Loss,
    parameters: Mapping[str, nn.Parameter],
    clip: Clip,
    examples: Sequence[Example],
    settings: FitSettings,
    *,
    runtime: Runtime,
) -> None:
    """Adam over the images, stage ``train``; the learning rate falls to a hundredth as a cosine, epoch by epoch."""
    batches = ExampleBatches(
        examples,
        Preprocessor(clip.transform),
        batch_size=settings.batch_size,
        runtime=runtime,
        stage="train",
        training=True,
    )
    how = training.Fit(epochs=settings.epochs, lr=settings.lr, schedule="cosine_epoch", accumulate=settings.accumulate)
    training.fit(loss, parameters, batches, how, runtime=runtime, stage="train")


def logits(
    clip: Clip, pixels: UInt8[Tensor, "images 3 size size"], ids: Int[Tensor, "classes tokens"]
) -> Float[Tensor, "images classes"]:
    """CLIP's logits, with gradients through both towers."""
    return clip.scale * unit_image_features(clip, pixels) @ text_features(clip, ids).T


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
    known = task.train.targets if labels is None else labels
    present = set(known.tolist() if isinstance(known, Tensor) else known)
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


class Taught:
    """The classes that a task teaches, new ones and those that come again, as columns of their own."""

    def __init__(self, task: Task) -> None:
        self.labels = task.labels
        self._sorted = torch.tensor(self.labels)

    def names(self, classes: Sequence[str]) -> list[str]:
        """Their names, of all classes by label."""
        return [classes[label] for label in self.labels]

    def places(self, labels: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
        """The column of each label."""
        return torch.searchsorted(self._sorted.to(labels.device, non_blocking=True), labels)


def replace_rows(
    table: Float[Tensor, "classes ..."], rows: Float[Tensor, "new ..."], *, first: int
) -> Float[Tensor, "seen ..."]:
    """The table with `rows` from row `first` on (appended, or in place of those that were there), on the CPU."""
    table, rows = table.cpu(), rows.detach().cpu()
    return torch.cat([table[:first], rows, table[first + len(rows) :]])


def class_means(
    features: Float[Tensor, "images dim"], labels: Int[Tensor, " images"], classes: Sequence[int]
) -> Float[Tensor, "classes dim"]:
    """Mean feature of each class, not normalised again, in the order of `classes`; all must be present."""
    return torch.stack([features[labels == label].mean(0) for label in classes]) if classes else features[:0]


def widen(
    scores: Float[Tensor, "images known"], *, classes: int, fill: float = -torch.inf
) -> Float[Tensor, "images classes"]:
    """Scores with a column of `fill` for each class that a query asks for and that is not known yet."""
    absent = scores.new_full((len(scores), classes - scores.shape[1]), fill)
    return torch.cat([scores, absent], dim=1)


# -- features -----------------------------------------------------------------------------------------------


def preprocess(clip: Clip, example: Example) -> Batch:
    """``{"image": uint8 [3 size size], "label": int}``; no label where the example has no target."""
    return Preprocessor(clip.transform)(example, False)


def raw_image_features(tower: ImageTower, pixels: UInt8[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]:
    """Projected features of pixels that `preprocess` gave, not normalised."""
    return tower.image_features(tower.transform.normalize(pixels))


def unit_image_features(tower: ImageTower, pixels: UInt8[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]:
    """Unit features of pixels that `preprocess` gave."""
    return F.normalize(raw_image_features(tower, pixels), dim=1)


def text_features(clip: Clip, ids: Int[Tensor, "classes tokens"]) -> Float[Tensor, "classes dim"]:
    """Unit features of token ids, with gradients."""
    return F.normalize(clip.text_features(ids), dim=1)


@torch.no_grad()
def encode_prompts(clip: Clip, texts: Sequence[str], *, batch_size: int = 256) -> Float[Tensor, "classes dim"]:
    """Unit features of prompts, without gradients."""
    ids = tokenize(clip, texts, clip.device)
    return F.normalize(torch.cat([clip.text_features(part) for part in ids.split(batch_size)]), dim=1)


def text_predictor(
    clip: Clip,
    template: str,
    query: Query,
    *,
    clean: bool = False,
    seen: Callable[[Batch], Float[Tensor, "images dim"]] | None = None,
) -> Callable[[Batch], Float[Tensor, "images classes"]]:
    """CLIP's own answer: logits of images against the prompts of a query's classes, which are encoded once.

    Args:
        seen: unit features of a batch; None: of its images.
    """
    seen = seen or (lambda batch: unit_image_features(clip, batch["image"]))
    texts = encode_prompts(clip, prompts(template, query.candidates, clean=clean))

    def predict(batch: Batch) -> Tensor:
        return clip.scale * seen(batch) @ texts.T

    return predict


def encode_images(
    tower: ImageTower,
    examples: Sequence[Example],
    *,
    batch_size: int,
    runtime: Runtime,
    unit: bool = True,
    stage: str = "features",
) -> dict[str, Tensor]:
    """One pass of an image tower as it is: ``feature`` [images dim], ``label`` and ``position`` [images], on the CPU.

    Rows are in the order of `examples`; those that cannot be read are left out. A tower that stays as it is goes by
    `frozen_tower`, whose features are kept.
    """
    encode = unit_image_features if unit else raw_image_features
    batches = ExampleBatches(
        examples, Preprocessor(tower.transform), batch_size=batch_size, runtime=runtime, stage=stage, training=False
    )
    return training.features(
        lambda batch: {"feature": encode(tower, batch["image"]), "label": batch["label"]}, batches, runtime=runtime
    )


@dataclass(frozen=True)
class Preprocessor:
    """`preprocess` as a loader takes it; holds the transform alone, so that little travels to a worker."""

    transform: ClipTransform

    def __call__(self, example: Example, training: bool) -> Batch:
        pixels = self.transform.pixels(example.inputs["image"])
        return {"image": pixels} if example.target is None else {"image": pixels, "label": int(example.target)}


class Joined(Sequence[Example]):
    """Two sequences of Examples one after the other; nothing is read until it is asked for."""

    def __init__(self, first: Sequence[Example], second: Sequence[Example]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        n = len(self.first)
        return self.first[index] if index < n else self.second[index - n]
