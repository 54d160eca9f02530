"""The web page at ``/``: its static files, and its sample clip with questions."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from omnizip_jax.serve.auth import PAGE
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.testbed.clip_questions import all_questions
from omnizip_jax.testbed.synthetic_clips import SyntheticClip, make_clip

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only files of this server, no inline scripts or styles, no frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
SAMPLE_SEED, SAMPLE_WINDOWS = 4, 8
SAMPLE_KINDS = ("shape of colour", "colour of sound", "sound of colour", "silent", "count")


def page_routes() -> list[Route]:
    """Routes of the page and of its files."""
    return [
        Route("/", lambda _: _file("index.html")),
        Route(f"{PAGE}sample.mp4", _sample_clip),
        Route(f"{PAGE}sample.json", _sample_questions),
        Route(f"{PAGE}{{name}}", lambda request: _file(request.path_params["name"])),
    ]


def assets() -> list[str]:
    """Names of the files below ``PAGE``."""
    return sorted(path.name for path in STATIC.iterdir() if path.suffix in TYPES)


@functools.cache
def sample() -> SyntheticClip:
    """The sample clip."""
    return make_clip(SAMPLE_SEED, windows=SAMPLE_WINDOWS)


def sample_questions() -> list[dict[str, Any]]:
    """One question of each kind with its answer and the second from which the answer holds."""
    objects = sample().objects
    questions = []
    for index, kind in enumerate(SAMPLE_KINDS):
        of_kind = [question for question in all_questions(objects) if question.kind == kind]
        question = of_kind[index % len(of_kind)]  # about different things
        since = (question.subject or objects[-1]).second + 1
        questions.append({"text": question.text, "answer": question.answer, "since": since})
    return sorted(questions, key=lambda question: question["since"])


def _file(name: str) -> Response:
    if name not in assets():
        raise RequestError(f"the page has no file {name[:80]!r}", 404)
    path = STATIC / name
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)


def _sample_clip(_: Request) -> Response:
    return Response(_sample_file(), media_type="video/mp4", headers=HEADERS)


@functools.cache
def _sample_file() -> bytes:
    with tempfile.TemporaryDirectory(prefix="omnizip_") as folder:
        return sample().write(Path(folder) / "sample.mp4").read_bytes()


def _sample_questions(_: Request) -> Response:
    return JSONResponse({"questions": sample_questions()}, headers=HEADERS)
