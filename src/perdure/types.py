"""The nouns of perdure: Example, Dataset, Task, Stream, Query, Method.

Knows what a continual or test-time problem is made of. Does not know files, models, optimisers or
metrics, and imports neither torch nor numpy, so that recipes can be checked in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, overload, runtime_checkable

from pydantic import Field

from perdure.errors import RecipeError
from perdure.settings.config import Named

if TYPE_CHECKING:
    from perdure.runtime import Runtime

Kind = str
"""What is asked, a kind of question that a method may answer: ``classify``, ``retrieve``, ``caption``, ``instruct``,
``localize-events``, ``parse-video``, ``segment``, ``answer``, or one that another package adds (`perdure.metrics`)."""

Batch = Mapping[str, Any]
"""Named tensors (or lists) of several examples: what `preprocess` gave for each, stacked."""

Predictions = Any
"""What a predictor returns for a batch, one entry an example: a score matrix ``[examples, candidates]``
for `classify` and `retrieve`, a list of strings for `caption`, `instruct`; see `perdure.metrics`."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How, and which, tasks are tested after each task."""

    plan: Literal["seen", "current", "all", "last", "seen+next"] = "seen"
    """Tasks tested after each task: those seen so far, the current one, all, all but only at the end (`last`), or
    those seen and the next."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Test examples at a time."""
    split: Literal["test", "validation"] = "test"
    """Which examples of a task are used."""
    order: Literal["dataset", "shuffled", "dirichlet"] = "dataset"
    """Order of the test examples: the data set's; one that hangs on the run's seed; or one in which classes come in
    bursts (label shift). It moves a number only for methods that carry state from sample to sample, and there it is the
    main noise."""
    concentration: Annotated[float, Field(gt=0)] = 0.1
    """With `order: dirichlet`: each class is spread over as many stretches of the test as there are classes, in shares
    drawn from a Dirichlet distribution; the smaller, the shorter its bursts."""
    start: bool = False
    """Also test before the first task is learned."""
    save_predictions: bool = True
    """Keep a record of each test example in `predictions/`."""
    metrics: tuple[str, ...] = ()
    """Measured beside those of each task: names of `perdure list metrics`, or files (`./mine.py`)."""
    retention: tuple[Annotated[Named, "data"], ...] = ()
    """Sets of images that the stream does not teach, asked by the names of their classes before the first task and
    after each: what the model knew and still knows. Of methods with CLIP's texts."""
    shard: Annotated[str, Field(pattern=r"^(\d+/\d+)?$")] = ""
    """Ask only one of so many parts, `2/8`: of each test set whole batches; of a method that begins anew with each set
    and carries state within it, whole sets. `perdure sweep --shards 8` runs all parts and puts them together."""

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.shard and not 1 <= int(self.shard.partition("/")[0]) <= int(self.shard.partition("/")[2]):
            yield "shard", f"expected a part from 1 on and the number of parts, as in 2/8, found {self.shard}"


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Whether, after each task, weights between those that it found and earlier ones are used."""

    how: Literal["none", "base", "previous", "magmax"] = "none"
    """`base`: with the weights before the first task (WiSE-FT); `previous`: with those before this task; `magmax`: each
    number from the task that changed it most."""
    weight: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of what was learned; 1 leaves it as it is. `auto`: the best on validation examples of all tasks so far."""
    keep_validation: Annotated[int, Field(ge=1)] = 200
    """With `auto`: validation examples that are kept of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One item as it is on disk: nothing is decoded, resized or tokenised yet."""

    id: str
    """Unique within its data set, the same on every machine (a relative path, an annotation id)."""
    inputs: Mapping[str, Any]
    """Raw inputs by name: ``{"image": Path | uint8 array [height, width, 3]}``, ``{"text": str}`` ..."""
    target: Any = None
    """The truth: a class label, a list of captions, an answer ..."""
    group: str = ""
    """Who or what it is of (a patient, a video), where several examples are: they are split and judged together."""


class Examples(Sequence[Example]):
    """A lazy, read-only sequence of Examples whose targets are known without making them.

    ``make(i, target)`` builds the i-th Example. `select` and `relabel` give views in O(n) integers.
    """

    def __init__(
        self,
        make: Callable[[int, Any], Example],
        targets: Sequence[Any],
        *,
        indices: Sequence[int] | None = None,
    ) -> None:
        self._make = make
        self.targets: list[Any] = list(targets)
        """One target an example, in order."""
        self._indices = list(range(len(self.targets))) if indices is None else list(indices)
        assert len(self._indices) == len(self.targets)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Examples:
        """Examples that exist already."""
        items = list(examples)
        return cls(_Listed(items), [e.target for e in items])

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._make(self._indices[index], self.targets[index])

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def select(self, positions: Sequence[int]) -> Examples:
        """The examples at these positions, in this order."""
        return Examples(
            self._make,
            [self.targets[i] for i in positions],
            indices=[self._indices[i] for i in positions],
        )

    def relabel(self, new: Callable[[Any], Any]) -> Examples:
        """The same examples with ``new(target)`` as target."""
        return Examples(self._make, [new(t) for t in self.targets], indices=self._indices)

    def prefixed(self, prefix: str) -> Examples:
        """The same examples with `prefix` before their ids."""
        return Examples(_Prefixed(self._make, prefix), self.targets, indices=self._indices)


@dataclass(frozen=True)
class _Prefixed:
    """Makes Examples with other ids (a class, so that loader workers can receive it)."""

    make: Callable[[int, Any], Example]
    prefix: str

    def __call__(self, index: int, target: Any) -> Example:
        made = self.make(index, target)
        return replace(made, id=self.prefix + made.id)


@dataclass(frozen=True)
class _Listed:
    """Makes Examples out of a list (a class, not a closure, so that loader workers can receive it)."""

    items: list[Example]

    def __call__(self, index: int, target: Any) -> Example:
        item = self.items[index]
        return item if item.target is target else replace(item, target=target)


NO_EXAMPLES = Examples.of([])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a reader of `perdure.data` returns: splits of Examples as they are on disk."""

    name: str
    kind: Kind
    candidates: tuple[str, ...] = ()
    """Class names by label for `classify`; what may be answered, in general."""
    train: Examples = NO_EXAMPLES
    validation: Examples = NO_EXAMPLES
    test: Examples = NO_EXAMPLES
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready facts worth a line in the result card (source, counts, fingerprint of the file list)."""

    @property
    def called(self) -> str:
        """What a task of it is called where nobody says: its folder, else its name."""
        return str(self.facts.get("folder") or self.name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One step of a stream. For test-time adaptation `train` is empty."""

    index: int
    name: str
    kind: Kind
    candidates: tuple[str, ...] = ()
    """The answers that this task brings (class names)."""
    offset: int = 0
    """Label of ``candidates[0]``. Targets of this task lie in offset .. offset + len(candidates) - 1; or they are
    labels of earlier tasks, below the offset, whose classes come again."""
    train: Examples = NO_EXAMPLES
    validation: Examples = NO_EXAMPLES
    test: Examples = NO_EXAMPLES
    metrics: tuple[str, ...] = ("accuracy",)
    """Names in `perdure.metrics`; the first is the headline."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a method may know of the task beyond its examples (vocabularies, domain, severity)."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that a task of kind `classify` teaches, sorted: those of its candidates, and those of earlier
        classes of which it has training examples."""
        return tuple(sorted({*self.train.targets, *range(self.offset, self.offset + len(self.candidates))}))


@dataclass(frozen=True, kw_only=True)
class Query:
    """What evaluation asks of a method: hashable, so that a predictor is made once per distinct query."""

    kind: Kind
    candidates: tuple[str, ...] = ()
    """The permitted answers, by label: score column i stands for label ``offset + i``."""
    offset: int = 0
    task: str | None = None
    """The task's name where the protocol reveals it (task-incremental), else None."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An ordered sequence of tasks and two facts of the protocol."""

    name: str
    tasks: tuple[Task, ...]
    shared_candidates: bool = True
    """Class-incremental: every test asks among all candidates of `scope`."""
    task_revealed: bool = False
    """Task-incremental: the query names the task and offers only its candidates."""
    scope: Literal["seen", "all"] = "seen"
    """Candidates of a query: of the tasks learned so far (and the asked one), or of all tasks."""
    retention: tuple[Task, ...] = ()
    """Sets of images that are asked after each task and never taught (`perdure.retention`)."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready: all that is needed to build the same stream again (order, cuts, example ids)."""

    def __post_init__(self) -> None:
        """Raises RecipeError where score columns could not stand for labels: see `_by_label`."""
        if self.shared_candidates and not self.task_revealed:
            for kind in dict.fromkeys(task.kind for task in self.tasks):
                of_kind = [task for task in self.tasks if task.kind == kind]
                for end in [len(of_kind)] if self.scope == "all" else range(1, len(of_kind) + 1):
                    _by_label(of_kind[:end])

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def query(self, asked: Task, *, after: int) -> Query:
        """The question put to a method that has learned tasks 0..after when `asked` is tested (-1: none)."""
        if self.task_revealed or not self.shared_candidates:
            name = asked.name if self.task_revealed else None
            return Query(kind=asked.kind, candidates=asked.candidates, offset=asked.offset, task=name)
        last = len(self.tasks) - 1 if self.scope == "all" else max(after, asked.index)
        return Query(kind=asked.kind, candidates=_by_label(t for t in self.tasks[: last + 1] if t.kind == asked.kind))


def _by_label(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Candidates of several tasks, each at its label.

    Raises:
        RecipeError: labels do not begin at 0 and go on without a gap.
    """
    named = {task.offset + i: name for task in tasks for i, name in enumerate(task.candidates)}
    missing = next((label for label in range(len(named)) if label not in named), None)
    if missing is not None:
        raise RecipeError(
            f"no task seen has the label {missing}, and one has {max(named)}",
            where="stream",
            expected="offsets at which the labels of the tasks so far begin at 0 and have no gap",
            todo="Number the classes in the order of the tasks, or set scope='all' if a later task has that label.",
        )
    return tuple(named[label] for label in range(len(named)))


@runtime_checkable
class Method(Protocol):
    """Settings, models and what has been learned. See docs/add-a-method.md."""

    Config: ClassVar[type]
    """Frozen keyword-only dataclass: every setting, with a docstring under each field."""
    answers: ClassVar[frozenset[Kind]]
    """The kinds of Query it can answer."""
    # Optional, read with getattr:
    #   adapts = True         prediction needs gradients
    #   carries_state = True  state survives from test sample to test sample; with stream_state() -> dict and
    #                         load_stream_state(dict) a stopped test goes on where it stood
    #   test_batch            test examples that answers are made from at once, whatever evaluate.batch_size says;
    #                         0: a whole test set
    #   encode(batch), encoder()   frozen features in place of a batch, and what they depend on: perdure.features
    #   merged(how) -> Mapping[str, Parameter]   weights that `merge` may put between trained and earlier ones
    #   head_grows = frozenset({"net"})  roles whose head gets more outputs when an update brings more classes
    #   not_merged = "..."       why weights are not merged with earlier ones (`merge`); else `merged` says which are
    #   not_updatable = "..."    why what was learned cannot be updated with a later task (`perdure update`)
    #   require_names(names)     DataError where it cannot tell classes that a test asks among apart by their names
    #   new_labels_only = "..."  why a task may not bring examples of earlier tasks' classes
    #   needs_task_name       kinds that it answers only where the query names the task (a frozenset)
    #   one_role_of           optional roles of which exactly one is given (a frozenset)
    #   scores_are = "logits"  of `classify`; or logits_of(scores): their softmax is what `perdure predict` shows
    #   index(query) -> dict       tensors of features of what a query searches in; predictor(query, them) takes them
    #   collate(items) -> Batch    where stacking is not enough
    #   export(folder) -> str      writes what plain transformers / peft load; returns the Python lines that do
    #   facts() -> dict            JSON-ready extras for the result card (extra parameters, bytes)

    def __init__(self, config: Any, **roles: Any) -> None: ...

    def preprocess(self, example: Example, training: bool) -> Batch:
        """Raw example -> tensors without a batch axis. Runs in loader workers; no model, no device.
        Its randomness comes from torch's global generator, which the loader keys per sample."""
        ...

    def learn(self, task: Task, runtime: Runtime) -> None: ...

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        """A function of a batch; all that depends on the query alone is done here, once."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of tensors and JSON values: all that `learn` changed."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
