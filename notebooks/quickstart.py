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
# # Quickstart
#
# Load a model, ask about a clip, look at what compression kept, ask again, and compare methods.
#
# With the released weights, convert them once (`omnizip convert Qwen2.5-Omni-3B TARGET`), set
# `CHECKPOINT` to that folder, `CLIP` to your video and `QUESTIONS` to what you want to know.
# Without them the notebook uses the small model that comes along: the same architecture with 2
# million parameters, trained on clips in which shapes are seen and sounds are heard.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import omnizip_jax
from omnizip_jax import METHODS, OmniZipConfig
from omnizip_jax.testbed.clip_questions import NAMES
from omnizip_jax.testbed.demo_clips import sample_clip
from omnizip_jax.visualize import plot_compression

CHECKPOINT = "small"
made = sample_clip()  # of a seed: the camera moves, and so does what it sees
CLIP = made.write(Path(tempfile.mkdtemp()) / "clip.mp4")
for obj in made.objects:
    print(f"second {obj.second}: {obj.colour} {obj.shape}, sound: {obj.sound}")
QUESTIONS = {  # and the true answers
    f"Which colour was seen during the {NAMES[event.sound]}?": event.colour for event in made.events
}

# %% [markdown]
# ## Load and ask
#
# `keep=0.45` keeps 45 % of the tokens, those of sound and picture together.

# %%
params = omnizip_jax.load(CHECKPOINT, dtype="float32")  # bfloat16 on a GPU
question, truth = next(iter(QUESTIONS.items()))
answer = omnizip_jax.generate(
    params, CLIP, question, compression=OmniZipConfig(keep=0.45), max_new_tokens=16
)
print(question, answer)
print("true answer:", truth)

# %% [markdown]
# The answer carries what led to it: tokens by modality before and after compression, and seconds
# by stage (the first time, programs are compiled).

# %%
print(answer.counts)
print({stage: round(seconds, 2) for stage, seconds in answer.seconds.items()})

# %% [markdown]
# ## What was kept
#
# Dropped tokens are dimmed. The first row of frames is the spatial step (DPC-KNN), the second the
# temporal one. Below: the share of audio kept in each window, and how hard its video was pruned:
# where there is more to hear, more of the picture stays.

# %%
plot_compression(answer)

# %% [markdown]
# ## Ask again
#
# `generate` forgets. `read` prefills the clip once, and a question to the context costs its own
# tokens only. With `keep=True` question and answer stay, so that a later question can refer to
# them. A context that `ask` was given stays as it is, so that others can go on from it as well.

# %%
context = omnizip_jax.read(params, CLIP, OmniZipConfig(keep=0.45))
for question, truth in QUESTIONS.items():
    answer, _ = omnizip_jax.ask(params, context, question, max_new_tokens=16)
    print(f"{question} {answer} (truth: {truth})")
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})

dialogue = context
for question in QUESTIONS:
    answer, dialogue = omnizip_jax.ask(params, dialogue, question, max_new_tokens=16, keep=True)
print(f"{context.cache.length} tokens are remembered in one, {dialogue.cache.length} in the other")

for piece in omnizip_jax.stream_answer(params, context, "Which sound came first?"):
    print(piece, end="", flush=True)  # as it is made

# %% [markdown]
# ## Other methods
#
# `omnizip_jax.METHODS` has them by name, and `docs/methods.md` describes them and how to write one.
# Here they keep 45 % of the tokens, all but the authors' published rule, which cannot hold a share.
#
# The paper's spatial step, taken to the letter, can drop a small thing on a still backdrop.
# `OmniZipConfig()` therefore measures distances relative to the largest in the grid.
# `docs/accuracy.md` says why, and how often it matters; on a single clip like this one it need not.

# %%
rivals = ("random", "temporal", "dycoke", "visionzip", "evs", "vidcom2")
methods = {
    "all tokens": None,
    "omnizip": OmniZipConfig(keep=0.45),
    "the paper's letter": OmniZipConfig.paper(keep=0.45),
    "published": OmniZipConfig.published(rho_audio=0.45, rho_video=0.65),
} | {name: METHODS[name](keep=0.45) for name in rivals}
print(f"{'':>20}  {'kept':>6}  {' '.join(f'{truth:<7}' for truth in QUESTIONS.values())}(truth)")
for name, method in methods.items():
    context = omnizip_jax.read(params, CLIP, method)
    said = [omnizip_jax.ask(params, context, q, max_new_tokens=16)[0] for q in QUESTIONS]
    words = " ".join(f"{answer.text:<7}" for answer in said)
    print(f"{name:>20}  {said[0].counts.retained:>6.1%}  {words}")

# %%
paper = OmniZipConfig.paper(keep=0.45)
answer = omnizip_jax.generate(params, CLIP, question, compression=paper, max_new_tokens=16)
plot_compression(answer)
