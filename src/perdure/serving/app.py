"""The endpoints: answers, health, versions, figures, feedback, and a page.

Knows HTTP, one run's models and their batcher. Does not know methods. It sends nothing to anybody, follows no address
that a request names, and writes nothing but the inbox, where that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perdure.errors import BusyError, DataError, PerdureError
from perdure.prediction import Loaded
from perdure.run_folder import promoting, versions
from perdure.serving import asked as asking
from perdure.serving import chat
from perdure.serving.asked import Asked, Limits
from perdure.serving.batching import FAULTS, Batcher, Full, Job
from perdure.serving.following import Served
from perdure.serving.inbox import Inbox
from perdure.serving.measured import TYPE, Measured

VERSION_HEADER = "X-Perdure-Version"
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is served."""

    device: str = "auto"
    max_batch: int = 16
    max_wait_ms: float = 5.0
    queue: int = 256
    keep: int = 1
    """Other versions that may be asked for."""
    every: float = 2.0
    """Seconds between looks at the pointer."""
    drain: bool = False
    """Let the old version go before the new one is loaded: requests are refused meanwhile."""
    stateful: bool = False
    inbox: bool = False
    """Take feedback."""
    promote: bool = False
    """Let who has the token promote versions."""
    shadow: str = ""
    """A version that is asked beside the one that answers: ``candidate``, or a number. Its answers are compared."""
    token: str = ""
    """What a request must bring as ``Authorization: Bearer``; empty: nothing."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]", "::1")
    """Names under which it may be called: a page elsewhere cannot make a browser call it by another."""
    answer_seconds: float = 120.0
    """A request that waits longer for its answer is refused."""
    limits: Limits = field(default_factory=Limits)


def make(address: str | Path, settings: Settings) -> Starlette:
    """The application; the run is loaded and tried here.

    Raises:
        RecipeError: there is no such version, or the run is of a kind that is not served.
    """
    service = Service(address, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    routes = [
        Route("/", service.page),
        Route("/predict", service.measured_as("/predict", service.predict), methods=["POST"]),
        Route("/feedback", service.measured_as("/feedback", service.feedback), methods=["POST"]),
        Route("/v1/chat/completions", service.measured_as("/v1/chat/completions", service.chat), methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/versions/{number}/promote", service.promote, methods=["POST"]),
        Route("/health", service.health),
        Route("/versions", service.versions),
        Route("/metrics", service.metrics),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[hosts], exception_handlers={HTTPException: _refused})
    app.state.service = service
    return app


class Service:
    """One run, answering."""

    def __init__(self, address: str | Path, settings: Settings) -> None:
        self.settings = settings
        self.batcher = Batcher(
            most=settings.max_batch,
            wait=settings.max_wait_ms / 1000,
            queue=settings.queue,
            seen=lambda count, seconds: self.figures.batch(count, seconds),
        )
        self.figures = Measured(lambda: len(self.batcher))
        self.served = Served(
            address,
            self.batcher,
            device=settings.device,
            keep=settings.keep,
            every=settings.every,
            drain=settings.drain,
            stateful=settings.stateful,
            changed=self.figures.answers,
            shadow=settings.shadow,
        )
        self.name = _name(self.served.run)
        self.inbox = Inbox(self.served.run) if settings.inbox else None

    def close(self) -> None:
        self.served.close()
        self.batcher.close()

    # -- endpoints ----------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Answers in the order of the inputs; what cannot be read has an ``error`` of its own."""
        self._admit(request)
        model = await self._model(request.query_params.get("version", ""))
        with self.batcher.arriving():
            asked = await asking.read(request, self.settings.limits)
            await run_in_threadpool(asking.look, asked, self.settings.limits)
            jobs = self._submit(model, asked)
        rows = await self._answers(model, jobs, asked)
        body = {"version": model.version, "kind": model.kind, "predictions": rows}
        return JSONResponse(body, headers={VERSION_HEADER: str(model.version)})

    async def chat(self, request: Request) -> Response:
        """An answer to a question, in OpenAI's form."""
        self._admit(request)
        asked = await chat.read(request, self.settings.limits)
        model = await self._model(self._wanted(asked.model))
        if model.kind != "instruct":
            raise chat.Refused(404, f"this run answers with {WITH[model.kind]}: ask /predict", param="model")
        if not model.converses:
            chat.require_single(asked)
        both = Asked([asked.input])
        await run_in_threadpool(asking.look, both, self.settings.limits)
        (row,) = await self._answers(model, self._submit(model, both), both)
        if "error" in row:
            raise chat.Refused(400, row["error"], param="messages")
        tokenizer = getattr(getattr(model.opened.method, "llm", None), "tokenizer", None)
        answer, ending = chat.cut(row["answer"], asked.most, tokenizer)
        named, headers = f"{self.name}{versions.AT}{model.version}", {VERSION_HEADER: str(model.version)}
        if asked.stream:
            events = chat.events(answer, ending, model=named)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return JSONResponse(chat.completion(answer, ending, model=named), headers=headers)

    async def models(self, request: Request) -> Response:
        """The run, and each of its versions that can be asked, as OpenAI lists models."""
        self._admit(request)
        found = await run_in_threadpool(versions.listed, self.served.run) if self.settings.keep else []
        names = [self.name, *(f"{self.name}{versions.AT}{v.number}" for v in found if v.state.is_file())]
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "perdure"} for name in names]
        return JSONResponse({"object": "list", "data": rows})

    async def promote(self, request: Request) -> Response:
        """Promote a version; it answers as soon as it is loaded and tried."""
        self._admit(request)
        if not self.settings.promote:
            raise HTTPException(404, "versions are not promoted here; start it with --allow-promote")
        wanted = request.path_params["number"]
        if not wanted.isdecimal() or len(wanted) > 8:
            raise HTTPException(400, "the version is no number")
        try:
            done = await run_in_threadpool(promoting.promote, self.served.run, int(wanted), by="perdure serve")
        except BusyError as error:
            raise HTTPException(409, error.what) from None
        except PerdureError as error:
            raise HTTPException(404 if "no version" in error.what else 409, error.what) from None
        return JSONResponse({"promoted": done.number})

    async def feedback(self, request: Request) -> Response:
        """Keep an image with the class that it is said to be of."""
        self._admit(request)
        if self.inbox is None:
            raise HTTPException(404, "feedback is not taken here; start it with --inbox")
        asked = await asking.read(request, self.settings.limits)
        await run_in_threadpool(asking.look, asked, self.settings.limits)
        one = asked.inputs[0]
        label = asked.label.strip()
        if len(asked.inputs) != 1 or one.image is None or one.error or not label or len(label) > 200:
            raise HTTPException(400, one.error or "expected one image and its `label`")
        model = await self._model("")
        try:
            new = await run_in_threadpool(self.inbox.put, one.name, one.image, label, version=model.version)
        except DataError as error:
            raise HTTPException(507 if "full" in error.what else 409, error.what) from None
        return JSONResponse({"kept": new, "inbox": len(self.inbox)})

    async def health(self, _: Request) -> Response:
        """200 while a version answers, 503 while none does; a version that could not be used is named."""
        model = self.served.model
        alive = self.batcher.alive
        body = {
            "status": ("ok" if model is not None else "loading") if alive else "stopped",
            "version": None if model is None else model.version,
            "kind": None if model is None else model.kind,
            "waiting": len(self.batcher),
            "refused": self.served.refused or None,
        }
        return JSONResponse(body, status_code=200 if model is not None and alive else 503)

    async def versions(self, request: Request) -> Response:
        """All versions of the run, and which one answers."""
        self._admit(request)
        found = await run_in_threadpool(versions.listed, self.served.run)
        model = self.served.model
        listed = [
            {
                "version": one.number,
                "promoted": one.current,
                "answers": model is not None and model.version == one.number,
                "usable": one.state.is_file(),
                "tasks": [task["name"] for task in one.tasks],
            }
            for one in found
        ]
        about = (
            {} if model is None else {"kind": model.kind, "classes": list(model.classes), "tasks": list(model.tasks)}
        )
        also: dict[str, Any] = {
            "others": self.settings.keep > 0,
            "feedback": self.inbox is not None,
            "promote": self.settings.promote,
        }
        also["shadow"] = None if self.served.shadow is None else self.served.shadow.version
        return JSONResponse({"run": self.name, "versions": listed, **about, **also})

    async def metrics(self, _: Request) -> Response:
        return Response(self.figures.text(), media_type=TYPE)

    async def page(self, _: Request) -> Response:
        """One page without external files."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("NONCE", nonce), headers=headers)

    # -- parts --------------------------------------------------------------------------------------------

    def measured_as(
        self, path: str, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def measured(request: Request) -> Response:
            began, status = time.monotonic(), 500
            try:
                response = await endpoint(request)
                status = response.status_code
                return response
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                self.figures.request(path, status, time.monotonic() - began)

        return measured

    def _admit(self, request: Request) -> None:
        """Who may ask: bearers of the token, where there is one; and no page of another site."""
        origin = request.headers.get("origin")
        if origin and origin.split("://")[-1] != request.headers.get("host"):
            raise HTTPException(403, "a page of another site may not ask here")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.settings.token and not secrets.compare_digest(given.encode(), self.settings.token.encode()):
            raise HTTPException(401, "a token is needed", headers={"WWW-Authenticate": "Bearer"})

    async def _model(self, wanted: str) -> Loaded:
        """The version that answers; another one by number."""
        if wanted in ("", "current"):
            if self.served.model is None:
                raise HTTPException(503, "a version is being loaded", headers={"Retry-After": "5"})
            return self.served.model
        if not wanted.isdecimal() or len(wanted) > 8:
            raise HTTPException(400, "`version` is no number")
        try:
            return await run_in_threadpool(self.served.other, int(wanted))
        except PerdureError as error:
            raise HTTPException(404, error.what) from None
        except FAULTS as error:
            raise HTTPException(503, f"version {wanted} cannot be used ({error})") from None

    def _submit(self, model: Loaded, asked: Asked) -> list[Job | None]:
        """Jobs in the queue, None for what needs no model."""
        jobs: list[Job | None] = []
        try:
            model.query(asked.task)
        except PerdureError as error:
            raise HTTPException(400, error.what) from None
        pixels = self.settings.limits.megapixels * 10**6
        for one in asked.inputs:
            one.error = one.error or _lacking(model.kind, one)
            how = {"top": asked.top, "task": asked.task, "name": one.name, "pixel_limit": pixels}
            how |= {"more": one.more, "said": one.said}
            jobs.append(None if one.error else Job(model, one.image, one.text, **how))
        try:
            self.batcher.submit([job for job in jobs if job is not None])
        except Full:
            raise HTTPException(503, "too many requests wait", headers={"Retry-After": "1"}) from None
        return jobs

    async def _answers(self, model: Loaded, jobs: list[Job | None], asked: Asked) -> list[dict[str, Any]]:
        waiting = [job for job in jobs if job is not None]
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                done = iter(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in waiting)))
        except TimeoutError:
            raise HTTPException(504, "no answer in time") from None
        rows = [next(done) if job is not None else {"error": one.error} for job, one in zip(jobs, asked.inputs)]
        wrong = sum("error" in row for row in rows)
        self.figures.refused.inc(wrong)
        self.figures.inputs.labels(str(model.version)).inc(len(rows) - wrong)
        if model is self.served.model:
            self._ask_beside(waiting, [row for row in rows if "error" not in row])
        return rows

    def _ask_beside(self, jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> None:
        """Ask the version in the shadow the same, when nothing else waits; nobody waits for it."""
        shadow = self.served.shadow
        if shadow is None or len(jobs) != len(rows):
            return
        again = [replace(job, model=shadow, future=Future()) for job in jobs]
        for job, row in zip(again, rows):
            job.future.add_done_callback(partial(self._compare, shadow.version, row))
        taken = self.batcher.submit_idle(again)
        if len(again) > taken:
            self.figures.beside(shadow.version, "skipped", len(again) - taken)

    def _compare(self, version: int, row: dict[str, Any], found: Future[dict[str, Any]]) -> None:
        if found.cancelled() or found.exception() is not None or "error" in found.result():
            self.figures.beside(version, "error")
            return
        self.figures.beside(version, "same" if _said(found.result()) == _said(row) else "other")

    def _wanted(self, name: str) -> str:
        """The version that a model's name stands for."""
        own, _, number = name.partition(versions.AT)
        if name and own not in (self.name, "perdure"):
            raise chat.Refused(404, f"there is no model {name[:80]!r}", param="model", code="model_not_found")
        return number


WITH = {"classify": "classes", "caption": "captions"}
"""What runs answer with that nothing is asked of."""


def _said(row: dict[str, Any]) -> Any:
    """What an answer says, without how sure it is."""
    return row["answers"][0]["class"] if "answers" in row else row.get("answer", row.get("caption"))


def _name(run: Path) -> str:
    """``recipe/seed_0``: a seed's folder alone says little."""
    run = run.absolute()
    return f"{run.parent.name}/{run.name}" if run.name.startswith("seed_") else run.name


def _lacking(kind: str, one: asking.Input) -> str:
    if kind == "instruct":
        return "" if one.text.strip() else "there is no question"
    return "" if one.image is not None else "there is no image"


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/v1/"):
        body = chat.Refused.of(error).body
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
