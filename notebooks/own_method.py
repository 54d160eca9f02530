# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A method of your own
#
# Write a method that selects tokens, look at what it keeps, and measure it beside the others. Run
# it from a clone of the repository: `experiments/` asks the questions, and the package contains the
# small model and its clips.

# %% [markdown]
# ## The method
#
# The idea: keep the tokens that are far from the mean of their clip. A method is a frozen dataclass
# whose fields are its settings. Its base class `Rates` has the settings `rho_audio`, `rho_video`,
# `keep` and `split`; its `plan` computes on the host how many tokens of each modality are kept.
# `select_audio` and `select_video` rank the tokens on the device: they receive the windows of a
# clip, the number of tokens to keep, and a random key.
#
# Shapes are static, so windows contain padding; masks mark the valid tokens.

# %%
# %matplotlib inline
import dataclasses
import tempfile
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp

import omnizip_jax
from experiments.accuracy import measure
from experiments.accuracy_questions import QUESTION_SETS
from experiments.accuracy_results import Measurement
from experiments.clip_inputs import Row
from omnizip_jax import METHODS
from omnizip_jax.compression.per_modality import Rates, select_top
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.decoder_cost import cost
from omnizip_jax.testbed.clip_questions import FAMILIES, NAMES
from omnizip_jax.testbed.synthetic_clips import sample_clip
from omnizip_jax.visualize import plot_methods


@dataclasses.dataclass(frozen=True)
class Unusual(Rates):
    """The tokens farthest from the mean of their clip, of each modality by itself.

    Args:
        same_place: for the video, the mean of the same position over time instead.
    """

    same_place: bool = False
    streams: ClassVar[bool] = False  # the mean needs the whole clip

    def select_audio(self, windows, count, key):
        tokens, mask = windows.audio.tokens, windows.audio.token_mask
        return select_top(distance(tokens, mask, axes=(0, 1)), mask, count)

    def select_video(self, windows, count, key, audio_keep):
        axes = (0, 1) if self.same_place else (0, 1, 2)
        scores = distance(windows.video, windows.video_mask, axes)
        return select_top(scores, windows.video_mask, count)


def distance(tokens, mask, axes):
    """Distance of each token from the mean of the valid tokens over some axes."""
    tokens, valid = tokens.astype(jnp.float32), mask[..., None]
    total = jnp.sum(tokens * valid, axes, keepdims=True)
    mean = total / jnp.maximum(jnp.sum(valid, axes, keepdims=True), 1)
    return jnp.linalg.norm(tokens - mean, axis=-1)


METHODS["unusual"] = Unusual  # by name, as the others

# %% [markdown]
# ## What it keeps
#
# `generate` takes it like any other method. The same question under four methods, each with 35 % of
# the tokens. Frames are dimmed where tokens were dropped; the strips below them are audio tokens.

# %%
params = omnizip_jax.load("small", dtype="float32")  # bfloat16 on a GPU
sample = sample_clip()
event = sample.events[0]
question = f"Which colour was seen during the {NAMES[event.sound]}?"
clip = sample.write(Path(tempfile.mkdtemp()) / "clip.mp4")
methods = {name: METHODS[name](keep=0.35) for name in ("omnizip", "random", "unusual")}
methods["unusual here"] = Unusual(keep=0.35, same_place=True)
answers = {
    name: omnizip_jax.generate(params, clip, question, compression=method, max_new_tokens=4)
    for name, method in methods.items()
}
print(question, f"(correct: {event.colour})")
for name, answer in answers.items():
    spent = cost(params.config.text, methods[name], answer.counts, answer.compression)
    print(f"{name:>12}: {answer.text:<8} kept {spent.kept:.1%}, {spent.operations:.3g} operations")
plot_methods(answers)

# %% [markdown]
# ## Its row beside the others
#
# `measure` asks the same questions about the same clips under every method: here 16 hard clips with
# one question of each family. The intervals are wide, because 16 clips are few; `python -m
# experiments.accuracy` asks about a thousand.

# %%
survey = QUESTION_SETS["hard"]
rows = {name: Row(method) for name, method in methods.items()}
blocks = measure(params, rows, survey, range(16), progress=False)
answered = [answer for block in blocks for answer in block]
measured = Measurement.of(answered, params, survey)
print(f"{'':>12}  {'right':>6}  {'95 %':^12}  {'  '.join(FAMILIES)}")
for name, right in measured.right.items():
    of_clips = right.mean(axis=(1, 2))  # over seeds and families
    row = mean_over(of_clips.tolist(), [str(clip) for clip in range(len(of_clips))])
    families = "  ".join(
        f"{share:>{len(family)}.0%}"
        for share, family in zip(right.mean(axis=(0, 1)), FAMILIES, strict=True)
    )
    print(f"{name:>12}  {row.mean:>6.1%}  {row.low:>5.0%} -{row.high:>5.0%}  {families}")

# %% [markdown]
# To add a method to the package, put it into a file of `omnizip_jax/compression/` and its class
# into `METHODS` there. The command line then offers it (`omnizip compare CLIP QUESTION --methods
# unusual,omnizip`), and the tests of all methods include it. `docs/methods.md` describes the
# contract of a method, and of one that follows a stream.
