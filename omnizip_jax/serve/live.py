"""Live video over a socket, as the clients of vLLM-Omni speak it; the whole stream is remembered.

A client sends ``session.config`` (optional), ``video.frame``, ``audio.chunk``, ``video.query`` and
``video.done``. It hears ``video.frame.ack``, ``response.start``, ``video.frames.consumed``,
``response.text.delta``, ``response.text.done``, ``session.done`` and ``error``; and, of this
server's own, ``window.read``, ``window.skipped``, ``method.changed`` and ``session.created``. A new
query ends the answer before it; a later ``session.config`` changes the method, and what was read
stays. Where sessions are kept, a client that was gone goes on with its own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Mapping
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from omnizip_jax.compression import Method
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.serve.auth import PROTOCOL
from omnizip_jax.serve.chat import check_text, read_decoding, read_method
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.events import Ear, followed
from omnizip_jax.serve.failure import Failure, explained
from omnizip_jax.serve.live_assembler import Incoming
from omnizip_jax.serve.requests import Answered, Asking, Begun, Piece, about_stream
from omnizip_jax.serve.session import Expired, Session, WindowRead, WindowSkipped
from omnizip_jax.serve.settings_update import changed
from omnizip_jax.serve.worker import Workers, decode_picture
from omnizip_jax.types import Window

_LOG = logging.getLogger("omnizip.serve")
_FULL_SCALE = 32768.0  # of 16 bit sound
_IDS = 256  # frames that an answer names, at most
_CLOSE = {503: 1013, 500: 1011}  # status to the code that closes a socket


@dataclasses.dataclass(frozen=True)
class Live:
    """Serves sockets.

    Attributes:
        workers: decode pictures.
    """

    engine: Engine
    workers: Workers

    async def serve(self, socket: WebSocket) -> None:
        """One socket, one session, from its beginning to its end."""
        spoken = PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None
        await socket.accept(spoken)
        talk = _Talk(self.engine, self.workers, socket)
        try:
            await talk.run()
        except (WebSocketDisconnect, RuntimeError):  # the client has left; starlette says either
            if socket.client_state is WebSocketState.CONNECTED:
                raise
        finally:
            await talk.end()


class _Talk:
    def __init__(self, engine: Engine, workers: Workers, socket: WebSocket):
        self._engine, self._workers, self._socket = engine, workers, socket
        self._config: Mapping[str, Any] = {}
        self._session: Session | None = None
        self._incoming: Incoming | None = None
        self._ear = Ear()
        self._telling: asyncio.Task | None = None
        self._answering: asyncio.Task | None = None
        self._sending = asyncio.Lock()
        self._first: float | None = None  # a capture time, or when the first picture came
        self._pictures: list[tuple[str | None, float]] = []  # since the last question
        self._done = self._keep = False
        self._accepted = -math.inf  # time of the last picture that was taken

    async def run(self) -> None:
        """Messages one after the other, until the client is done."""
        limits = self._engine.limits
        while True:
            try:
                async with asyncio.timeout(limits.idle):
                    message = await self._socket.receive()
            except TimeoutError:
                await self._fail(Failure(f"no message for {limits.idle:g} s", 408))
                return await self._close(1001)
            if message["type"] == "websocket.disconnect":
                return
            try:
                if await self._handle(message.get("text") or message.get("bytes") or ""):
                    await self._say("session.done")
                    return await self._close(1000)
            except (WebSocketDisconnect, RuntimeError):
                raise
            except Exception as error:
                failure = explained(error)
                if failure.status == 500:
                    _LOG.exception("a message has failed")
                await self._fail(failure)
                if failure.status in _CLOSE and self._session is None:
                    return await self._close(_CLOSE[failure.status])

    async def end(self) -> None:
        """Let go of everything."""
        if self._session is not None and self._done:
            self._engine.end(self._session)
        elif self._session is not None:
            self._engine.leave(self._session)
        tasks = [task for task in (self._answering, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _handle(self, text: str | bytes) -> bool:
        """One message; returns whether it was the last."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failure(f"a message must be a JSON object: {error}") from error
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "session.config":
            await self._configure(message)
        elif kind == "video.frame":
            await self._picture(message)
        elif kind == "audio.chunk":
            await self._sound(message)
        elif kind == "video.query":
            await self._query(message)
        elif kind == "video.done":
            if self._answering is not None:
                await asyncio.wait([self._answering])
            self._done = True
            return True
        else:
            raise Failure(
                "a message is an object of type session.config, video.frame, audio.chunk, "
                f"video.query or video.done, got {str(kind)[:80]}"
            )
        return False

    async def _configure(self, message: Mapping[str, Any]) -> None:
        self._decoding(message)
        extra = message.get("omnizip") or {}
        if not isinstance(extra, Mapping):
            raise Failure("omnizip must be an object", param="omnizip")
        method = read_method(extra)
        keep = extra.get("keep", self._keep)
        if not isinstance(keep, bool):
            raise Failure("omnizip.keep is true or false", param="omnizip.keep")
        if self._session is None:
            self._config = message
            if extra.get("resume") is not None:
                await self._resume(message, extra)
            else:
                self._open(method, extra)
            await self._created()
        elif method is not None or "keep" not in extra:
            await self._change(message, extra, method)
        self._keep = keep

    async def _change(
        self, message: Mapping[str, Any], extra: Mapping[str, Any], method: Method | None
    ) -> None:
        """Go on with another method."""
        fixed = _fixed(message, extra)
        if fixed or method is None:
            raise Failure(
                "a session that has begun can change its omnizip.method alone, with settings; "
                f"got {', '.join(fixed) or 'none'}",
                param="omnizip.method",
            )
        session, _ = self._begun()
        engine = self._engine
        steps = changed(engine, session, session.arrived, method)
        async for news in followed(engine, steps, engine.limits.waiting, first=True):
            await self._say("method.changed", **dataclasses.asdict(news))

    async def _resume(self, message: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Go on with the session of a client that had gone."""
        engine, name = self._engine, extra["resume"]
        fixed = _fixed(message, extra) + ["method"] * (extra.get("method") is not None)
        if engine.shelf is None or fixed:
            raise Failure(
                "this server keeps no sessions"
                if engine.shelf is None
                else f"a session that is resumed has its {', '.join(fixed)} already",
                param="omnizip.resume",
            )
        left = await run_in_threadpool(engine.shelf.take, name, engine.params)
        try:
            session = engine.resume(left, self._ear.tell)
        except Failure:
            await run_in_threadpool(engine.shelf.put, name, left)
            raise
        session.name = name
        modalities = left.context.prefill_config.modalities
        self._listen(session, modalities.video, modalities.audio)

    async def _created(self) -> None:
        """Say the name of a session that waits for its client, should it go."""
        session, shelf = self._session, self._engine.shelf
        if session is not None and shelf is not None:
            session.name = session.name or shelf.name()
            await self._say("session.created", session_id=session.name, windows=session.arrived)

    def _listen(self, session: Session, video: bool, audio: bool) -> None:
        self._incoming = Incoming(self._engine.params.config.spec, video, audio)
        self._session = session
        self._telling = asyncio.ensure_future(self._forward())

    def _open(self, method: Method | None, extra: Mapping[str, Any]) -> None:
        settings: dict[str, Any] = {}
        system = self._config.get("system_prompt")
        if system is not None:
            settings["system"] = check_text(system, "system_prompt", self._engine.limits)
        if extra.get("memory") is not None:
            settings["memory"] = extra["memory"]
        modalities = [extra.get(name, True) for name in ("video", "audio")]
        if not all(isinstance(used, bool) for used in modalities) or not any(modalities):
            raise Failure("omnizip.video and omnizip.audio are true or false, not both false")
        self._listen(self._engine.open(self._ear.tell, method, **settings), *modalities)

    def _begun(self) -> tuple[Session, Incoming]:
        """The session; with the server's settings, if no configuration came."""
        if self._session is None:
            self._open(None, {})
        assert self._session is not None and self._incoming is not None
        if self._session.ended:
            raise Failure("the session has ended", 404)
        self._engine.touch(self._session)
        return self._session, self._incoming

    async def _picture(self, message: Mapping[str, Any]) -> None:
        received, limits = 1e3 * time.time(), self._engine.limits
        session, incoming = self._begun()
        at = self._time(message, incoming)
        taken = at - self._accepted >= 0.999 / limits.frames_per_second
        if taken:
            data = _base64(message.get("data"), "video.frame")
            frame = await run_in_threadpool(self._workers.call, decode_picture, data, limits.pixels)
            await self._push(session, incoming.picture(frame, at))
            self._accepted = at
            frame_id = message.get("frame_id")
            self._pictures.append((frame_id if isinstance(frame_id, str) else None, at))
            del self._pictures[:-_IDS]
        if message.get("frame_id") is not None:
            echo = {
                name: message[name]
                for name in ("frame_id", "pts_ms", "capture_ts_ms")
                if isinstance(message.get(name), str) or _is_finite(message.get(name))
            }
            await self._say(
                "video.frame.ack",
                **echo,
                accepted=taken,
                buffered_frames=len(self._pictures),
                server_receive_ts_ms=received,
            )

    def _time(self, message: Mapping[str, Any], incoming: Incoming) -> float:
        """Of a picture, in seconds: as it says, or when it was taken, or now."""
        pts, captured = message.get("pts_ms"), message.get("capture_ts_ms")
        if pts is not None:
            return _seconds(pts, "pts_ms")
        now = time.monotonic() if captured is None else _seconds(captured, "capture_ts_ms")
        if self._first is None:
            self._first = now - incoming.last
        return now - self._first

    async def _sound(self, message: Mapping[str, Any]) -> None:
        session, incoming = self._begun()
        data = _base64(message.get("data"), "audio.chunk")
        if len(data) % 2 or len(data) > 32_000 * 60:
            raise Failure("audio.chunk holds 16 bit samples of 16 kHz, at most 60 s of them")
        samples = np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE
        await self._push(session, incoming.sound(samples))

    async def _push(self, session: Session, windows: Any) -> None:
        def push() -> None:
            for window in windows:
                self._engine.push(session, window)

        await run_in_threadpool(push)

    async def _query(self, message: Mapping[str, Any]) -> None:
        session, incoming = self._begun()
        text = check_text(message.get("text"), "text", self._engine.limits)
        if not text.strip():
            raise Failure("video.query needs a text", param="text")
        sampling_params = self._decoding({**self._config, **message})
        asking = Asking(text, sampling_params=sampling_params, keep=self._keep)
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.wait([self._answering])
        arrived = session.arrived
        rest = await run_in_threadpool(incoming.rest)
        pictures, self._pictures = self._pictures, []
        self._answering = asyncio.ensure_future(
            self._answer(session, arrived, rest, asking, pictures)
        )

    def _decoding(self, message: Mapping[str, Any]) -> SamplingParams:
        """As chat completions are asked for; or as a list of vLLM-Omni's, of which one counts."""
        stages = message.get("sampling_params_list")
        first = stages[0] if isinstance(stages, list) and stages else {}
        fields = {**first, **message} if isinstance(first, Mapping) else message
        return read_decoding(fields, self._engine.limits)

    async def _answer(
        self,
        session: Session,
        arrived: int,
        rest: list[Window],
        asking: Asking,
        pictures: list[tuple[str | None, float]],
    ) -> None:
        engine, request, began = self._engine, f"video-{uuid.uuid4().hex}", time.perf_counter()
        say, first = self._say, True
        try:
            await say("response.start", request_id=request)
            steps = about_stream(engine, session, arrived, rest, asking)
            async with contextlib.aclosing(
                followed(engine, steps, engine.limits.waiting, first=True)
            ) as news:
                async for one in news:
                    if isinstance(one, Begun):
                        ids = [name for name, _ in pictures if name is not None]
                        latest = 1e3 * pictures[-1][1] if pictures else None
                        await say(
                            "video.frames.consumed",
                            request_id=request,
                            frame_ids=ids,
                            latest_pts_ms=latest,
                            model_selected_ts_ms=1e3 * time.time(),
                        )
                    elif isinstance(one, Piece):
                        if first:
                            engine.metrics.first_token.observe(time.perf_counter() - began)
                            first = False
                        await say("response.text.delta", request_id=request, delta=one.text)
                    elif isinstance(one, Answered):
                        facts = dataclasses.asdict(one)
                        await say("response.text.done", request_id=request, **facts)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await say("response.cancelled", request_id=request)
            raise
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client has left; whoever reads its messages knows
        except Exception as error:
            failure = explained(error)
            if failure.status == 500:
                _LOG.exception("an answer has failed")
            await self._fail(failure, request_id=request)

    async def _forward(self) -> None:
        """What the engine tells of the session."""
        while True:
            news = await self._ear.hear()
            if isinstance(news, WindowRead):
                await self._say("window.read", **dataclasses.asdict(news))
            elif isinstance(news, WindowSkipped):
                await self._say("window.skipped", **dataclasses.asdict(news))
            elif isinstance(news, Expired):
                await self._fail(Failure(news.reason, 404))
                await self._close(1001)
                return

    async def _fail(self, failure: Failure, **more: Any) -> None:
        facts = {"message": str(failure), "code": failure.status, "param": failure.param}
        await self._say("error", **facts, **more)

    async def _say(self, kind: str, **facts: Any) -> None:
        text = json.dumps({"type": kind, **facts})
        await self._patiently(self._socket.send_text(text))

    async def _close(self, code: int) -> None:
        with contextlib.suppress(RuntimeError):  # closed already
            await self._patiently(self._socket.close(code))

    async def _patiently(self, sending: Awaitable[None]) -> None:
        """A client that reads nothing is no reason to wait for ever."""
        async with self._sending:
            try:
                async with asyncio.timeout(self._engine.limits.waiting):
                    await sending
            except TimeoutError as error:
                raise WebSocketDisconnect(1006) from error


def _fixed(message: Mapping[str, Any], extra: Mapping[str, Any]) -> list[str]:
    """What is said of a session and can be said only when it begins."""
    fixed = [name for name in ("memory", "video", "audio") if name in extra]
    return fixed + ["system_prompt"] * ("system_prompt" in message)


def _seconds(milliseconds: Any, name: str) -> float:
    if not _is_finite(milliseconds) or milliseconds < 0:
        raise Failure(f"{name} must be milliseconds from 0, got {str(milliseconds)[:80]}")
    return milliseconds / 1e3


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e18  # of infinity and NaN it is not true


def _base64(data: Any, kind: str) -> bytes:
    try:
        if isinstance(data, str):
            return base64.b64decode(data.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        pass
    raise Failure(f"{kind} needs data in base64", param="data")
