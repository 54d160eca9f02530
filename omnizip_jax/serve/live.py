"""Live video over a WebSocket, in the protocol of vLLM-Omni; the whole stream is the context.

Clients send ``session.config`` (optional), ``video.frame``, ``audio.chunk``, ``video.query`` and
``video.done``. The server sends ``video.frame.ack``, ``response.start``, ``video.frames.consumed``,
``response.text.delta``, ``response.text.done``, ``session.done`` and ``error``, and beyond that
protocol ``response.cancelled``, ``window.read``, ``window.skipped``, ``method.changed`` and
``session.created``, ``stream.jump``. A new query cancels the answer before it. A later
``session.config`` changes the method. With a session store, a client that was disconnected can
resume its session. Messages about a ``session.config`` or a ``video.query``, errors included, have
its ``request_id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from omnizip_jax.compression import Method
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.serve.answer_steps import (
    AnswerDone,
    AnswerRequest,
    AnswerStarted,
    TextDelta,
    answer_about_session,
)
from omnizip_jax.serve.auth import PROTOCOL
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError, as_request_error, invalid_input
from omnizip_jax.serve.jobs import event_queue
from omnizip_jax.serve.live_assembler import LiveAssembler
from omnizip_jax.serve.media_workers import DecoderPool, decode_frame
from omnizip_jax.serve.protocol import (
    check_text,
    field,
    parse_object,
    read_answer_settings,
    read_base64,
    read_method,
    read_options,
    refuse_unsupported,
)
from omnizip_jax.serve.sessions import Session, WindowRead
from omnizip_jax.types import Window

_FULL_SCALE = 32768.0  # of 16 bit audio
_MAX_CHUNK = 32_000 * 60  # bytes: 60 s
_MAX_FRAME_IDS = 256  # in one message video.frames.consumed
_FIXED: tuple[str, ...] = ("resume", "memory", "video", "audio")  # cannot change
_OPTIONS = ("method", "settings", "keep", *_FIXED)  # fields of "omnizip"
_CLOSE_CODES = {503: 1013, 500: 1011}  # by HTTP status


async def serve_socket(engine: Engine, decoders: DecoderPool, socket: WebSocket) -> None:
    """Serve one socket, which has one session, until it closes."""
    accepted = PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None
    await socket.accept(accepted)
    connection = _Connection(engine, decoders, socket)
    try:
        await connection.run()
    except (WebSocketDisconnect, RuntimeError):  # starlette raises either for a closed socket
        if socket.client_state is WebSocketState.CONNECTED:
            raise
    finally:
        await connection.close()


class _Connection:
    def __init__(self, engine: Engine, decoders: DecoderPool, socket: WebSocket):
        self._engine, self._decoders, self._socket = engine, decoders, socket
        self._config: Mapping[str, Any] = {}
        self._session: Session | None = None
        self._assembler: LiveAssembler | None = None
        self._events, self._on_event = event_queue()
        self._event_task: asyncio.Task | None = None
        self._answer_task: asyncio.Task | None = None
        self._send_lock = asyncio.Lock()
        self._clock_start: float | None = None  # s; zero of the frames' clock without pts_ms
        self._frames: list[tuple[str | None, float]] = []  # id and time, since the last query
        self._last_accepted = -math.inf  # time of a frame
        self._done = self._keep = False

    async def run(self) -> None:
        """Handle messages until the client is done."""
        limits = self._engine.limits
        while True:
            try:
                async with asyncio.timeout(limits.idle):
                    message = await self._socket.receive()
            except TimeoutError:
                if self._answer_task is not None and not self._answer_task.done():
                    continue
                await self._send_error(RequestError(f"no message for {limits.idle:g} s", 408), {})
                return await self._close_socket(1001)
            if message["type"] == "websocket.disconnect":
                return
            request: Mapping[str, Any] = {}
            try:
                text = message.get("text") or message.get("bytes") or ""
                request = parse_object(text, "a message")
                await self._handle(request)
            except WebSocketDisconnect:
                raise
            except Exception as error:
                refusal = as_request_error(error)
                await self._send_error(refusal, request)
                if refusal.status in _CLOSE_CODES and self._session is None:
                    return await self._close_socket(_CLOSE_CODES[refusal.status])
            if self._done:
                await self._send("session.done")
                return await self._close_socket(1000)

    async def close(self) -> None:
        """End or store the session, and cancel the tasks."""
        if self._session is not None:
            (self._engine.end if self._done else self._engine.disconnect)(self._session)
        tasks = [task for task in (self._answer_task, self._event_task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _handle(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        handlers: dict[Any, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "session.config": self._configure,
            "video.frame": self._add_frame,
            "audio.chunk": self._add_audio,
            "video.query": self._query,
            "video.done": self._finish,
        }
        if not isinstance(kind, str) or kind not in handlers:
            raise RequestError(
                f"a message must be an object of type {', '.join(handlers)}, got {str(kind)[:80]}"
            )
        await handlers[kind](message)

    async def _finish(self, _: Mapping[str, Any]) -> None:
        if self._answer_task is not None:
            await asyncio.wait([self._answer_task])
        self._done = True

    async def _configure(self, message: Mapping[str, Any]) -> None:
        self._read_answer_settings(message)
        options = read_options(message, _OPTIONS)
        method = read_method(options)
        keep = field(options, "keep", bool, self._keep, "omnizip.keep")
        if self._session is None:
            self._config = message
            if options.get("resume") is not None:
                await self._resume(message, options)
            else:
                self._open(method, options)
            if (session := self._session) is not None and (store := self._engine.store) is not None:
                session.name = session.name or store.new_name()  # under which it will be stored
                about = {"session_id": session.name, "windows": session.arrived}
                await self._send("session.created", **about, **_request_id(message))
        elif message != self._config:
            await self._change_config(message, options, method)
        self._keep = keep

    async def _change_config(
        self, message: Mapping[str, Any], options: Mapping[str, Any], method: Method | None
    ) -> None:
        """Change settings of a session that has begun; the others may be repeated as they are."""
        before = field(self._config, "omnizip", Mapping, {})
        prompts = {"system_prompt": self._config.get("system_prompt")}
        fixed = _different(options, {name: before.get(name) for name in _FIXED})
        fixed += _different(message, prompts)
        if fixed or not (options or message.keys() - {"type", "omnizip", "request_id"}):
            raise RequestError(
                "a later session.config can change omnizip.method with its settings, omnizip.keep "
                f"and fields of answers such as max_tokens, got {', '.join(fixed) or 'none'}",
                param=fixed[0] if fixed else "omnizip.method",
            )
        session, _ = self._active()
        if method is not None:
            changes, number = method != read_method(before), session.arrived
            if changes:
                number = await self._engine.change_method(session, method)
            if changes or _request_id(message):  # a request has an answer
                await self._send("method.changed", number=number, **_request_id(message))
        settings = {"settings": options.get("settings")} if method is not None else {}
        self._config = {**self._config, **message, "omnizip": {**before, **options, **settings}}

    async def _resume(self, message: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Continue a stored session."""
        engine = self._engine
        nothing = dict.fromkeys((*_FIXED[1:], "method"))
        fixed = _different(options, nothing) + _different(message, {"system_prompt": None})
        if engine.store is None or fixed:
            raise RequestError(
                "this server stores no sessions"
                if engine.store is None
                else f"a resumed session has its {', '.join(fixed)} already",
                param="omnizip.resume",
            )
        session = await engine.resume(str(options["resume"]), self._on_event)
        modalities = engine.context_of(session).prefill_config.modalities
        self._start_session(session, modalities.video, modalities.audio)

    def _open(self, method: Method | None, options: Mapping[str, Any]) -> None:
        settings: dict[str, Any] = {}
        system = self._config.get("system_prompt")
        if system is not None:
            settings["system"] = check_text(system, "system_prompt", self._engine.limits)
        if options.get("memory") is not None:
            settings["memory"] = options["memory"]
        modalities = [options.get(name, True) for name in ("video", "audio")]
        if not all(isinstance(used, bool) for used in modalities) or not any(modalities):
            raise RequestError(
                "omnizip.video and omnizip.audio must be true or false, not both false, got "
                f"{str(modalities)[:80]}"
            )
        self._start_session(self._engine.open(self._on_event, method, **settings), *modalities)

    def _start_session(self, session: Session, video: bool, audio: bool) -> None:
        self._assembler = LiveAssembler(self._engine.params.config.spec, video, audio)
        self._session = session
        self._event_task = asyncio.ensure_future(self._forward_events())

    def _active(self) -> tuple[Session, LiveAssembler]:
        """The session, opened with the defaults if there was no ``session.config``."""
        if self._session is None:
            self._open(None, {})
        assert self._session is not None and self._assembler is not None
        if self._session.ended:
            raise RequestError("the session has ended", 404)
        self._session.used = time.monotonic()
        return self._session, self._assembler

    async def _add_frame(self, message: Mapping[str, Any]) -> None:
        received, limits = 1e3 * time.time(), self._engine.limits
        session, assembler = self._active()
        frame_time, frame_id = self._frame_time(message, assembler), message.get("frame_id")
        since = abs(frame_time - self._last_accepted)
        accepted = since >= 0.999 / limits.frames_per_second
        if accepted:
            data = read_base64(message.get("data"), "data")
            frame = await self._decoders.call(decode_frame, data, limits.pixels)
            await self._push(session, assembler, assembler.push_frame(frame, frame_time))
            self._last_accepted, accepted = frame_time, not assembler.is_late
            if (before := assembler.jumped_from) is not None:
                await self._send("stream.jump", from_ms=1e3 * before, to_ms=1e3 * frame_time)
            self._frames.append((frame_id if isinstance(frame_id, str) else None, frame_time))
            del self._frames[:-_MAX_FRAME_IDS]
        if frame_id is not None:
            echo = {
                name: message[name]
                for name in ("frame_id", "pts_ms", "capture_ts_ms")
                if isinstance(message.get(name), str) or _is_finite(message.get(name))
            }
            await self._send(
                "video.frame.ack",
                **echo,
                accepted=accepted,
                buffered_frames=len(self._frames),
                server_receive_ts_ms=received,
            )

    def _frame_time(self, message: Mapping[str, Any], assembler: LiveAssembler) -> float:
        """Time of a frame in seconds, by ``pts_ms``, ``capture_ts_ms`` or its arrival."""
        pts, captured = message.get("pts_ms"), message.get("capture_ts_ms")
        if pts is not None:
            return _seconds(pts, "pts_ms")
        now = time.monotonic() if captured is None else _seconds(captured, "capture_ts_ms")
        if self._clock_start is None:
            self._clock_start = now - assembler.last
        return now - self._clock_start

    async def _add_audio(self, message: Mapping[str, Any]) -> None:
        session, assembler = self._active()
        data = read_base64(message.get("data"), "data")
        if len(data) % 2 or len(data) > _MAX_CHUNK:
            raise RequestError(
                "audio.chunk must hold 16 bit samples at 16 kHz, at most 60 s, got "
                f"{len(data)} bytes"
            )
        samples = np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE
        await self._push(session, assembler, assembler.push_audio(samples))

    async def _push(
        self, session: Session, assembler: LiveAssembler, windows: Iterable[Window]
    ) -> None:
        def push() -> None:
            with invalid_input():
                for window in windows:
                    self._engine.push(session, window, assembler.start)

        await run_in_threadpool(push)

    async def _query(self, message: Mapping[str, Any]) -> None:
        session, assembler = self._active()
        text = check_text(message.get("text"), "text", self._engine.limits)
        if not text.strip():
            raise RequestError("video.query needs a text, got an empty one", param="text")
        sampling_params, stop = self._read_answer_settings({**self._config, **message})
        request = AnswerRequest(text, sampling_params=sampling_params, stop=stop, keep=self._keep)
        request_id = _request_id(message).get("request_id") or f"video-{uuid.uuid4().hex}"
        if (last := self._answer_task) is not None:
            last.cancel()
            await asyncio.wait([last])
            if last.cancelled():
                await self._send("response.cancelled", request_id=last.get_name())
        await self._send("response.start", request_id=request_id)
        arrived = session.arrived
        partial = await run_in_threadpool(assembler.incomplete)
        steps = answer_about_session(self._engine, session, arrived, partial, request)
        frames, self._frames = self._frames, []
        answer = self._answer(steps, frames, request_id)
        self._answer_task = asyncio.create_task(answer, name=request_id)

    def _read_answer_settings(
        self, message: Mapping[str, Any]
    ) -> tuple[SamplingParams, tuple[str, ...]]:
        """As chat completions have them, or as vLLM-Omni's list, of which the first item counts."""
        processor = field(message, "mm_processor_kwargs", Mapping, {})
        refuse_unsupported(processor, {"use_audio_in_video": (True,)}, "mm_processor_kwargs.")
        stages = message.get("sampling_params_list")
        first = stages[0] if isinstance(stages, list) and stages else {}
        fields = {**first, **message} if isinstance(first, Mapping) else message
        return read_answer_settings(fields, self._engine.limits)

    async def _answer(
        self, steps: Iterator[Any], frames: list[tuple[str | None, float]], request_id: str
    ) -> None:
        try:
            async with contextlib.aclosing(self._engine.events(steps, first=True)) as events:
                async for event in events:
                    if isinstance(event, AnswerStarted):
                        await self._send(
                            "video.frames.consumed",
                            request_id=request_id,
                            frame_ids=[name for name, _ in frames if name is not None],
                            latest_pts_ms=1e3 * frames[-1][1] if frames else None,
                            model_selected_ts_ms=1e3 * time.time(),
                        )
                    elif isinstance(event, TextDelta):
                        await self._send(
                            "response.text.delta", request_id=request_id, delta=event.text
                        )
                    elif isinstance(event, AnswerDone):
                        fields = dataclasses.asdict(event)
                        await self._send("response.text.done", request_id=request_id, **fields)
        except WebSocketDisconnect:
            pass  # ``run`` notices that the socket is closed
        except Exception as error:
            cause = {"type": "video.query", "request_id": request_id}
            await self._send_error(as_request_error(error), cause)

    async def _forward_events(self) -> None:
        """Send the events of the session until it ends."""
        while True:
            event = await self._events.get()
            if isinstance(event, RequestError):
                await self._send_error(event, {})
                return await self._close_socket(1001)
            kind = "window.read" if isinstance(event, WindowRead) else "window.skipped"
            await self._send(kind, **dataclasses.asdict(event))

    async def _send_error(self, error: RequestError, cause: Mapping[str, Any]) -> None:
        """Send an error; its ``cause`` is the type of the message at fault, if it has a type."""
        about = {"message": str(error), "code": error.status, "param": error.param}
        about["cause"] = cause["type"] if isinstance(cause.get("type"), str) else None
        frame = {"frame_id": cause["frame_id"]} if isinstance(cause.get("frame_id"), str) else {}
        await self._send("error", **about, **frame, **_request_id(cause))

    async def _send(self, kind: str, **fields: Any) -> None:
        text = json.dumps({"type": kind, **fields})
        await self._with_timeout(self._socket.send_text(text))

    async def _close_socket(self, code: int) -> None:
        with contextlib.suppress(WebSocketDisconnect):  # closed already
            await self._with_timeout(self._socket.close(code))

    async def _with_timeout(self, sending: Awaitable[None]) -> None:
        """Await a send; a client that reads nothing counts as disconnected."""
        async with self._send_lock:
            try:
                async with asyncio.timeout(self._engine.limits.waiting):
                    await sending
            except (TimeoutError, RuntimeError) as error:  # starlette's, of a closed socket
                raise WebSocketDisconnect(1006) from error


def _different(fields: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of fields that are there and differ from expected values."""
    return [name for name, value in expected.items() if fields.get(name) not in (None, value)]


def _request_id(message: Mapping[str, Any]) -> dict[str, str]:
    """The field ``request_id`` of a message, if it has one."""
    name = message.get("request_id")
    return {"request_id": name[:128]} if isinstance(name, str) and name else {}


def _seconds(milliseconds: Any, name: str) -> float:
    if not _is_finite(milliseconds):
        raise RequestError(f"{name} must be milliseconds, got {str(milliseconds)[:80]}")
    return milliseconds / 1e3


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e18  # False for infinity and NaN
