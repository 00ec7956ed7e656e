"""Streams one after another, as one: what a run has become after its updates, from the beginning.

Knows the order of streams. Classes of a later stream that are known keep their labels (`perdure.streams.appending`);
whether tests name the task, and among which classes they ask, is as in the first stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Annotated

from pydantic import Field

from perdure.settings.config import Named
from perdure.streams import appending
from perdure.types import Stream


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a chain of streams."""

    parts: Annotated[tuple[Annotated[Named, "streams"], ...], Field(min_length=1)]
    """The streams, in their order."""


def build(config: Config) -> Stream:
    """All tasks of all streams.

    Raises:
        DataError: as the streams do, or classes of a later one cannot be told from known ones.
    """
    return reduce(appending.append, [named.build() for named in config.parts])
