"""Images among texts and texts among images, to test retrieval with: one task a direction and data set.

Knows data sets of kind `caption`, the two galleries and the cleaning of texts. Does not know images or methods. Nothing
is learned: the tasks have no training examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named
from perdure.streams import selection
from perdure.types import Dataset, Example, Examples, Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of retrieval tests."""

    data: Annotated[tuple[Annotated[Named, "data"], ...], Field(min_length=1)]
    """Data sets of images with captions."""
    names: tuple[str, ...] = ()
    """A name for each data set; empty: its own."""
    directions: tuple[Literal["image_to_text", "text_to_image"], ...] = ("image_to_text", "text_to_image")
    """What is asked with, and what is searched."""
    clean: bool = True
    """Lower case, no punctuation but commas, at most fifty words, as is usual for COCO and Flickr30k."""
    captions_per_image: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many captions of an image; null: all."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many images of a data set."""

    def faults(self):
        if self.names and len(self.names) != len(self.data):
            yield "names", f"{len(self.names)} names for {len(self.data)} data sets"


def build(config: Config) -> Stream:
    """One task for each data set and direction; every task asks in its own gallery.

    Raises:
        RecipeError: a data set has no captions.
        DataError: a data set has no test image.
    """
    datasets = [named.build() for named in config.data]
    names = list(config.names) or [_name(dataset) for dataset in datasets]
    tasks: list[Task] = []
    for name, dataset in zip(names, datasets):
        for direction in config.directions:
            tasks.append(_task(len(tasks), name, dataset, direction, config))
    return Stream(
        name=f"retrieval: {', '.join(names)}",
        tasks=tuple(tasks),
        shared_candidates=False,
        manifest={
            "stream": "retrieval",
            "source": [named.plain() for named in config.data],
            "data": [selection.identity(dataset) for dataset in datasets],
            "tasks": [{"name": t.name, "queries": len(t.test), "gallery": len(t.candidates)} for t in tasks],
        },
    )


def _task(index: int, name: str, dataset: Dataset, direction: str, config: Config) -> Task:
    if dataset.kind != "caption":
        raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where="stream.data", expected="kind caption")
    chosen = dataset.test[: config.limit] if config.limit else dataset.test
    if not len(chosen):
        raise DataError("no test images", where=f"{dataset.name}, {name}", expected="a gallery to search in")
    texts = [[_clean(text, config) for text in said[: config.captions_per_image]] for said in chosen.targets]
    flat = [text for said in texts for text in said]
    owner = [image for image, said in enumerate(texts) for _ in said]
    if direction == "image_to_text":
        candidates, test = tuple(flat), chosen.relabel(_Places(texts))
    else:
        candidates, test = _named(chosen), _queries(chosen, texts, owner)
    return Task(
        index=index,
        name=f"{name} {direction.replace('_', ' ')}",
        kind="retrieve",
        candidates=candidates,
        test=test,
        metrics=("recall_1", "recall_5", "recall_10", "recall_mean"),
        facts={"images": len(chosen), "texts": len(flat)},
    )


class _Places:
    """Captions of one image after another -> where they stand in the gallery of texts."""

    def __init__(self, texts: list[list[str]]) -> None:
        self.counts, self.next = [len(said) for said in texts], 0
        self.image = 0

    def __call__(self, _: Any) -> list[int]:
        first = self.next
        self.next += self.counts[self.image]
        self.image += 1
        return list(range(first, self.next))


def _named(chosen: Examples) -> tuple[Any, ...]:
    """The images as candidates."""
    from perdure.images import NamedImage

    return tuple(NamedImage(example.id, example.inputs["image"]) for example in chosen)


def _queries(chosen: Examples, texts: list[list[str]], owner: list[int]) -> Examples:
    """One example a caption; its target is its image's place."""
    ids = [f"{chosen[image].id}#{i}" for image, said in enumerate(texts) for i in range(len(said))]
    flat = [text for said in texts for text in said]
    return Examples.of(
        [Example(id=name, inputs={"text": text}, target=image) for name, text, image in zip(ids, flat, owner)]
    )


def _clean(text: str, config: Config) -> str:
    from perdure.data.captions import retrieval_text

    return retrieval_text(text) if config.clean else text


def _name(dataset: Dataset) -> str:
    style = dataset.facts.get("style")
    return f"{dataset.name} {style}" if style else dataset.name
