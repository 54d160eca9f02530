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
# Write a rule that chooses among the tokens, look at what it keeps, and get its row beside the
# others. Needs nothing but the package: the small model, its clips and questions come along.

# %% [markdown]
# ## The rule
#
# The idea: tokens far from the mean of their clip are worth keeping. A method is a frozen
# dataclass, its fields are its settings. `Rates` brings `rho_audio`, `rho_video` and `keep`, and
# decides exactly how many tokens of each modality are kept. The ranking is left to write:
# `select_audio` and `select_video` get the clip's windows and a count, and return which are kept.
#
# Shapes may not depend on data, so tokens that do not exist are there as well; masks say which do.

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
from omnizip_jax.testbed.demo_clips import sample_clip
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
    """How far each token is from the mean over some axes of those that exist."""
    tokens, exists = tokens.astype(jnp.float32), mask[..., None]
    total = jnp.sum(tokens * exists, axes, keepdims=True)
    mean = total / jnp.maximum(jnp.sum(exists, axes, keepdims=True), 1)
    return jnp.linalg.norm(tokens - mean, axis=-1)


METHODS["unusual"] = Unusual  # now `METHODS` knows it, as it knows the others

# %% [markdown]
# ## What it keeps
#
# `generate` takes it like any other method. The same question under several, each with 35 % of the
# tokens; frames are dimmed where tokens were dropped, the strips are the sound.

# %%
params = omnizip_jax.load("small", dtype="float32")  # bfloat16 on a GPU
made = sample_clip()
event = made.events[0]
question = f"Which colour was seen during the {NAMES[event.sound]}?"
clip = made.write(Path(tempfile.mkdtemp()) / "clip.mp4")
methods = {name: METHODS[name](keep=0.35) for name in ("omnizip", "random", "unusual")}
methods["unusual here"] = Unusual(keep=0.35, same_place=True)
answers = {
    name: omnizip_jax.generate(params, clip, question, compression=method, max_new_tokens=4)
    for name, method in methods.items()
}
print(question, f"(truth: {event.colour})")
for name, answer in answers.items():
    spent = cost(params.config.text, methods[name], answer.counts, answer.compression)
    print(f"{name:>12}: {answer.text:<8} kept {spent.kept:.1%}, {spent.operations:.3g} operations")
plot_methods(answers)

# %% [markdown]
# ## Its row beside the others
#
# The same questions about the same clips under every method: `measure` asks, here about 16 hard
# clips, one question of each family. That is few: the intervals say how few. The command
# `python -m experiments.accuracy` asks about a thousand.

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
# To keep a method, put it into a file of `omnizip_jax/compression/` and its class into `METHODS`
# there: then the command line knows it (`omnizip compare CLIP QUESTION --methods unusual,omnizip`),
# and so do the tests that hold for every method. `docs/methods.md` says what a method must not do,
# and how one follows a stream.
