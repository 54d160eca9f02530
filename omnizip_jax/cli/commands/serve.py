"""``omnizip serve``: clips and live video over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path

from omnizip_jax.cli import programs
from omnizip_jax.cli.arguments import make_folder, positive
from omnizip_jax.cli.shared import (
    Help,
    add_checkpoint,
    add_compression,
    load_checkpoint,
    method_from,
)

_NEEDED = ("starlette", "uvicorn", "websockets", "prometheus_client")
MiB = 2**20


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    serve = commands.add_parser(
        "serve",
        help="a page for a camera; answer OpenAI's clients, and live video over a socket",
        description="Serves a page at /, POST /v1/chat/completions and WS /v1/video/chat/stream on "
        "this machine; docs/serving.md has the protocols.",
        formatter_class=Help,
    )
    add_checkpoint(serve, "small")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at")
    serve.add_argument("--port", type=positive, default=8000, help="port to listen at")
    key = serve.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="clients must give the key in this file"
    )
    key.add_argument(
        "--no-api-key", action="store_true", help="let other machines connect without a key"
    )
    serve.add_argument(
        "--allow-media", type=Path, metavar="DIR", help="requests may name files below this folder"
    )
    serve.add_argument(
        "--allow-remote",
        action="store_true",
        help="requests may name media on the internet (never on private networks)",
    )
    serve.add_argument(
        "--max-sessions", type=positive, default=16, metavar="N", help="live sessions at once"
    )
    serve.add_argument(
        "--save-sessions",
        type=Path,
        metavar="DIR",
        help="live sessions whose clients are gone, or that SIGTERM ends, can be resumed",
    )
    serve.add_argument(
        "--max-upload", type=positive, default=64, metavar="MIB", help="size of a medium"
    )
    serve.add_argument(
        "--capacity", type=positive, default=8192, metavar="N", help="slots of a session's cache"
    )
    add_compression(serve)
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serving needs {', '.join(missing)}: pip install 'omnizip_jax[serve]' brings them"
        )

    programs.share_arenas()

    from omnizip_jax.serve.limits import Limits
    from omnizip_jax.serve.server import Settings, serve

    if arguments.save_sessions is not None:
        make_folder("--save-sessions", arguments.save_sessions)
    limits = Limits(
        sessions=arguments.max_sessions,
        upload=arguments.max_upload * MiB,
        capacity=arguments.capacity,
    )
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        key_file=arguments.api_key_file,
        open=arguments.no_api_key,
        media=arguments.allow_media,
        remote=arguments.allow_remote,
        shelf=arguments.save_sessions,
        limits=limits,
    )
    method = method_from(arguments)
    params = load_checkpoint(arguments)
    if arguments.grid_slots is not None:
        config = dataclasses.replace(params.config, grid_slots=arguments.grid_slots)
        params = dataclasses.replace(params, config=config)
    serve(params, Path(arguments.checkpoint).name, method, settings)
    return 0
