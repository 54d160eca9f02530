"""The server's app: chat completions as OpenAI's clients speak them, and what stands around."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.serve.auth import Guard
from omnizip_jax.serve.chat import Chat, read_chat
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.events import followed
from omnizip_jax.serve.failure import Failure, explained
from omnizip_jax.serve.live import Live
from omnizip_jax.serve.page import page_routes
from omnizip_jax.serve.requests import Answered, Piece, about_clips
from omnizip_jax.serve.sources import Sources
from omnizip_jax.serve.worker import Workers, decode_clip

_LOG = logging.getLogger("omnizip.serve")
_MEDIA = 4 / 3  # bytes of base64 to one
_LEFT = 499  # status for the log, where the client has left
_WORDS = 1 << 20  # bytes of a request beside its media


@dataclasses.dataclass(frozen=True)
class Server:
    """What requests share.

    Attributes:
        name: of the model, as clients are told.
        key, local: see ``Guard``.
        workers: decode media.
    """

    engine: Engine
    name: str
    sources: Sources
    workers: Workers
    key: str | None = None
    local: bool = True

    def app(self) -> Starlette:
        """The ASGI app. Its life does not include the engine's: start and close that yourself."""
        live = Live(self.engine, self.workers)
        routes = [
            *page_routes(),
            Route("/health", _health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            WebSocketRoute("/v1/video/chat/stream", live.serve),
        ]
        guard = Middleware(Guard, key=self.key, local=self.local)  # pyright: ignore
        handlers: Any = {
            Failure: _refused,
            ClientDisconnect: _gone,
            404: _not_found,
            405: _not_found,
            Exception: _broken,
        }
        return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)

    async def _ready(self, _: Request) -> Response:
        ready = self.engine.ready.is_set()
        return PlainTextResponse("ready" if ready else "compiling", 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        text = prometheus_client.generate_latest(self.engine.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _models(self, _: Request) -> Response:
        model = {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "omnizip_jax",
            "omnizip": {
                "methods": list(METHODS),
                "streaming": [name for name, kind in METHODS.items() if kind().streams],
                "default": _described(self.engine.method),
                "capacity": self.engine.limits.capacity,
                "window_seconds": self.engine.params.config.spec.seconds,
            },
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        limits = self.engine.limits
        try:
            async with asyncio.timeout(limits.waiting):
                body = await _body(request, int(limits.upload * _MEDIA) + _WORDS)
        except TimeoutError:
            raise Failure("the request came too slowly", 408) from None
        try:
            chat = read_chat(json.loads(body), limits)
        except (ValueError, RecursionError) as error:
            raise Failure(f"the body must be a JSON object: {error}") from error
        del body
        if chat.model not in (None, self.name):
            raise Failure(f"there is no model {chat.model!r}, only {self.name!r}", 404, "model")
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
        }
        news = self._answer(chat)
        if not chat.stream:
            async with contextlib.aclosing(news):
                return await _whole(news, request, head)
        await anext(news)  # what cannot be answered has a status of its own
        pieces = _events(news, head, chat.include_usage)
        return StreamingResponse(pieces, media_type="text/event-stream")

    async def _answer(self, chat: Chat) -> AsyncGenerator[Any]:
        """What the steps of an answer give, from ``Begun`` to ``Answered``."""
        engine, limits = self.engine, self.engine.limits
        began = time.perf_counter()
        method = chat.method or engine.method
        with tempfile.TemporaryDirectory(prefix="omnizip_") as scratch:
            stored = [
                await run_in_threadpool(self.sources.store, medium, Path(scratch))
                for medium in chat.media
            ]
            digests = tuple(file.digest for file in stored)
            key = (chat.system, method, chat.parts, digests, chat.media_kinds, chat.max_frames)
            clips = engine.contexts.get(key)
            if clips is None:
                clips = [
                    await run_in_threadpool(
                        self.workers.call,
                        decode_clip,
                        *(file.path, file.name, engine.params.config.spec),
                        *(medium.use_audio, medium.use_video),
                        *(chat.max_frames, limits.seconds, limits.pixels),
                    )
                    for medium, file in zip(chat.media, stored, strict=True)
                ]
        steps = about_clips(engine, clips, chat.parts, chat.system, method, chat.asking, key)
        first = True
        del clips  # the steps let go of them when they are read
        async with contextlib.aclosing(followed(engine, steps, limits.waiting)) as news:
            async for one in news:
                if first and isinstance(one, Piece):
                    engine.metrics.first_token.observe(time.perf_counter() - began)
                    first = False
                yield one


def _described(method: Method) -> dict[str, Any]:
    """A method as requests name it; nameless, if it is none of ours."""
    names = [name for name, kind in METHODS.items() if kind is type(method)]
    return {"method": names[0] if names else None, "settings": dataclasses.asdict(method)}


async def _body(request: Request, size: int) -> bytes:
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > size:
            raise Failure(f"the request is larger than {size} bytes", 413)
        parts.append(part)
    return b"".join(parts)


async def _whole(news: AsyncGenerator[Any], request: Request, head: dict[str, Any]) -> Response:
    """The answer at once; nothing is made any more for a client that has left."""

    async def last() -> Answered:
        return [one async for one in news if isinstance(one, Answered)][-1]

    answer, left = asyncio.ensure_future(last()), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return Response(status_code=_LEFT)
        answered = answer.result()
    finally:
        for task in (answer, left):
            task.cancel()
        await asyncio.wait((answer, left))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answered.text},
        "finish_reason": answered.finish,
        "logprobs": None,
    }
    head = head | {"object": "chat.completion"}
    return JSONResponse(head | {"choices": [choice], **_usage(answered)})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    news: AsyncGenerator[Any], head: dict[str, Any], include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    head = head | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event(head | {"choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(news):
            async for one in news:
                if isinstance(one, Piece):
                    yield chunk({"content": one.text})
                elif isinstance(one, Answered):
                    yield chunk({}, one.finish)
                    if include_usage:
                        yield _event(head | {"choices": [], **_usage(one)})
    except Exception as error:
        failure = explained(error)
        if failure.status == 500:
            _LOG.exception("a stream of events has failed")
        yield _event(failure.body)
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _usage(answered: Answered) -> dict[str, Any]:
    """Tokens as OpenAI counts them, and what the method kept of the media."""
    usage = {
        "prompt_tokens": answered.prompt,
        "completion_tokens": answered.made,
        "total_tokens": answered.prompt + answered.made,
        "prompt_tokens_details": {"audio_tokens": answered.audio_kept, "cached_tokens": 0},
    }
    media = {
        name: getattr(answered, name) for name in ("audio", "audio_kept", "video", "video_kept")
    }
    media["media"] = answered.audio + answered.video
    media["media_kept"] = answered.audio_kept + answered.video_kept
    return {"usage": usage | {"omnizip": media}, "omnizip": {"seconds": answered.seconds}}


async def _health(_: Request) -> Response:
    return PlainTextResponse("alive")


async def _refused(_: Request, failure: Exception) -> Response:
    assert isinstance(failure, Failure)
    headers = {"Retry-After": "5"} if failure.status == 503 else None
    return JSONResponse(failure.body, failure.status, headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_LEFT)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return JSONResponse(
        Failure(f"{request.method} {request.url.path}: nothing is there", status).body, status
    )


async def _broken(_: Request, error: Exception) -> Response:
    failure = explained(error)
    return JSONResponse(failure.body, failure.status)
