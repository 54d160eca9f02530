"""Invalid arguments of the public functions are refused at once, by name, in a sentence."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

import omnizip_jax
from omnizip_jax import METHODS, WindowSpec
from omnizip_jax.types import Window
from tests.conftest import clip_of, make_windows

SPEC = WindowSpec(grid_slots=16)
NAN = float("nan")
FRAMES = np.zeros((8, 48, 64, 3), np.uint8)
WAVE = np.zeros(32000, np.float32)
VIDEO = (FRAMES, 4.0, WAVE, 16000)
EMPTY = Window.empty(SPEC)
LATE = 5.0  # s; nothing may be compiled or decoded


@pytest.fixture(scope="module")
def state(params):
    return omnizip_jax.init_stream(params, capacity=768, text_slots=192, spec=SPEC)


@pytest.fixture(scope="module")
def clip_context(params):
    return omnizip_jax.read(params, clip_of(make_windows([2], [200])))


def of_generate(video=VIDEO, question="Why?", model=None, **bad):
    settings = {"spec": SPEC, "max_new_tokens": 4, **bad}
    return lambda params, *_: omnizip_jax.generate(model or params, video, question, **settings)


def of_read(video=VIDEO, **bad):
    return lambda params, *_: omnizip_jax.read(params, video, **{"spec": SPEC, **bad})


def of_ask(question="Why?", **bad):
    settings = {"max_new_tokens": 4, **bad}
    return lambda params, _, context: omnizip_jax.ask(params, context, question, **settings)


def of_stream(**bad):
    settings = {"capacity": 768, "text_slots": 192, "spec": SPEC, **bad}
    return lambda params, *_: omnizip_jax.init_stream(params, **settings)


def of_feed(window):
    return lambda params, state, _: omnizip_jax.feed(params, state, window)


def of_windows(source=VIDEO, **bad):
    return lambda *_: omnizip_jax.windows(source, **{"spec": SPEC, **bad})


def of_load(*arguments, **bad):
    return lambda *_: omnizip_jax.load(*arguments, **bad)


def of_method(name, **settings):
    return lambda *_: METHODS[name](**settings)


def of_converse(parts):
    return lambda params, *_: omnizip_jax.converse(params, parts, spec=SPEC)


# The call, and a pattern of the message.
CASES = {
    "generate_params": (of_generate(model="small"), "params"),
    "generate_compression": (of_generate(compression="omnizip"), "compression"),
    "ask_tokens": (of_ask(max_new_tokens=2.5), "max_new_tokens"),
    "stream_memory": (of_stream(memory=None), "memory"),
    "feed_window": (of_feed(VIDEO), "window"),
    "method_nan": (of_method("omnizip", rho_audio=NAN), "rho_audio"),
    "generate_number": (of_generate(video=3), "got int"),
    "generate_bare_array": (of_generate(video=FRAMES), "tuple"),
    "generate_three_arrays": (of_generate(video=VIDEO[:3]), "got 3"),
    "generate_fps": (of_generate(video=(FRAMES, NAN, WAVE, 16000)), "fps"),
    "generate_frames": (of_generate(video=(FRAMES / 2, 4.0, WAVE, 16000)), "frames"),
    "generate_wave": (of_generate(video=(FRAMES, 4.0, WAVE + NAN, 16000)), "sound|samples|finite"),
    "generate_loud_wave": (of_generate(video=(FRAMES, 4.0, WAVE + 1e38, 16000)), "samples|1e38"),
    "generate_rate": (of_generate(video=(FRAMES, 4.0, WAVE, -1)), "sample_rate"),
    "generate_folder": (of_generate(video="/"), "/"),
    "generate_question": (of_generate(question=3), "question"),
    "generate_bytes": (of_generate(question=b"Why?"), "question"),
    "generate_no_question": (of_generate(question=""), "question"),
    "generate_system": (of_generate(system=3), "system"),
    "generate_class": (of_generate(compression=METHODS["omnizip"]), "compression"),
    "generate_tokens": (of_generate(max_new_tokens="4"), "max_new_tokens"),
    "generate_many_tokens": (of_generate(max_new_tokens=10**12), "positions"),
    "generate_temperature": (of_generate(temperature=NAN), "temperature"),
    "generate_cold": (of_generate(temperature=-1), "temperature"),
    "generate_top_p": (of_generate(top_p="0.5"), "top_p"),
    "generate_seed": (of_generate(seed=1.0), "seed"),
    "generate_long_seed": (of_generate(seed=2**64), "seed"),
    "generate_spec": (of_generate(spec=16), "spec"),
    "generate_frames_count": (of_generate(max_frames=2.5), "max_frames"),
    "generate_few_frames": (of_generate(max_frames=-4), "max_frames"),
    "generate_audio": (of_generate(use_audio="no"), "use_audio"),
    "generate_video": (of_generate(use_video=None), "use_video"),
    "generate_nothing": (of_generate(use_audio=False, use_video=False), "use_audio"),
    "generate_callback": (of_generate(on_text="print"), "on_text"),
    "read_reserve": (of_read(reserve=-1), "reserve"),
    "read_half_reserve": (of_read(reserve=0.5), "reserve"),
    "read_seed": (of_read(seed=None), "seed"),
    "read_ends_in_text": (of_read(video=[{"video": VIDEO}, "Why?"]), "must end with a clip"),
    "converse_none": (of_converse(None), "parts"),
    "converse_text": (of_converse("Why?"), "parts"),
    "converse_empty": (of_converse([]), "question"),
    "converse_mapping": (of_converse([{"audio": VIDEO}, "Why?"]), '"video"'),
    "converse_array": (of_converse([FRAMES, "Why?"]), "ndarray"),
    "converse_no_question": (of_converse(["Look:", {"video": VIDEO}]), "question"),
    "ask_context": (lambda params, *_: omnizip_jax.ask(params, None, "Why?"), "context"),
    "ask_question": (of_ask(question=["Why?"]), "question"),
    "ask_keep": (of_ask(keep=1), "keep"),
    "ask_seed": (of_ask(seed=-1), "seed"),
    "ask_top_p": (of_ask(top_p=NAN), "top_p"),
    "ask_many_tokens": (of_ask(max_new_tokens=10**12), "room"),
    "ask_callback": (of_ask(on_text=3), "on_text"),
    "stream_compression": (of_stream(compression=0.45), "compression"),
    "stream_capacity": (of_stream(capacity=1024.0), "capacity"),
    "stream_negative_slots": (of_stream(text_slots=-5), "text_slots"),
    "stream_low_water": (of_stream(low_water=NAN), "low_water"),
    "stream_audio": (of_stream(audio=None), "audio"),
    "stream_system": (of_stream(system=3), "system"),
    "stream_spec": (of_stream(spec=(2, 50)), "spec"),
    "stream_seed": (of_stream(seed=True), "seed"),
    "feed_none": (of_feed(None), "window"),
    "feed_length": (of_feed(EMPTY.replace(mel_length=np.int32(-5))), "mel_length"),
    "feed_size": (of_feed(EMPTY.replace(grid_size=np.zeros(2, np.int32))), "grid_size"),
    "feed_leaf": (of_feed(EMPTY.replace(mel=None)), "mel"),
    "feed_batch": (of_feed(jax.tree.map(lambda x: x[None], EMPTY)), "one window"),
    "windows_number": (of_windows(3), "got int"),
    "windows_spec": (of_windows(spec=None), "spec"),
    "windows_queue": (of_windows(queue=0), "queue"),
    "windows_timeout": (of_windows(timeout=NAN), "timeout"),
    "windows_slow": (of_windows(when_slow="drop"), "when_slow"),
    "windows_audio": (of_windows(use_audio=2), "use_audio"),
    "load_number": (of_load(3), "path"),
    "load_none": (of_load(None), "path"),
    "load_nowhere": (of_load("~/nowhere"), "nowhere"),
    "load_dtype": (of_load("small", dtype="int8"), "dtype"),
    "load_double": (of_load("small", "float64"), "dtype"),
    "load_verify": (of_load("small", verify="yes"), "verify"),
    "method_text": (of_method("omnizip", knn="5"), "knn"),
    "method_share": (of_method("random", rho_audio=1.5), "rho_audio"),
    "method_negative": (of_method("published", merge_size=-1), "merge_size"),
    "method_keep": (of_method("visionzip", keep=-0.5), "keep"),
    "method_bool": (of_method("dycoke", keep=True), "keep"),
    "spec_text": (lambda *_: WindowSpec(grid_slots="16"), "grid_slots"),
}


def check_refused(case, *arguments):
    call, message = case
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        call(*arguments)
    assert time.perf_counter() - start < LATE
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name, params, state):
    check_refused(CASES[name], params, state, state)  # a stream is a context, too


@pytest.mark.slow
def test_a_window_for_the_context_of_a_clip(params, state, clip_context):
    check_refused((of_ask(window=EMPTY), "window"), params, state, clip_context)
