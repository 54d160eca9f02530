"""``omnizip serve``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from omnizip_jax.cli.model_setup import load_with_notice, parse_method
from omnizip_jax.serve.limits import Limits
from omnizip_jax.serve.server import Settings, serve

MiB = 2**20


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        key_file=arguments.api_key_file,
        open=arguments.no_api_key,
        media=arguments.allow_media,
        remote=arguments.allow_remote,
        shelf=arguments.save_sessions,
        limits=Limits(
            sessions=arguments.max_sessions,
            upload=arguments.max_upload * MiB,
            capacity=arguments.capacity,
        ),
    )
    method = parse_method(arguments.method, arguments.set)
    params = load_with_notice(arguments)
    if arguments.grid_slots is not None:
        config = dataclasses.replace(params.config, grid_slots=arguments.grid_slots)
        params = dataclasses.replace(params, config=config)
    serve(params, Path(arguments.checkpoint).name, method, settings)
