"""``omnizip serve``: its arguments, and how it begins."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

from omnizip_jax.app.arguments import positive

_NEEDED = ("starlette", "uvicorn", "websockets", "prometheus_client")
MiB = 2**20


def add_serve(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The command's parser; a method's arguments are left to the caller."""
    serve = commands.add_parser(
        "serve",
        help="a page for a camera; answer OpenAI's clients, and live video over a socket",
        description="Serves a page at /, POST /v1/chat/completions and WS /v1/video/chat/stream on "
        "this machine; docs/serving.md has the protocols.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument(
        "--checkpoint",
        default="small",
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
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
        "--max-upload", type=positive, default=64, metavar="MIB", help="size of a medium"
    )
    serve.add_argument(
        "--capacity", type=positive, default=8192, metavar="N", help="slots of a session's cache"
    )
    serve.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")
    serve.set_defaults(run=_serve)
    return serve


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serving needs {', '.join(missing)}: pip install 'omnizip_jax[serve]' brings them"
        )

    import omnizip_jax
    from omnizip_jax.app.methods import parse_method
    from omnizip_jax.app.programs import enable_compilation_cache
    from omnizip_jax.serve.limits import Limits
    from omnizip_jax.serve.server import Settings, serve

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
        limits=limits,
    )
    method = parse_method(arguments.method, arguments.set)
    enable_compilation_cache()
    print(f"[loading {arguments.checkpoint}]", file=sys.stderr)
    params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
    if arguments.grid_slots is not None:
        config = dataclasses.replace(params.config, grid_slots=arguments.grid_slots)
        params = dataclasses.replace(params, config=config)
    serve(params, Path(arguments.checkpoint).name, method, settings)
    return 0
