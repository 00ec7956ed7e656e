"""The model that answers now, and the change to a newly promoted version without a failed request.

Knows versions, the pointer file, and that a new model is loaded and tried beside the old one before it takes its place.
Does not know HTTP.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from perdure.errors import CheckpointError, PerdureError, RecipeError
from perdure.evaluate import read_records
from perdure.prediction import Loaded, load
from perdure.run_folder import versions
from perdure.run_folder.versions import Version
from perdure.serving import sharing
from perdure.serving.batching import FAULTS, Batcher
from perdure.types import Example
from perdure.updating import kept_tests

log = logging.getLogger("uvicorn.error")  # what the server itself says is shown there
KINDS = ("classify", "caption", "instruct")
"""Kinds that are served: their input is an image, or a text."""
PROBES = 20
"""Kept test examples that a version is tried on."""


class Served:
    """The models of one run: the one that answers, and others that are asked for by number.

    Args:
        address: the run, whose pointer is followed; or ``RUN@3``, which stays.
        keep: other versions that may be asked for, and are kept loaded; 0: none.
        stateful: allow methods whose answers depend on earlier requests.
        changed: called with each number that begins to answer.
        shadow: a version that is asked beside, ``candidate`` or a number; empty: none.
    """

    def __init__(
        self,
        address: str | Path,
        batcher: Batcher,
        *,
        device: str = "auto",
        keep: int = 1,
        every: float = 2.0,
        drain: bool = False,
        stateful: bool = False,
        changed: Callable[[int], None] = lambda number: None,
        shadow: str = "",
    ) -> None:
        self.run, wanted = versions.split(address)
        self.follows = wanted in ("", "current")
        self.batcher, self.device, self.keep, self.every, self.drain = batcher, device, keep, every, drain
        self.stateful, self.changed = stateful, changed
        self.model: Loaded | None = None
        self.refused: dict[str, Any] = {}
        """The newest version that could not be used: ``{"version", "why"}``."""
        self._others: dict[int, Loaded] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._seen = self._mark()  # before the pointer is read: a move meanwhile is seen later
        self.model = self._ready(versions.resolve(address).number)
        self.changed(self.model.version)
        self.wanted_shadow = shadow
        self.shadow: Loaded | None = None
        """The version that is asked beside the one that answers, if there is one."""
        self._not_beside: set[int | None] = set()
        """Versions that could not be."""
        self.see_shadow()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        if self.follows or shadow:
            self._thread.start()

    def close(self) -> None:
        self._ended.set()

    def other(self, number: int) -> Loaded:
        """Another version, loaded if it is not yet.

        Raises:
            RecipeError: there is none, or no other is to be asked.
        """
        model = self.model
        if model is not None and model.version == number:
            return model
        if not self.keep:
            raise RecipeError("other versions than the promoted one are not asked here", todo="Start it with --keep 1.")
        with self._lock:
            if number not in self._others:
                made = self._ready(versions.resolve(f"{self.run}{versions.AT}{number}").number)
                while len(self._others) >= self.keep:
                    del self._others[next(iter(self._others))]
                self._others[number] = made
            return self._others[number]

    def _ready(self, number: int) -> Loaded:
        """A version, loaded and tried once.

        Raises:
            RecipeError: it is of a kind that is not served, or its answers depend on earlier requests.
        """
        loaded = load(f"{self.run}{versions.AT}{number}", device=self.device)
        if loaded.kind not in KINDS or "segments" in loaded.facts():
            what = f"answers are of kind {loaded.kind}, about {'clips' if loaded.kind != 'retrieve' else 'a gallery'}"
            expected = f"a run that answers about images: {', '.join(KINDS)}"
            raise RecipeError(what, where=str(self.run), expected=expected, todo="Use perdure predict.")
        if getattr(loaded.opened.method, "carries_state", False) and not self.stateful:
            what = f"with {loaded.opened.recipe.method.name} an answer depends on the requests before it"
            raise RecipeError(what, where=str(self.run), todo="Add --stateful if that is meant.")
        version = versions.resolve(f"{self.run}{versions.AT}{number}")
        if self.model is not None:
            self.batcher.between_batches(lambda: self._share(loaded)).result()
        self.batcher.between_batches(lambda: try_out(loaded, version)).result()
        return loaded

    def _share(self, loaded: Loaded) -> None:
        """What a version has in common with the one that answers is in memory once."""
        if self.model is not None:
            shared = sharing.share(loaded.opened.method, self.model.opened.method)
            log.info("version %d shares %.1f MiB with version %d", loaded.version, shared / 2**20, self.model.version)

    def _follow(self) -> None:
        """Look at the pointer now and then; a file's number and time also tell a change on network folders."""
        while not self._ended.wait(self.every):
            if self.follows and (mark := self._mark()) != self._seen:
                self._seen = mark
                self.refresh()
            self.see_shadow()

    def see_shadow(self) -> None:
        """Load the version that is to be asked beside, if it is another than before; none where it cannot be used."""
        number = self._shadow_number()
        if number == (self.shadow.version if self.shadow else None) or number in self._not_beside:
            return
        self.shadow = None
        try:
            self.shadow = None if number is None else self._ready(number)
        except FAULTS as error:
            self._not_beside.add(number)
            log.error("version %s cannot be asked beside: %s", number, error)

    def _shadow_number(self) -> int | None:
        if not self.wanted_shadow or self.model is None:
            return None
        try:
            number = versions.resolve(f"{self.run}{versions.AT}{self.wanted_shadow}").number
        except PerdureError:  # no candidate now
            return None
        return None if number == self.model.version else number

    def refresh(self) -> None:
        """Change to the promoted version, if it is another; keep the old one if the new one cannot be used."""
        before = None if self.model is None else self.model.version
        try:
            number = versions.current(self.run)
            if before == number:
                self.refused = {}  # the pointer went back
                return
            if self.drain:
                self.model = None  # requests are refused until the new one is there
            began = time.monotonic()
            ready = self._ready(number)
        except FAULTS as error:
            self.refused = {"version": self._promoted(), "why": str(error)}
            log.error("version %s cannot be used: %s", self.refused["version"], error)
            if self.model is None and before is not None:
                self.model = self._ready(before)
            return
        self.refused, self.model = {}, ready  # in this order: nobody sees the new version refused
        self.changed(number)
        log.info("version %d answers since now (loaded in %.1f s)", number, time.monotonic() - began)

    def _promoted(self) -> int | None:
        try:
            return versions.current(self.run)
        except PerdureError:
            return None

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(versions.pointer_file(self.run))
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def try_out(loaded: Loaded, version: Version) -> None:
    """One answer to a grey image: loads what is loaded late, and fails where answers would. Then answers to kept test
    examples, which must be those that the version gave when it was tested.

    Raises:
        CheckpointError: more than a tenth of them (and more than one) are others.
    """
    given = {"image": Image.new("RGB", (64, 64), (128, 128, 128)), "text": "What is this?", "name": "probe"}
    (row,) = loaded.predict([given], batch_size=1)
    for one in row.get("answers", ()):
        value = one.get("probability", one.get("score"))
        if value != value:
            raise RuntimeError("its answer to a grey image is no number")
    known = list(_recorded(loaded, version))
    if not known:
        return
    asked = [{"image": example.inputs["image"], "name": example.id} for example, _ in known]
    rows = loaded.predict(asked, top=1, task=loaded.tasks[-1])
    wrong = sum(row["answers"][0]["class"] != name for row, (_, name) in zip(rows, known, strict=True))
    if wrong > max(1, len(known) // 10):
        what = f"{wrong} of {len(known)} answers to kept test examples differ from those recorded"
        raise CheckpointError(what, where=str(version), expected="what it answered when it was tested")


def _recorded(loaded: Loaded, version: Version) -> Iterator[tuple[Example, str]]:
    """Kept test examples of the last task with the class that was answered; none where the run keeps none."""
    if loaded.kind != "classify" or not loaded.tasks:
        return
    last = len(loaded.tasks) - 1
    file = version.folder / "predictions" / f"{last}_{last}.jsonl"
    kept = kept_tests.read(version, last)
    if kept is None or not file.is_file():
        return
    query = loaded.query(loaded.tasks[-1])
    answered = {record["id"]: record["predicted"] - query.offset for record in read_records(file)}
    found = (e for e in kept if e.id in answered and "image" in e.inputs and answered[e.id] < len(query.candidates))
    yield from ((example, query.candidates[answered[example.id]]) for example in islice(found, PROBES))
