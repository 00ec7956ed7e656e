"""What an experiment looks at, and what it found.

Knows the parts of a run that experiments ask for, and the four verdicts. Does not know the experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from perdure.runtime import Runtime
from perdure.types import Evaluation, Stream

Verdict = Literal["passes", "leaks", "by protocol", "not applicable"]
"""`by protocol`: what would be a leak is what the method or the stream says of itself, as an online method's adapting
to the tests in their order."""


FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a method may raise where it is asked in a way that it does not know: no leak, and no end of the audit."""


class Finding(NamedTuple):
    """Of one experiment."""

    check: str
    """What should hold, in words."""
    done: str
    seen: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A method as a run left it, and what else is known of the run."""

    method: Any
    make: Callable[[], Any]
    """A fresh method, as the run began with."""
    stream: Stream
    done: int
    """Tasks that the method has learned."""
    evaluation: Evaluation
    runtime: Runtime
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All of the recipe, by dotted name."""
    card: Mapping[str, Any] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    """Of the run, and of runs of the same recipe with other seeds."""
    count: int = 32
    """Test examples that are asked in each experiment."""
