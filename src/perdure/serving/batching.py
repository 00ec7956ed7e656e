"""Requests of many at once become batches of one model: a bounded queue, and the one thread that owns the models.

Knows jobs, what may share a batch, and how long a batch waits. Does not know HTTP, nor where a model comes from.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import PerdureError, UnreadableExample
from perdure.images import open_image
from perdure.prediction import Loaded

Answer = dict[str, Any]
FAULTS = (
    PerdureError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a version or a request that cannot be dealt with may raise: the thread that owns the models goes on."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "HEIF")
"""What is opened of what strangers send: Pillow runs other programs for some others."""


class Full(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Job:
    """One input of a request."""

    model: Loaded
    """The model that the request was given when it came: a request never spans versions."""
    image: bytes | None
    text: str = ""
    top: int = 5
    task: str = ""
    name: str = ""
    """Digest of image and text: what the method draws for an input hangs on it."""
    pixel_limit: int = 50_000_000
    more: tuple[bytes, ...] = ()
    """Further images of the conversation."""
    said: tuple[tuple[str, str], ...] = ()
    """Its earlier turns."""
    future: Future[Answer] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory."""
        turns = sum(len(text) for _, text in self.said)
        return len(self.image or b"") + sum(map(len, self.more)) + len(self.text) + turns


class Batcher:
    """Answers jobs in batches, in a thread of its own.

    Args:
        most: inputs a batch.
        wait: seconds that a batch waits for requests that are being received, from its first job's arrival; nothing is
            waited for where none is.
        queue: jobs that may wait.
        queue_bytes: bytes that may wait.
        seen: called with the number of inputs and the seconds of each batch.
    """

    def __init__(
        self,
        *,
        most: int = 16,
        wait: float = 0.005,
        queue: int = 256,
        queue_bytes: int = 512 * 2**20,
        seen: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self.most, self.wait, self.queue, self.queue_bytes, self.seen = most, wait, queue, queue_bytes, seen
        self._jobs: deque[Job] = deque()
        self._bytes = 0
        self._idle: deque[Job] = deque()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._arriving = 0
        self._decoders = ThreadPoolExecutor(4, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the models' thread is at work."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of a request, all or none.

        Raises:
            Full: there is no room for them.
        """
        size = sum(job.size for job in jobs)
        with self._changed:
            if len(self._jobs) + len(jobs) > self.queue or (self._jobs and self._bytes + size > self.queue_bytes):
                raise Full
            self._jobs.extend(jobs)
            self._bytes += size
            self._changed.notify()

    def submit_idle(self, jobs: Sequence[Job]) -> int:
        """Queue jobs that are answered only while no other waits; as many as there is room for. Their number."""
        with self._changed:
            taken = list(jobs)[: max(self.most - len(self._idle), 0)]
            self._idle.extend(taken)
            self._changed.notify()
        return len(taken)

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """While a request is received: a batch may wait for it."""
        with self._changed:
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._changed.notify()

    def between_batches(self, errand: Callable[[], Any]) -> Future[Any]:
        """Run something in the models' thread, before the next batch."""
        future: Future[Any] = Future()
        with self._changed:
            self._errands.append((errand, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what is queued, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=30)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._errands or self._idle or self._closing)
                if not (self._jobs or self._errands) and (self._closing or not self._idle):
                    return
                errand = self._errands.popleft() if self._errands else None
                idle = not errand and not self._jobs
                batch = [] if errand else [self._idle.popleft()] if idle else self._collect()
            if errand:
                _run(*errand)
            elif batch:
                began = time.monotonic()
                self._answer(batch)
                if not idle:
                    self.seen(len(batch), time.monotonic() - began)

    def _collect(self) -> list[Job]:
        """The first job and those that may share its batch; waits for more. The condition is held."""
        first = self._jobs[0]
        key = (id(first.model), first.task)

        def fitting() -> list[Job]:
            return [job for job in self._jobs if (id(job.model), job.task) == key][: self.most]

        until = first.came + self.wait
        while len(chosen := fitting()) < self.most and self._arriving and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)
        taken = set(map(id, chosen))
        self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        self._bytes -= sum(job.size for job in chosen)
        return [job for job in chosen if job.future.set_running_or_notify_cancel()]  # dropped: nobody waits for it

    def _answer(self, batch: Sequence[Job]) -> None:
        opened = list(self._decoders.map(_decoded, batch))
        sound = []
        for job, image in zip(batch, opened):
            if isinstance(image, UnreadableExample):
                job.future.set_result({"error": image.what})
            else:
                sound.append((job, image))
        if not sound:
            return
        try:
            rows = _predicted(sound)
        except FAULTS as error:
            if len(sound) == 1:
                _refuse(sound[0][0], error)
                return
            for one in sound:  # one of them is at fault: the others are answered
                try:
                    one[0].future.set_result(_predicted([one])[0])
                except FAULTS as fault:
                    _refuse(one[0], fault)
            return
        for (job, _), row in zip(sound, rows, strict=True):
            job.future.set_result(row)


def _run(errand: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(errand())
    except FAULTS as error:
        future.set_exception(error)


def _decoded(job: Job) -> Any:
    """The image in RGB, a list of several, None without one, or what is wrong with it."""
    if job.image is None:
        return None
    try:
        how = {"where": "image", "pixel_limit": job.pixel_limit, "formats": FORMATS}
        opened = [open_image(image, **how) for image in (job.image, *job.more)]
        return opened if job.more else opened[0]
    except UnreadableExample as error:
        return error


def _predicted(sound: Sequence[tuple[Job, Any]]) -> list[Answer]:
    first = sound[0][0]
    given = [{"image": image, "text": job.text, "name": job.name, "said": _turns(job)} for job, image in sound]
    top = max(job.top for job, _ in sound)
    rows = first.model.predict(given, top=top, task=first.task, batch_size=len(given))
    return [_cut(row, job.top) for row, (job, _) in zip(rows, sound, strict=True)]


def _turns(job: Job) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in job.said]


def _cut(row: Answer, top: int) -> Answer:
    row = {name: value for name, value in row.items() if name != "file"}
    return row | {"answers": row["answers"][:top]} if "answers" in row else row


def _refuse(job: Job, error: Exception) -> None:
    if isinstance(error, PerdureError):
        job.future.set_result({"error": error.what})
    else:
        job.future.set_exception(error)
