"""The server: OpenAI's chat completions over HTTP, a chat page, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from anymal import __version__
from anymal.errors import DataError
from anymal.serving.answer import Content
from anymal.serving.base64_media import MAX_MEDIUM_BYTES, decode_medium
from anymal.serving.completions import Chunks, Completion
from anymal.serving.conversation import MediumPart
from anymal.serving.desk import Desk, Ended, Event, Refused, preview
from anymal.serving.host import Served
from anymal.serving.intake import turns_of
from anymal.serving.journal import Note, code_of
from anymal.serving.metrics import Metrics
from anymal.serving.openai import BadRequest, parse
from anymal.serving.problems import Problem
from anymal.serving.running import Run

PAGE = Path(__file__).parent / "page"
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


@dataclass(frozen=True)
class Limits:
    """What is taken in, before anything of it is decoded.

    Attributes:
        body_bytes: of a request.
        body_seconds: for a request's body to arrive.
        requests: being answered, checked or waiting at once; one more gets 429.
        medium_bytes: of one file at an address.
        remote_media: whether files may be given as http(s) addresses.
    """

    body_bytes: int = 64 * 2**20
    body_seconds: float = 20.0
    requests: int = 40
    medium_bytes: int = MAX_MEDIUM_BYTES
    remote_media: bool = False


def create_app(desk: Desk, *, limits: Limits, keys: Sequence[str] = (), examples: Path | None = None) -> FastAPI:
    """The application. The model may be loaded later; until then requests are answered with 503.

    Args:
        keys: one of them must come with each request, if there are any (`Authorization: Bearer …`).
        examples: folder with `examples.json` and the files it names, for the chat page.
    """
    app = FastAPI(title="AnyMAL", version=__version__, docs_url=None, redoc_url=None)
    state = _State(desk, limits, tuple(keys), Metrics(lambda: _load(desk)), examples or PAGE / "examples")

    @app.exception_handler(Problem)
    async def _answer_problem(_: Request, problem: Problem) -> Response:
        return problem.response

    @app.middleware("http")
    async def _headers(request: Request, go_on: Callable[[Request], Any]) -> Response:
        response: Response = await go_on(request)
        response.headers["content-security-policy"] = POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        return response

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await state.chat(request)

    @app.post("/preview")
    async def show(request: Request) -> Response:
        return await state.preview(request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        state.check_key(request)
        served = state.served()
        return JSONResponse({"object": "list", "data": [
            {"id": name, "object": "model", "created": served.since, "owned_by": "anymal"} for name in dict.fromkeys((served.name, served.label))]})

    @app.get("/v1/about")
    async def about(request: Request) -> Response:
        state.check_key(request)
        served = state.served()
        return JSONResponse({"model": served.name, "label": served.label, "sha256": served.sha256, "reads": list(served.engine.model.metadata),
                             "limits": {"medium_bytes": limits.medium_bytes, "body_bytes": limits.body_bytes}, "examples": state.examples()})

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        served, problem = desk.host.served, desk.host.problem
        good = served is not None and served.engine.alive
        return JSONResponse({"ready": good, "model": served.label if served else None, "problem": problem}, status_code=200 if good else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/page/{name:path}")
    async def part(name: str) -> Response:
        return state.page_file(name)

    return app


def _load(desk: Desk) -> tuple[int, int]:
    served = desk.host.served
    return served.engine.load if served else (0, 0)


@dataclass(frozen=True)
class _Going:
    """A request that is being answered."""

    run: Run
    events: AsyncIterator[Event]
    note: Note


class _State:
    def __init__(self, desk: Desk, limits: Limits, keys: tuple[str, ...], metrics: Metrics, examples: Path) -> None:
        self.desk, self.limits, self.metrics = desk, limits, metrics
        self._keys, self._examples = keys, examples
        self._inside = 0

    def served(self) -> Served:
        """The model that answers now."""
        served = self.desk.host.served
        if served is None:
            problem = self.desk.host.problem
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"no model is loaded yet{f' ({problem})' if problem else ''}",
                           code="not_ready", wait=True)
        return served

    def check_key(self, request: Request) -> None:
        """Refuse whoever brings no key that is known."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self._keys]
        if self._keys and not (scheme.lower() == "bearer" and any(known)):
            raise Problem(HTTPStatus.UNAUTHORIZED, "this server wants an API key: Authorization: Bearer KEY", code="invalid_api_key")

    def examples(self) -> list[dict[str, Any]]:
        """What the chat page offers to click."""
        file = self._examples / "examples.json"
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["examples"] if file.is_file() else []
        return found

    def page_file(self, name: str) -> Response:
        """A file of the page or of its examples; nothing else of this machine."""
        wanted = {"chat.js": "text/javascript", "chat.css": "text/css"}
        if name in wanted:
            return FileResponse(PAGE / name, media_type=wanted[name], headers={"cache-control": "no-cache"})
        known = {f"examples/{file}": file for entry in self.examples() for file in entry["files"]}
        if name not in known:
            raise Problem(HTTPStatus.NOT_FOUND, "there is no such file")
        return FileResponse(self._examples / known[name])

    async def body(self, request: Request) -> Any:
        """A request's JSON, read within the limits."""
        declared = request.headers.get("content-length", "0")
        too_large = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {self.limits.body_bytes} bytes; send smaller files",
                             code="too_large", close=True)
        if not declared.isdigit() or int(declared) > self.limits.body_bytes:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.limits.body_bytes:
                        raise too_large
        except TimeoutError:
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {self.limits.body_seconds:g} s", code="timeout",
                           close=True) from None
        try:
            return await asyncio.to_thread(json.loads, bytes(data))
        except (ValueError, RecursionError):
            raise Problem(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None

    def admit(self) -> None:
        """Take a request in, or refuse it because too many are there."""
        if self._inside >= self.limits.requests:
            self.metrics.refused("busy")
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, f"{self._inside} requests are being answered, the most there may be; try again later",
                          code="busy", wait=True)
        self._inside += 1

    def let_go(self) -> None:
        """A request that was taken in is over."""
        self._inside -= 1

    async def preview(self, request: Request) -> Response:
        """What the encoder is fed of a file, as a picture."""
        self.check_key(request)
        self.admit()
        try:
            document = await self.body(request)
            if not isinstance(document, dict) or not all(isinstance(document.get(key), str) for key in ("modality", "name", "data")):
                raise Problem(HTTPStatus.BAD_REQUEST, "send an object with the texts modality, name and data (base64)")
            engine, name = self.served().engine, document["name"][:200]
            try:
                part = MediumPart(document["modality"], Content(name, decode_medium(document["data"], name)))
                return Response(await asyncio.to_thread(preview, engine, part), media_type="image/png", headers={"cache-control": "no-store"})
            except DataError as error:
                raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
        finally:
            self.let_go()

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, as a whole or as a stream."""
        self.check_key(request)
        self.admit()
        handed_over = False
        started = time.monotonic()
        try:
            document = await self.body(request)
            remote = self.limits.medium_bytes if self.limits.remote_media else None
            try:
                asked = parse(document)
                served = self.served()
                if not served.goes_by(asked.model):
                    raise Problem(HTTPStatus.NOT_FOUND, f"model {str(asked.model)[:100]!r} is not served here; GET /v1/models lists what is",
                                   code="model_not_found", param="model")
                turns = await asyncio.to_thread(turns_of, asked.messages, remote_bytes=remote)
            except BadRequest as error:
                raise Problem(HTTPStatus.BAD_REQUEST, str(error), param=error.param) from None
            run = Run(lambda gone: self.desk.answer(turns, sampling=asked.sampling(), limit=asked.limit, stops=asked.stops, gone=gone))
            used = asked.stream_options is not None and asked.stream_options.include_usage
            answer = Chunks(served.label, with_usage=used) if asked.stream else Completion(served.label)
            going = _Going(run, run.events(), Note(self.metrics, answer.head["id"], stream=asked.stream, started=started))
            if isinstance(answer, Chunks):
                first = await self._first(going)
                handed_over = True
                return StreamingResponse(self._stream(first, going, answer), media_type="text/event-stream",
                                         headers={"cache-control": "no-store", "x-accel-buffering": "no"})
            return await self._whole(request, going, answer)
        finally:
            if not handed_over:
                self.let_go()

    async def _first(self, going: _Going) -> Event:
        """The first event: what goes wrong before it can still have a status of its own."""
        try:
            return await anext(going.events)
        except Exception as error:
            going.run.stop()
            raise going.note.problem(error) from None

    async def _whole(self, request: Request, going: _Going, answer: Completion) -> Response:
        run, events, note = going.run, going.events, going.note
        watch = asyncio.create_task(_disconnected(request, run))
        try:
            async for event in events:
                note.event(event)
                body = answer.add(event)
                if body is not None:
                    return JSONResponse(body, headers=_reasons(event) if isinstance(event, Refused) else None)
            raise Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the answer ended without an end")
        except Problem:
            raise
        except Exception as error:
            raise note.problem(error) from None
        finally:
            watch.cancel()
            run.stop()
            note.close()

    async def _stream(self, first: Event, going: _Going, answer: Chunks) -> AsyncIterator[bytes]:
        run, events, note = going.run, going.events, going.note
        try:
            event: Event | None = first
            while event is not None:
                note.event(event)
                for chunk in answer.of(event):
                    yield _sent(chunk)
                event = None if isinstance(event, Refused | Ended) else await anext(events, None)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            note.gone()
            raise
        except Exception as error:  # the status is sent: an event has to say it
            problem = note.problem(error)
            yield b"data: " + bytes(problem.response.body) + b"\n\n"
        finally:
            run.stop()
            note.close()
            self.let_go()


def _reasons(event: Refused) -> dict[str, str]:
    return {"x-anymal-reasons": ", ".join(code_of(reason) for reason in event.reasons)}


def _sent(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _disconnected(request: Request, run: Run) -> None:
    """Stop the run once the caller hangs up."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
    run.stop()
