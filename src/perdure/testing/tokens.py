"""What a language model will read of a recipe's training examples, token by token, and which of it is learned.

Knows the first example of each task, and a model's processor; no weight is loaded. Does not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perdure.errors import RecipeError
from perdure.models.language_model import IGNORE, LanguageModel
from perdure.recipe import Recipe
from perdure.settings import config, registry
from perdure.types import Stream, Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighboring tokens of one kind."""

    text: str
    """As the tokenizer writes them; empty for an image's."""
    tokens: int
    learned: bool
    image: bool


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training example as tokens."""

    task: str
    name: str
    """Of the example."""
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def learned(self) -> int:
        """Tokens that the loss is taken of."""
        return sum(part.tokens for part in self.parts if part.learned)

    @property
    def of_images(self) -> int:
        return sum(part.tokens for part in self.parts if part.image)


def conversations(asked: Recipe, stream: Stream) -> Iterator[Conversation]:
    """The first training example of each task.

    Raises:
        RecipeError: the recipe has no language model.
        UnreadableExample: nothing of an example could be learned.
    """
    llm = _language_model(asked)
    for task in stream:
        if len(task.train):
            yield _read(llm, task)


def _language_model(asked: Recipe) -> LanguageModel:
    named = asked.models.get("llm")
    module: Any = None if named is None else registry.load("models", named.name)
    if named is None or not hasattr(module, "without_weights"):
        raise RecipeError(
            f"method {asked.method.name} reads no conversations",
            where="models.llm",
            expected="a recipe with a model in the role `llm`",
        )
    settings = config.parse(registry.settings("models", named.name), named.settings, where="models.llm")
    llm = module.without_weights(settings)
    method: Any = config.parse(registry.settings("methods", asked.method.name), asked.method.settings, where="method")
    if hasattr(method, "tuning"):
        llm.max_length = method.tuning.max_length
    return llm


def _read(llm: LanguageModel, task: Task) -> Conversation:
    example = task.train[0]
    item = llm.preprocess(example, True)
    ids, labels = item["input_ids"].tolist(), item["labels"].tolist()
    kinds = [(label != IGNORE, i in llm.image_tokens) for i, label in zip(ids, labels)]
    starts = [i for i in range(len(ids)) if i == 0 or kinds[i] != kinds[i - 1]]
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(ids)]):
        learned, image = kinds[start]
        text = "" if image else _text(llm.tokenizer, ids, start, stop)
        parts.append(Part(text=text, tokens=stop - start, learned=learned, image=image))
    return Conversation(task=task.name, name=example.id, parts=tuple(parts))


def _text(tokenizer: Any, ids: list[int], start: int, stop: int) -> str:
    """The text of some tokens where they stand: some tokenizers drop the space before the first of a text."""

    def decoded(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    before, upto = decoded(ids[:start]), decoded(ids[:stop])
    return upto[len(before) :] if upto.startswith(before) else decoded(ids[start:stop])
