"""The page at ``/``: files that come with the package, and a clip that is made on the spot."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from omnizip_jax.serve.auth import PAGE
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.sample import sample_file, sample_questions

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing comes from elsewhere, nothing is written into the page, nobody may frame it.
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


def page_routes() -> list[Route]:
    """``/`` and what it is made of."""
    return [
        Route("/", lambda _: _file("index.html")),
        Route(f"{PAGE}sample.mp4", _sample),
        Route(f"{PAGE}sample.json", _questions),
        Route(f"{PAGE}{{name}}", lambda request: _file(request.path_params["name"])),
    ]


def assets() -> list[str]:
    """Names of the files below ``PAGE``."""
    return sorted(path.name for path in STATIC.iterdir() if path.suffix in TYPES)


def _file(name: str) -> Response:
    if name not in assets():
        raise Failure(f"the page has no file {name[:80]!r}", 404)
    path = STATIC / name
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)


def _sample(_: Request) -> Response:
    return Response(sample_file(), media_type="video/mp4", headers=HEADERS)


def _questions(_: Request) -> Response:
    return JSONResponse({"questions": sample_questions()}, headers=HEADERS)
