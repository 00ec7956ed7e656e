"""Streams one after another, as one: what a run has become after its updates, from the beginning.

Knows the order of streams. Classes of a later stream that are known keep their labels (`perdure.streams.appending`);
whether tests name the task, and among which classes they ask, is as in the first stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Annotated

from pydantic import Field

from perdure.errors import RecipeError
from perdure.settings.config import Named
from perdure.streams import appending
from perdure.types import Stream


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a chain of streams."""

    parts: Annotated[tuple[Annotated[Named, "streams"], ...], Field(min_length=1)]
    """The streams, in their order."""
    tasks: Annotated[int, Field(ge=1)] | None = None
    """The first so many tasks of all alone; null: all. What a run had learned when a version was left."""


def build(config: Config) -> Stream:
    """All tasks of all streams.

    Raises:
        DataError: as the streams do, or classes of a later one cannot be told from known ones.
        RecipeError: there are fewer tasks than `tasks`.
    """
    whole = reduce(appending.append, [named.build() for named in config.parts])
    if config.tasks is None:
        return whole
    if config.tasks > len(whole):
        raise RecipeError(f"{len(whole)} tasks", where="stream.tasks", expected=f"at least {config.tasks}")
    return appending.first(whole, config.tasks)
