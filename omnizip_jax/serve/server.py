"""The ASGI app with OpenAI's chat completions, and the process that serves it until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
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
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.serve.answer_steps import AnswerDone, TextDelta, answer_about_clips
from omnizip_jax.serve.auth import AuthMiddleware, is_loopback
from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError, as_request_error
from omnizip_jax.serve.live import serve_socket
from omnizip_jax.serve.media_sources import store_medium
from omnizip_jax.serve.media_workers import DecoderPool, decode_clip
from omnizip_jax.serve.page import page_routes
from omnizip_jax.serve.protocol import ChatRequest, read_chat
from omnizip_jax.serve.sessions import SessionStore

_DECODERS = 2  # processes for clips, and as many for live frames, which wait for no clip
_DOWNLOAD_THREADS = 32  # the rest of the server has its own threads
_SHUTDOWN_TIMEOUT = 60  # s from SIGTERM until running answers are cut off
_BASE64_RATIO = 4 / 3  # bytes of base64 per byte
_TEXT_SIZE = 1 << 20  # bytes of a request body beside its media
_CLIENT_GONE = 499  # status in the log

T = TypeVar("T")


def serve(params: Params, name: str, method: Method, config: ServerConfig) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running answers.

    Args:
        name: of the model, as clients see it.
        method: of requests that name none.

    Raises:
        ValueError: an invalid key.
    """
    limits = config.limits
    store = None if config.session_folder is None else SessionStore(config.session_folder)
    engine = Engine(params, method, limits, store)
    decoders, frame_decoders = (DecoderPool(_DECODERS, limits.decoding) for _ in range(2))
    settings = uvicorn.Config(
        Server(engine, name, config, decoders, frame_decoders).app(),
        host=config.host,
        port=config.port,
        log_level="warning",
        server_header=False,
        ws_max_size=2 * limits.upload,
        limit_concurrency=8 * (limits.sessions + limits.answers),
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT,
    )
    # uvicorn raises the signal again after it has shut down.
    signal.signal(signal.SIGTERM, lambda *_: None)
    engine.start()
    print(f"[http://{config.host}:{config.port}: {name}]", file=sys.stderr, flush=True)
    try:
        uvicorn.Server(settings).run()
    finally:
        engine.close(_SHUTDOWN_TIMEOUT)
        decoders.close()
        frame_decoders.close()


@dataclasses.dataclass(frozen=True)
class Server:
    """Handlers of HTTP requests, and what they share.

    Attributes:
        name: of the model, as clients see it.
    """

    engine: Engine
    name: str
    config: ServerConfig
    decoders: DecoderPool
    frame_decoders: DecoderPool
    download_threads: CapacityLimiter = dataclasses.field(
        default_factory=lambda: CapacityLimiter(_DOWNLOAD_THREADS)
    )

    def app(self) -> Starlette:
        """The ASGI app. It neither starts nor closes the engine."""
        routes = [
            *page_routes(),
            Route("/health", _health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
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
        await serve_socket(self.engine, self.frame_decoders, socket)

    async def _ready(self, _: Request) -> Response:
        decoders = self.decoders.ready and self.frame_decoders.ready
        ready = self.engine.ready.is_set() and decoders
        return PlainTextResponse("ready" if ready else "compiling", 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        text = prometheus_client.generate_latest(self.engine.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _models(self, _: Request) -> Response:
        method = self.engine.method
        names = [name for name, kind in METHODS.items() if kind is type(method)]
        default = {
            "method": names[0] if names else None,
            "settings": dataclasses.asdict(method),
        }
        model = {
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
        return JSONResponse({"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        limits = self.engine.limits
        try:
            async with asyncio.timeout(limits.waiting):
                body = await _body(request, int(limits.upload * _BASE64_RATIO) + _TEXT_SIZE)
        except TimeoutError:
            message = f"the request body did not arrive within {limits.waiting:g} s"
            raise RequestError(message, 408) from None
        try:
            chat = read_chat(json.loads(body), limits)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body must be a JSON object: {error}") from error
        del body
        if chat.model not in (None, self.name):
            message = f"there is no model {chat.model!r}, only {self.name!r}"
            raise RequestError(message, 404, "model")
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
        }
        events = self._answer(chat)
        if not chat.stream:
            return _completion(await _while_connected(request, _last(events)), head)
        # An error before the first event has a status of its own.
        await _while_connected(request, anext(events))
        chunks = _chunks(events, head, chat.include_usage)
        return StreamingResponse(chunks, media_type="text/event-stream")

    async def _answer(self, chat: ChatRequest) -> AsyncGenerator[Any]:
        """Events of an answer, from ``AnswerStarted`` to ``AnswerDone``."""
        engine, limits = self.engine, self.engine.limits
        method = chat.method or engine.method
        with tempfile.TemporaryDirectory(prefix="omnizip_") as scratch:
            files = [
                await to_thread.run_sync(
                    *(store_medium, medium, self.config, Path(scratch)),
                    limiter=self.download_threads,
                )
                for medium in chat.media
            ]
            digests = tuple(file.digest for file in files)
            key = (chat.system, method, chat.parts, digests, chat.modalities, chat.max_frames)
            clips = engine.cached_clip(key)
            if clips is None:
                clips = [
                    await self.decoders.call(
                        decode_clip,
                        *(file.path, file.name, engine.params.config.spec),
                        *(medium.use_audio, medium.use_video),
                        *(chat.max_frames, limits.seconds, limits.pixels),
                    )
                    for medium, file in zip(chat.media, files, strict=True)
                ]
        steps = answer_about_clips(engine, clips, chat.parts, chat.system, method, chat.answer, key)
        del clips  # the steps free them after the prefill
        async with contextlib.aclosing(engine.events(steps)) as events:
            async for event in events:
                yield event


async def _body(request: Request, size: int) -> bytes:
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > size:
            raise RequestError(f"the request is larger than {size} bytes", 413)
        parts.append(part)
    return b"".join(parts)


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
    media = {name: getattr(done, name) for name in ("audio", "audio_kept", "video", "video_kept")}
    media["media"] = done.audio + done.video
    media["media_kept"] = done.audio_kept + done.video_kept
    return {"usage": usage | {"omnizip": media}, "omnizip": {"seconds": done.seconds}}


async def _health(_: Request) -> Response:
    return PlainTextResponse("alive")


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _error(_: Request, error: Exception) -> Response:
    refusal = as_request_error(error)
    headers = {"Retry-After": "5"} if refusal.status == 503 else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    refusal = RequestError(f"{request.method} {request.url.path}: no such resource", status)
    return JSONResponse(refusal.body, status)
