"""Flags that the calling program sets for JAX do not change what the library computes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from omnizip_jax import ask, feed, fork, init_stream
from omnizip_jax.inference.generation import generate_tokens
from omnizip_jax.inference.prefill import append_text
from omnizip_jax.inference.streaming import _feed
from omnizip_jax.window_spec import WindowSpec

FLAGS = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}


def stream(params, windows):
    """The state and the answer of a stream with a fork."""
    state = init_stream(params, capacity=768, text_slots=192, spec=WindowSpec(grid_slots=16))
    for number in range(2):
        state = feed(params, state, jax.tree.map(lambda x, i=number: x[i], windows))
    answer, _ = ask(params, fork(state), "What happens?", max_new_tokens=10)
    return state, answer


def test_flags_change_no_program_and_no_result(params, random_windows):
    windows = random_windows([2, 2], [200, 200])
    state, answer = stream(params, windows)
    programs = [each._cache_size() for each in (_feed, append_text, generate_tokens)]
    with contextlib.ExitStack() as flags:
        flags.enter_context(jax.enable_x64(True))
        flags.enter_context(jax.numpy_dtype_promotion("strict"))
        flags.enter_context(jax.numpy_rank_promotion("raise"))
        other, same = stream(params, windows)
        assert jax.numpy.zeros(1).dtype == np.float64  # the flags are those of the caller again
    assert same.token_ids == answer.token_ids
    for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(state), strict=True):
        assert x.dtype == y.dtype and np.dtype("int64") != x.dtype != np.dtype("float64")
    assert [each._cache_size() for each in (_feed, append_text, generate_tokens)] == programs


PROGRAM = """
import sys
import jax, numpy as np
import omnizip_jax as oj
from omnizip_jax.compression import METHODS
from omnizip_jax.testbed.synthetic_clips import make_clip

params, clip = oj.load("small", dtype="float32"), make_clip(0).arrays
question = "Was there a red shape?"
for name, method in METHODS.items():
    answer = oj.generate(params, clip, question, compression=method(), max_new_tokens=3)
    print(name, answer.token_ids, answer.counts.audio_kept, answer.counts.video_kept)
context = oj.read(params, clip)
print(oj.ask(params, context, question, keep=True, temperature=0.5, max_new_tokens=3)[0].token_ids)
oj.warmup(params, 2.0, max_new_tokens=3, question_tokens=20)
for method in (None, oj.OmniZipConfig(), METHODS["surprise"]()):
    state = oj.init_stream(params, method, capacity=512, text_slots=64)
    for window in oj.windows(clip, params.config.spec):
        state = oj.feed(params, state, window)
    folder = f"{sys.argv[1]}/{type(method).__name__}"
    oj.save(state, folder)
    for state in (oj.fork(state), oj.restore(params, folder)):
        print(oj.ask(params, state, question, max_new_tokens=3)[0].token_ids)
    leaves = jax.tree.leaves(jax.tree.map(lambda x: x.dtype, (params.weights, state.state)))
    assert not {"int64", "float64"} & {x.name for x in leaves}
"""


@pytest.mark.slow
def test_every_entry_point_computes_the_same_under_flags(tmp_path):
    outputs = []
    for name, flags in (("default", {}), ("flags", FLAGS)):
        outputs.append(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, tmp_path / name],
                env=os.environ | flags,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        )
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 20
