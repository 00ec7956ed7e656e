"""Settings that move no number: a run goes on under others, and a report does not list them.

Knows settings by their dotted names. Does not know recipes or runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_RUN = frozenset(
    {
        "out",
        "name",
        "device",
        "workers",
        "save_every",
        "keep",
        "trackers",
        "threads",
        "seeds",
        "features",
        "compile",
        "unreadable",
    }
)
"""Settings of `run`. What `unreadable` left out is named in the card."""
OF_METHODS = frozenset({"accumulate", "at_once", "chunk", "generate_batch", "encode_batch_size"})
"""How much is worked on at once, beside `evaluate.batch_size`."""
BESIDE_PUBLISHED = frozenset(
    {
        "run.seed",
        "evaluate.plan",
        "evaluate.start",
        "evaluate.metrics",
        "evaluate.retention",
        "evaluate.save_predictions",
    }
)
"""What makes a replicate, or measures more, of what a published number is of."""


def moves_no_number(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a run goes on to the same numbers, up to rounding, with another value of a setting.

    Args:
        name: dotted; the place of data (`stream.data.root`) is one, for data are compared by their fingerprints.
        settings: all of the run's, by dotted name.
    """
    section, _, rest = name.partition(".")
    group, _, key = rest.rpartition(".")
    if section == "run":
        return rest in OF_RUN
    if section == "stream":
        return key == "root"
    by_token = settings.get(f"method.{group}.mean") == "token"  # a mean over the tokens of each part of a batch
    return name == "evaluate.batch_size" or (
        section == "method" and key in OF_METHODS and not (key == "accumulate" and by_token)
    )
