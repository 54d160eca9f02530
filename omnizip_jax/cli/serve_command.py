"""``omnizip serve``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from omnizip_jax.cli.model_setup import load_checkpoint, parse_method
from omnizip_jax.serve.config import Limits, MiB, ServerConfig
from omnizip_jax.serve.server import serve


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    config = ServerConfig(
        host=arguments.host,
        port=arguments.port,
        key_file=arguments.api_key_file,
        no_key=arguments.no_api_key,
        media_folder=arguments.allow_media,
        allow_remote=arguments.allow_remote,
        session_folder=arguments.save_sessions,
        trusted_hosts=tuple(arguments.trusted_hosts),
        limits=Limits(
            sessions=arguments.max_sessions,
            upload=arguments.max_upload * MiB,
            capacity=arguments.capacity,
        ),
    )
    method = parse_method(arguments.method, arguments.set)
    params = load_checkpoint(
        arguments.checkpoint, arguments.dtype, arguments.devices, arguments.cache_dtype
    )
    if arguments.grid_slots is not None:
        model = dataclasses.replace(params.config, grid_slots=arguments.grid_slots)
        params = dataclasses.replace(params, config=model)
    serve(params, Path(arguments.checkpoint).name, method, config)
