"""``omnizip stream``."""

from __future__ import annotations

import argparse
import contextlib

from omnizip_jax.cli.model_setup import load_checkpoint, parse_method, window_spec
from omnizip_jax.cli.stream_loop import QuestionQueue, feed_source, init_compiled_stream
from omnizip_jax.cli.stream_terminal import StreamDisplay, TypedLines, print_json
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM
from omnizip_jax.media import windows

QUESTION_SLOTS = 384  # cache slots for a question with its chat template


def run_stream(arguments: argparse.Namespace) -> None:
    """Feed a source until it ends, and answer questions meanwhile."""
    method = parse_method(arguments.method, arguments.set)
    questions = QuestionQueue(arguments.ask)
    with contextlib.ExitStack() as stack:
        display = None if arguments.json else stack.enter_context(StreamDisplay())
        stack.enter_context(TypedLines(questions.put, display and display.show_typed))
        if display:
            display.show_step("loading the checkpoint")
        params = load_checkpoint(arguments.checkpoint, arguments.dtype, notice=False)
        spec = window_spec(arguments, params.config.spec)
        source = stack.enter_context(
            windows(
                arguments.source,
                spec,
                use_audio=not arguments.no_audio,
                use_video=not arguments.no_video,
                audio_stream=arguments.audio_stream,
                video_stream=arguments.video_stream,
                audio=arguments.sound,
                timeout=arguments.timeout,
                realtime=arguments.realtime,
                when_slow=arguments.when_slow,
            )
        )
        if display:
            display.show_step("compiling (kept for the next time)")
        state = init_compiled_stream(
            params,
            method,
            capacity=arguments.capacity,
            memory=arguments.memory,
            text_slots=arguments.max_new_tokens + QUESTION_SLOTS,
            audio=source.has_audio,
            video=source.has_video,
            spec=spec,
            system=DEFAULT_SYSTEM if arguments.system is None else arguments.system,
        )
        feed_source(
            params,
            state,
            source,
            questions,
            display or print_json,
            on_text=display and display.add_text,
            keep=arguments.keep,
            max_new_tokens=arguments.max_new_tokens,
        )
