"""The ASGI app with OpenAI's chat completions, and the process that serves it until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import prometheus_client
import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.generation import MediaCounts
from omnizip_jax.media import Clip
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.serve.answer_steps import AnswerDone, TextDelta, answer_about_clips
from omnizip_jax.serve.auth import AuthMiddleware, is_loopback
from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError, as_request_error
from omnizip_jax.serve.live import serve_socket
from omnizip_jax.serve.media_sources import MediaFile, store_medium
from omnizip_jax.serve.media_workers import DecoderPool, clip_seconds, decode_clip
from omnizip_jax.serve.memory_budget import MemoryBudget, Reservation
from omnizip_jax.serve.page import page_routes
from omnizip_jax.serve.protocol import ChatRequest, parse_object, read_chat
from omnizip_jax.serve.sessions import SessionStore

_DECODERS = 2  # processes for clips, and as many for live frames, which wait for no clip
_DOWNLOAD_THREADS = 32  # the rest of the server has its own threads
_SHUTDOWN_TIMEOUT = 60  # s from SIGTERM until running answers are cut off
_BASE64_RATIO = 4 / 3  # bytes of base64 per byte
_TEXT_SIZE = 1 << 20  # bytes of a request body beside its media
_MESSAGE_SIZE = 32 << 20  # bytes of a message of a WebSocket
_CLIENT_GONE = 499  # status in the log

T = TypeVar("T")


def serve(params: Params, name: str, method: Method, config: ServerConfig) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running answers.

    Args:
        name: of the model, as clients see it.
        method: of requests that name none.

    Raises:
        ValueError: an invalid key.
        RuntimeError: the device thread has failed.
    """
    limits = config.limits
    store = None if config.session_folder is None else SessionStore(config.session_folder)

    def stop() -> None:
        server.should_exit = True

    engine = Engine(params, method, limits, store, stop)
    decoders, frame_decoders = (DecoderPool(_DECODERS, limits.decoding) for _ in range(2))
    settings = uvicorn.Config(
        Server(engine, name, config, decoders, frame_decoders).app(),
        host=config.host,
        port=config.port,
        log_level="warning",
        server_header=False,
        ws_max_size=_MESSAGE_SIZE,
        limit_concurrency=8 * (limits.sessions + limits.answers),
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT,
    )
    server = uvicorn.Server(settings)
    # uvicorn raises the signal again after it has shut down.
    signal.signal(signal.SIGTERM, lambda *_: None)
    engine.start()
    print(f"[http://{config.host}:{config.port}: {name}]", file=sys.stderr, flush=True)
    try:
        server.run()
    finally:
        engine.close(_SHUTDOWN_TIMEOUT)
        decoders.close()
        frame_decoders.close()
    if engine.failed:
        raise RuntimeError("the device thread has failed; its error is above")


class Server:
    """Handlers of HTTP requests, and what they share.

    Args:
        name: of the model, as clients see it.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        config: ServerConfig,
        decoders: DecoderPool,
        frame_decoders: DecoderPool,
    ):
        limits = engine.limits
        self.engine, self.name, self.config = engine, name, config
        self.decoders, self.frame_decoders = decoders, frame_decoders
        self._download_threads = CapacityLimiter(_DOWNLOAD_THREADS)
        self._bodies = MemoryBudget(limits.bodies, "request bodies")
        self._decoded = MemoryBudget(limits.clip_bytes, "decoded clips")
        sockets = 2 * limits.sessions  # also those that have no session yet
        self._messages = MemoryBudget(sockets * _MESSAGE_SIZE, "live messages")

    def app(self) -> Starlette:
        """The ASGI app. It neither starts nor closes the engine."""
        routes = [
            *page_routes(),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            WebSocketRoute("/v1/video/chat/stream", self._live),
        ]
        local = is_loopback(self.config.host)
        auth = Middleware(
            AuthMiddleware,  # pyright: ignore
            key=self.config.key,
            local=local,
            trusted_hosts=self.config.trusted_hosts,
        )
        handlers: Any = {
            ClientDisconnect: _client_gone,
            404: _not_found,
            405: _not_found,
            RequestError: _error,
            Exception: _error,
        }
        return Starlette(routes=routes, middleware=[auth], exception_handlers=handlers)

    async def _live(self, socket: WebSocket) -> None:
        with Reservation(self._messages) as held:
            try:
                held.ensure(_MESSAGE_SIZE)
            except RequestError as error:
                await socket.accept()
                return await socket.close(1013, str(error))
            await serve_socket(self.engine, self.frame_decoders, socket)

    async def _health(self, _: Request) -> Response:
        if self.engine.failed:
            return PlainTextResponse("the device thread has failed", 503)
        return PlainTextResponse("alive")

    async def _ready(self, _: Request) -> Response:
        ready = self.engine.ready.is_set() and not self.engine.failed
        ready = ready and self.decoders.ready and self.frame_decoders.ready
        return PlainTextResponse("ready" if ready else "compiling", 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        text = prometheus_client.generate_latest(self.engine.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._describe())

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise RequestError(f"there is no model {name!r}, only {self.name!r}", 404, "model")

    def _describe(self) -> dict[str, Any]:
        """The model, as ``/v1/models`` lists it."""
        method = self.engine.method
        names = [name for name, kind in METHODS.items() if kind is type(method)]
        default = {"method": next(iter(names), None), "settings": dataclasses.asdict(method)}
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "omnizip_jax",
            "omnizip": {
                "methods": list(METHODS),
                "streaming": [name for name, kind in METHODS.items() if kind().streams],
                "default": default,
                "capacity": self.engine.limits.capacity,
                "window_seconds": self.engine.params.config.spec.seconds,
            },
        }

    async def _chat(self, request: Request) -> Response:
        with Reservation(self._bodies) as held:
            chat = await self._read_chat(request, held)
            if chat.model is not None:
                self._check_model(chat.model)
            head = {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": self.name,
            }
            events, stream, usage = self._answer(chat, held), chat.stream, chat.include_usage
            del chat  # ``_answer`` frees its media
            if not stream:
                return _completion(await _while_connected(request, _last(events)), head)
            # An error before the first event has a status of its own.
            await _while_connected(request, anext(events))
        return StreamingResponse(_chunks(events, head, usage), media_type="text/event-stream")

    async def _read_chat(self, request: Request, held: Reservation) -> ChatRequest:
        limits = self.engine.limits
        try:
            async with asyncio.timeout(limits.waiting):
                body = await _body(request, int(limits.upload * _BASE64_RATIO) + _TEXT_SIZE, held)
        except TimeoutError:
            message = f"the request body did not arrive within {limits.waiting:g} s"
            raise RequestError(message, 408) from None
        content = parse_object(body, "the body")
        del body
        return read_chat(content, limits)

    async def _answer(self, chat: ChatRequest, body: Reservation) -> AsyncGenerator[Any]:
        """Events of an answer, from ``AnswerStarted`` to ``AnswerDone``.

        Args:
            body: memory of the request's body, released once its media are files.
        """
        engine = self.engine
        method = chat.method or engine.method
        with Reservation(self._decoded) as held:
            with tempfile.TemporaryDirectory(prefix="omnizip_") as scratch:
                files = [
                    await to_thread.run_sync(
                        *(store_medium, medium, self.config, Path(scratch)),
                        limiter=self._download_threads,
                    )
                    for medium in chat.media
                ]
                used = tuple((medium.use_audio, medium.use_video) for medium in chat.media)
                chat = dataclasses.replace(chat, media=())
                body.release()
                digests = tuple(file.digest for file in files)
                key = (chat.system, method, chat.parts, digests, used, chat.max_frames)
                clips = engine.cached_clip(key)
                if clips is None:
                    clips = await self._decode(files, used, chat.max_frames, held)
            steps = answer_about_clips(
                engine, clips, chat.parts, chat.system, method, chat.answer, key
            )
            del clips  # the steps free them after the prefill
            async with contextlib.aclosing(engine.events(steps)) as events:
                async for event in events:
                    held.release()
                    yield event

    async def _decode(
        self,
        files: list[MediaFile],
        used: tuple[tuple[bool, bool], ...],
        max_frames: int | None,
        held: Reservation,
    ) -> list[Clip]:
        """Decode the clips of a request, if their durations and their memory allow it.

        Args:
            used: for each file whether its audio and its video are used.
            held: memory of the clips.

        Raises:
            RequestError: the clips are too long together, or see ``DecoderPool.call``.
        """
        config, limits = self.engine.params.config, self.engine.limits
        spec, seconds = config.spec, config.spec.seconds
        longest = max(1, int(limits.seconds) // seconds)
        free = config.text.max_positions // config.window_positions  # windows
        call = self.decoders.call
        durations = [
            await call(clip_seconds, file.path, file.name, *streams, limits.seconds, limits.pixels)
            for file, streams in zip(files, used, strict=True)
        ]
        counts = [max(1, int(duration // seconds)) for duration in durations]
        if sum(counts) > free:
            raise RequestError(
                f"the clips last {sum(durations):.0f} s together, and the model has positions for "
                f"{free * seconds} s: shorten them, or send fewer"
            )
        pixels, mel = spec.grids * math.prod(spec.grid_shape), spec.mel_bins * spec.mel_frames
        held.ensure(
            sum(
                min(count + 1, longest) * (has_video * pixels + 4 * mel)  # bytes of the windows
                for count, (_, has_video) in zip(counts, used, strict=True)
            )
        )
        clips: list[Clip] = []
        for file, streams in zip(files, used, strict=True):
            most = min(longest, max(free, 1))
            clip = await call(
                decode_clip,
                *(file.path, file.name, spec, *streams, max_frames, most, limits.pixels),
            )
            free -= len(clip.windows.mel_length)
            clips.append(clip)
        return clips


async def _body(request: Request, size: int, held: Reservation) -> bytearray:
    """The body of a request.

    The rest of a body that finds no memory is read and dropped, as most clients read the reason
    only after they have sent everything.

    Args:
        size: maximum number of bytes.
        held: memory of the body.
    """
    too_large = RequestError(f"the request is larger than {size} bytes", 413)
    header = request.headers.get("content-length", "")
    stated = int(header) if header.isdecimal() else 0
    if stated > size:
        raise too_large
    body, total, refusal = bytearray(), 0, None
    async for part in request.stream():
        total += len(part)
        if total > size:
            raise too_large
        if refusal is None:
            try:
                held.ensure(max(total, stated))
                body += part
            except RequestError as error:
                refusal = error
                body.clear()
    if refusal is not None:
        raise refusal
    return body


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, which is cancelled if the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    tasks = task, asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)


async def _last(events: AsyncGenerator[Any]) -> AnswerDone:
    async with contextlib.aclosing(events):
        return [event async for event in events if isinstance(event, AnswerDone)][-1]


def _completion(done: AnswerDone, head: dict[str, Any]) -> Response:
    """The whole answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": done.text},
        "finish_reason": done.finish,
        "logprobs": None,
    }
    head = head | {"object": "chat.completion"}
    return JSONResponse(head | {"choices": [choice], **_usage(done)})


async def _chunks(
    events: AsyncGenerator[Any], head: dict[str, Any], include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    head = head | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _server_sent(head | {"choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    yield chunk({"content": event.text})
                elif isinstance(event, AnswerDone):
                    yield chunk({}, event.finish)
                    if include_usage:
                        yield _server_sent(head | {"choices": [], **_usage(event)})
    except Exception as error:
        yield _server_sent(as_request_error(error).body)
    yield "data: [DONE]\n\n"


def _server_sent(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _usage(done: AnswerDone) -> dict[str, Any]:
    """Token counts as OpenAI reports them, and media tokens before and after compression."""
    usage = {
        "prompt_tokens": done.prompt,
        "completion_tokens": done.made,
        "total_tokens": done.prompt + done.made,
        "prompt_tokens_details": {"audio_tokens": done.audio_kept, "cached_tokens": 0},
    }
    media: dict[str, Any] = {f.name: getattr(done, f.name) for f in dataclasses.fields(MediaCounts)}
    media |= {"media": done.media, "media_kept": done.kept, "missing": [*done.missing]}
    return {"usage": usage | {"omnizip": media}, "omnizip": {"seconds": done.seconds}}


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _error(_: Request, error: Exception) -> Response:
    refusal = as_request_error(error)
    headers = {"Retry-After": "5"} if refusal.status == 503 else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = f"{request.method} {request.url.path}: no such resource"
    return await _error(request, RequestError(message, status))
